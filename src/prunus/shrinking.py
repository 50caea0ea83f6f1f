"""A pruner's model made smaller between rounds, and larger again when a round is rejected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunus.compaction.compact import perform
from prunus.compaction.cut import Cut, Kept, cut_of, take
from prunus.compaction.replace import cut_from_kept
from prunus.compaction.routes import Plan, find_plan
from prunus.compaction.surgery import refresh
from prunus.errors import InputError
from prunus.types import Masks
from prunus.view import View, look

if TYPE_CHECKING:
    from prunus.pruner import Pruner


@dataclass(frozen=True)
class Shrunk:
    """One shrink of a pruner's model, with what it takes to undo it.

    Attributes:
        plan: what was done.
        units: units taken out.
        model: before; the same object where its class stayed.
        modules: that were replaced.
        tensors: shapes of parameters and buffers before.
        view: before.
        given: masks that the model came with, before.
    """

    plan: Plan
    units: int
    model: nn.Module
    modules: Mapping[str, nn.Module]
    tensors: Mapping[str, torch.Size]
    view: View
    given: Masks


def shrink(pruner: Pruner, optimizer: Optimizer | None = None) -> Shrunk | None:
    """Take every unit out that the masks remove; ``None`` if there is none.

    Parameters keep their identity, so an optimizer goes on with them.

    Args:
        pruner: whose model becomes smaller.
        optimizer: whose state is sliced along.

    Raises:
        RunError: if the smaller model does not equal the masked one; nothing is changed then.
    """
    assert pruner.view.analysis is not None
    cut = cut_of(pruner.view.analysis, pruner.masks)
    return _carry_out(pruner, cut, optimizer) if cut.units() else None


def follow(pruner: Pruner, kept: Sequence[Mapping[str, Any]]) -> None:
    """Bring a model to where these shrinks lead: forward from the dense one, or back."""
    while len(pruner.shrinks) > len(kept):
        grow(pruner)
    for step in kept[len(pruner.shrinks) :]:
        assert pruner.view.analysis is not None
        plain: Kept = {name: tuple(indices) for name, indices in step.items()}
        _carry_out(pruner, cut_from_kept(pruner.view.analysis, plain), None)


def grow(pruner: Pruner) -> None:
    """Undo the last shrink; the values of what comes back are for the caller to fill in."""
    last = pruner.shrinks.pop()
    small = dict(pruner.model.named_parameters())
    buffers = dict(pruner.model.named_buffers())
    if last.plan.graph is None:
        last.plan.surgery.undo(pruner.model, last.modules)
    pruner.model = last.model
    for name, parameter in last.model.named_parameters():
        parameter.data = _empty(small.get(name, parameter), last.tensors[name])
        parameter.grad = None
    for path, module in last.model.named_modules():
        for key, buffer in module._buffers.items():
            name = f"{path}.{key}" if path else key
            if buffer is not None and buffer.shape != last.tensors.get(name, buffer.shape):
                module._buffers[key] = _empty(buffers.get(name, buffer), last.tensors[name])
    refresh(last.model)
    if pruner.optimizer is not None:
        pruner.optimizer.state.clear()  # of the smaller shapes; a run puts the saved one back
    pruner.see(last.view, last.given, {})


def _carry_out(pruner: Pruner, cut: Cut, optimizer: Optimizer | None) -> Shrunk:
    model = pruner.model
    plan = find_plan(model, cut, pruner.example)
    shapes = {
        name: tensor.shape
        for name, tensor in (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        )
    }
    before = dict(model.named_parameters())
    modules = {n: model.get_submodule(n) for n in plan.surgery.replaced}
    small = perform(model, plan)
    done = Shrunk(
        plan=plan,
        units=cut.units(),
        model=model,
        modules=modules,
        tensors=shapes,
        view=pruner.view,
        given=pruner.given,
    )
    pruner.shrinks.append(done)
    if optimizer is not None:
        cuts = {id(before[n]): k for n, k in plan.surgery.kept.items() if n in before}
        slice_states(optimizer, cuts, {id(p): shapes[n] for n, p in before.items()})
    pruner.model = small
    names = {n for n, _ in small.named_parameters()}
    layers = [la for la in pruner.view.layers if la.name in names]
    view = look(
        small, pruner.recipe, pruner.ideas, pruner.example, layers=layers,
        dense=pruner.view,
    )  # fmt: skip
    pruner.running = {n: _sliced(t, plan.surgery.kept.get(n)) for n, t in pruner.running.items()}
    pruner.see(
        view,
        smaller_masks(pruner.given, plan.surgery.kept, shapes),
        smaller_masks(pruner.masks, plan.surgery.kept, shapes),
    )
    return done


def smaller_masks(masks: Masks, kept: Kept, shapes: Mapping[str, Sequence[int]]) -> Masks:
    """Masks of what is left; those that keep all of it are dropped."""
    small: Masks = {}
    for name, mask in masks.items():
        cut = kept.get(name)
        left = mask if cut is None else take(mask.expand(tuple(shapes[name])), cut)
        if not bool(left.all()):
            small[name] = left
    return small


def slice_states(
    optimizer: Optimizer,
    kept: Mapping[int, tuple[Tensor | None, ...]],
    shapes: Mapping[int, torch.Size],
) -> None:
    """Slice every state tensor that has a parameter's old shape.

    Args:
        optimizer: whose parameters were sliced in place.
        kept: by the identity of a parameter.
        shapes: before the slice.
    """
    for parameter, state in optimizer.state.items():
        cut = kept.get(id(parameter))
        if cut is None:
            continue
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == shapes[id(parameter)]:
                state[key] = take(value, cut)


def slice_saved(
    state: Mapping[Any, Any], names: Sequence[str], kept: Kept, shapes: Mapping[str, Sequence[int]]
) -> dict[Any, Any]:
    """The same for the ``"state"`` part of an optimizer's ``state_dict()``.

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


UNSLICEABLE = {
    "Adafactor": "it keeps sums over rows and columns, which mix what stays with what goes",
    "Muon": "its update orthogonalises whole matrices, so those of a smaller one are others",
    "LBFGS": "it keeps a history of flattened weights",
    "Shampoo": "it keeps products over whole dimensions",
    "SOAP": "it keeps products over whole dimensions",
}


def refuse_optimizer(optimizer: Optimizer, parameters: Iterable[nn.Parameter] = ()) -> None:
    """Refuse an optimizer whose state cannot be sliced.

    Raises:
        InputError: by name, with what to do.
    """
    name = type(optimizer).__name__
    reason = UNSLICEABLE.get(name)
    if reason is None:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                    reason = f"its state '{key}' has another shape than its parameter"
    if reason is not None:
        raise InputError(
            f"{name} cannot go on with a smaller model: {reason}. Use SGD, Adam, AdamW, Adagrad, "
            "RMSprop or NAdam, or compact: end"
        )


def _sliced(tensor: Tensor, kept: tuple[Tensor | None, ...] | None) -> Tensor:
    return tensor if kept is None else take(tensor, kept)


def _empty(like: Tensor, shape: torch.Size) -> Tensor:
    return torch.zeros(shape, dtype=like.dtype, device=like.device)
