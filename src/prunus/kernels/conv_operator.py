"""``torch.ops.prunus.packed_convs``: a sequence of convolutions as one operator of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from prunus.errors import InputError
from prunus.kernels.conv_product import sequence
from prunus.kernels.conv_steps import Program
from prunus.kernels.operator import LIBRARY

SIGNATURE = (
    "packed_convs(Tensor[] inputs, Tensor[] values, Tensor[] layouts, Tensor[] biases, "
    "int[] program) -> Tensor[]"
)


def packed_convs(
    inputs: Sequence[Tensor], values: Sequence[Tensor], layouts: Sequence[Tensor],
    biases: Sequence[Tensor], program: Sequence[int],
) -> list[Tensor]:  # fmt: skip
    """See :func:`prunus.kernels.conv_product.sequence`."""
    return sequence(program, inputs, values, layouts, biases)


def _fake(
    inputs: Sequence[Tensor], values: Sequence[Tensor], layouts: Sequence[Tensor],
    biases: Sequence[Tensor], program: Sequence[int],
) -> list[Tensor]:  # fmt: skip
    read = Program.of(program)
    shapes = [tuple(x.shape[1:]) for x in inputs]
    for step in read.steps:
        shapes.append((step.channels, *step.size(*shapes[step.x][1:])))
    return [inputs[0].new_empty((inputs[0].shape[0], *shapes[i])) for i in read.outputs]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Nothing: there is no way back."""


def _backward(ctx: Any, *gradients: Any) -> NoReturn:
    raise InputError(
        "sparse convolutions compute forward only: train the masked model (sparse_training: true), "
        "and deploy it after"
    )


_NAME = LIBRARY.define(SIGNATURE)
LIBRARY.impl(_NAME, packed_convs, "CPU")
torch.library.register_fake(f"prunus::{_NAME}", _fake, lib=LIBRARY)
torch.library.register_autograd(f"prunus::{_NAME}", _backward, setup_context=_save, lib=LIBRARY)
