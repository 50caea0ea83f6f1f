"""Where pixels lie: planes with zeros around and between pictures, and the taps' distances."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.kernels import conv_native
from prunus.kernels.conv_steps import Step

LINE = 16
"""Floats of a line of the cache."""
HALF, WASTE = 8, 1.25
"""Rows are as long as whole halves of lines, where that makes them at most so much longer."""
Size = tuple[int, int]


@dataclass(frozen=True)
class Grid:
    """Pictures of one size in planes, one plane for a channel.

    Attributes:
        batch, height, width: of the pictures.
        row: floats from row to row.
        image: floats from picture to picture.
        lead: floats before the first pixel.
        plane: floats from plane to plane.
    """

    batch: int
    height: int
    width: int
    row: int
    image: int
    lead: int
    plane: int

    @classmethod
    def outside(cls, batch: int, channels: int, size: Size) -> Grid:
        """Of a contiguous tensor ``[batch, channels, height, width]``."""
        height, width = size
        area = height * width
        return cls(batch, height, width, width, channels * area, 0, area)

    @property
    def strip(self) -> int:
        """Floats from the first pixel to the last, in whole lines."""
        last = (self.batch - 1) * self.image + (self.height - 1) * self.row + self.width
        return whole(last)

    def mask(self) -> Tensor:
        """int32 ``[strip]``: −1 at pixels, 0 between them."""
        made = torch.zeros(self.strip + self.image, dtype=torch.int32)
        shape, strides = (self.batch, self.height, self.width), (self.image, self.row, 1)
        made.as_strided(shape, strides).fill_(-1)
        return made

    def native(self) -> conv_native.Grid:
        """For the kernels."""
        return conv_native.Grid(
            self.image, self.plane, self.batch, self.height, self.width, self.row, self.lead, 0
        )


@dataclass(frozen=True)
class Reach:
    """How the taps of a step reach into what it reads.

    Attributes:
        views: (row, column within a stride, columns to the right), the planes that it needs of
            each channel.
        taps: for each tap its view, rows down and columns to the right.
        direct: whether the planes are those of its input as it lies.
        real: whether views hold pixels below, and beside, those of the result.
    """

    views: tuple[tuple[int, int, int], ...]
    taps: tuple[tuple[int, int, int], ...]
    direct: bool
    real: tuple[bool, bool]

    @classmethod
    def of(cls, step: Step, size: Size, made: Size) -> Reach:
        """Of a step that reads pictures of one size and gives such of another.

        >>> Reach.of(Step("conv", 0, kernel=(1, 3), padding=(0, 1)), (4, 4), (4, 4)).taps
        ((0, 0, -1), (0, 0, 0), (0, 0, 1))
        """
        (high, wide), (down, right) = step.kernel, step.stride
        shifted = step.shifted and step.kind == "conv" and wide > 1
        views: dict[tuple[int, int, int], int] = {}
        taps = []
        for i in range(high):
            below, y = divmod(i * step.dilation[0] - step.padding[0], down)
            for j in range(wide):
                beside, x = divmod(j * step.dilation[1] - step.padding[1], right)
                key = (y, x, beside if shifted else 0)
                taps.append((views.setdefault(key, len(views)), below, 0 if shifted else beside))
        direct = (down, right) == (1, 1) and not shifted and size == made and step.kind != "max"
        real = (
            any(down * made[0] + y < size[0] for y, _, _ in views),
            any(right * made[1] + x < size[1] for _, x, _ in views),
        )
        return cls(tuple(views), tuple(taps), direct, real)

    def around(self) -> tuple[int, int, int, int]:
        """Rows above and below, columns left and right, that taps reach beyond a picture."""
        rows = [t[1] for t in self.taps]
        columns = [t[2] for t in self.taps]
        return max(0, -min(rows)), max(0, *rows), max(0, -min(columns)), max(0, *columns)

    def offsets(self, grid: Grid) -> Tensor:
        """int64 ``[taps]``: floats from a pixel's place in a channel's first view to each tap."""
        return torch.tensor(
            [v * grid.plane + down * grid.row + right for v, down, right in self.taps]
        )


def laid(batch: int, size: Size, reaches: Iterable[Reach], *, lines: bool) -> Grid:
    """The grid of one size on which all these steps give their results.

    Args:
        batch: pictures.
        size: height, width.
        reaches: of the steps whose results, or views, lie on it.
        lines: whether rows are to begin at lines of the cache.
    """
    above = below = left = right = down = across = 0
    for reach in reaches:
        up, low, before, after = reach.around()
        above, below = max(above, up), max(below, low)
        left, right = max(left, before), max(right, after)
        # zeros may serve as the end of one row and the beginning of the next, pixels may not
        down = max(down, up + low if reach.real[0] and not reach.direct else max(up, low))
        across = max(across, before + after if reach.real[1] and not reach.direct
                     else max(before, after))  # fmt: skip
    height, width = size
    row = width + across
    half = -(-row // HALF) * HALF
    if lines and half <= WASTE * row:
        row = half
    image = (height + down) * row
    lead = whole(above * row + left)
    strip = whole((batch - 1) * image + (height - 1) * row + width)
    count = whole(lead + strip + below * row + right) // LINE
    return Grid(batch, height, width, row, image, lead, LINE * (count + 1 - count % 2))


def whole(floats: int) -> int:
    """In whole lines."""
    return -(-floats // LINE) * LINE
