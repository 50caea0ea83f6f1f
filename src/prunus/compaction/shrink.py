"""A pruner's model made smaller between rounds, and larger again when a round is rejected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunus._common.modules import take_mode
from prunus.compaction.compact import perform
from prunus.compaction.cut import IndexCut, cut_of, take
from prunus.compaction.rewriting.submodules import cut_from_kept
from prunus.compaction.search import CompactionPlan, find_plan
from prunus.compaction.slicing.drop import put_back_modules
from prunus.compaction.slicing.parameters import refuse_optimizer, resize
from prunus.compaction.slicing.surgery import adopt, refresh
from prunus.errors import InputError
from prunus.graph.trace import Traced
from prunus.pruning.space import PruningSpace, build_space
from prunus.types import Kept, Masks

if TYPE_CHECKING:
    from prunus.progressive.engine import Pruner


@dataclass(frozen=True)
class ShrinkStep:
    """One shrink of a pruner's model, with what it takes to undo it.

    Attributes:
        plan: what was done.
        units: units taken out.
        model: before; the same object where its class stayed.
        modules: that were replaced.
        tensors: shapes of parameters before.
        buffers: the buffers themselves, by every name.
        view: before.
        initial_masks: masks that the model came with, before.
    """

    plan: CompactionPlan
    units: int
    model: nn.Module
    modules: Mapping[str, nn.Module]
    tensors: Mapping[str, torch.Size]
    buffers: Mapping[str, Tensor]
    view: PruningSpace
    initial_masks: Masks


def shrink(pruner: Pruner, optimizer: Optimizer | None = None) -> ShrinkStep | None:
    """Take every unit out that the masks remove; ``None`` if there is none.

    Parameters keep their identity, so an optimizer goes on with them.

    Args:
        pruner: whose model becomes smaller.
        optimizer: whose state is sliced along.

    Raises:
        RunError: if the smaller model does not equal the masked one; nothing is changed then.
    """
    assert pruner.space.analysis is not None
    cut = cut_of(pruner.space.analysis, pruner.masks)
    return _carry_out(pruner, cut, optimizer) if cut.units() else None


def saved(pruner: Pruner) -> list[dict[str, Any]]:
    """The shrinks so far as plain values, for :func:`follow`."""
    return [
        {
            "kept": dict(s.plan.surgery.kept),
            "error": s.plan.comparison.error,
            "effect": s.plan.comparison.effect,
        }
        for s in pruner.shrinks
    ]


def follow(pruner: Pruner, steps: Sequence[Mapping[str, Any]]) -> None:
    """Bring a model to where saved shrinks lead: forward from the dense one, or back."""
    if pruner.dropped and not steps:
        put_back_modules(pruner.model, pruner.dropped)
        pruner.dropped = {}
    while len(pruner.shrinks) > len(steps):
        grow(pruner)
    for step in steps[len(pruner.shrinks) :]:
        assert pruner.space.analysis is not None
        plain: Kept = {name: tuple(indices) for name, indices in step["kept"].items()}
        done = _carry_out(pruner, cut_from_kept(pruner.space.analysis, plain), None)
        first = replace(done.plan.comparison, error=step["error"], effect=step["effect"])
        pruner.shrinks[-1] = replace(done, plan=replace(done.plan, comparison=first))


def grow(pruner: Pruner) -> None:
    """Undo the last shrink; the values of what comes back are for the caller to fill in.

    The optimizer forgets its state of this model's parameters, which is of the smaller shapes (a
    run puts the saved one back); that of others stays. All memory is taken before anything is
    changed: if there is not enough of it, model and optimizer go on as they were.
    """
    last = pruner.shrinks[-1]
    small, dense = dict(pruner.model.named_parameters()), _parameters_before(last)
    larger = {n: _empty(small.get(n, p), last.tensors[n]) for n, p in dense.items()}
    pruner.shrinks.pop()
    if last.plan.graph is None:
        last.plan.surgery.undo(pruner.model, last.modules)
    if last.model is not pruner.model:
        take_mode(last.model, of=pruner.model)
    pruner.model = last.model
    for name, parameter in dense.items():
        resize(parameter, larger[name])
        if pruner.optimizer is not None:
            pruner.optimizer.state.pop(parameter, None)
    for path, module in last.model.named_modules():
        for key, buffer in module._buffers.items():
            name = f"{path}.{key}" if path else key
            if buffer is not None and name in last.buffers:
                module._buffers[key] = last.buffers[name]
    refresh(last.model)
    pruner.see(last.view, last.initial_masks, {})


def _parameters_before(shrunk: ShrinkStep) -> dict[str, nn.Parameter]:
    """The parameters of the larger model, each once: those of modules that became graphs too."""
    found = dict(shrunk.model.named_parameters(remove_duplicate=False))
    for path, module in shrunk.modules.items():
        own = module.named_parameters(remove_duplicate=False)
        found |= {f"{path}.{name}": parameter for name, parameter in own}
    once = {id(found[name]): name for name in reversed(list(shrunk.tensors))}
    return {name: found[name] for name in shrunk.tensors if once[id(found[name])] == name}


def _carry_out(pruner: Pruner, cut: IndexCut, optimizer: Optimizer | None) -> ShrinkStep:
    model = pruner.model
    plan = find_plan(model, cut, pruner.example)
    if pruner.in_place:
        refuse_replacing(plan)
    shapes = {n: p.shape for n, p in model.named_parameters(remove_duplicate=False)}
    buffers = dict(model.named_buffers(remove_duplicate=False))
    modules = {n: model.get_submodule(n) for n in plan.surgery.replaced}
    small = perform(model, plan, optimizer)
    done = ShrinkStep(
        plan=plan,
        units=cut.units(),
        model=model,
        modules=modules,
        tensors=shapes,
        buffers=buffers,
        view=pruner.space,
        initial_masks=pruner.initial_masks,
    )
    pruner.shrinks.append(done)
    pruner.model = small
    names = {n for n, _ in small.named_parameters()}
    layers = [la for la in pruner.space.layers if la.name in names]
    view = build_space(
        small, pruner.recipe, pruner.methods, pruner.example, layers=layers,
        dense=pruner.space, traced=_followed(plan, small),
    )  # fmt: skip
    pruner.running = {n: _sliced(t, plan.surgery.kept.get(n)) for n, t in pruner.running.items()}
    pruner.see(
        view,
        smaller_masks(pruner.initial_masks, plan.surgery.kept, shapes),
        smaller_masks(pruner.masks, plan.surgery.kept, shapes),
    )
    return done


def refuse_replacing(plan: CompactionPlan) -> None:
    """What cannot become smaller while others hold the model itself.

    Raises:
        InputError: if only a graph of it can be smaller.
    """
    if plan.graph is not None:
        raise InputError(
            "compact: every_round: this model's own code holds sizes that cannot be changed, so a "
            "smaller one would be another object than your loop trains: leave compact out and call "
            "prunus.compact after the training, or use prunus.prune"
        )


def _followed(plan: CompactionPlan, small: nn.Module) -> Traced | None:
    """The operators of the smaller model, on its own parameters."""
    if plan.traced is not None:
        adopt(plan.traced.module, small)
    return plan.traced


def smaller_masks(masks: Masks, kept: Kept, shapes: Mapping[str, Sequence[int]]) -> Masks:
    """Masks of what is left; those that keep all of it are dropped."""
    small: Masks = {}
    for name, mask in masks.items():
        cut = kept.get(name)
        left = mask if cut is None else take(mask.expand(tuple(shapes[name])), cut)
        if not bool(left.all()):
            small[name] = left
    return small


def slice_saved(
    state: Mapping[Any, Any], names: Sequence[str], kept: Kept, shapes: Mapping[str, Sequence[int]]
) -> dict[Any, Any]:
    """Slice the ``"state"`` part of an optimizer's ``state_dict()`` with the parameters.

    Args:
        state: by the number of each parameter.
        names: of the parameters, in that order.
        kept: by name.
        shapes: before the slice.
    """
    small: dict[Any, Any] = {}
    for number, values in state.items():
        name = names[number] if isinstance(number, int) and number < len(names) else ""
        small[number] = dict(values)
        for key, value in values.items():
            if isinstance(value, Tensor) and name in kept and value.shape == shapes[name]:
                small[number][key] = take(value, kept[name])
    return small


def refuse_for_shrinking(
    shrinks: Sequence[ShrinkStep], optimizer: Optimizer, copies: Iterable[nn.Module]
) -> None:
    """What cannot go on with a model that becomes smaller while it trains.

    State that an optimizer brings from before a shrink it did not see is forgotten.

    Raises:
        InputError: for an optimizer whose state cannot be sliced, and for copies of the model.
    """
    if list(copies):
        raise InputError(
            "run.attach was given a copy of the model (an EMA?), which would stay dense while the "
            "model shrinks: leave it out, or use compact: end"
        )
    for parameter, state in list(optimizer.state.items()) if shrinks else ():
        shapes = {tuple(v.shape) for v in state.values() if isinstance(v, Tensor) and v.numel() > 1}
        if shapes - {tuple(parameter.shape)}:
            del optimizer.state[parameter]
    refuse_optimizer(optimizer)


def _sliced(tensor: Tensor, kept: tuple[Tensor | None, ...] | None) -> Tensor:
    return tensor if kept is None else take(tensor, kept)


def _empty(like: Tensor, shape: torch.Size) -> Tensor:
    return torch.zeros(shape, dtype=like.dtype, device=like.device)
