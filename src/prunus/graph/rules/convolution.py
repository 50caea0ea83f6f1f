"""Convolutions, plain, grouped and transposed."""

from __future__ import annotations

from typing import Any

from prunus.graph.call import Call, Found
from prunus.graph.labels import Dim, Fixed, Value


def convolution(call: Call) -> Found:
    """y[n, o, …] = Σ x[n, i, …]·w[o, i, …] + b[o], within each group of channels."""
    x, w, b = call.value("input"), call.value("weight"), call.value("bias")
    if x is None or w is None or len(x.dims) != len(w.dims):
        return None
    turned = "transpose" in call.name or bool(call["transposed"])
    groups = int(call["groups"] or 1)
    spatial = f"{call.where}: positions in space"
    apart = [_apart(call, w, i) for i in range(len(x.dims) - 2)]
    for i, (dim, kernel) in enumerate(zip(x.dims[2:], w.dims[2:], strict=True)):
        call.labels.pin(kernel, spatial)
        if not apart[i]:
            call.labels.pin(dim, spatial)
    inner, outer = (0, 1) if turned else (1, 0)
    if groups == 1:
        call.summed((x, 1), (w, inner), what="a sum")
        out, zero = w.dims[outer], w.zero[outer]
    else:
        out, zero = _grouped(call, x, w, groups, turned)
    if b is not None:
        call.labels.tie(out, b.dims[0])
        zero = zero and b.zero[0]
    places = zip(x.dims[2:], x.zero[2:], apart, strict=True)
    rest = [(d, z and b is None) if free else (Fixed(spatial), False) for d, z, free in places]
    dims: list[Dim] = [x.dims[0], out, *(d for d, _ in rest)]
    return call.result(dims, [False, zero, *(z for _, z in rest)])


def _apart(call: Call, w: Value, i: int) -> bool:
    """Whether positions along spatial dimension ``i`` do not meet: kernel 1, stride 1."""

    def at(key: str) -> Any:
        given = call[key]
        return given[min(i, len(given) - 1)] if isinstance(given, (list, tuple)) else given

    still = at("padding") in (0, "same", "valid") and not at("output_padding")
    return w.shape[2 + i] == 1 and at("stride") == 1 and still


def _grouped(call: Call, x: Value, w: Value, groups: int, turned: bool) -> tuple[Dim, bool]:
    """Channels count groups × channels of a group: each loses whole groups or inner ones."""
    labels, where = call.labels, call.where
    inputs, outputs = x.shape[1], int(call.out.shape[1])
    group = labels.fresh(groups)
    one_in, one_out = labels.fresh(inputs // groups), labels.fresh(outputs // groups)
    if turned:
        out: Dim = labels.fresh(outputs)
        labels.factors(where, w.dims[0], (group, one_in), (groups, inputs // groups))
        if w.shape[1] > 1:
            labels.tie(w.dims[1], one_out)
    else:
        out = w.dims[0]
        if w.shape[1] > 1:
            labels.tie(w.dims[1], one_in)
    if inputs == groups and outputs == groups:  # depthwise: one to one
        labels.join(x.dims[1], group, out)
        return labels.join(x.dims[1], out), w.zero[0]
    labels.factors(where, x.dims[1], (group, one_in), (groups, inputs // groups))
    labels.factors(where, out, (group, one_out), (groups, outputs // groups))
    return out, w.zero[0]


RULES = dict.fromkeys(
    (
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "convolution",
        "_convolution",
    ),
    convolution,
)
