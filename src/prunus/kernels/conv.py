"""A convolution that keeps and computes the weights that are not zero."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from prunus.errors import InputError, did_you_mean
from prunus.kernels import conv_operator as _operators  # noqa: F401 (defines torch.ops.prunus)
from prunus.kernels.conv_native import calls
from prunus.kernels.conv_steps import ACTIVATIONS, Activation, Pair, Program, Step
from prunus.kernels.layouts import FULL, Cut, Layout, tiles
from prunus.kernels.pattern import Pattern, described
from prunus.kernels.tangents import refuse_tangents

BAND = 6144
"""Floats of pictures, for one strip of pixels, that stay in the first cache."""


def cut(weight: Tensor, *, side: int = 2, height: int = 1, vectors: int = 8) -> Cut:
    """How the matrix ``[out, in · taps]`` of a convolution is cut, unless it is measured.

    Args:
        weight: ``[out, in, kernel rows, kernel columns]``.
        side: rows of equally many weights that run side by side.
        height: 4 where every four rows share their places.
        vectors: of pixels in a strip.
    """
    _, channels, rows, columns = weight.shape
    taps = max(1, rows * columns)
    strip = 16 * vectors * (rows if rows * columns > 1 else 1)
    many = min(max(8, BAND // strip), max(1, channels), 65536 // taps)
    return Cut(1 if height == 4 else side, height, 64, many * taps, 512)


def whole(weight: Tensor, groups: int) -> Tensor:
    """A grouped convolution's weight ``[out, in ÷ groups, …]`` as that of a plain one.

    >>> whole(torch.tensor([[[[2.0]]], [[[3.0]]]]), 2).flatten(1).tolist()
    [[2.0, 0.0], [0.0, 3.0]]
    """
    if groups == 1:
        return weight
    out, own, *kernel = weight.shape
    made = weight.new_zeros(groups, out // groups, groups, own, *kernel)
    for i, part in enumerate(weight.detach().chunk(groups)):
        made[i, :, i] = part
    return made.view(out, groups * own, *kernel)


def laid_out(weight: Tensor, how: Cut | None = None) -> tuple[Layout, Tensor]:
    """The layout of a convolution's weights, and the packed values.

    Args:
        weight: ``[out, in, kernel rows, kernel columns]``, float32 or float64.
        how: the matrix ``[out, in · taps]`` is cut.
    """
    if weight.dim() != 4 or weight.dtype not in FULL or weight.device.type != "cpu":
        raise InputError(
            f"the weight of a convolution is float32 [out, in, rows, columns] on the CPU, not "
            f"{described(weight)}"
        )
    matrix = weight.detach().flatten(1)
    how = how or cut(weight)
    pattern = Pattern.of(matrix)
    if how.height == 4:  # every place of a block is kept where one of its rows is not zero
        there = matrix != 0
        more = torch.nn.functional.pad(there, (0, 0, 0, -len(there) % 4))
        whole = more.view(-1, 4, matrix.shape[1]).any(1).repeat_interleave(4, 0)[: len(there)]
        pattern = Pattern.of(whole)
    layout = tiles(pattern, how)
    return layout, layout.pack(matrix.reshape(-1)[pattern.flat()])


class SparseConv2d(nn.Module):
    """y = activation(conv2d(x, W) + b + residual) of the weights that are not zero, forward only.

    Args:
        weight: ``[out, in ÷ groups, kernel rows, kernel columns]``, float32 or float64.
        bias: ``[out]``.
        stride, padding, dilation: of rows and columns.
        groups: of channels that are kept apart.
        activation: ``none``, ``relu``, ``gelu``, ``silu`` or ``relu6``.
        shifted: whether columns are copied, so that all taps are aligned.

    Raises:
        InputError: if the kernels are not compiled, or the weight is none of theirs.

    >>> from prunus.kernels import usable
    >>> if usable():
    ...     layer = SparseConv2d(torch.tensor([[[[0.0, 2.0]]]]), padding=(0, 1))
    ...     assert layer(torch.ones(1, 1, 1, 3)).flatten().tolist() == [2.0, 2.0, 2.0, 0.0]
    """

    values: Tensor
    layout: Tensor
    bias: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, stride: Pair = (1, 1),
        padding: Pair = (0, 0), dilation: Pair = (1, 1), activation: Activation = "none",
        shifted: bool = False, how: Cut | None = None, vectors: int = 8, groups: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        calls()
        if activation not in ACTIVATIONS:
            raise InputError(
                f"there is no activation '{activation}'; {did_you_mean(activation, ACTIVATIONS)}"
            )
        if groups < 1 or weight.dim() != 4 or weight.shape[0] % groups:
            raise InputError(
                f"a weight of {groups} groups is [out, in ÷ groups, rows, columns] with as many "
                f"times channels out, not {described(weight)}"
            )
        layout, values = laid_out(whole(weight, groups), how)
        self.register_buffer("layout", layout.numbers)
        self.register_buffer("values", values)
        self.register_buffer("bias", values.new_empty(0) if bias is None else bias.detach().clone())
        step = Step(
            "conv", 0, -1, 0, weight.shape[0], (weight.shape[2], weight.shape[3]), stride, padding,
            dilation, activation, shifted, vectors, groups,
        )  # fmt: skip
        self.step = step

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``[batch, in, height, width]`` to ``[batch, out, …]``; the residual is of that shape."""
        refuse_tangents(x, residual)
        step, inputs = self.step, [x]
        if residual is not None:
            step, inputs = replace(step, more=1), [x, residual]
        program = Program(len(inputs), (step,), (len(inputs),)).numbers()
        found: list[Tensor] = torch.ops.prunus.packed_convs(
            inputs, [self.values], [self.layout], [self.bias], program
        )
        return found[0]
