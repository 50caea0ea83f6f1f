"""Products that sum over an index: the summed indices of both factors fall together."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase, ascii_uppercase

from prunus.graph.call import Call, Found
from prunus.graph.labels import Fixed, Value
from prunus.graph.rules.pointwise import along, line_up


def linear(call: Call) -> Found:
    """y[…, o] = Σᵢ x[…, i]·w[o, i] + b[o]."""
    x, w, b = call.value("input"), call.value("weight"), call.value("bias")
    if x is None or w is None:
        return None
    call.summed((x, len(x.dims) - 1), (w, 1), what="a sum")
    zero = w.zero[0]
    if b is not None:
        call.labels.tie(w.dims[0], b.dims[0])
        zero = zero and b.zero[0]
    return call.result([*x.dims[:-1], w.dims[0]], [*_rows(x, b), zero])


def _rows(x: Value, bias: Value | None) -> list[bool]:
    """Rows of a product are zero where those of x are, unless a bias fills them."""
    return [z and bias is None for z in x.zero[:-1]]


def matmul(call: Call) -> Found:
    """Batches of matrices, matrices and vectors."""
    x, w = (
        call.value("self", "input", "sparse"),
        call.value("other", "mat2", "vec", "tensor", "dense"),
    )
    if x is None or w is None:
        return None
    return _product(call, x, w)


def _product(call: Call, x: Value, w: Value) -> Value:
    inner = 0 if len(w.dims) == 1 else len(w.dims) - 2
    call.summed((x, len(x.dims) - 1), (w, inner), what="a product")
    if len(x.dims) == 1 or len(w.dims) == 1:
        left, right = x.dims[:-1], (() if len(w.dims) == 1 else (*w.dims[:-2], w.dims[-1]))
        zero = x.zero[:-1] + (() if len(w.dims) == 1 else (*w.zero[:-2], w.zero[-1]))
        return call.result([*left, *right], zero)
    shape = tuple(int(n) for n in call.out.shape[:-2])
    batches = [Value(v.dims[:-2], v.zero[:-2], v.shape[:-2]) for v in (x, w)]
    batch = line_up(call.labels, shape, batches)
    zero = tuple(any(along(v, len(shape), e, shape[e]) for v in batches) for e in range(len(shape)))
    return call.result([*batch, x.dims[-2], w.dims[-1]], [*zero, x.zero[-2], w.zero[-1]])


def addmm(call: Call) -> Found:
    """b + x·w."""
    b = call.value("self", "input")
    x, w = call.value("mat1", "batch1", "vec1"), call.value("mat2", "batch2", "vec2")
    if b is None or x is None or w is None or call.name == "addr":
        return None
    product = _product(call, x, w)
    dims = line_up(call.labels, product.shape, [product, b])
    rank = len(product.shape)
    zero = [z and along(b, rank, e, product.shape[e]) for e, z in enumerate(product.zero)]
    return call.result(dims, zero)


def addbmm(call: Call) -> Found:
    """b + Σ x·w over a batch of both."""
    b, x, w = call.value("self"), call.value("batch1"), call.value("batch2")
    if b is None or x is None or w is None:
        return None
    call.summed((x, 0), (w, 0), what="a sum")
    call.summed((x, 2), (w, 1), what="a product")
    product = call.result([x.dims[1], w.dims[2]], [x.zero[1], w.zero[2]])
    dims = line_up(call.labels, product.shape, [product, b])
    zero = [z and along(b, 2, e, product.shape[e]) for e, z in enumerate(product.zero)]
    return call.result(dims, zero)


def einsum(call: Call) -> Found:
    """Letters that repeat fall together; those that vanish are summed over."""
    values = [v for n in call["tensors"] if (v := call.of(n)) is not None]
    if len(values) != len(call["tensors"]):
        return None
    left, right = spelled_out(str(call["equation"]), [len(v.dims) for v in values])
    places: dict[str, list[tuple[Value, int]]] = {}
    for letters, value in zip(left.split(","), values, strict=True):
        if len(set(letters)) != len(letters):
            return None
        for d, letter in enumerate(letters):
            places.setdefault(letter, []).append((value, d))
    for letter, found in places.items():
        real = [(v, d) for v, d in found if v.shape[d] != 1] or found
        if letter in right:
            call.labels.join(*(v.dims[d] for v, d in real))
        else:
            call.summed(*real, what="a sum")
        places[letter] = real
    dims = [places[letter][0][0].dims[places[letter][0][1]] for letter in right]
    zero = [any(v.zero[d] for v, d in places[letter]) for letter in right]
    return call.result(dims, zero)


def spelled_out(equation: str, ranks: Sequence[int]) -> tuple[str, str]:
    """Both sides of an einsum, with letters in place of ``...`` and a right side if it has none.

    >>> spelled_out("...i, oi -> ...o", [3, 2])
    ('ABi,oi', 'ABo')
    >>> spelled_out("ij,jk", [2, 2])
    ('ij,jk', 'ik')
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    own = [len(letters.replace("...", "")) for letters in left.split(",")]
    most = max((r - n for r, n in zip(ranks, own, strict=True)), default=0)
    spare = [c for c in ascii_uppercase + ascii_lowercase if c not in equation][:most]
    many = [
        letters.replace("...", "".join(spare[len(spare) - (rank - n) :]))
        for letters, rank, n in zip(left.split(","), ranks, own, strict=True)
    ]
    if not arrow:
        letters = left.replace(",", "").replace("...", "")
        right = "..." + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    return ",".join(many), right.replace("...", "".join(spare))


def bilinear(call: Call) -> Found:
    """y[…, o] = Σ x[…, i]·w[o, i, j]·z[…, j] + b[o]."""
    x, z, w, b = (call.value(k) for k in ("input1", "input2", "weight", "bias"))
    if x is None or z is None or w is None:
        return None
    for i, value in enumerate((x, z), start=1):
        call.summed((value, len(value.dims) - 1), (w, i), what="a sum")
    rows = [call.labels.join(*pair) for pair in zip(x.dims[:-1], z.dims[:-1], strict=True)]
    zero, out = w.zero[0], w.dims[0]
    if b is not None:
        call.labels.tie(out, b.dims[0])
        zero = zero and b.zero[0]
    made_zero = [p or q for p, q in zip(_rows(x, b), _rows(z, b), strict=True)]
    return call.result([*rows, out], [*made_zero, zero])


def grouped_matmul(call: Call) -> Found:
    """Rows in groups of their own lengths, each group times a matrix of its own."""
    x, w = call.value("self", "input"), call.value("mat2", "weight")
    offsets = call.value("offs")
    if x is None or w is None or offsets is None or (len(x.dims), len(w.dims)) != (2, 3):
        return None
    why = f"{call.where}: which group a row belongs to"
    for dim in (x.dims[0], w.dims[0], *offsets.dims):
        call.labels.pin(dim, why)
    call.summed((x, 1), (w, 1), what="a sum")
    return call.result([Fixed(why), w.dims[2]], [False, w.zero[2]])


GROUPED = ("_grouped_mm", "grouped_mm_fallback")
"""Operators of torch and of transformers that multiply each row with the matrix of its group."""

RULES = {
    **dict.fromkeys(GROUPED, grouped_matmul),
    "bilinear": bilinear,
    "linear": linear,
    "matmul": matmul,
    "mm": matmul,
    "_sparse_mm": matmul,
    "bmm": matmul,
    "mv": matmul,
    "dot": matmul,
    "vdot": matmul,
    "addmm": addmm,
    "baddbmm": addmm,
    "addbmm": addbmm,
    "einsum": einsum,
}
