"""Which operators commute with an orthogonal matrix along the stream: a rule for each that may.

An operator without a rule here acts on each index by itself (an activation, a position, a batch
norm), or is not known not to: the stream stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor, fx

from prunus.graph.call import describe
from prunus.graph.rules.contraction import spelled_out
from prunus.graph.rules.creation import FULL, ZERO
from prunus.graph.rules.movement import EXPANDED, MOVES, SPLITS
from prunus.graph.rules.norms import LAST_DIMS, RMS
from prunus.graph.rules.reductions import COUNTS, dimensions


class StaysError(Exception):
    """Why a stream cannot be turned."""


@dataclass(frozen=True)
class Turned:
    """What a value becomes when its stream is turned.

    Attributes:
        form: ``turned``: x·Q along the stream; ``square``: the squares of such numbers; ``same``:
            one number for all indices, which stays; ``own``: a constant with a number for each
            index, which can only be a scale.
        scale: a constant that the turned value is multiplied by, index by index.
        source: the parameter that this is, moved at most, and its dimensions along the stream.
        padded: whether zeros follow the stream's own indices.
    """

    form: Literal["turned", "square", "same", "own"] = "turned"
    scale: fx.Node | None = None
    source: tuple[str, tuple[int, ...]] | None = None
    padded: bool = False


class Operator(Protocol):
    """An operator that meets the stream, with what is known of its operands."""

    node: fx.Node

    @property
    def name(self) -> str:
        """Without overload and underscore."""

    @property
    def args(self) -> dict[str, Any]:
        """By their names in the schema."""

    def dims(self, argument: Any) -> list[int]:
        """Dimensions along the stream."""

    def state(self, argument: Any) -> Turned:
        """Of an operand that has such dimensions."""

    def constant(self, argument: Any) -> bool:
        """Whether parameters alone decide it."""

    def scalar(self, argument: fx.Node) -> bool:
        """Whether a constant is the same for all indices, and has to stay where it is."""

    def settle(self, argument: Any) -> None:
        """A value that was made of parameters turns as they do, and is no scale."""

    def scale(self, argument: fx.Node) -> fx.Node:
        """A constant; of equal ones the first."""

    def use(
        self, argument: Any, dim: int, scale: fx.Node | None = None, *, reads: bool = False
    ) -> None:
        """A parameter meets the stream, which it ``reads`` through a scale, or adds to."""


Result: TypeAlias = "Turned | None"
"""Of what an operator gives; ``None``: it does not turn with the stream."""

Rule: TypeAlias = Callable[[Operator], Result]


def _stays(op: Operator, why: str) -> StaysError:
    return StaysError(f"{describe(op.node)} {why}")


def _given(op: Operator, *keys: str) -> Any:
    return next((op.args[k] for k in keys if op.args.get(k) is not None), None)


def _carrying(op: Operator, arguments: Iterable[Any] | None = None) -> list[fx.Node]:
    nodes = op.node.all_input_nodes if arguments is None else arguments
    return [n for n in nodes if isinstance(n, fx.Node) and op.dims(n)]


def _settled(op: Operator, argument: fx.Node) -> Turned:
    """An operand that turns as it is: what becomes of it is no parameter any more."""
    state = op.state(argument)
    if state.form == "own":
        raise _stays(op, "takes a number of its own for each index")
    op.settle(argument)
    if state.source is not None:
        for d in op.dims(argument):
            op.use(argument, d)
    return replace(state, source=None)


# --- rules


def moved(op: Operator) -> Result:
    """Elements change places; the rest of the check is that the stream stays whole."""
    operands = _carrying(op, op.node.args[:1])
    if not operands:
        if op.name in EXPANDED:
            return Turned("same")
        raise _stays(op, "reads single indices")
    first = operands[0]
    state, rank = op.state(first), len(op.dims(first))
    if op.name in ("pad", "constant_pad_nd"):
        if (op.args.get("value") or 0) != 0 or op.args.get("mode") not in (None, "constant"):
            raise _stays(op, "fills up with what does not turn")
        return replace(state, source=None, padded=True)
    if state.source is not None and rank > 1:
        turns = op.name in ("t", "transpose", "permute", "numpy_T", "mT", "swapaxes", "swapdims")
        if not turns or len(first.meta["val"].shape) > 2:
            _settled(op, first)
            return replace(state, source=None)
        return replace(state, source=(state.source[0], state.source[1][::-1]))
    return state


def linear_map(op: Operator) -> Result:
    """The same linear function of every index."""
    first, *others = _carrying(op)
    if others or first is not op.node.args[0]:
        raise _stays(op, "acts on each index by itself")
    if op.name == "masked_fill" and op.args.get("value") != 0:
        raise _stays(op, "fills in a value that does not turn")
    return _settled(op, first)


def copied(op: Operator) -> Result:
    """The value itself, perhaps in another type."""
    return op.state(_carrying(op)[0])


def added(op: Operator) -> Result:
    """Everything that is added turns alike."""
    if op.name in ("cat", "concat", "concatenate", "stack"):
        parts: Sequence[Any] = op.args["tensors"]
    else:
        parts = [
            v for k in ("self", "other", "input", "source") if (v := op.args.get(k)) is not None
        ]
    if any(n not in parts for n in _carrying(op)):
        raise _stays(op, "chooses index by index")
    states = [_settled(op, n) for n in _carrying(op, parts)]
    if len(states) < sum(part != 0 if isinstance(part, (int, float)) else True for part in parts):
        raise _stays(op, "adds the same number to every index")
    if any(s.form == "square" for s in states):
        raise _stays(op, "adds squares of single indices")
    if len({(s.form, s.scale) for s in states}) > 1:
        scaled = next((s.scale for s in states if s.scale is not None), None)
        what = "what does not turn" if scaled is None else f"what {describe(scaled)} has scaled"
        raise _stays(op, f"adds {what}, index by index")
    return states[0]


def multiplied(op: Operator) -> Result:
    """By a number that is the same for all indices, by itself, or by a scale."""
    operands = [op.args.get("self"), op.args.get("other")]
    nodes = _carrying(op, operands)
    if op.name.startswith(("div", "true_div")) and nodes[0] is not operands[0]:
        raise _stays(op, "divides by single indices")
    if len(nodes) == 2 and nodes[0] is nodes[1]:
        return _squared(op, nodes[0])
    same = [n for n in nodes if op.state(n).form == "same" or op.scalar(n)]
    if len(same) == len(nodes):
        return Turned("same")
    rest = [n for n in nodes if n not in same]
    if len(rest) == 1:
        return _settled(op, rest[0])
    if op.name.startswith(("div", "true_div")):
        raise _stays(op, "divides each index by a number of its own")
    scales = [n for n in rest if op.constant(n)]
    if len(scales) != 1 or not _is_vector(op, scales[0]):
        raise _stays(op, "multiplies index by index")
    value = _settled(op, next(n for n in rest if n is not scales[0]))
    if value.scale is not None or value.form != "turned":
        raise _stays(op, "scales index by index for a second time")
    return replace(value, scale=op.scale(scales[0]))


def _is_vector(op: Operator, node: fx.Node) -> bool:
    shape = node.meta["val"].shape
    return len(op.dims(node)) == 1 and math.prod(shape) == shape[op.dims(node)[0]]


def power(op: Operator) -> Result:
    """The square alone."""
    exponent = op.args.get("exponent", 2)
    if exponent != 2:
        raise _stays(op, "acts on each index by itself")
    return _squared(op, op.node.args[0])


def _squared(op: Operator, argument: Any) -> Result:
    state = _settled(op, argument)
    if state.form != "turned" or state.scale is not None:
        raise _stays(op, "takes squares of what a scale has changed")
    return replace(state, form="square")


def reduced(op: Operator) -> Result:
    """Σx² over the stream is what a rotation leaves alone; along other dimensions all is linear."""
    first = op.node.args[0]
    state, rank = _settled(op, first), len(first.meta["val"].shape)  # type: ignore[arg-type, union-attr]
    given = op.args["dim"] if op.args.get("dim") is not None else op.args.get("dims")
    over = set(dimensions(given, rank)).intersection(op.dims(first))
    if not over:
        if op.name not in ("mean", "sum"):
            raise _stays(op, "acts on each index by itself")
        return state
    order = op.args.get("ord", op.args.get("p", 2))
    length = op.name in ("linalg_vector_norm", "norm") and order in (None, 2)
    squares = op.name in ("mean", "sum") and state.form == "square"
    if len(op.dims(first)) > 1 or not (squares or (length and state.form == "turned")):
        mean = op.name in COUNTS and state.form == "turned"
        raise _stays(op, "subtracts a mean, as LayerNorm does" if mean else "sums single indices")
    if length and state.scale is not None:
        raise _stays(op, "takes the length of what a scale has changed")
    return None


def rms_norm(op: Operator) -> Result:
    """x / √(Σx² / D + eps), and the scale behind it."""
    first = _given(op, "input", "self")
    state, weight = _settled(op, first), op.args.get("weight")
    rank = len(first.meta["val"].shape)
    alone = op.dims(first) == [rank - 1] and len(op.args["normalized_shape"]) == 1
    if not alone or state.form != "turned" or state.scale is not None:
        raise _stays(op, "normalizes what a scale has changed, or more than the stream")
    if weight is None or op.scalar(weight):
        return state
    if not op.constant(weight):
        raise _stays(op, "scales index by index by what is no parameter")
    return replace(state, scale=op.scale(weight))


def layer_norm(op: Operator) -> Result:
    """Its mean is a sum over single indices."""
    raise _stays(
        op, "subtracts a mean, as LayerNorm does: only an RMS norm commutes with rotations"
    )


def looked_up(op: Operator) -> Result:
    """Rows of a table that turns."""
    (table,) = _carrying(op)
    state = _settled(op, table)
    if state.scale is not None:
        raise _stays(op, "looks up rows that a scale has changed")
    return state


def made(op: Operator) -> Result:
    """Zeros turn into zeros."""
    return Turned() if op.name in ZERO else Turned("same")


def contracted(op: Operator) -> Result:
    """Sums over products: x·Q and w·Q give what x and w give."""
    a, b, bias, pairs, apart = _operands(op)
    for d, e in pairs:
        if (d in op.dims(a)) != (e in op.dims(b)):
            raise _stays(op, "meets something else along the stream")
        if d in op.dims(a):
            _read(op, a, d, b, e)
    rest = [(a, d) for d in op.dims(a) if d not in {p[0] for p in pairs}]
    rest += [(b, d) for d in op.dims(b) if d not in {p[1] for p in pairs}]
    if len(rest) != len(op.dims(op.node)) or any(place in apart for place in rest):
        raise _stays(op, "works on each index by itself")
    scale: fx.Node | None = None
    for operand, d in rest:
        state = op.state(operand)
        if state.form != "turned" or (scale is not None and state.scale is not None):
            raise _stays(op, "acts on each index by itself")
        scale = scale or state.scale
        op.settle(operand)
        if state.source is not None:
            op.use(operand, d)
    if bias is not None:
        own = _settled(op, bias) if op.dims(bias) else None
        if bool(rest) != (own is not None) or (own is not None and (own.scale or scale)):
            raise _stays(op, "adds the same number to every index")
    return Turned(scale=scale) if rest else None


def _read(op: Operator, a: Any, d: int, b: Any, e: int) -> None:
    """Both factors of a sum over the stream; the scale of one goes into the other."""
    one, other = op.state(a), op.state(b)
    if one.form != "turned" or other.form != "turned":
        raise _stays(op, "reads what does not turn")
    for argument, dim, state, scale in ((a, d, one, other.scale), (b, e, other, one.scale)):
        if scale is not None and (state.source is None or state.scale is not None):
            raise _stays(op, f"reads what {describe(scale)} has scaled with what is no parameter")
        op.settle(argument)
        if state.source is not None:
            op.use(argument, dim, scale, reads=True)


_Pairs: TypeAlias = list[tuple[int, int]]
_Operands: TypeAlias = "tuple[Any, Any, Any, _Pairs, set[tuple[Any, int]]]"


def _operands(op: Operator) -> _Operands:
    """Two factors, what is added, the dimensions summed over, and those that are kept apart."""
    if op.name == "einsum":
        return _letters(op)
    if op.name == "linear":
        a, b = op.args["input"], op.args["weight"]
        return a, b, op.args.get("bias"), [(_rank(a) - 1, 1)], set()
    if "conv" in op.name:
        a, b = op.args["input"], op.args["weight"]
        if int(op.args.get("groups") or 1) != 1:
            raise _stays(op, "works on each index by itself")
        turned = "transpose" in op.name or bool(op.args.get("transposed"))
        return a, b, op.args.get("bias"), [(1, 0 if turned else 1)], set()
    a = _given(op, "mat1", "batch1", "self", "input")
    b = _given(op, "mat2", "batch2", "other", "vec", "tensor", "weight")
    if "grouped" in op.name:  # [rows, in] and [groups, in, out]
        return a, b, None, [(1, 1)], set()
    added = op.args["self"] if op.name in ("addmm", "baddbmm") else None
    inner = max(0, _rank(b) - 2)
    apart = {(n, d) for n in (a, b) for d in range(_rank(n) - 2)}
    return a, b, added, [(_rank(a) - 1, inner)], apart


def _letters(op: Operator) -> _Operands:
    tensors = list(op.args["tensors"])
    if len(tensors) != 2:
        raise _stays(op, "multiplies more than two tensors")
    left, right = spelled_out(str(op.args["equation"]), [_rank(n) for n in tensors])
    first, second = left.split(",")
    pairs = [(d, second.index(c)) for d, c in enumerate(first) if c in second and c not in right]
    both = {c for c in first if c in second and c in right}
    apart = {(tensors[i], d) for i, s in enumerate((first, second)) for d, c in enumerate(s)
             if c in both}  # fmt: skip
    return tensors[0], tensors[1], None, pairs, apart


def _rank(node: Any) -> int:
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    return value.dim()


RULES: dict[str, Rule] = {
    **dict.fromkeys((*MOVES, *SPLITS), moved),
    **dict.fromkeys(
        ("to", "_to_copy", "contiguous", "clone", "detach", "alias", "lift_fresh_copy", "dropout",
         "native_dropout", "type_as", "float", "conj", "resolve_conj"), copied),
    **dict.fromkeys(
        ("neg", "index", "_unsafe_index", "index_select", "masked_fill", "cumsum",
         *(f"{kind}{n}d" for n in (1, 2, 3) for kind in
           ("avg_pool", "adaptive_avg_pool", "_adaptive_avg_pool", "upsample_nearest")),
         "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d"), linear_map),
    **dict.fromkeys(("add", "sub", "subtract", "cat", "concat", "concatenate", "stack", "where",
                     "index_add"),
                    added),
    **dict.fromkeys(("mul", "multiply", "div", "divide", "true_divide"), multiplied),
    **dict.fromkeys(("pow", "square"), power),
    **dict.fromkeys((*COUNTS, "sum", "linalg_vector_norm", "norm"), reduced),
    **dict.fromkeys(LAST_DIMS, layer_norm),
    **dict.fromkeys(RMS, rms_norm),
    "embedding": looked_up,
    **dict.fromkeys((*ZERO, *FULL), made),
    **dict.fromkeys(
        ("linear", "matmul", "mm", "bmm", "mv", "addmm", "baddbmm", "einsum", "conv1d", "conv2d",
         "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution",
         "_convolution", "_grouped_mm", "grouped_mm_fallback"), contracted),
}  # fmt: skip
