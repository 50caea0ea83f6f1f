"""Which kernel for how many tokens, unless it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from prunus.errors import InputError, did_you_mean
from prunus.kernels.layouts import Cut, mask, slices, tiles
from prunus.kernels.native import library
from prunus.kernels.pattern import Pattern

Values = Literal["float32", "bfloat16", "int8"]
Form = Literal["mask", "slices", "columns", "windows"]
FORMS: tuple[Form, ...] = get_args(Form)
FEW, MANY = 0.78, 0.5
"""Sparsity from which on one token is computed by slices, or windows, below by a mask."""
NARROW = 24
"""Tokens from which on tiles are as wide as they come."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """One way to compute a layer.

    Attributes:
        least: tokens from which on it is used.
        layout: as the kernel reads it; empty where ``values`` is a matrix for torch.
        values: packed.
    """

    least: int
    layout: Tensor
    values: Tensor


def cuts(pattern: Pattern, *, tokens: int, blocks: int = 1) -> Cut:
    """How tiles are cut unless it is measured: by the processor's registers and first cache.

    Args:
        pattern: of the matrix.
        tokens: that are expected.
        blocks: 4 where rows share columns in blocks of four or a multiple.
    """
    large = library().name == "avx512"
    width = next((w for w in (4, 8, 16, 32) if tokens <= w), 64)
    if not large and width == 64:
        width = 32
    sparse = pattern.density < 0.07
    band = {64: 192, 32: 384 if sparse else 192, 16: 512, 8: 1024, 4: 2048}[width]
    side = 4 if width <= 32 and large else 2
    return Cut(1 if blocks > 1 else side, 4 if blocks > 1 else 1, width, band, 256)


def single(
    pattern: Pattern, values: Tensor, *, kind: Values = "float32", blocks: int = 1,
    form: Form | None = None,
) -> Kernel:  # fmt: skip
    """The kernel for one token: a mask, slices where few weights are left, or blocks of columns.

    Args:
        pattern: of the matrix.
        values: float32, in the pattern's order.
        kind: how they are kept; bfloat16 takes half the memory, int8 a quarter, with a scale for
            each row (largest value ÷ 127).
        blocks: 16 where rows share columns in blocks of sixteen.
        form: ``mask``, ``slices``, ``columns`` or ``windows``, in place of what is usually the
            fastest.
    """
    if form is None:
        form = usual(pattern, blocks=blocks)
    made = mask(pattern) if form == "mask" else slices(pattern, form=form)
    numbers, found = made.numbers, made.pack(values)
    if kind == "bfloat16":
        found = found.bfloat16()
    elif kind == "int8":
        rounded, scales = quantized(pattern, values)
        numbers = with_scales(numbers, scales)
        found = made.pack(rounded).to(torch.int8)
    return Kernel(0, numbers, found)


def layout_of(name: str) -> Form:
    """A layout for one token by its name.

    Raises:
        InputError: if there is none of that name.
    """
    for form in FORMS:
        if form == name:
            return form
    raise InputError(f"there is no layout '{name}'; {did_you_mean(name, FORMS)}")


def usual(pattern: Pattern, *, blocks: int = 1) -> Form:
    """The layout for one token that is usually the fastest on this processor."""
    if pattern.cols > 65536:
        return "mask"
    if blocks == 16:
        return "columns"
    if library().name == "avx512":
        return "windows" if 1 - pattern.density >= MANY else "mask"
    return "slices" if 1 - pattern.density >= FEW else "mask"


def quantized(pattern: Pattern, values: Tensor) -> tuple[Tensor, Tensor]:
    """round(w ÷ s) of each value and s = max |w| ÷ 127 of each row, as float32.

    >>> found, scales = quantized(Pattern.of(torch.tensor([[0.0, 127.0, 2.6]])),
    ...                           torch.tensor([127.0, 2.6]))
    >>> found.tolist(), scales.tolist()
    ([127.0, 3.0], [1.0])
    """
    row = torch.repeat_interleave(torch.arange(pattern.rows), pattern.first.diff())
    most = torch.zeros(pattern.rows).scatter_reduce_(0, row, values.abs(), "amax")
    scales = torch.where(most > 0, most / 127, torch.ones(()))
    return (values / scales[row]).round(), scales


def with_scales(numbers: Tensor, scales: Tensor) -> Tensor:
    """A layout that holds a scale for each row behind everything else."""
    made = torch.cat([numbers, scales.float().view(torch.int32)])
    made[2], made[7] = len(made), len(numbers)
    return made


def kernels(
    pattern: Pattern, values: Tensor, *, tokens: Sequence[int], kind: Values = "float32",
    blocks: int = 1,
) -> list[Kernel]:  # fmt: skip
    """Kernels for the numbers of tokens that are expected, the fewest first.

    Args:
        pattern: of the matrix.
        values: float32, in the pattern's order.
        tokens: that are expected; others are computed as well.
        kind: of the values for one token.
        blocks: 1, 4 or 16 rows that share columns.
    """
    found: list[Kernel] = []
    if any(t <= 1 for t in tokens):
        found.append(single(pattern, values, kind=kind, blocks=blocks))
    rounded = values
    if kind == "bfloat16":
        rounded = values.bfloat16().float()
    elif kind == "int8":
        whole, scales = quantized(pattern, values)
        row = torch.repeat_interleave(torch.arange(pattern.rows), pattern.first.diff())
        rounded = whole * scales[row]
    for least, own in ((2, [t for t in tokens if 1 < t < NARROW]),
                       (NARROW, [t for t in tokens if t >= NARROW])):  # fmt: skip
        if own:
            made = tiles(pattern, cuts(pattern, tokens=max(own), blocks=blocks))
            found.append(Kernel(least if found else 0, made.numbers, made.pack(rounded)))
    return found


def blocks_of(weight: Tensor) -> Literal[1, 4, 16]:
    """How many rows share their columns: 16 or 4, where all rows of every block do, else 1.

    >>> blocks_of(torch.tensor([[1.0, 0.0]] * 4)), blocks_of(torch.eye(4))
    (4, 1)
    """
    there = weight != 0
    for height in (16, 4):
        if weight.shape[0] % height == 0 and weight.numel():
            blocks = there.view(-1, height, weight.shape[1])
            # most matrices differ in their first rows already
            if all(bool((part == part[:, :1]).all()) for part in (blocks[:1], blocks)):
                return height
    return 1
