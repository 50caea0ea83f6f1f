"""Operators that count every number of a matrix or a vector: determinants, inverses, distances."""

from __future__ import annotations

from torch import Tensor

from prunus.graph.call import Call, Found
from prunus.graph.labels import Dim, Fixed, Value
from prunus.graph.rules.pointwise import line_up

MATRICES = (
    "linalg_slogdet", "slogdet", "_linalg_slogdet", "logdet", "det", "linalg_det", "_linalg_det",
    "inverse", "linalg_inv", "linalg_inv_ex", "linalg_solve", "linalg_solve_ex", "_linalg_solve_ex",
    "linalg_solve_triangular", "linalg_cholesky", "linalg_cholesky_ex", "cholesky", "linalg_qr",
    "linalg_svd", "_linalg_svd", "svd", "linalg_svdvals", "linalg_eigh", "_linalg_eigh",
    "linalg_eigvalsh", "linalg_matrix_exp", "matrix_exp", "linalg_pinv", "linalg_matrix_power",
    "matrix_power", "linalg_lstsq", "linalg_lu", "linalg_lu_factor", "linalg_lu_factor_ex",
    "linalg_householder_product", "geqrf", "linalg_eig", "linalg_eigvals", "_linalg_eigvals",
    "cholesky_solve", "cholesky_inverse", "triangular_solve", "linalg_ldl_factor_ex",
)  # fmt: skip

EVERYTHING = (
    "take", "put", "masked_scatter", "masked_select", "nonzero", "nonzero_static", "histc",
    "bincount", "_unique2", "unique_dim", "unique_consecutive", "sparse_coo_tensor",
    "_sparse_coo_tensor_with_dims_and_tensors", "_to_sparse", "to_sparse", "as_strided",
)  # fmt: skip


def matrices(call: Call) -> Found:
    """The last two dimensions stay; what stands before them is a batch of matrices."""
    why = f"{call.where}: counts the whole matrix"
    values = call.operands()
    for value in values:
        for dim in value.dims[-2:]:
            call.labels.pin(dim, why)
    batches = [Value(v.dims[:-2], v.zero[:-2], v.shape[:-2]) for v in values]
    shape = max((v.shape for v in batches), key=len, default=())
    batch = line_up(call.labels, shape, batches)

    def found(out: Tensor) -> Value:
        rest: list[Dim] = [Fixed(why) for _ in out.shape[len(batch) :]]
        return call.result([*batch[: out.dim()], *rest], [False] * out.dim(), out)

    if isinstance(call.out, Tensor):
        return found(call.out)
    return [found(t) if isinstance(t, Tensor) else None for t in call.out]


def everything(call: Call) -> Found:
    """The numbers of a tensor in the order in which they lie, or all of them at once."""
    why = f"{call.where}: counts every number in its place"
    for value in call.operands():
        for dim in value.dims:
            call.labels.pin(dim, why)
    if isinstance(call.out, Tensor):
        return call.fixed(why)
    return [call.fixed(why, t) if isinstance(t, Tensor) else None for t in call.out]


def similarity(call: Call) -> Found:
    """Of two vectors along a dimension: products and lengths are sums, where zeros add nothing."""
    x, z = call.value("x1"), call.value("x2")
    if x is None or z is None:
        return None
    shape = tuple(max(a, b) for a, b in zip(x.shape[::-1], z.shape[::-1], strict=False))[::-1]
    if len(x.shape) != len(z.shape):
        return None
    d = int(call["dim"]) % len(shape)
    call.summed((x, d), (z, d), what="a sum")
    for value in (x, z):
        if not value.zero[d]:  # its length alone is a sum, too
            call.labels.pin(value.dims[d], f"{call.where}: a length of what a cut does not zero")
    dims = list(line_up(call.labels, shape, [x, z]))
    del dims[d]
    return call.result(dims, [False] * len(dims))


def distance(call: Call) -> Found:
    """Between rows: ``pairwise_distance`` adds a little to every index, so that none can go."""
    x, z = call.value("x1"), call.value("x2")
    if x is None or z is None:
        return None
    why = f"{call.where}: counts every index"
    for value in (x, z):
        call.labels.pin(value.dims[-1], why)
    if call.name == "pairwise_distance":
        shape = tuple(call.out.shape[:-1] if call["keepdim"] else call.out.shape)
        rows = line_up(call.labels, shape, [_rows(x, 1), _rows(z, 1)])
        rows = (*rows, Fixed(why)) if call["keepdim"] else rows
        return call.result(rows, [False] * len(rows))
    batch = line_up(call.labels, tuple(call.out.shape[:-2]), [_rows(x, 2), _rows(z, 2)])
    return call.result([*batch, x.dims[-2], z.dims[-2]], [False] * (len(batch) + 2))


def _rows(value: Value, last: int) -> Value:
    """Without the last dimensions."""
    return Value(value.dims[:-last], value.zero[:-last], value.shape[:-last])


RULES = {
    **dict.fromkeys(MATRICES, matrices),
    **dict.fromkeys(EVERYTHING, everything),
    "cosine_similarity": similarity,
    "pairwise_distance": distance,
    "cdist": distance,
    "_cdist_forward": distance,
    "_euclidean_dist": distance,
}
