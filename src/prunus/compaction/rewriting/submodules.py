"""A module rewritten as a graph, where its own code cannot hold the smaller shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunus._common.inputs import Inputs, tensors_of
from prunus._common.modules import canonical_names, joined, shared_copy
from prunus.compaction.cut import IndexCut, same_indices
from prunus.compaction.rewriting.rewrite import rewrite
from prunus.compaction.verifying.verify import every_value
from prunus.errors import RunError
from prunus.graph.analysis import Analysis, analyze
from prunus.graph.labels import Fixed, Value
from prunus.graph.trace import analysis_mode, trace
from prunus.types import Indices, Kept


def record_calls(model: nn.Module, names: Iterable[str], inputs: Inputs) -> dict[str, Inputs]:
    """The arguments with which modules are first called in a forward pass."""
    calls: dict[str, Inputs] = {}
    model = shared_copy(model)  # with its hooks it is let go
    for name in names:

        def note(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            calls.setdefault(name, (args, kwargs))

        model.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True)
    with analysis_mode(model), torch.no_grad():
        model(*inputs[0], **inputs[1])
    return calls


Ends = Sequence[Indices | None]
"""Of each tensor that enters a module the indices that stay; ``None``: unknown."""


def entering(cut: IndexCut, calls: Mapping[str, Inputs], inputs: Inputs) -> dict[str, Ends]:
    """What a cut leaves of the tensors that enter modules: they are found by their values.

    Args:
        cut: of the whole model.
        calls: the arguments of modules in a pass of the dense model.
        inputs: of that pass.
    """
    with torch.no_grad():
        values = every_value(cut.analysis.traced.module, inputs)
    known: dict[torch.Size, list[tuple[Tensor, Value]]] = {}
    for node, tensor in values.items():
        value = cut.analysis.known.get(node)
        if isinstance(tensor, Tensor) and isinstance(value, Value):
            known.setdefault(tensor.shape, []).append((tensor, value))

    def left(tensor: Tensor) -> Indices | None:
        for same, value in known.get(tensor.shape, []):
            if same.dtype == tensor.dtype and torch.equal(same, tensor):
                return cut.left(value)
        return None

    return {name: [left(t) for t in tensors_of(call)] for name, call in calls.items()}


def as_graph(
    module: nn.Module, inputs: Inputs, kept: Kept, ends: Ends
) -> tuple[fx.GraphModule, bool]:
    """A module as a smaller graph that takes the same arguments, and whether of other sizes too.

    Args:
        module: the dense one.
        inputs: with which it is called.
        kept: by names within the module.
        ends: what is left of the tensors that enter it.

    Raises:
        InputError: if it cannot be traced by itself.
        RunError: if it cannot be rewritten.
    """
    losing = [[d for d, left in enumerate(end or ()) if left is not None] for end in ends]

    def made(*, dynamic: bool) -> tuple[fx.GraphModule, bool]:
        traced = trace(module, None, dynamic=dynamic, closed=losing, inputs=inputs)
        analysis = analyze(module, None, open_ends=ends, traced=traced, kept=kept)
        return rewrite(known_cut(analysis, kept)).module, traced.open

    try:
        return made(dynamic=True)
    except RunError:
        return made(dynamic=False)


def whole_graph(
    model: nn.Module, inputs: Inputs, kept: Kept, tensors: Mapping[str, Tensor]
) -> tuple[fx.GraphModule, bool]:
    """The whole model as a smaller graph, and whether it takes inputs of other sizes.

    Args:
        model: the dense one.
        inputs: with which it is traced.
        kept: indices that stay, by the first name of each tensor.
        tensors: what is sliced already, by the same names.
    """
    traced = trace(model, None, dynamic=True, inputs=inputs)
    analysis = analyze(model, None, traced=traced, kept=kept)
    return rewrite(known_cut(analysis, kept), tensors).module, traced.open


def known_cut(analysis: Analysis, kept: Kept) -> IndexCut:
    """The cut of an analysis that was made for it: classes that hold a removed index of anything.

    Raises:
        RunError: if the kept indices are no cut of this graph: a class goes in part.
    """
    cut = cut_from_kept(analysis, kept)
    return IndexCut(analysis, cut.removed | (analysis.solved.gone & (analysis.solved.reason < 0)))


def cut_from_kept(analysis: Analysis, kept: Kept) -> IndexCut:
    """The classes that hold a removed index of a tensor.

    Raises:
        RunError: if the kept indices are no cut of this graph: a class goes in part.
    """
    removed = np.zeros(len(analysis.solved.reason), dtype=bool)
    for name, value in analysis.tensors.items():
        for dim, indices in zip(value.dims, kept.get(name, ()), strict=False):
            if indices is None:
                continue
            if isinstance(dim, Fixed):
                raise RunError(f"'{name}' loses indices that this module pins: {dim.why}")
            gone = np.ones(len(dim), dtype=bool)
            gone[indices.numpy()] = False
            removed[analysis.solved.of(dim)[gone]] = True
    cut = IndexCut(analysis, removed)
    found = cut.kept()
    for name in analysis.tensors:
        if not _same(found.get(name), kept.get(name)):
            raise RunError(f"'{name}' is coupled with more than what was removed")
    return cut


def _same(a: Indices | None, b: Indices | None) -> bool:
    if a is None or b is None:
        return all(x is None for x in (a or ()) + (b or ()))
    return same_indices(a, b)


def within(kept: Kept, names: dict[str, str], module: nn.Module, path: str) -> Kept:
    """Kept indices under the names that tensors have inside a module."""
    own: dict[str, Indices] = {}
    for inner, first in canonical_names(module).items():
        outer = names.get(joined(path, inner))
        if outer is not None and outer in kept and first == inner:
            own[inner] = kept[outer]
    return own
