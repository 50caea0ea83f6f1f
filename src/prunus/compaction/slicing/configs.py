"""Sizes in a configuration that modules share, as transformers models have one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import fx, nn

from prunus._common.torch_internals import module_paths
from prunus.compaction.cut import IndexCut
from prunus.compaction.slicing.attributes import SIZES, Attribute
from prunus.graph.labels import Fixed, Value

HIDDEN = frozenset({"hidden_size", "d_model", "n_embd", "dim", "embed_dim", "hidden_sizes"})
"""Names of hidden widths: one number, or one for each stage."""


def configured(model: nn.Module, cut: IndexCut) -> list[Attribute]:
    """Sizes in shared configurations that every module which has them changes alike.

    A layer that keeps its width, or has another new one, leaves the configuration as it is: it
    has one number for all.

    Args:
        model: the dense one.
        cut: what goes.
    """
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "__dict__"):
            owners.setdefault(id(config), []).append(name)
    changes = []
    for names in owners.values():
        shared: Any = model.get_submodule(names[0]).config
        found = {
            known: _sizes(cut, set(names), hidden=known is HIDDEN) for known in (SIZES, HIDDEN)
        }
        for key, value in vars(shared).items():
            sizes = next((found[known] for known in found if key in known), {})
            after = _after(value, sizes)
            if after is not None and after != value:
                changes.append(Attribute(names[0], f"config.{key}", value, after))
    return changes


def _after(value: Any, sizes: dict[int, set[int]]) -> Any:
    """What becomes of a size, or of several; ``None`` if that is not one thing."""
    if isinstance(value, (list, tuple)):
        every = [_after(size, sizes) for size in value]
        return None if None in every else type(value)(every)
    after = sizes.get(value, set()) if type(value) is int else set()
    return next(iter(after)) if len(after) == 1 else None


def _sizes(cut: IndexCut, names: set[str], *, hidden: bool) -> dict[int, set[int]]:
    """Sizes that the operators of these modules see, each with what becomes of it."""
    sizes: dict[int, set[int]] = {}
    for node, value in _values(cut):
        if names.isdisjoint(module_paths(node)):
            continue
        for dim, before in zip(value.dims, value.shape, strict=True):
            if not isinstance(dim, Fixed) and _free(cut, dim, hidden=hidden):
                sizes.setdefault(before, set()).add(cut.size(dim, before))
    return sizes


def _values(cut: IndexCut) -> Iterator[tuple[fx.Node, Value]]:
    for node, value in cut.analysis.known.items():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, Value) and node.op == "call_function":
                yield node, part


def _free(cut: IndexCut, dim: np.ndarray[Any, Any], *, hidden: bool) -> bool:
    """Whether indices can go, of a hidden width or of another."""
    solved = cut.analysis.solved
    return bool((solved.free(dim) & (solved.hidden[solved.of(dim)] == hidden)).any())
