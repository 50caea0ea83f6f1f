"""Code of the user's that only looks at a model: what it changes is put back, or named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prunus._common.modules import keeping_modes
from prunus.errors import InputError

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextmanager
def without_trace(model: nn.Module, who: str) -> Iterator[None]:
    """Whatever happens inside, the model is afterwards what it was before.

    Modes, buffers (the statistics of batch norms), what is frozen, gradients, hooks, types, and
    which modules and tensors it consists of are put back. Weights that were written over are not:
    no copy of them is kept.

    Args:
        model: that foreign code is called with.
        who: what that code is, for the message.

    Raises:
        InputError: if weights have other values afterwards, by name.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    >>> with without_trace(model, "evaluate"):
    ...     _ = model.requires_grad_(False).train()(torch.ones(2, 1))
    >>> model[0].weight.requires_grad, int(model[1].num_batches_tracked)
    (True, 0)
    """
    modules = list(model.modules())
    stores = [(store, dict(store)) for module in modules for store in _stores(module)]
    parameters = [_Parameter.of(p) for p in model.parameters()]
    buffers = [(b, b.data, b.detach().clone()) for b in model.buffers()]
    weights = {name: _checksum(p) for name, p in model.named_parameters()}
    try:
        with keeping_modes(model):
            yield
    finally:
        for store, before in stores:
            if len(store) != len(before) or any(store.get(k) is not v for k, v in before.items()):
                store.clear()
                store.update(before)
        for parameter in parameters:
            parameter.put_back()
        with torch.no_grad():
            for buffer, data, value in buffers:
                _point_to(buffer, data)
                if not _same_bits(buffer, value):
                    buffer.copy_(value)
    now = {name: _checksum(p) for name, p in model.named_parameters()}
    changed = [name for name, value in weights.items() if now.get(name) != value]
    if changed:
        others = f" and {len(changed) - 1} others" if len(changed) > 1 else ""
        raise InputError(
            f"{who} changed the weights of the model that it was given to look at "
            f"('{changed[0]}'{others}): let it work on a copy (copy.deepcopy), or put them back"
        )


@contextmanager
def trainable_again(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, afterwards the same parameters can be trained as before."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    finally:
        for parameter, trainable in before:
            if parameter.requires_grad != trainable:  # which a tensor of inference mode refuses
                parameter.requires_grad_(trainable)


class _Parameter(NamedTuple):
    """A parameter as it was, without a copy of its values."""

    parameter: nn.Parameter
    data: Tensor
    trainable: bool
    grad: Tensor | None
    grad_data: Tensor | None

    @classmethod
    def of(cls, parameter: nn.Parameter) -> _Parameter:
        grad = parameter.grad
        own = None if grad is None else grad.data
        return cls(parameter, parameter.data, parameter.requires_grad, grad, own)

    def put_back(self) -> None:
        _point_to(self.parameter, self.data)
        if self.parameter.requires_grad != self.trainable:
            self.parameter.requires_grad_(self.trainable)
        if self.grad is not None and self.grad_data is not None:
            _point_to(self.grad, self.grad_data)
        self.parameter.grad = self.grad


def _point_to(tensor: Tensor, data: Tensor) -> None:
    """The memory that a tensor had, where a cast or a move has given it another."""
    kind = (tensor.dtype, tensor.device, tensor.shape, tensor.stride())
    moved = kind != (data.dtype, data.device, data.shape, data.stride())
    if type(data) is Tensor and data.layout == torch.strided and not data.is_meta:
        moved = moved or tensor.data_ptr() != data.data_ptr()
    if moved:
        tensor.data = data


def _stores(module: nn.Module) -> list[dict[str, Any]]:
    """What a module consists of, and its hooks; nothing of compiled code, which holds its own."""
    if isinstance(module, torch.jit.ScriptModule):
        return []
    hooks = [v for k, v in vars(module).items() if "_hooks" in k and isinstance(v, dict)]
    return [module._parameters, module._buffers, module._modules, *hooks]


def _same_bits(one: Tensor, other: Tensor) -> bool:
    same = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    if not same or one.is_meta or one.layout != torch.strided:
        return same
    return one.is_inference() or torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return plain.detach().view(_INTEGERS[plain.element_size()])


def _checksum(parameter: Tensor) -> tuple[Any, ...]:
    """Type, place and the sum of the bits, eight bytes at a time where they lie in a row."""
    kind = (parameter.dtype, parameter.device, tuple(parameter.shape))
    plain = type(parameter.data) is Tensor and parameter.layout == torch.strided
    if not plain or parameter.is_meta or not parameter.numel():
        return kind
    bits = _bits(parameter.data)
    if bits.is_contiguous() and bits.nbytes % 8 == 0:  # a sum of short numbers would copy them
        bits = bits.view(-1).view(torch.int64)
    return (*kind, int(bits.sum()))
