"""Whole modules taken out: residual branches, or blocks, that the masks empty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.inputs import arguments, every_example
from prunus._common.modules import shared_copy
from prunus.compaction.verifying.everywhere import Everywhere
from prunus.compaction.verifying.uses import Use
from prunus.compaction.verifying.values import State, random_like, values_for_test
from prunus.compaction.verifying.verify import (
    FLOAT64,
    TOLERANCE,
    Comparison,
    compare,
    difference,
    outputs,
)
from prunus.errors import InputError
from prunus.types import Masks

LEFT: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "input": lambda x: x,
    "relu": torch.relu,
}
"""What an emptied module may compute of its first input: a residual branch gives zeros, a block
with its skip connection the input, a block of a ResNet its positive part."""


class Dropped(nn.Module):
    """Stands where a module was, and computes what was left of it.

    Args:
        left: a key of :data:`LEFT`.

    >>> Dropped()(torch.tensor([-1.0, 2.0]))
    tensor([0., 0.])
    >>> Dropped("relu")(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    def __init__(self, left: str = "zeros") -> None:
        super().__init__()
        self.left = left

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The first input, ``[...]``, to the same shape and type."""
        return LEFT[self.left](first_tensor(args, kwargs))

    def extra_repr(self) -> str:
        """What it gives."""
        return self.left


def first_tensor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The first tensor that a module is given."""
    return next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))


@dataclass(frozen=True)
class DropPlan:
    """Modules that can be taken out.

    Attributes:
        left: names of the modules, and what stays of each (:data:`LEFT`).
        comparison: of the masked model and the one without them.
    """

    left: Mapping[str, str]
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


def find_drops(model: nn.Module, masks: Masks, example: Any) -> DropPlan:
    """The emptied modules that a simple function of their input stands for.

    Each is tried on what it gets in the model and on numbers of both signs; then the model without
    them is compared with the masked one. The model is not changed.

    Raises:
        InputError: if there is none: what is left of a module gives neither zeros nor its input.
    """
    names = emptied(model, masks)
    inputs = random_like(arguments(example))
    examples = [random_like(one, own_type=True) for one in every_example(example)]
    dense, masked = values_for_test(model, masks)
    expected = outputs(model, masked, inputs)
    effect = difference(outputs(model, dense, inputs), expected)[0]
    left = _left(model, names, masked, inputs)
    everywhere = Everywhere(model, masked, examples, FLOAT64)

    def without(chosen: Mapping[str, str]) -> Comparison:
        candidate = shared_copy(model)
        take_out(candidate, chosen)
        found = compare((expected, {}), candidate, masked, Use("", inputs))
        return replace(everywhere.check(candidate, masked, found), effect=effect)

    found = without(left)
    if not found.equal:
        left = {name: what for name, what in left.items() if without({name: what}).equal}
        found = without(left)
    if not left or not found.equal:
        raise InputError(
            "no emptied module can be removed: without its weights it must return zeros of its "
            "input's shape, as a residual branch does, or its input, as a block with a skip "
            "connection does; name such modules in structure: {name: layer, modules: [...]}"
        )
    return DropPlan(left, found)


def _left(
    model: nn.Module, names: Sequence[str], masked: State, inputs: tuple[Any, Any]
) -> dict[str, str]:
    """What each emptied module computes, of :data:`LEFT`; those that compute else are left out.

    A module is called where it stands, again, with random numbers for its first input.
    """
    watched = shared_copy(model)
    left: dict[str, set[str]] = {}
    busy: list[str] = []

    def hook(name: str, module: nn.Module, args: Any, kwargs: Any, _: Any) -> None:
        if busy:  # the call from below
            return
        busy.append(name)
        left[name] = left.get(name, set(LEFT)) & _fits(module, args, kwargs)
        busy.clear()

    for name in names:
        watched.get_submodule(name).register_forward_hook(partial(hook, name), with_kwargs=True)
    outputs(watched, masked, inputs)
    return {name: min(fits, key=list(LEFT).index) for name, fits in left.items() if fits}


def _fits(module: nn.Module, args: Any, kwargs: Any) -> set[str]:
    """The functions that a module computes of numbers of both signs, all else being given."""
    try:
        x = first_tensor(args, kwargs)
    except StopIteration:
        return set()
    if not x.is_floating_point():
        return set()
    draw = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = draw.to(x)

    def other(value: Any) -> Any:
        return given.clone() if value is x else value

    try:
        found = module(*map(other, args), **{k: other(v) for k, v in kwargs.items()})
    except Exception:  # the module wants other numbers, so it is none of these functions
        return set()
    if not isinstance(found, Tensor):
        return set()
    return {k for k, f in LEFT.items() if not difference([f(given)], [found])[0] > TOLERANCE}


def take_out(model: nn.Module, left: Mapping[str, str]) -> dict[str, nn.Module]:
    """Replace modules by :class:`Dropped`; what stood there is returned."""
    before = {}
    for name, what in left.items():
        before[name] = model.get_submodule(name)
        model.set_submodule(name, Dropped(what))
    return before


def put_back_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Undo :func:`take_out`."""
    for name, module in modules.items():
        model.set_submodule(name, module)
