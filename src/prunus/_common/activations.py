"""What layers read and give while batches pass through a model, one layer at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.as_written import looked_into
from prunus._common.distributed import gather
from prunus._common.inputs import Inputs
from prunus._common.modules import evaluating, held
from prunus._common.torch_internals import AnyConv

Watcher = Callable[[Tensor, Tensor], None]
"""Gets what a layer read and what it gave, at each call."""


@dataclass(frozen=True)
class Place:
    """A linear layer or convolution as a pass meets it.

    Attributes:
        name: of the module.
        module: the layer.
        calls: of it in one pass, at most.
        size: numbers that it reads in one pass, at most.
        strays: whether some pass calls it behind a layer that others call later.
    """

    name: str
    module: nn.Module
    calls: int
    size: int = 0
    strays: bool = False


def places(model: nn.Module, passes: Iterable[Inputs]) -> list[Place]:
    """The layers that compute ``W x + b``, in the order in which passes call them.

    Layers whose weight is computed from other parameters are left out. Passes may go ways of their
    own: a layer that one alone calls comes behind the one that it calls before. All ranks of a
    training get the same layers in the same order.

    >>> model = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
    >>> model.forward = lambda x, first, then: model[then](model[first](x))
    >>> x = torch.ones(1, 1)
    >>> [(p.name, p.strays) for p in places(model, [((x, *"ab"), {}), ((x, *"ba"), {})])]
    [('a', True), ('b', False)]
    """
    every: list[dict[str, list[int]]] = []
    names = {m: n for n, m in model.named_modules() if is_affine(m)}

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        every[-1].setdefault(names[module], []).append(read_by(args, kwargs).numel())

    with contextlib.ExitStack() as hooks:
        for module in names:
            hooks.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        with evaluating(model), torch.no_grad():
            for inputs in passes:
                every.append({})
                looked_into(model, inputs)
    every = [one for rank in gather(every) for one in rank]
    order = _one_order(every)
    strays = {n for one in every for n in _strays([n for n in one if n in order], order)}
    found = {n: [one[n] for one in every if n in one] for n in order}
    return [
        Place(n, model.get_submodule(n), max(map(len, s)), max(map(sum, s)), n in strays)
        for n, s in found.items()
    ]


def _one_order(ways: Iterable[Iterable[str]]) -> list[str]:
    """All names, each behind the one before it on the first way that has it.

    >>> _one_order(["ad", "abd", "cb"])
    ['c', 'a', 'b', 'd']
    """
    order: list[str] = []
    for way in ways:
        at = 0
        for name in way:
            if name not in order:
                order.insert(at, name)
            at = order.index(name) + 1
    return order


def _strays(way: Iterable[str], order: Sequence[str]) -> Iterator[str]:
    """The names on a way that come behind one which is later in the order.

    >>> list(_strays("acbd", "abcd"))
    ['b']
    """
    last = -1
    for name in way:
        at = order.index(name)
        if at < last:
            yield name
        last = max(at, last)


def read_by(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What a layer is called with, by place or by name."""
    read: Tensor = args[0] if args else next(iter(kwargs.values()))
    return read


def is_affine(module: nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution with a weight of its own."""
    kind = isinstance(module, (nn.Linear, AnyConv))
    return kind and isinstance(held(module._parameters, "weight"), nn.Parameter)


def layers_of(names: Mapping[int, str], modules: Iterable[nn.Module]) -> dict[str, list[nn.Module]]:
    """The modules that hold each weight: some may share one.

    Args:
        names: of weights, by identity.
        modules: with a weight each.

    >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> other.weight = one.weight
    >>> len(layers_of({id(one.weight): "weight"}, [one, other])["weight"])
    2
    """
    found: dict[str, list[nn.Module]] = {}
    for module in modules:
        name = names.get(id(module.weight))
        if name is not None:
            found.setdefault(name, []).append(module)
    return found


def watch(
    model: nn.Module,
    place: Place,
    passes: Iterable[Inputs],
    watcher: Watcher,
    within: AbstractContextManager[Any] | None = None,
) -> None:
    """Let batches pass as far as a layer, in eval mode and without gradients.

    The hook goes whatever happens; the rest of each pass is not computed.

    Args:
        model: that has the layer.
        place: the layer.
        passes: inputs of the model.
        watcher: gets what the layer reads and gives.
        within: in what the model runs, entered in eval mode.
    """
    left = 0

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal left
        watcher(read_by(args, kwargs).detach(), output.detach())
        left -= 1
        if not left:
            raise FarEnough

    hook = place.module.register_forward_hook(note, with_kwargs=True)
    try:
        with evaluating(model), torch.no_grad(), within or contextlib.nullcontext():
            for inputs in passes:
                left = place.calls
                with contextlib.suppress(FarEnough):
                    looked_into(model, inputs)
    finally:
        hook.remove()


class FarEnough(BaseException):
    """Ends a pass behind the layer; no ``except Exception`` of the model's code catches it."""
