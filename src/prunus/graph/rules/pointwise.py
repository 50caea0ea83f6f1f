"""Element by element: dimensions that line up fall together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from prunus._common.put_back import written_arguments
from prunus.graph.call import Call, Found
from prunus.graph.labels import Dim, Dims, Labels, Value

PRODUCTS = frozenset({"mul", "multiply", "logical_and", "bitwise_and", "__and__"})
QUOTIENTS = frozenset({"div", "divide", "true_divide", "floor_divide", "fmod", "remainder"})
SUMS = frozenset({"add", "sub", "subtract", "maximum", "minimum", "lerp", "hypot"})
COPIES = frozenset(
    {"to", "_to_copy", "contiguous", "clone", "detach", "alias", "lift_fresh_copy", "dropout",
     "feature_dropout", "native_dropout", "type_as", "float", "copy", "alpha_dropout",
     "dropout1d", "dropout2d", "dropout3d", "real", "imag", "conj", "_conj", "conj_physical",
     "_conj_physical", "resolve_conj", "resolve_neg", "_neg_view"}
)  # fmt: skip
OTHERS = frozenset(
    {"where", "masked_fill", "softplus", "hardtanh", "relu6", "gelu", "threshold", "elu",
     "celu", "selu", "leaky_relu", "nan_to_num", "clamp", "clamp_min", "clamp_max", "logical_or",
     "logical_not", "rsub", "fill", "hardswish", "hardsigmoid", "mish", "silu", "zero", "relu",
     "__or__", "__xor__", "__ior__", "bitwise_or", "bitwise_xor", "rrelu", "logit", "pow",
     "log_sigmoid", "addcmul", "addcdiv", "isin", "hardshrink", "softshrink", "erf", "bernoulli",
     "complex", "polar", "angle"}
)  # fmt: skip


CHANCE = ("bernoulli", "rrelu")
"""Operators whose results are other ones each time."""


def line_up(labels: Labels, out: Sequence[int], dims: Sequence[Value]) -> Dims:
    """Broadcasting: dimensions are matched from the last one; a size of 1 tells nothing."""
    joined: list[Dim] = []
    for e, size in enumerate(out):
        found = []
        for value in dims:
            d = len(value.shape) - len(out) + e
            if d >= 0 and value.shape[d] == size and size != 1:
                found.append(value.dims[d])
        joined.append(labels.join(*found) if found else labels.made([size])[0])
    return tuple(joined)


def along(value: Value, rank: int, dim: int, size: int) -> bool:
    """Whether a broadcast operand is zero at removed indices of a result's dimension."""
    d = len(value.shape) - rank + dim
    return d >= 0 and value.shape[d] == size and value.zero[d]


def pointwise(call: Call) -> Found:
    """Any operator that works element by element, with broadcasting."""
    out = call.out
    tensor = out if isinstance(out, Tensor) else out[0]
    values = call.operands()
    divisor = call.value("other") if call.name in QUOTIENTS else None
    for dim, zero in zip(divisor.dims, divisor.zero, strict=True) if divisor is not None else ():
        if zero:
            call.labels.pin(dim, f"{call.where}: divides by what a cut makes zero")
    shape = tuple(int(n) for n in tensor.shape)
    dims = line_up(call.labels, shape, values)
    found = call.result(dims, [_zero(call, e, shape) for e in range(len(shape))], tensor)
    found = replace(found, even=tuple(_even(call, e, shape) for e in range(len(shape))))
    if isinstance(out, Tensor):
        return found
    return [found, *(call.fixed("a by-product", t) for t in out[1:])]


def _zero(call: Call, e: int, shape: tuple[int, ...]) -> bool:
    """Whether zero operands at an index of dimension ``e`` make the result zero there."""

    def zero(argument: Any) -> bool:
        value = call.of(argument)
        if value is None:
            return isinstance(argument, (int, float)) and argument == 0
        return along(value, len(shape), e, shape[e])

    nodes = [n for n in call.node.all_input_nodes if call.of(n) is not None]
    name = call.name
    if name in PRODUCTS:
        return any(zero(n) for n in nodes)
    if name in QUOTIENTS:
        return zero(call.node.args[0])
    if name == "masked_fill":
        return zero(call["self"]) and zero(call["value"])
    if name == "where":
        return zero(call["self"]) and zero(call["other"])
    if name in ("addcmul", "addcdiv"):
        return zero(call["self"]) and (zero(call["tensor1"]))
    if name == "copy":
        return zero(call["src"])
    if name == "polar":
        return zero(call["abs"])
    if name == "complex":
        return zero(call["real"]) and zero(call["imag"])
    if name == "alpha_dropout" and call["train"]:
        return False  # what it drops becomes a number
    if name in COPIES and nodes:
        return zero(nodes[0])
    if len(nodes) == 1:
        return zero(nodes[0]) and _keeps_zero(call, nodes[0])
    return name in SUMS and all(zero(n) for n in nodes)


def _even(call: Call, e: int, shape: tuple[int, ...]) -> bool:
    """Whether operands have zeros at removed indices of a dimension, or what was made of some."""
    if written_arguments(call.node.target) or call.name in CHANCE:
        return False
    for value in call.operands():
        d = len(value.shape) - len(shape) + e
        if d >= 0 and value.shape[d] != 1 and not value.known(d):
            return False
    return True


def _keeps_zero(call: Call, operand: fx.Node) -> bool:
    """Whether a function of one tensor maps 0 to 0: asked of the function itself."""
    value = operand.meta.get("val")
    if not isinstance(value, Tensor) or call.name in CHANCE:
        return False
    zeros = torch.zeros(1, dtype=value.dtype)

    def put(argument: Any) -> Any:
        return zeros if argument is operand else argument

    try:
        args = fx.node.map_arg(call.node.args, put)
        kwargs = fx.node.map_arg(call.node.kwargs, put)
        result = call.node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, TypeError, IndexError):
        return False
    return isinstance(result, Tensor) and not bool(torch.count_nonzero(result))


def prelu(call: Call) -> Found:
    """A slope for each index of dimension 1, or one for all."""
    x, slope = call.value("self"), call.value("weight")
    if x is None or slope is None:
        return None
    dims = list(x.dims)
    if slope.shape != (1,):
        dims[1] = call.labels.join(dims[1], slope.dims[0])
    return call.result(dims, x.zero)


RULES = dict.fromkeys(PRODUCTS | QUOTIENTS | SUMS | COPIES | OTHERS, pointwise) | {"prelu": prelu}
