"""Normalizations: what is normalized over stays, what is only scaled can go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunus.graph.call import Call, Found
from prunus.graph.labels import Value

RMS = ("rms_norm", "_fused_rms_norm")
LAST_DIMS = ("layer_norm", "native_layer_norm", *RMS)


def channel_norm(call: Call) -> Found:
    """Batch and instance norm: each channel by itself, with its scale, bias and statistics."""
    x = call.value("input")
    if x is None:
        return None
    dims = list(x.dims)
    parts = [call.value(k) for k in ("weight", "bias", "running_mean", "running_var")]
    for part in parts:
        if part is not None:
            dims[1] = call.labels.join(dims[1], part.dims[0])
    scale, shift = parts[0], parts[1]
    own = call.name == "instance_norm" or bool(call["training"] or call["use_input_stats"])
    made_zero = (scale is not None and scale.zero[0]) or (own and x.zero[1])  # its mean is 0, too
    made_zero = made_zero and (shift is None or shift.zero[0])
    for d in (d for d in range(len(dims)) if d != 1 and own):
        why = f"{call.where}: statistics count every index"
        if standardizes(call.name, call.args):
            call.counted(x, d, why)
        else:
            call.labels.pin(dims[d], why)
    return _with_statistics(call, dims, [False, made_zero, *(False for _ in dims[2:])])


def standardizes(name: str, args: Mapping[str, Any]) -> bool:
    """Whether a batch norm keeps no statistics: so weights are standardized."""
    return name == "batch_norm" and bool(args["training"]) and args["running_mean"] is None


def last_dims_norm(call: Call) -> Found:
    """Layer and RMS norm: the variance counts every index, so they go only as zeros, counted on."""
    x = call.value("input", "self")
    if x is None:
        return None
    why = f"{call.where}: its variance counts every index"
    first = len(x.dims) - len(call["normalized_shape"])
    scale, shift = call.value("weight"), call.value("bias")
    kept = list(x.zero[:first] if shift is None else [False] * first)
    if first == len(x.dims) - 1 and call.counted(x, first, why):
        joined = call.labels.join(*(v.dims[-1] for v in (x, scale, shift) if v is not None))
        scaled = scale is not None and scale.zero[0]
        zero = (shift is None or shift.zero[0]) if scaled else call.name in RMS
        return _with_statistics(call, [*x.dims[:first], joined], [*kept, zero])
    for part in (x, *(v for v in (scale, shift) if v is not None)):
        for dim in part.dims[first if part is x else 0 :]:
            call.labels.pin(dim, why)
    return _with_statistics(call, x.dims, [*kept, *(False for _ in x.dims[first:])])


def group_norm(call: Call) -> Found:
    """Whole groups of channels can go; within a group the variance counts every one."""
    x, weight, bias = call.value("input"), call.value("weight"), call.value("bias")
    if x is None:
        return None
    groups = int(call.first("num_groups", "group"))
    dims = list(x.dims)
    zero = weight is not None and weight.zero[0] and (bias is None or bias.zero[0])
    if groups == 1 and call.labels.hidden and call.name == "group_norm":
        return _one_group(call, x, [v for v in (weight, bias) if v is not None], zero=zero)
    for part in (weight, bias):
        if part is not None:
            dims[1] = call.labels.join(dims[1], part.dims[0])
    inner = call.labels.fresh(x.shape[1] // groups)
    call.labels.pin(inner, f"{call.where}: its variance counts every channel of a group")
    call.labels.factors(
        call.where, dims[1], (call.labels.fresh(groups), inner), (groups, x.shape[1] // groups)
    )
    for dim in dims[2:]:
        call.labels.pin(dim, f"{call.where}: its variance counts every position")
    return _with_statistics(call, dims, [False, zero, *(False for _ in dims[2:])])


def _one_group(call: Call, x: Value, scales: list[Value], *, zero: bool) -> Found:
    """All channels together are counted as a layer norm counts its width."""
    channels = call.labels.join(x.dims[1], *(v.dims[0] for v in scales))
    call.counted(x, 1, f"{call.where}: its variance counts every channel")
    for dim in x.dims[2:]:
        call.labels.pin(dim, f"{call.where}: its variance counts every position")
    dims = [x.dims[0], channels, *x.dims[2:]]
    return call.result(dims, [False, zero, *(False for _ in x.dims[2:])])


def weight_norm(call: Call) -> Found:
    """g·v/‖v‖ along one dimension; masked entries of v are zero and leave the norm as it is."""
    v, g = call.value("v"), call.value("g")
    if v is None or g is None:
        return None
    dim = int(call["dim"] or 0)
    dims = list(v.dims)
    for d in range(len(dims)):
        if d == dim:  # g alone is masked: a row of zeros has no direction, 0/0
            call.labels.spare(v.dims[d])
            dims[d] = call.labels.join(dims[d], g.dims[d])
        elif not v.zero[d]:
            call.labels.pin(dims[d], f"{call.where}: a norm of values that a cut does not zero")
    return _with_statistics(call, dims, v.zero)


def _with_statistics(call: Call, dims: Any, zero: Any) -> Found:
    if not isinstance(call.out, (tuple, list)):
        return call.result(dims, zero)
    found: list[Value | None] = [call.result(dims, zero, call.out[0])]
    return found + [call.fixed("statistics", t) for t in call.out[1:]]


RULES = {
    "batch_norm": channel_norm,
    "instance_norm": channel_norm,
    "native_batch_norm": channel_norm,
    "_native_batch_norm_legit_no_training": channel_norm,
    "_batch_norm_with_update": channel_norm,
    "cudnn_batch_norm": channel_norm,
    **dict.fromkeys(LAST_DIMS, last_dims_norm),
    "group_norm": group_norm,
    "native_group_norm": group_norm,
    "_weight_norm": weight_norm,
    "_weight_norm_interface": weight_norm,
}
