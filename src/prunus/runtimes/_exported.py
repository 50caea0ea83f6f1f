"""A model as torch.export's program, for any batch size where the model allows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from prunus._common.torch_internals import is_open
from prunus.errors import InputError, first_line
from prunus.graph.exporting import export
from prunus.graph.trace import analysis_mode
from prunus.runtimes import BuildRequest
from prunus.runtimes._flat import Flat, flat
from prunus.runtimes._pools import Plain


@dataclass(frozen=True)
class Exported:
    """A program and whether it takes any batch size.

    Attributes:
        program: its arguments are the example's tensors, flattened; so are its answers.
        dynamic: whether the batch size is free.
        notes: what to know beside.
        names: of its arguments.
    """

    program: ExportedProgram
    dynamic: bool
    notes: tuple[str, ...]
    names: tuple[str, ...]


def exported(order: BuildRequest) -> Exported:
    """The program that the runtimes of torch share; see ``export_freely``."""
    return order.once("exported", lambda: export_freely(order))


def export_freely(order: BuildRequest) -> Exported:
    """Export with a free batch size, or, where the model fixes it, for the example's alone.

    Raises:
        InputError: with the reason, if the model cannot be exported.
    """
    batch = batch_of(order)
    with analysis_mode(order.model), torch.no_grad(), Plain():
        subject = flat(order)
        free = None if batch is None else _free(subject, batch)
        if free is not None:
            return Exported(_unplaced(free), True, (), subject.names)
        program = export(subject.model, subject.args, subject.kwargs)
    if isinstance(program, Exception):
        raise InputError(f"torch.export cannot trace it: {first_line(program)}") from program
    notes = () if batch is None else (f"for a batch of {batch} only: the model fixes it",)
    return Exported(_unplaced(program), False, notes, subject.names)


def _unplaced(program: ExportedProgram) -> ExportedProgram:
    """Without the lines of the user's files that each operator comes from."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def batch_of(order: BuildRequest) -> int | None:
    """The leading size of the example's first tensor with dimensions."""
    return next((int(t.shape[0]) for t in order.tensors if t.dim()), None)


def _free(subject: Flat, batch: int) -> ExportedProgram | None:
    """The program with the leading dimension free wherever it is the batch's, if it can be.

    A batch of one is doubled first: sizes of one broadcast, and export never leaves them free.
    """

    def is_batch(value: Tensor) -> bool:
        return value.dim() > 0 and value.shape[0] == batch

    def grown(value: Tensor) -> Tensor:
        return torch.cat([value, value]) if batch == 1 and is_batch(value) else value

    def free(value: Tensor) -> dict[int, Any] | None:
        return {0: Dim.AUTO} if is_batch(value) else None

    values = (*subject.args, *subject.kwargs.values())
    shapes = dict(zip(subject.names, map(free, values), strict=True))
    args = tuple(map(grown, subject.args))
    kwargs = {name: grown(value) for name, value in subject.kwargs.items()}
    program = export(subject.model, args, kwargs, shapes)
    if isinstance(program, Exception):  # many refuse: their code branches on the batch size
        return None
    return program if _is_free(program) else None


def _is_free(program: ExportedProgram) -> bool:
    """Whether a leading dimension stayed a symbol."""
    values = [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"]
    sizes: list[Any] = [v.shape[0] for v in values if isinstance(v, Tensor) and v.dim()]
    return any(map(is_open, sizes))


def write_pt2(order: BuildRequest, program: ExportedProgram) -> Path:
    """Write a program as ``model.pt2``."""
    path = order.folder / "model.pt2"
    torch.export.save(program, path)
    return path
