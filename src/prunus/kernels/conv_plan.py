"""A sequence of convolutions for pictures of one size: where everything lies, step by step."""

from __future__ import annotations

import ctypes
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from prunus.errors import InputError
from prunus.kernels import conv_native as native
from prunus.kernels.conv_grid import LINE, Grid, Reach, Size, laid
from prunus.kernels.conv_room import Room
from prunus.kernels.conv_steps import ACTIVATIONS, Program, Step
from prunus.kernels.conv_values import Value, values_of
from prunus.kernels.layouts import head_of
from prunus.kernels.pattern import LARGEST

CUT = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
KIND = {
    "conv": native.CONVOLUTION, "depthwise": native.DEPTHWISE, "average": native.DEPTHWISE,
    "max": native.MAXIMUM, "mean": native.MEAN, "sum": native.SUM,
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a value lies: in the memory of the thread (base 0), an input's or an output's."""

    base: int
    offset: int
    grid: Grid


@dataclass(frozen=True, eq=False)
class Plan:
    """What the kernels are called with, for pictures of one size.

    Attributes:
        steps: an array of native steps.
        count: of them.
        room: floats of the thread's memory.
        shapes: of the outputs.
        layouts: that it was made for.
        values: how many belong to each of them.
        channels: of the biases.
        kept: tensors that the steps point to.
    """

    steps: ctypes.Array[native.Step]
    count: int
    room: int
    shapes: tuple[tuple[int, ...], ...]
    layouts: tuple[TensorWeakRef, ...]
    values: tuple[int, ...]
    channels: tuple[int, ...]
    kept: tuple[Tensor, ...]

    @property
    def steps_at(self) -> int:
        """The address of the steps."""
        return ctypes.addressof(self.steps)

    def fits(self, layouts: Sequence[Tensor]) -> bool:
        """Whether it was made for these very layouts."""
        return len(layouts) == len(self.layouts) and all(
            ref() is given for ref, given in zip(self.layouts, layouts, strict=True)
        )


def plan(program: Program, batch: int, inputs: Sequence[Value], layouts: Sequence[Tensor]) -> Plan:
    """Lay a program out.

    Args:
        program: what is computed.
        batch: pictures.
        inputs: their channels and sizes.
        layouts: of the weights, by their number; empty for depthwise ones.

    Raises:
        InputError: if something does not fit, or is too large for distances of 32 bits.
    """
    if len(inputs) != program.inputs:
        raise InputError(f"the sequence takes {program.inputs} inputs; {len(inputs)} were given")
    return _Planner(program, batch, values_of(program, inputs, layouts), layouts).plan()


class _Planner:
    def __init__(
        self, program: Program, batch: int, values: list[Value], layouts: Sequence[Tensor]
    ) -> None:
        self.program, self.batch, self.values, self.layouts = program, batch, values, layouts
        self.steps: list[native.Step] = []
        self.kept: list[Tensor] = []
        self.room = Room()
        self.masks: dict[Grid, Tensor] = {}
        self.places: dict[int, Place] = {}
        self.last: dict[int, int] = {}  # of a value, the last step that reads it
        for i, step in enumerate(program.steps):
            self.last[step.x] = i
            if step.more >= 0:
                self.last[step.more] = i
        for value in program.outputs:
            self.last[value] = len(program.steps)
        self.reaches = [
            Reach.of(s, values[s.x].size, values[program.inputs + i].size)
            for i, s in enumerate(program.steps)
        ]
        self.grids = self._grids()
        self.whole = self._read_in_place()

    def _grids(self) -> dict[Size, Grid]:
        on: dict[Size, list[Reach]] = defaultdict(list)
        lines: set[Size] = set()
        for value in self.values:
            on[value.size]
        for i, (step, reach) in enumerate(zip(self.program.steps, self.reaches, strict=True)):
            size = self.values[self.program.inputs + i].size
            if step.kind not in ("mean", "sum"):
                on[size].append(reach)
            if step.shifted:
                lines.add(size)
        return {s: laid(self.batch, s, r, lines=s in lines) for s, r in on.items()}

    def _read_in_place(self) -> set[int]:
        """1×1 convolutions from inputs to outputs, of which nothing else reads either.

        Their planes are those of torch's tensors, where these are whole lines.
        """
        program, found = self.program, set()
        for i, step in enumerate(program.steps):
            value, size = program.inputs + i, self.values[step.x].size
            fits = (
                step.kind == "conv" and step.taps == 1 and self.reaches[i].direct
                and step.x < program.inputs and step.more < program.inputs
                and program.outputs.count(value) == 1 and size[0] * size[1] % LINE == 0
                and (step.channels % 4 == 0 or int(self.layouts[step.number][9]) == 1)
            )  # fmt: skip
            if fits:
                found.add(i)
        read = [{s.x, s.more} for s in program.steps]
        outputs = {program.inputs + i for i in found}
        others = [r for i, r in enumerate(read) if i not in found]
        inputs = [read[i] for i in found]
        alone = not any(r & outputs for r in read)
        apart = not any(r & (i - {-1}) for r in others for i in inputs)
        return found if alone and apart else set()

    def _in_place(self, i: int, step: Step) -> None:
        """A picture at a time, as it lies."""
        value, height_width = self.program.inputs + i, self.values[step.x].size
        area = height_width[0] * height_width[1]
        grid = Grid(1, 1, area, area, area, 0, area)
        base = 1 + self.program.inputs + self.program.outputs.index(value)
        offset = self._offsets(step, self.reaches[i], grid)
        channels = self.values[step.x].channels
        for b in range(self.batch):
            x = Place(1 + step.x, b * channels * area, grid)
            y = Place(base, b * step.channels * area, grid)
            made = self._compute(step, x, y, offset, self.reaches[i])
            made.channels, made.checked = channels, 1
            if step.more >= 0:
                made.more_base, made.more = 1 + step.more, y.offset
        self.places[value] = Place(base, 0, grid)

    def plan(self) -> Plan:
        count = self.program.inputs
        for i in range(count):
            self._enter(i)
        for i, step in enumerate(self.program.steps):
            self._step(i, step)
            for value, last in self.last.items():
                if last == i and self.places[value].base == 0:
                    self._free(value)
        shapes = []
        for k, value in enumerate(self.program.outputs):
            made = self.values[value]
            shapes.append((self.batch, made.channels, *made.size))
            outside = self.places[value].base > 0  # it was written there
            if not outside:
                self._leave(value, 1 + count + k)
        steps = (native.Step * len(self.steps))(*self.steps)
        return Plan(
            steps, len(self.steps), self.room.size + 64, tuple(shapes),
            tuple(map(TensorWeakRef, self.layouts)), *self._weights(), tuple(self.kept),
        )  # fmt: skip

    def _weights(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of each number, how many values it has at least, and of how many channels its bias is."""
        values, channels = [0] * len(self.layouts), [0] * len(self.layouts)
        for step in self.program.steps:
            if step.weighted:
                if channels[step.number] not in (0, step.channels):
                    raise InputError(f"two steps of other channels share weights {step.number}")
                channels[step.number] = step.channels
                own = _needed(self.layouts[step.number])
                if step.kind == "depthwise":
                    own = step.channels * step.taps
                values[step.number] = max(values[step.number], own)
        return tuple(values), tuple(channels)

    def _size(self, value: int) -> int:
        # blocks of four rows may write up to three planes beyond the last one
        return (
            (self.values[value].channels + 3) // 4 * 4 * self.grids[self.values[value].size].plane
        )

    def _take(self, value: int) -> Place:
        return Place(0, self.room.take(self._size(value)), self.grids[self.values[value].size])

    def _free(self, value: int) -> None:
        self.room.give(self.places[value].offset, self._size(value))

    def _enter(self, value: int) -> None:
        """An input as planes, where a step reads it as it lies."""
        own = self.values[value]
        outside = Place(1 + value, 0, Grid.outside(self.batch, own.channels, own.size))
        self.places[value] = outside
        reads = zip(self.program.steps, self.reaches, strict=True)
        inside = [
            (s.x == value and r.direct) or s.more == value
            for i, (s, r) in enumerate(reads)
            if i not in self.whole
        ]
        if any(inside):
            place = self.places[value] = self._take(value)
            self._copy(outside, place, own.channels, ((0, 0, 0),))

    def _leave(self, value: int, base: int) -> None:
        own = self.values[value]
        outside = Place(base, 0, Grid.outside(self.batch, own.channels, own.size))
        self._copy(self.places[value], outside, own.channels, ((0, 0, 0),)).bare = 1

    def _step(self, i: int, step: Step) -> None:
        value, reach = self.program.inputs + i, self.reaches[i]
        x = self.places[step.x]
        if step.kind == "mean":
            self._mean(value, step, x)
            return
        if i in self.whole:
            self._in_place(i, step)
            return
        scratch: tuple[int, int] | None = None
        if not reach.direct:
            grid, channels = self.grids[self.values[value].size], self.values[step.x].channels
            count = channels * len(reach.views) * grid.plane
            scratch = (self.room.take(count), count)
            views = Place(0, scratch[0], grid)
            copy = self._copy(x, views, channels, reach.views)
            copy.stride_y, copy.stride_x = step.stride
            _, copy.below, _, copy.beside = reach.around()
            copy.fill = -math.inf if step.kind == "max" else 0.0
            x = views
        y = self.places[value] = self._take(value)
        made = self._compute(step, x, y, self._offsets(step, reach, y.grid), reach)
        if step.more >= 0:
            more = self.places[step.more]
            made.more_base, made.more = more.base, more.offset
        if scratch is not None:
            self.room.give(*scratch)

    def _compute(self, step: Step, x: Place, y: Place, offset: int, reach: Reach) -> native.Step:
        made = self._native(KIND[step.kind], x, y, step.channels)
        made.views, made.taps, made.number = len(reach.views), step.taps, step.number
        made.offset, made.mask = offset, self._mask(y.grid)
        made.vectors, made.scale = step.vectors, 1 / step.taps
        made.activation = ACTIVATIONS.index(step.activation)
        made.low, made.high = CUT.get(step.activation, (-math.inf, math.inf))
        self.steps.append(made)
        return made

    def _mean(self, value: int, step: Step, x: Place) -> None:
        base = 1 + self.program.inputs + self.program.outputs.index(value)
        grid = Grid.outside(self.batch, step.channels, (1, 1))
        self.places[value] = Place(base, 0, grid)
        made = self._native(native.MEAN, x, self.places[value], step.channels)
        made.scale = 1 / math.prod(self.values[step.x].size)
        self.steps.append(made)

    def _copy(
        self, x: Place, y: Place, channels: int, views: Sequence[tuple[int, int, int]],
    ) -> native.Step:  # fmt: skip
        """A step that copies; what is not as usual, the caller sets."""
        made = self._native(native.VIEWS, x, y, channels)
        made.views, made.view = len(views), self._keep(torch.tensor(views, dtype=torch.int32))
        made.stride_y = made.stride_x = 1
        made.checked = int(x.base > 0)
        self.steps.append(made)
        return made

    def _native(self, kind: int, x: Place, y: Place, channels: int) -> native.Step:
        return native.Step(
            origin=x.grid.native(), to=y.grid.native(), x=x.offset, y=y.offset, kind=kind,
            x_base=x.base, y_base=y.base, more_base=-1, number=-1, channels=channels,
        )  # fmt: skip

    def _offsets(self, step: Step, reach: Reach, grid: Grid) -> int:
        taps = reach.offsets(grid)
        if step.kind != "conv":
            return self._keep(taps.int())
        channels = torch.arange(self.values[step.x].channels) * (len(reach.views) * grid.plane)
        column = (channels[:, None] + taps).reshape(-1)
        if column.numel() and int(column.abs().max()) + grid.plane > LARGEST:
            raise InputError(f"{self.batch} pictures are too many at once for {step}")
        layout = self.layouts[step.number]
        made = torch.empty(_needed(layout) // int(layout[9]), dtype=torch.int32)
        column = column.int()
        native.calls().prunus_offsets(layout.data_ptr(), column.data_ptr(), made.data_ptr())
        return self._keep(made)

    def _mask(self, grid: Grid) -> int:
        if grid not in self.masks:
            self.masks[grid] = grid.mask()
            self._keep(self.masks[grid])
        return self.masks[grid].data_ptr()

    def _keep(self, tensor: Tensor) -> int:
        self.kept.append(tensor)
        return tensor.data_ptr()


def _needed(layout: Tensor) -> int:
    return head_of(layout).values if layout.numel() else 0
