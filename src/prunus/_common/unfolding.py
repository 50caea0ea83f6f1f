"""Layers as matrices: what each output is a weighted sum of, and the weights of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus._common.torch_internals import AnyConv, AnyTransposedConv


def at_once(module: nn.Module, given: Tensor, output: Tensor) -> int:
    """How many items of a call are unfolded at a time, so that memory stays bounded.

    Args:
        module: a linear layer or a convolution.
        given: what it reads.
        output: what it gives.
    """
    rows = weight_rows(module, module.get_parameter("weight"))
    numbers = output.numel() // len(rows) * rows.shape[1] * getattr(module, "groups", 1)
    batched = given.dim() > 1 + len(getattr(module, "kernel_size", ()))
    return max(1, CHUNK * len(given) // max(1, numbers)) if batched else len(given)


CHUNK = 2**24
"""Numbers that are unfolded at a time."""


def weight_rows(module: nn.Module, values: Tensor) -> Tensor:
    """A tensor of the shape of a layer's weight, ``[outputs, columns]`` as of :func:`columns`.

    Args:
        module: a linear layer or a convolution; of a transposed one the inputs come first.
        values: its weight, or what belongs to each number of it.

    >>> layer = nn.ConvTranspose1d(3, 2, 5)
    >>> weight_rows(layer, layer.weight).shape
    torch.Size([2, 15])
    """
    if isinstance(module, AnyTransposedConv):
        values = values.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
    return values.flatten(1)


def of_weight_rows(module: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix of :func:`weight_rows` in the shape of the layer's weight."""
    shape = module.get_parameter("weight").shape
    if isinstance(module, AnyTransposedConv):
        inputs = shape[0] // module.groups
        grouped = matrix.reshape(module.groups, shape[1], inputs, *shape[2:])
        return grouped.transpose(1, 2).reshape(shape)
    return matrix.reshape(shape)


def columns(
    module: nn.Module, given: Tensor, every: int = 1, *, places: Sequence[int] = ()
) -> Tensor:
    """What each output of a layer is a weighted sum of.

    Args:
        module: a linear layer or a convolution.
        given: what it reads.
        every: of the positions, the first of so many.
        places: in space, of the output of a transposed convolution that was called with its size.

    Returns:
        ``[groups, positions, columns]``, so that column j belongs to entry j of a row of
        :func:`weight_rows`.

    >>> columns(nn.Conv1d(1, 1, 2), torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[[1., 2.],
             [2., 3.]]])
    >>> columns(nn.ConvTranspose1d(1, 1, 2), torch.tensor([[[1.0, 2.0]]]))
    tensor([[[1., 0.],
             [2., 1.],
             [0., 2.]]])
    """
    if not isinstance(module, AnyConv):
        return given.reshape(1, -1, given.shape[-1])[:, ::every]
    dims = len(module.kernel_size)
    given = given if given.dim() == dims + 2 else given[None]
    turned = isinstance(module, AnyTransposedConv)
    if isinstance(module, AnyTransposedConv):
        windows = _spaced(module, given, places)
    else:
        windows = _padded(module, given)
    sizes = zip(module.kernel_size, module.stride, module.dilation, strict=True)
    for d, (size, stride, dilation) in enumerate(sizes):
        step = 1 if turned else stride
        windows = windows.unfold(2 + d, dilation * (size - 1) + 1, step)[..., ::dilation]
    if turned:
        windows = windows.flip([*range(-dims, 0)])
    windows = windows.movedim(1, 1 + dims)  # batch, places, channels, kernel
    around = windows.shape[: 1 + dims]
    if every > 1:
        at = torch.arange(0, math.prod(around), every, device=given.device)
        windows, around = windows[torch.unravel_index(at, around)], at.shape
    grouped = windows.unflatten(len(around), (module.groups, -1)).movedim(len(around), 0)
    found: Tensor = grouped.reshape(module.groups, math.prod(around), -1)
    return found


def _padded(module: AnyConv, given: Tensor) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    around = [int(n) for n in module._reversed_padding_repeated_twice]
    return functional.pad(given, around, mode=mode)


def _spaced(module: AnyTransposedConv, given: Tensor, places: Sequence[int]) -> Tensor:
    """What a transposed convolution is an ordinary one of: zeros between its inputs and around."""
    dims, inputs = len(module.kernel_size), given.shape[2:]
    wide = given.new_zeros(
        *given.shape[:2], *((n - 1) * s + 1 for n, s in zip(inputs, module.stride, strict=True))
    )
    between: tuple[Any, ...] = (..., *(slice(None, None, s) for s in module.stride))
    wide[between] = given
    around: list[int] = []
    for d in reversed(range(dims)):
        reach = module.dilation[d] * (module.kernel_size[d] - 1)
        padding = int(module.padding[d])
        edge, least = reach - padding, wide.shape[2 + d] - 2 * padding + reach
        more = places[d] - least if places else module.output_padding[d]
        around += [edge, edge + more]
    return functional.pad(wide, around)


def spatial(module: nn.Module, output: Tensor) -> Sequence[int]:
    """The places in space of what a convolution gives."""
    return output.shape[output.dim() - len(getattr(module, "kernel_size", ())) :]


def rows(module: nn.Module, output: Tensor) -> Tensor:
    """What a layer gives: ``[groups, positions, outputs of a group]``, as :func:`columns`."""
    if not isinstance(module, AnyConv):
        return output.reshape(1, -1, output.shape[-1])
    dims = len(module.kernel_size)
    output = output if output.dim() == dims + 2 else output[None]
    batch, channels = output.shape[:2]
    grouped = output.reshape(batch, module.groups, channels // module.groups, -1)
    return grouped.permute(1, 0, 3, 2).flatten(1, 2)
