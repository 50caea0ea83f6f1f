"""Masks tried on a model whose weights nothing trains, without a second copy of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.parts import parts
from prunus.pruning.masks import copy_of, put_back, zero
from prunus.types import Masks


class Trial:
    """A model as it was given, while masks are tried on it.

    A weight that nothing trains is as it was given, or zero: what was zeroed is all that has to
    be kept of it, and of buffers a copy.

    Args:
        model: as it was given.
        whole: keep a copy of all instead, because the model itself may become smaller.
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

    def __init__(self, model: nn.Module, *, whole: bool = False, final: bool = False) -> None:
        self._model, self._final = model, final
        self.accepted: Mapping[str, Any] = {}
        self._whole = copy_of(model) if whole else {}
        self._buffers = {} if final or whole else {n: b.clone() for n, b in model.named_buffers()}
        self._removed: dict[str, tuple[Tensor, list[Tensor]]] = {}

    @torch.no_grad()
    def apply(self, masks: Masks) -> None:
        """Zero what these masks remove, and nothing else, of the model as it was given."""
        self._fill(self._model)
        parameters = dict(self._model.named_parameters())
        for name, mask in masks.items():
            weight = parameters[name]
            if not self._final and not self._whole:
                both = parts(weight.detach(), mask.to(weight.device).expand(weight.shape))
                self._removed[name] = mask, [part.masked_select(~kept) for part, kept in both]
            zero(weight, mask)

    @torch.no_grad()
    def undo(self, model: nn.Module) -> None:
        """The model as it was given; of the shapes that it had then."""
        self._fill(model)
        put_back(model, self._whole)
        own = dict(model.named_buffers())
        for name, buffer in self._buffers.items():
            own[name].copy_(buffer)

    def _fill(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        for name in list(self._removed):
            (mask, values), weight = self._removed.pop(name), parameters[name]
            both = parts(weight, mask.to(weight.device).expand(weight.shape))
            for (part, kept), gone in zip(both, values, strict=True):
                part.masked_scatter_(~kept, gone)
        for name in parameters.keys() & self._whole.keys():
            parameters[name].copy_(self._whole[name])
