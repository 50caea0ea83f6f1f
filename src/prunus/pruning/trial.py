"""Masks tried on a model whose weights nothing trains, without a second copy of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.gathering import along
from prunus._common.memory import lasting
from prunus._common.parts import parts
from prunus._common.topk import count
from prunus.pruning.masks import zero
from prunus.types import Masks


class Trial:
    """A model as it was given, while masks are tried on it.

    A weight that nothing trains is as it was given, or zero: what was zeroed is all that has to
    be kept of it, also where the model itself becomes smaller in the end and is made whole again.
    Of buffers and vectors, which that may rescale, there are copies.

    Args:
        model: as it was given.
        final: nothing that could fail comes after the first masks: keep nothing.

    Attributes:
        accepted: the state of whoever tries masks, with the last that were good.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> given = model.weight.tolist()
    >>> trial = Trial(model)
    >>> trial.apply({"weight": torch.tensor([[True, False]])})
    >>> model.weight[0, 1].item()
    0.0
    >>> trial.undo(model)
    >>> model.weight.tolist() == given
    True
    """

    def __init__(self, model: nn.Module, *, final: bool = False) -> None:
        self._model, self._final = model, final
        self.accepted: Mapping[str, Any] = {}
        own = (
            *model.named_buffers(),
            *((n, p) for n, p in model.named_parameters() if p.dim() < 2),
        )
        self._copies = {} if final else {n: t.detach().clone() for n, t in own}
        self._removed: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def apply(self, masks: Masks) -> None:
        """Zero what these masks remove, and nothing else, of the model as it was given."""
        self._fill(self._model)
        parameters = dict(self._model.named_parameters())
        for name, mask in masks.items():
            weight = parameters[name]
            if not self._final:
                self._removed[name] = mask, _removed(weight.detach(), mask)
            zero(weight, mask)

    @torch.no_grad()
    def undo(self, model: nn.Module) -> None:
        """The model as it was given; of the shapes that it had then."""
        torch.clear_autocast_cache()
        self._fill(model)
        own = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        for name, value in self._copies.items():
            own[name].detach().copy_(value)

    def done(self) -> None:
        """Nothing is undone any more: let go of what was kept for it."""
        self._removed, self._copies = {}, {}

    def _fill(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        for name in list(self._removed):
            (mask, values), weight = self._removed.pop(name), parameters[name]
            _put(weight.detach(), mask, values)


def _removed(weight: Tensor, mask: Tensor) -> Tensor:
    """The values that a mask removes, in memory of their own: other temporaries leave holes."""
    way = _slices(weight, mask)
    if way is not None:
        d, gone = way
        shape = (*weight.shape[:d], len(gone), *weight.shape[d + 1 :])
        return along(weight, d, gone, out=_made(shape, weight))
    kept = mask.to(weight.device).expand(weight.shape)
    values = _made((kept.numel() - count(kept),), weight)
    start = 0
    for part, own in parts(weight, kept):
        some = part.masked_select(~own)
        values[start : start + len(some)] = some
        start += len(some)
    return values


def _put(weight: Tensor, mask: Tensor, values: Tensor) -> None:
    way = _slices(weight, mask)
    if way is not None:
        weight.index_copy_(*way, values)
        return
    start = 0
    for part, own in parts(weight, mask.to(weight.device).expand(weight.shape)):
        number = own.numel() - count(own)
        part.masked_scatter_(~own, values[start : start + number])
        start += number


def _slices(weight: Tensor, mask: Tensor) -> tuple[int, Tensor] | None:
    """The one dimension of which a mask removes whole slices, and which; ``None`` for any other."""
    long = [d for d, n in enumerate(mask.shape) if n > 1]
    if len(long) != 1 or mask.dim() != weight.dim() or mask.numel() == weight.numel():
        return None
    return long[0], (~mask).flatten().nonzero().flatten().to(weight.device)


def _made(shape: Sequence[int], like: Tensor) -> Tensor:
    if like.device.type == "cpu":
        return lasting(shape, like.dtype)
    return like.new_empty(tuple(shape))
