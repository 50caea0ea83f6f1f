"""What a model is called with: its arguments, by place and by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from prunus._common.kinds import kind_of
from prunus._common.nested import own_containers, tensors_of
from prunus.errors import InputError

Inputs: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a forward pass."""


def every_example(example: Any) -> list[Inputs]:
    """The arguments of each example: a list holds several, everything else is one.

    A model whose argument is itself a list is given a tuple: ``([first, second],)``.

    Raises:
        InputError: for an empty list.

    >>> every_example([1, {"mask": 3}])
    [((1,), {}), ((), {'mask': 3})]
    """
    if not isinstance(example, list):
        return [arguments(example)]
    if not example:
        raise InputError("example is an empty list: give an input, or a list of examples")
    return [arguments(one) for one in example]


def arguments(example: Any) -> Inputs:
    """An example as arguments: a mapping by keyword, a tuple by position, else the only one.

    Of a list of examples it is the first one.

    >>> arguments((1, 2)), arguments({"mask": 3})
    (((1, 2), {}), ((), {'mask': 3}))
    """
    if isinstance(example, list):
        return every_example(example)[0]
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def positional_names(model: nn.Module) -> list[str]:
    """Names of the parameters of ``forward`` that may be given by position.

    >>> positional_names(nn.Linear(1, 1))
    ['input']
    """
    parameters = inspect.signature(model.forward).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def defaults_of(model: nn.Module) -> dict[str, Any]:
    """What the arguments of ``forward`` are when they are left out.

    >>> defaults_of(nn.MultiheadAttention(4, 2))["need_weights"]
    True
    """
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def by_name(
    names: Sequence[str], inputs: tuple[tuple[Any, ...], Mapping[str, Any]]
) -> dict[str, Any]:
    """Arguments by name, in the order of the call; ``*args`` are ``args_0`` and so on.

    Args:
        names: of what may be given by position.
        inputs: positional and keyword arguments.

    >>> by_name(["x"], ((7, 8), {"flag": True}))
    {'x': 7, 'args_1': 8, 'flag': True}
    """
    args, kwargs = inputs
    every = [*names, *(f"args_{i}" for i in range(len(names), len(args)))]
    return {**dict(zip(every, args, strict=False)), **kwargs}


def shapes(values: Any) -> str:
    """The shapes of nested values, for people.

    >>> shapes((torch.ones(1, 3), {"ids": torch.tensor([[1]])}))
    'float32 (1, 3), int64 (1, 1)'
    """
    found = [f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in tensors_of(values)]
    return ", ".join(found) or "no tensor"


def one_device(models: Mapping[str, nn.Module], example: Any) -> torch.device:
    """The device on which models and example lie.

    Raises:
        InputError: if there are several, if it holds no values, or if there is no model.

    >>> one_device({"model": nn.Linear(2, 1)}, torch.ones(1, 2))
    device(type='cpu')
    """
    owners: dict[torch.device, str] = {}
    for name, model in models.items():
        if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
            raise InputError(
                f"measure takes models (nn.Module, not scripted), but {name} is {kind_of(model)}"
            )
        for tensor in (*model.parameters(), *model.buffers()):
            owners.setdefault(tensor.device, name)
    for tensor in tensors_of(example):
        owners.setdefault(tensor.device, "example")
    if any(device.type == "meta" for device in owners):
        raise InputError(
            "tensors on the meta device have no values and cannot be timed: move them to another"
        )
    if len(owners) > 1:
        places = ", ".join(f"{what} on {device}" for device, what in owners.items())
        raise InputError(
            f"everything must be on one device, but there is {places}: move it with .to(device)"
        )
    return next(iter(owners), torch.device("cpu"))


def called(model: Callable[..., Any], inputs: Inputs) -> Any:
    """What a model answers to arguments that others want to use again: it gets its own containers.

    >>> batch = {"x": 3}
    >>> called(lambda given: given.pop("x"), ((batch,), {})), batch
    (3, {'x': 3})
    """
    args, kwargs = own_containers(inputs)
    return model(*args, **kwargs)
