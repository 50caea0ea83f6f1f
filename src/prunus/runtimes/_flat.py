"""A model that takes nothing but tensors and gives nothing but tensors, as exporters want it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunus._common.modules import set_forward, shared_copy
from prunus._common.nested import leaves_of, tensors_of, with_tensors
from prunus.runtimes import BuildRequest
from prunus.runtimes._arguments import named


@dataclass(frozen=True)
class Flat:
    """A model whose every argument is one tensor with a name.

    Attributes:
        model: shares its parameters, under their names, with the model it was made from; whatever
            else the example held (flags, ``None``) is built in.
        args: the tensors among the positional arguments.
        kwargs: those among the keyword arguments.
        names: of both, in order.
    """

    model: nn.Module
    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]
    names: tuple[str, ...]


def flat(order: BuildRequest) -> Flat:
    """A copy of the order's model that takes the tensors of the example, flattened.

    A tensor inside a list or a mapping is named after its place: ``state[0]`` is ``state_0``.
    """
    args, kwargs = order.call
    example = named(order)
    names = _identifiers([path for path, leaf in leaves_of(example) if isinstance(leaf, Tensor)])
    model = shared_copy(order.model)
    forward = model.forward

    def plain(*given: Any, **more: Any) -> tuple[Tensor, ...]:
        values = list(with_tensors(example, (*given, *more.values())).values())
        answers = forward(
            *values[: len(args)], **dict(zip(kwargs, values[len(args) :], strict=True))
        )
        return tuple(tensors_of(answers))

    set_forward(model, plain, names)
    tensors, count = order.tensors, len(tensors_of(args))
    by_name = dict(zip(names[count:], tensors[count:], strict=True))
    return Flat(model, tuple(tensors[:count]), by_name, tuple(names))


def _identifiers(places: Sequence[str]) -> list[str]:
    """``['state'][0]`` becomes ``state_0``; all are different.

    >>> _identifiers(["['x']", "['x'][0]", "['x_0']"])
    ['x', 'x_0', 'x_0_']
    """
    names: list[str] = []
    for place in places:
        name = re.sub(r"\W+", "_", place).strip("_")
        name = name if name.isidentifier() else f"input_{name}"
        while name in names:
            name += "_"
        names.append(name)
    return names
