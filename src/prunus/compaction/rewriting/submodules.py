"""A module rewritten as a graph, where its own code cannot hold the smaller shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus._common.inputs import Inputs, called
from prunus._common.modules import canonical_names, detached_copy, joined
from prunus._common.nested import own_containers, tensors_of
from prunus._common.put_back import PutBack
from prunus._common.rng import preserve_rng, seed
from prunus.compaction.cut import IndexCut, same_indices
from prunus.compaction.rewriting.alike import Traces
from prunus.compaction.rewriting.compact_graph import CompactGraph, eval_alone
from prunus.compaction.rewriting.describing import describe_as
from prunus.compaction.rewriting.rewrite import rewrite
from prunus.compaction.rewriting.types_followed import follow_types
from prunus.errors import RunError
from prunus.graph.analysis import Analysis, analyze
from prunus.graph.labels import Fixed, Value
from prunus.graph.passes import Modes, apart
from prunus.graph.steps import every_value
from prunus.graph.trace import Traced, analysis_mode
from prunus.types import Indices, Kept


@dataclass(frozen=True)
class Called:
    """A call of a module in a pass of the whole model.

    Attributes:
        inputs: its arguments.
        ends: of each tensor that enters the indices that stay; ``None``: unknown.
        training: whether the model was in train mode.
    """

    inputs: Inputs
    ends: Ends
    training: bool = False


Ends = Sequence[Indices | None]
"""Of each tensor that enters a module the indices that stay; ``None``: unknown."""


def record_calls(
    model: nn.Module, names: Iterable[str], inputs: Inputs, *, training: bool = False
) -> dict[str, Inputs]:
    """The arguments with which modules are first called in a forward pass."""
    calls: dict[str, Inputs] = {}
    model = detached_copy(model, {id(p): p for p in model.parameters()})  # it is let go
    for name in names:

        def note(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            calls.setdefault(name, own_containers((args, kwargs)))

        model.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True)
    kept = PutBack(model.parameters())
    with preserve_rng(), analysis_mode(model, training=training), torch.no_grad(), kept:
        seed(0)
        called(model, inputs)
    return calls


def entering(
    cut: IndexCut, traced: Traced, calls: Mapping[str, Inputs], inputs: Inputs
) -> dict[str, Ends]:
    """What a cut leaves of the tensors that enter modules: they are found by their values.

    Args:
        cut: of the whole model.
        traced: the pass in which the modules are called.
        calls: the arguments of modules in a pass of the dense model.
        inputs: of that pass.
    """
    with torch.no_grad():
        values = every_value(traced.module, inputs)
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
    module: nn.Module,
    calls: Sequence[Called],
    kept: Kept,
    traces: Traces | None = None,
    *,
    hidden: bool = False,
) -> CompactGraph:
    """A module as a smaller graph that takes the same calls, of other sizes too where it can.

    Args:
        module: the dense one.
        calls: in eval and in train mode; each kind becomes a pass.
        kept: by names within the module.
        traces: passes of modules that were traced before.
        hidden: whether indices that a norm counts may be gone.

    Raises:
        InputError: if it cannot be traced by itself.
        RunError: if it cannot be rewritten.
    """
    traces = Traces() if traces is None else traces
    try:
        return _graph(module, calls, kept, within_model=True, hidden=hidden, traces=traces)
    except RunError:
        return _graph(
            module, calls, kept, within_model=True, hidden=hidden, dynamic=False, traces=traces
        )


def whole_graph(
    model: nn.Module,
    calls: Sequence[Called],
    kept: Kept,
    tensors: Mapping[str, Tensor],
    *,
    hidden: bool = False,
) -> CompactGraph:
    """The whole model as a smaller graph that takes inputs of other sizes where it can.

    Args:
        model: the dense one.
        calls: in eval and in train mode; each kind becomes a pass.
        kept: indices that stay, by the first name of each tensor.
        tensors: what is sliced already, by the same names.
        hidden: whether indices that a norm counts may be gone.
    """
    return _graph(model, calls, kept, tensors, hidden=hidden)


def _graph(
    module: nn.Module,
    calls: Sequence[Called],
    kept: Kept,
    tensors: Mapping[str, Tensor] | None = None,
    *,
    within_model: bool = False,
    dynamic: bool = True,
    hidden: bool,
    traces: Traces | None = None,
) -> CompactGraph:
    traces = Traces() if traces is None else traces
    modes = Modes.of(module, next(c.inputs for c in calls if not c.training))
    wanted: list[Called] = []
    traced: list[Traced] = []
    for call in calls:
        if call.training and (modes.problem or not modes.numbers):
            continue
        known = (t for t in traced if t.training is call.training)
        if not any(t.takes(call.inputs) for t in known):
            closed = [[d for d, i in enumerate(end or ()) if i is not None] for end in call.ends]
            wanted.append(call)
            traced.append(
                traces.trace(
                    module, call.inputs, dynamic=dynamic, closed=closed, training=call.training
                )
            )
    refuse_writing(module, traced)
    ends = [c.ends for c in wanted] if within_model else None
    passes = apart(module, traced)
    analysis = analyze(module, None, hidden=hidden, open_ends=ends, traced=passes, kept=kept)
    rewritten = rewrite(known_cut(analysis, kept), tensors)
    follow_types(rewritten.module, module, passes, rewritten.nodes, traces)
    graph = describe_as(rewritten.module, module)
    return eval_alone(graph) if modes.problem else graph


def refuse_writing(module: nn.Module, passes: Sequence[Traced]) -> None:
    """No graph changes the objects that a call gives it.

    Raises:
        RunError: if the module's code does.
    """
    for place in (place for traced in passes for place in traced.written):
        raise RunError(
            f"{type(module).__name__} changes {place} of what it is called with, and has sizes in "
            "its code that the cut changes: a graph could not do both. Give an example without "
            "that object, or leave out the layers whose sizes the code holds with scope.exclude"
        )


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
