"""Operators that look along a dimension as a whole: sums, means, extremes, softmax, scans."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunus.graph.call import Call, Found
from prunus.graph.labels import Dim, Fixed, Value
from prunus.graph.rules.pointwise import pointwise

SUMS = frozenset({"sum", "linalg_vector_norm", "norm", "nansum"})
COUNTS = frozenset({"mean", "var", "std", "var_mean", "std_mean"})
MIXES = frozenset(
    {*COUNTS, "amax", "amin", "max", "min", "argmax", "argmin", "prod", "any", "all", "logsumexp",
     "median", "nanmedian", "count_nonzero", "aminmax", "kthvalue", "mode"}
)  # fmt: skip
KEEPS = frozenset(
    {"softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod", "sort",
     "argsort", "topk", "logcumsumexp", "cummax", "cummin", "renorm", "_safe_softmax"}
)  # fmt: skip


STAY_ZERO = SUMS | frozenset(
    {"mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "max", "min", "prod", "any",
     "all", "median", "nanmedian", "count_nonzero", "aminmax", "cumsum", "cumprod", "sort", "topk",
     "cummax", "cummin", "renorm", "kthvalue", "mode"}
)  # fmt: skip


def reduction(call: Call) -> Found:
    """Over the dimensions of ``dim``; without it over all."""
    x = call.value("self", "input", "x")
    if call.value("other") is not None:  # the larger or smaller of two tensors
        return pointwise(call)
    if x is None:
        return None
    rank = len(x.dims)
    given = call["dim"]
    if given is None and call.name in ("sort", "argsort", "topk", "kthvalue", "mode"):
        given = -1
    over = dimensions(call["dims"] if given is None else given, rank)
    for d in over:
        sums = call.name in SUMS and not _least(call)
        if sums and (x.zero[d] or not (call.labels.hidden and x.known(d))):
            call.summed((x, d), what="a sum")
        elif sums or call.name in COUNTS:
            call.counted(x, d, f"{call.where}: looks at every index", made=True)
        else:
            call.labels.pin(x.dims[d], f"{call.where}: looks at every index")
    if call.name in ("softmax", "_softmax", "_safe_softmax") and rank > 2 and over == [rank - 1]:
        call.labels.head(x.dims[-3])
    keeps = call.name in KEEPS

    def found(out: Tensor) -> Value:
        same = keeps or (out.dim() == rank and rank > 0)
        why = f"{call.where}: looks at every index"
        dims: list[Dim] = [
            Fixed(why) if d in over else dim
            for d, dim in enumerate(x.dims)
            if same or d not in over
        ]
        numbers = out.is_floating_point() or out.is_complex() or out.dtype is torch.bool
        stays = call.name in STAY_ZERO and (numbers or call.name == "count_nonzero")
        zero = [
            stays and z and d not in over for d, z in enumerate(x.zero) if same or d not in over
        ]
        return call.result(dims, zero, out)

    if isinstance(call.out, Tensor):
        return found(call.out)
    return [found(t) if isinstance(t, Tensor) else None for t in call.out]


def _least(call: Call) -> bool:
    """Whether a norm is one in which zeros count: of negative order, down to the least value."""
    order = call.first("ord", "p")
    return isinstance(order, (int, float)) and order < 0


def dimensions(given: Any, rank: int) -> list[int]:
    """The dimensions that an operator looks along, from its argument: all, if there is none.

    >>> dimensions(-1, 3), dimensions(None, 2)
    ([2], [0, 1])
    """
    if given is None or isinstance(given, bool) or given == []:
        return list(range(rank))
    many = [given] if isinstance(given, int) else given
    return sorted({int(d) % rank for d in many}) if rank else []


RULES = dict.fromkeys(SUMS | MIXES | KEEPS, reduction)
