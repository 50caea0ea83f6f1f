"""Whole modules taken out: residual branches that the masks set to zero throughout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.compaction.values import random_like, values_for_test
from prunus.compaction.verify import Comparison, compare, difference, outputs
from prunus.errors import InputError
from prunus.graph.trace import twin
from prunus.types import Masks


class Dropped(nn.Module):
    """Stands where a branch was: zeros of its input's shape.

    >>> Dropped()(torch.ones(2))
    tensor([0., 0.])
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``[...]`` to zeros of the same shape and type."""
        return torch.zeros_like(x)


@dataclass(frozen=True)
class Drops:
    """Modules that can be taken out.

    Attributes:
        names: of the modules.
        comparison: of the masked model and the one without them.
    """

    names: tuple[str, ...]
    comparison: Comparison


def emptied(model: nn.Module, masks: Masks) -> list[str]:
    """The outermost modules of which the masks leave no weight.

    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1))
    >>> emptied(model, {"0.weight": torch.zeros(1, 1, dtype=torch.bool)})
    ['0']
    """
    gone = {name for name, mask in masks.items() if not bool(mask.any())}
    found: list[str] = []
    for name, module in model.named_modules():
        own = [f"{name}.{key}" for key, _ in module.named_parameters()]
        inside = any(name.startswith(f"{f}.") for f in found)
        if name and own and not inside and all(key in gone for key in own):
            found.append(name)
    return found


def find_drops(model: nn.Module, masks: Masks, example: Any) -> Drops:
    """The emptied modules without which the model computes the same.

    The model is not changed.

    Raises:
        InputError: if there is none: what is left of a module adds more than zeros, or its output
            is not of its input's shape.
    """
    names = emptied(model, masks)
    inputs = random_like(example)
    dense, masked = values_for_test(model, masks)
    expected = outputs(model, masked, inputs)
    effect = difference(outputs(model, dense, inputs), expected)[0]

    def without(chosen: Sequence[str]) -> Comparison:
        candidate = twin(model)
        take_out(candidate, chosen)
        found = compare(expected, candidate, masked, inputs)
        return Comparison(found.error, effect, found.problem)

    found = without(names)
    if not found.equal:
        names = [name for name in names if without([name]).equal]
        found = without(names)
    if not names or not found.equal:
        raise InputError(
            "no emptied module can be taken out: it must map its input to zeros of the same shape, "
            "as a residual branch does; name the branch itself in structure: {name: layer, "
            "modules: [...]}"
        )
    return Drops(tuple(names), found)


def take_out(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Replace modules by :class:`Dropped`; what stood there is returned."""
    before = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        owner = model.get_submodule(parent)
        before[name] = model.get_submodule(name)
        owner._modules[last] = Dropped()
    return before


def put_back_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Undo :func:`take_out`."""
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        model.get_submodule(parent)._modules[last] = module
