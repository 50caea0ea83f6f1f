"""A model as an ONNX file, which ONNX Runtime, OpenVINO and most phones' engines read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from prunus._common.torch_internals import onnx_program
from prunus.errors import InputError, first_line
from prunus.runtimes import BuildRequest
from prunus.runtimes._exported import Exported, export_freely
from prunus.runtimes._recurrent import onnx_table
from prunus.runtimes._silent import silent
from prunus.runtimes._sizes import Sizes

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

OPSET = 18
INPUTS = frozenset(
    {torch.float32, torch.float64, torch.float16, torch.bool, torch.uint8}
    | {torch.int8, torch.int16, torch.int32, torch.int64}
)
"""Kinds of tensors that pass through numpy, as these runtimes take them."""


@dataclass(frozen=True)
class OnnxFile:
    """Where it lies, whether it takes any batch size, and which other sizes."""

    path: Path
    dynamic: bool
    sizes: Sizes
    notes: tuple[str, ...] = ()


def refuses(order: BuildRequest) -> str | None:
    """Models with half-precision weights, whose kernels these runtimes lack on a processor."""
    kinds = {p.dtype for p in order.model.parameters() if p.is_floating_point() or p.is_complex()}
    odd = sorted(str(k) for k in kinds - {torch.float32, torch.float64})
    if odd:
        return f"its kernels take float32, but the weights are {odd[0]}: call model.float() first"
    for number, given in enumerate(order.tensors):
        if given.dtype not in INPUTS:
            return f"it does not take {given.dtype}, which input {number} is: pass float32"
    return None


def write_onnx(order: BuildRequest, folder: Path) -> OnnxFile:
    """Export to ``model.onnx``; above 2 GB the weights go into a file beside it.

    Raises:
        InputError: naming the operator that ONNX lacks, or why the model cannot be traced.
    """
    made, program = order.once("onnx", lambda: _program(order))
    path = folder / "model.onnx"
    program.save(path)
    return OnnxFile(path, made.dynamic, made.sizes, made.notes)


def _program(order: BuildRequest) -> tuple[Exported, ONNXProgram]:
    made = export_freely(order)  # of its own: the exporter may settle the sizes that it left free
    with silent():
        try:
            program = onnx_program(made.program, OPSET, onnx_table())
        except Exception as error:  # the exporter's own, of ten types
            raise InputError(f"ONNX cannot express it: {_reason(error)}") from error
    assert program is not None
    count = len(program.model.graph.inputs)
    if count != len(made.names):  # answers would be of inputs in the wrong places
        raise InputError(f"the exporter kept only {count} of the inputs {', '.join(made.names)}")
    _strip(program)
    return made, program


def _strip(program: ONNXProgram) -> None:
    """Without the exporter's notes: where which line of whose files stands, and in a small network
    a sixth of the bytes."""
    model = program.model
    model.metadata_props.clear()
    for graph in model.graphs():
        graph.metadata_props.clear()
        values = [*graph.inputs, *graph.initializers.values()]
        for node in graph:
            node.metadata_props.clear()
            values += node.outputs
        for value in values:
            value.metadata_props.clear()


def _reason(error: BaseException) -> str:
    """The innermost cause, and the operator where one is named."""
    while error.__cause__ is not None:
        error = error.__cause__
    operator = re.search(r"op='([\w.]+)'", str(error))
    return f"it has no {operator[1]}" if operator else first_line(error)
