"""A model made smaller while it trains, and larger again: each step knows how it is undone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunus._common.modules import take_mode
from prunus.compaction.compact import perform
from prunus.compaction.cut import IndexCut, left_of_mask, nothing_left, put, take
from prunus.compaction.rewriting.compact_graph import untrainable
from prunus.compaction.search import CompactionPlan, find_plan
from prunus.compaction.slicing.parameters import refuse_optimizer, resize
from prunus.compaction.slicing.surgery import adopt, refresh
from prunus.errors import InputError
from prunus.graph.trace import Traced
from prunus.pruning.optimizers import AnyOptimizer, each_of
from prunus.types import Indices, Kept, Masks

LeftOut = tuple[dict[str, Any], int, nn.Parameter]
"""A group of an optimizer, a place in it, and the parameter that was there."""


@dataclass(frozen=True)
class ShrinkStep:
    """One shrink of a model, with what it takes to undo it.

    Attributes:
        plan: what was done.
        units: units taken out.
        before: the model that was given; the same object as ``after`` where its class stayed.
        after: the smaller model.
        modules: that were replaced.
        tensors: shapes of parameters before.
        buffers: the buffers themselves, by every name.
        traced: the passes of the smaller model, on its own parameters.
        left_out: parameters that the optimizer trains no longer, each with its group and place.
    """

    plan: CompactionPlan
    units: int
    before: nn.Module
    after: nn.Module
    modules: Mapping[str, nn.Module]
    tensors: Mapping[str, torch.Size]
    buffers: Mapping[str, Tensor]
    traced: tuple[Traced, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def kept(self) -> Kept:
        """The indices that stayed, by the first name of each tensor that was sliced."""
        return self.plan.surgery.kept

    @property
    def gone(self) -> list[nn.Parameter]:
        """The parameters of what was taken out as a whole."""
        entries = (name.rpartition(".") for name in self.plan.surgery.gone)
        found = (self.modules[path].get_submodule(key) for path, _, key in entries)
        return [parameter for entry in found for parameter in entry.parameters()]


def shrink(
    model: nn.Module, cut: IndexCut, example: Any, optimizer: AnyOptimizer | None, *,
    in_place: bool, trains: bool = False,
) -> ShrinkStep:  # fmt: skip
    """Take units out of a model. Parameters keep their identity, so an optimizer goes on with them.

    Args:
        model: masked; it becomes smaller itself unless only a graph of it can be.
        cut: what goes.
        example: an input, a tuple of inputs, or a mapping of keyword arguments.
        optimizer: whose state is sliced along.
        in_place: whether others hold the model, so that it must stay this object.
        trains: whether the smaller model is trained further.

    Raises:
        InputError: if it must stay this object and cannot, or could not be trained.
        RunError: if the smaller model does not equal the masked one; nothing is changed then.
    """
    plan = find_plan(model, cut, example)
    if trains and plan.comparison.gradient:
        raise InputError(untrainable(type(model).__name__, plan.comparison.gradient))
    if in_place:
        refuse_replacing(plan)
    shapes = {n: p.shape for n, p in model.named_parameters(remove_duplicate=False)}
    buffers = dict(model.named_buffers(remove_duplicate=False))
    modules = {n: model.get_submodule(n) for n in plan.surgery.places}
    small = perform(model, plan, optimizer)
    for traced in plan.traced:
        adopt(traced.module, small)
    step = ShrinkStep(
        plan=plan,
        units=cut.units(),
        before=model,
        after=small,
        modules=modules,
        tensors=shapes,
        buffers=buffers,
        traced=plan.traced,
    )
    return replace(step, left_out=leave_out(optimizer, step.gone))


def leave_out(
    optimizer: AnyOptimizer | None, parameters: Sequence[nn.Parameter]
) -> tuple[LeftOut, ...]:
    """Let an optimizer forget parameters that the model has no longer.

    >>> gone, left = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2))
    >>> optimizer = torch.optim.SGD([gone, left])
    >>> [(place, p is gone) for _, place, p in leave_out(optimizer, [gone])]
    [(0, True)]
    >>> [len(p) for p in optimizer.param_groups[0]["params"]]
    [2]
    """
    gone, found = {id(p) for p in parameters}, []
    for one in () if optimizer is None else each_of(optimizer):
        for group in one.param_groups:
            found += [(group, i, p) for i, p in enumerate(group["params"]) if id(p) in gone]
            group["params"] = [p for p in group["params"] if id(p) not in gone]
        for parameter in parameters:
            one.state.pop(parameter, None)
    return tuple(found)


def grow(step: ShrinkStep, optimizer: AnyOptimizer | None) -> nn.Module:
    """Undo a shrink; what comes back is zero, and the values of it are for the caller to fill in.

    The optimizer forgets its state of this model's parameters, which is of the smaller shapes (a
    run puts the saved one back); that of others stays. All memory is taken before anything is
    changed: if there is not enough of it, model and optimizer go on as they were.

    Returns:
        The model as it was before, in the mode of the smaller one.
    """
    model = step.before
    for group, place, parameter in step.left_out:
        group["params"].insert(place, parameter)
    small, dense = dict(step.after.named_parameters()), _parameters_before(step)
    larger = {n: _empty(small.get(n, p), step.tensors[n]) for n, p in dense.items()}
    for name, parameter in dense.items():
        _put_back(larger[name], small.get(name, parameter), step.kept.get(name))
    if step.plan.graph is None:
        step.plan.surgery.undo(model, step.modules)
    if model is not step.after:
        take_mode(model, of=step.after)
    for name, parameter in dense.items():
        resize(parameter, larger[name])
        for one in () if optimizer is None else each_of(optimizer):
            one.state.pop(parameter, None)
    for path, module in model.named_modules():
        for key, buffer in module._buffers.items():
            name = f"{path}.{key}" if path else key
            if buffer is not None and name in step.buffers:
                module._buffers[key] = step.buffers[name]
    refresh(model)
    return model


def _parameters_before(step: ShrinkStep) -> dict[str, nn.Parameter]:
    """The parameters of the larger model, each once: those of modules that became graphs too."""
    found = dict(step.before.named_parameters(remove_duplicate=False))
    for path, module in step.modules.items():
        own = module.named_parameters(remove_duplicate=False)
        found |= {f"{path}.{name}": parameter for name, parameter in own}
    once = {id(found[name]): name for name in reversed(list(step.tensors))}
    return {name: found[name] for name in step.tensors if once[id(found[name])] == name}


def refuse_replacing(plan: CompactionPlan) -> None:
    """What cannot become smaller while others hold the model itself.

    Raises:
        InputError: if only a graph of it can be smaller.
    """
    if plan.graph is not None:
        raise InputError(
            "compact: every_round: this model's code contains sizes that cannot be changed, so the "
            "smaller model would be a different object from the one your loop trains: leave "
            "compact out and call prunus.compact after training, or use prunus.prune"
        )


def smaller_masks(masks: Masks, kept: Kept, shapes: Mapping[str, Sequence[int]]) -> Masks:
    """Masks of what is left; those that keep all of it are dropped."""
    small: Masks = {}
    for name, mask in masks.items():
        cut = kept.get(name)
        if cut is not None and nothing_left(cut):  # an entry of a list that is gone
            continue
        left = mask if cut is None else left_of_mask(mask, cut)
        if not bool(left.all()):
            pairs = zip(shapes[name], cut or (), strict=False)
            shape = [size if index is None else len(index) for size, index in pairs]
            small[name] = left.expand(shape).contiguous() if cut else left
    return small


def slice_saved(
    state: Mapping[Any, Any], names: Sequence[str], kept: Kept, shapes: Mapping[str, Sequence[int]]
) -> dict[Any, Any]:
    """Slice the ``"state"`` part of an optimizer's ``state_dict()`` with the parameters.

    Of a parameter of which nothing stays there is no state, and the numbers of others close up.

    Args:
        state: by the number of each parameter.
        names: of the parameters, in that order.
        kept: by name.
        shapes: before the slice.
    """
    small: dict[Any, Any] = {}
    gone = [i for i, name in enumerate(names) if nothing_left(kept.get(name, ()))]
    for number, values in state.items():
        if number in gone:
            continue
        name = names[number] if isinstance(number, int) and number < len(names) else ""
        fewer = number - sum(i < number for i in gone) if isinstance(number, int) else number
        small[fewer] = dict(values)
        for key, value in values.items():
            if isinstance(value, Tensor) and name in kept and value.shape == shapes[name]:
                small[fewer][key] = take(value, kept[name])
    return small


def refuse_for_shrinking(
    optimizer: Optimizer | None, copies: Iterable[object], *, shrunk: bool
) -> None:
    """What cannot go on with a model that becomes smaller while it trains.

    State that an optimizer brings from before a shrink it did not see is forgotten.

    Raises:
        InputError: for an optimizer whose state cannot be sliced, for several (``None``), and for
            copies of the model.
    """
    if optimizer is None:
        raise InputError(
            "compact: every_round: a model that shrinks can have one optimizer only: leave compact "
            "out, and call prunus.compact after training"
        )
    if list(copies):
        raise InputError(
            "a copy of the model was given (an EMA?), which would stay dense while the "
            "model shrinks: leave it out, or use compact: end"
        )
    for parameter, state in list(optimizer.state.items()) if shrunk else ():
        shapes = {tuple(v.shape) for v in state.values() if isinstance(v, Tensor) and v.numel() > 1}
        if shapes - {tuple(parameter.shape)}:
            del optimizer.state[parameter]
    refuse_optimizer(optimizer)


def _empty(like: Tensor, shape: torch.Size) -> Tensor:
    """Zeros, their dimensions in memory in the order of another tensor's."""
    made = torch.zeros(shape, dtype=like.dtype, device=like.device)
    if like.is_contiguous() or like.dim() != len(shape):
        return made
    order = sorted(range(like.dim()), key=like.stride().__getitem__, reverse=True)
    made = made.view([shape[d] for d in order])
    return made.permute([order.index(d) for d in range(like.dim())])


def _put_back(larger: Tensor, part: Tensor, kept: Indices | None) -> None:
    """Write what is left of a tensor to where it was."""
    kept = (None,) * larger.dim() if kept is None else kept
    left = [n if i is None else len(i) for n, i in zip(larger.shape, kept, strict=True)]
    if list(part.shape) == left:
        put(larger, kept, part.detach())
