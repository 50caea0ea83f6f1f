"""What a model keeps between calls: a graph would begin anew each time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.inputs import Inputs, called
from prunus._common.modules import shared_copy
from prunus._common.nested import map_tensors
from prunus._common.put_back import PutBack
from prunus._common.rng import preserve_rng, seed
from prunus._common.torch_internals import version_of
from prunus.graph.trace import analysis_mode

_TABLES = ("_parameters", "_modules", "_buffers")


def keeps_state(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a call changes what modules hold beside parameters: a state, a counter, a list.

    What it changes may be of no consequence, as a table that is made once: a second call tells.

    Args:
        model: is not changed.
        inputs: positional and keyword arguments.

    >>> class Sum(nn.Module):
    ...     total = 0.0
    ...     def forward(self, x):
    ...         self.total = self.total + x
    ...         return self.total
    >>> keeps_state(Sum(), ((torch.ones(1),), {})), keeps_state(nn.ReLU(), ((torch.ones(1),), {}))
    (True, False)
    """
    twin = shared_copy(model)
    old = [*_held(twin)]
    tensors = [v for _, v in old if isinstance(v, Tensor)]
    held: list[Any] = []  # so that nothing new gets the identity of an old one that is gone
    before = [(path, _form(value, held)) for path, value in old]
    args = map_tensors(Tensor.clone, inputs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(preserve_rng())
        stack.enter_context(torch.no_grad())
        stack.enter_context(analysis_mode(twin))
        stack.enter_context(PutBack((*twin.parameters(), *tensors)))
        seed(0)
        called(twin, args)
        return before != [(path, _form(value, held)) for path, value in _held(twin)]


def _held(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        for key, value in (*vars(module).items(), *module._buffers.items()):
            if key not in _TABLES and key != "training":
                yield f"{path}.{key}", value


def _form(value: Any, held: list[Any]) -> Any:
    """What changes when a value does; what is told apart by its identity is held."""
    held.append(value)
    if isinstance(value, Tensor):
        return id(value), version_of(value)
    if isinstance(value, (int, float, str, bool, type(None))):
        return repr(value)
    if isinstance(value, (dict, list, tuple, set)):
        inner = [*value.values()] if isinstance(value, dict) else [*value]
        held += inner
        return [(id(v), _form(v, held)) if isinstance(v, Tensor) else id(v) for v in inner]
    state = getattr(value, "__dict__", {})
    held += state.values()
    return id(value), [(key, id(v)) for key, v in state.items()]
