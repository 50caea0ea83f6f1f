"""A sequence of convolutions that is ready: what a program calls instead of torch's operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunus.errors import InputError
from prunus.kernels.conv_plan import Plan
from prunus.kernels.conv_product import (
    REMEMBERED,
    densely,
    planned,
    pointers,
    refuse,
    refuse_sizes,
    run,
)
from prunus.kernels.conv_steps import Program
from prunus.kernels.pattern import described


class PreparedConvs:
    """Calls the kernels for pictures of any size; everything but the pictures is looked at once.

    Args:
        program: what is computed.
        values: of every layout, in its order; float32.
        layouts: of the weights by their number; empty for depthwise steps.
        biases: for each of them, or empty.

    Raises:
        InputError: when it is called, if something does not fit.
    """

    def __init__(
        self, program: Program, values: Sequence[Tensor], layouts: Sequence[Tensor],
        biases: Sequence[Tensor],
    ) -> None:  # fmt: skip
        if not len(values) == len(layouts) == len(biases):
            raise InputError("values, layouts and biases of a sequence are as many")
        self.program = program
        self.values, self.layouts, self.biases = list(values), list(layouts), list(biases)
        refuse((), values, biases, torch.float32)
        self._tables = [pointers(t) for t in (self.layouts, self.values, self.biases)]
        self._plans: dict[tuple[torch.Size, ...], Plan] = {}

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Pictures ``[batch, channels, height, width]`` in, those of the program out."""
        for x in inputs:
            if x.dtype != torch.float32 or x.device.type != "cpu" or x.layout != torch.strided:
                raise InputError(f"an input is float32 on the CPU, not {described(x)}")
        key = tuple(x.shape for x in inputs)
        made = self._plans.get(key)
        if made is None:
            made = self._planned(inputs)
            if len(self._plans) >= REMEMBERED:
                self._plans.pop(next(iter(self._plans)), None)
            self._plans[key] = made
        if not key[0][0]:
            return [torch.empty((0, *shape[1:])) for shape in made.shapes]
        found = run(made, inputs, self._tables)
        if found is None:
            return densely(self.program, inputs, self.values, self.layouts, self.biases)
        return found

    def _planned(self, inputs: Sequence[Tensor]) -> Plan:
        made = planned(self.program, inputs, self.layouts)
        refuse_sizes(made, self.values, self.biases)
        return made
