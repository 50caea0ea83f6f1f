"""What each operator's literals count, and what they become when indices are gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from prunus.compaction.cut import IndexCut
from prunus.graph.call import base_name
from prunus.graph.labels import Value
from prunus.graph.rules import attention, convolution
from prunus.graph.rules.movement import SPLITS

aten = torch.ops.aten

Changed = tuple[Any, dict[str, Any]]
Patcher = Callable[[IndexCut, fx.Node, dict[str, Any]], Changed | None]


def _sizes(cut: IndexCut, value: Value, given: Any) -> list[Any]:
    """Sizes of a result; −1 and sizes that do not change stay as they were written."""
    new = cut.shape(value)
    return [g if g == -1 or new[i] == value.shape[i] else new[i] for i, g in enumerate(given)]


def _sized(key: str) -> Patcher:
    def patch(cut: IndexCut, node: fx.Node, named: dict[str, Any]) -> Changed | None:
        value = cut.value(node)
        if key not in named or len(named[key]) != len(value.shape):
            return None
        return node.target, {**named, key: _sizes(cut, value, named[key])}

    return patch


def _unflatten(cut: IndexCut, node: fx.Node, named: dict[str, Any]) -> Changed | None:
    value = cut.value(node)
    rank = len(cut.value(node.args[0]).shape)
    d = int(named["dim"]) % rank
    new, sizes = cut.shape(value), named["sizes"]
    return node.target, {
        **named,
        "sizes": [s if s == -1 else new[d + i] for i, s in enumerate(sizes)],
    }


def _split(cut: IndexCut, node: fx.Node, named: dict[str, Any]) -> Changed | None:
    x = cut.value(node.args[0])
    d = int(named.get("dim") or 0) % len(x.shape)
    if cut.stays(x.dims[d]) is None:
        return None
    parts = cut.analysis.known[node]
    assert isinstance(parts, (list, tuple))
    sizes = [cut.size(v.dims[d], v.shape[d]) for v in parts if v is not None]
    target = aten.split_with_sizes.default
    if base_name(node) in ("chunk", "unsafe_chunk") and len(set(sizes)) == 1:
        return None
    return target, {"self": named["self"], "split_sizes": sizes, "dim": d}


def _slice(cut: IndexCut, node: fx.Node, named: dict[str, Any]) -> Changed | None:
    x = cut.value(node.args[0])
    d = int(named["dim"]) % len(x.shape)
    stays = cut.stays(x.dims[d])
    if stays is None:
        return None
    bounds = (_number(named["start"]), _number(named["end"]))
    start, end, _ = slice(*bounds).indices(x.shape[d])
    new_end = int(stays[:end].sum())
    whole = bounds[1] is None or bounds[1] >= x.shape[d]
    return node.target, {
        **named,
        "start": int(stays[:start].sum()),
        "end": named["end"] if whole else new_end,
    }


def _number(size: Any) -> Any:
    """A size that may be open, as this example has it."""
    return size.meta["val"] if isinstance(size, fx.Node) else size


def _select(cut: IndexCut, node: fx.Node, named: dict[str, Any]) -> Changed | None:
    x = cut.value(node.args[0])
    d = int(named["dim"]) % len(x.shape)
    stays = cut.stays(x.dims[d])
    if stays is None:
        return None
    index = int(named["index"]) % x.shape[d]
    return node.target, {**named, "index": int(stays[:index].sum())}


def _pad(cut: IndexCut, node: fx.Node, named: dict[str, Any]) -> Changed | None:
    value, pad = cut.value(node), list(named["pad"])
    for j in range(len(pad) // 2):
        dim = value.dims[len(value.dims) - 1 - j]
        stays = cut.stays(dim)
        if stays is not None:
            low, high = pad[2 * j], pad[2 * j + 1]
            pad[2 * j] = int(stays[:low].sum())
            pad[2 * j + 1] = int(stays[len(stays) - high :].sum()) if high else 0
    return node.target, {**named, "pad": pad}


def _roll(cut: IndexCut, node: fx.Node, named: dict[str, Any]) -> Changed | None:
    x = cut.value(node.args[0])
    shifts, dims = list(named["shifts"]), list(named["dims"])
    for i, d in enumerate(dims):
        stays = cut.stays(x.dims[d])
        if stays is not None:
            shift = shifts[i] % len(stays)
            shifts[i] = int(stays[len(stays) - shift :].sum()) if shift else 0
    return node.target, {**named, "shifts": shifts}


def _groups(key: str) -> Patcher:
    def patch(cut: IndexCut, node: fx.Node, named: dict[str, Any]) -> Changed | None:
        groups = int(named[key] or 1)
        out = cut.value(node).dims[1]
        stays = cut.stays(out)
        if groups == 1 or stays is None:
            return None
        left = int(stays.reshape(groups, -1).any(axis=1).sum())
        return node.target, {**named, key: left}

    return patch


def _scale(cut: IndexCut, node: fx.Node, named: dict[str, Any]) -> Changed | None:
    query = cut.value(named["query"])
    if named.get("scale") is not None or cut.stays(query.dims[-1]) is None:
        return None
    return node.target, {**named, "scale": float(query.shape[-1]) ** -0.5}


_SIZED = (
    "view", "_unsafe_view", "expand", "zeros", "ones", "full", "empty", "new_zeros", "new_ones",
    "new_full", "new_empty", "broadcast_to",
)  # fmt: skip

PATCHES: dict[str, Patcher] = {
    **dict.fromkeys(_SIZED, _sized("size")),
    "reshape": _sized("shape"),
    "unflatten": _unflatten,
    **dict.fromkeys((n for n in SPLITS if n not in ("unbind", "hsplit", "vsplit")), _split),
    "slice": _slice,
    "select": _select,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "roll": _roll,
    "group_norm": _groups("num_groups"),
    **dict.fromkeys(convolution.RULES, _groups("groups")),
    **dict.fromkeys(attention.RULES, _scale),
}
