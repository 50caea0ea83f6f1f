"""What goes through a sequence of convolutions: pictures of so many channels and such a size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.errors import InputError
from prunus.kernels.conv_grid import Size
from prunus.kernels.conv_steps import Program, Step
from prunus.kernels.layouts import head_of
from prunus.kernels.native import TILES
from prunus.kernels.pattern import described


@dataclass(frozen=True)
class Value:
    """Pictures at some point of a sequence: channels, and height and width."""

    channels: int
    size: Size


def values_of(program: Program, inputs: Sequence[Value], layouts: Sequence[Tensor]) -> list[Value]:
    """All values of a program, its inputs first.

    Raises:
        InputError: if weights do not fit what they are multiplied with, or pictures that are added
            are of different sizes.
    """
    found = list(inputs)
    for step in program.steps:
        if step.weighted:
            _refuse_weights(step, found[step.x], layouts)
        found.append(_made(step, found))
    return found


def sizes_of(program: Program, inputs: Sequence[Value]) -> list[Value]:
    """The same before there are weights."""
    found = list(inputs)
    for step in program.steps:
        found.append(_made(step, found))
    return found


def _made(step: Step, found: Sequence[Value]) -> Value:
    x = found[step.x]
    if not step.weighted and step.channels != x.channels:
        raise InputError(f"{step} gives {x.channels} channels")
    made = Value(step.channels, step.size(*x.size))
    if min(made.size) < 1:
        raise InputError(f"pictures of {x.size[0]}×{x.size[1]} are too small for {step}")
    if step.more >= 0 and found[step.more] != made:
        raise InputError(f"what is added is {found[step.more]}, not {made}")
    return made


def _refuse_weights(step: Step, x: Value, layouts: Sequence[Tensor]) -> None:
    if step.number >= len(layouts):
        raise InputError(f"{step} has weights number {step.number}; there are {len(layouts)}")
    layout = layouts[step.number]
    if step.kind == "depthwise":
        if step.channels != x.channels or layout.numel():
            raise InputError(f"a depthwise step over {x.channels} channels has no layout: {step}")
        return
    head = head_of(layout)
    if x.channels % step.groups:
        raise InputError(f"{x.channels} channels are not {step.groups} groups: {step}")
    if head.kind != TILES or (head.rows, head.cols) != (step.channels, x.channels * step.taps):
        raise InputError(
            f"the weights of {step} are tiles of {step.channels}×{x.channels * step.taps}, not "
            f"a layout of {head.rows}×{head.cols}"
        )


def picture(tensor: Tensor, what: str) -> Value:
    """Channels and size of pictures ``[batch, channels, height, width]``."""
    if tensor.dim() != 4 or tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise InputError(
            f"{what} is [batch, channels, height, width] on the CPU, not {described(tensor)}"
        )
    _, channels, height, width = tensor.shape
    return Value(channels, (height, width))
