"""Averages of a model that nobody named: tensors that follow its weights from outside."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.torch_internals import version_of
from prunus.pruning.masks import not_zero
from prunus.types import Masks

ALIKE = 0.5
"""Cosine between what is kept of a weight and a tensor above which it follows that weight."""
CHANCE = 4.0
"""Cosines of n random values have a standard deviation of 1 ÷ √n: so many of them are no chance."""

SAMPLED = 1024
"""Numbers of a tensor that tell whether it was written to."""

_CLASSES = (Tensor, nn.Parameter)
_OURS = "_kept_by_prunus"


def ours(module: nn.Module) -> nn.Module:
    """Let a copy of the model that prunus keeps not be taken for an average of somebody's."""
    for tensor in module.parameters():
        setattr(tensor, _OURS, True)
    return module


class Followers:
    """What was there at the first step, so that what was written to since then shows.

    A tensor follows a weight if it has its shape and nearly its direction, is written to while
    the model is pruned, and no optimizer trains it: an average (EMA, SWA) of a loop of one's own.
    Written to is also what takes another's place in a list or mapping that held such a tensor
    before, as averages do that are made anew at every step.

    Args:
        shapes: of the weights in scope.
    """

    def __init__(self, shapes: Iterable[torch.Size]) -> None:
        self._shapes = frozenset(shapes)
        self._before: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}
        self._holders: list[tuple[Any, int]] = []
        self._steps, self._next = 0, 1

    def after_step(self, model: nn.Module) -> None:
        """A step of the training: at the 1st, 256th, 65,536th … see what has come meanwhile.

        Args:
            model: that is trained, and does not follow itself. No reference to its tensors is
                kept: where torch swaps tensors (``torch.__future__``), it could not be moved.
        """
        self._steps += 1
        self._holders = _held_elsewhere(self._holders)
        if self._steps >= self._next:
            self._next *= 256
            self._look(model)

    def _look(self, model: nn.Module) -> None:
        alive = list(self._alive())
        own = {id(t) for p in model.parameters() for t in (p, p.grad) if t is not None}
        fresh = [t for t in alive if id(t) not in own and not self._is_known(t)]
        self._before |= {id(t): (weakref.ref(t), _sample(t)) for t in fresh}
        # Each costs a look through all that there is, and gradients are new at every step.
        gradients = {id(p.grad) for p in alive if type(p) is nn.Parameter}
        plain = [t for t in fresh if type(t) is Tensor and id(t) not in gradients]
        known = {id(own) for own in (alive, fresh, *(holder for holder, _ in self._holders))}
        self._holders += [one for one in _holders(plain) if id(one[0]) not in known]

    def _is_known(self, tensor: Tensor) -> bool:
        seen = self._before.get(id(tensor))
        return seen is not None and seen[0]() is tensor

    def _alive(self) -> Iterator[Tensor]:
        for value in gc.get_referrers(*_CLASSES):  # instances; four times as fast as all objects
            if type(value) not in _CLASSES or value.is_nested:  # which has no shape
                continue
            if value.shape in self._shapes:
                real = value.layout == torch.strided and value.device.type != "meta"
                if (
                    real
                    and value.is_floating_point()
                    and value.numel()
                    and not hasattr(value, _OURS)
                ):
                    yield value

    @torch.no_grad()
    def dense(self, model: nn.Module, masks: Masks, known: set[int]) -> dict[str, Tensor]:
        """Those that have values where weights are removed, by the weight that they follow.

        Args:
            model: that they follow.
            masks: of its weights.
            known: tensors that are none, by ``id``: what optimizers train, and their state.
        """
        if not self._steps:  # nothing was written to
            return {}
        own = dict(model.named_parameters())
        masked = {name: own[name] for name in masks if name in own}
        known = known | {id(t) for p in own.values() for t in (p, p.grad) if t is not None}
        found: dict[str, Tensor] = {}
        for tensor in self._alive():
            if id(tensor) in known or self._is_as_it_was(tensor):
                continue
            for name, weight in masked.items():
                if name not in found and _follows(tensor, weight, masks[name]):
                    if self._written(tensor):
                        found[name] = tensor
                    break
        return found

    def _is_as_it_was(self, tensor: Tensor) -> bool:
        known = self._is_known(tensor)
        return known and torch.equal(_sample(tensor), self._before[id(tensor)][1])

    def _written(self, tensor: Tensor) -> bool:
        if self._is_known(tensor):
            return True
        # It is younger; written to once: what torch.load read.
        self._holders = _held_elsewhere(self._holders)
        known = {(id(holder), length) for holder, length in self._holders}
        return version_of(tensor) > 1 or any((id(h), n) in known for h, n in _holders([tensor]))


def _holders(tensors: Sequence[Tensor]) -> list[tuple[Any, int]]:
    """The lists and mappings that hold tensors, and how long they are."""
    every = gc.get_referrers(*tensors) if tensors else []
    return [(h, len(h)) for h in every if type(h) in (dict, list) and h is not tensors]


def _held_elsewhere(holders: list[tuple[Any, int]]) -> list[tuple[Any, int]]:
    """Those that somebody else holds too.

    They are held here, so that no other list gets the ``id`` of one that is gone, and no longer
    than until the next look: what nobody else holds may be large.
    """
    every: list[tuple[Any, int]] = [*holders, ([], 0)]  # the last is held here alone
    counts = [sys.getrefcount(holder) for holder, _ in every]
    return [one for one, count in zip(holders, counts, strict=False) if count > counts[-1]]


def _sample(tensor: Tensor) -> Tensor:
    """About a thousand numbers from all over it: a row alone may be one that nothing trains."""
    return tensor.detach().reshape(-1)[:: tensor.numel() // SAMPLED | 1].clone()


def _follows(tensor: Tensor, weight: Tensor, mask: Tensor) -> bool:
    if tensor.shape != weight.shape or tensor.device != weight.device:
        return False
    kept = mask.to(weight.device).expand(weight.shape)
    a, b = weight.detach()[kept].float(), tensor.detach()[kept].float()
    least = max(ALIKE, CHANCE / max(1, a.numel()) ** 0.5)
    close = float(a @ b) > least * float(a.norm()) * float(b.norm())
    return close and not_zero(tensor, mask)


def owner_of(tensor: Tensor) -> str:
    """The largest module that holds a tensor, for people."""
    holders = [
        module
        for module in gc.get_objects()
        if issubclass(type(module), nn.Module) and any(t is tensor for t in module.parameters())
    ]
    largest = max(holders, key=lambda m: sum(1 for _ in m.parameters()), default=None)
    return "a tensor" if largest is None else f"{type(largest).__name__}"
