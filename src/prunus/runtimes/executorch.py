"""ExecuTorch: PyTorch's engine for phones and microcontrollers, with XNNPACK's kernels, in float32.

A ``.pte`` plans its memory when it is made, for one input: the largest arena is known before it
runs. More inputs are answered one by one.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from prunus.errors import InputError, first_line
from prunus.graph.exporting import export
from prunus.graph.trace import analysis_mode
from prunus.runtimes import Answers, BuildRequest, Compute, Facts, Session
from prunus.runtimes._exported import batch_of, untraceable
from prunus.runtimes._flat import Flat, flat
from prunus.runtimes._silent import silent

FACTS = Facts(needs=("executorch",), devices=("cpu",), slow=True, safe=True)
"""Slow: importing what writes a program and writing it take ten seconds and more."""

FILE = "model.pte"


def refuses(order: BuildRequest) -> str | None:
    """Weights in half precision, for which XNNPACK on most processors has no kernels."""
    kinds = {p.dtype for p in order.model.parameters() if p.is_floating_point()}
    odd = sorted(str(k) for k in kinds - {torch.float32})
    return f"it takes float32, but the weights are {odd[0]}: call model.float()" if odd else None


def build(order: BuildRequest) -> Session:
    """Export for one input, hand what XNNPACK knows to it, write ``model.pte`` and open.

    Raises:
        InputError: if torch.export cannot trace the model, or ExecuTorch lacks an operator.
    """
    return written(order, single(order))


def written(order: BuildRequest, made: Single) -> Session:
    """Lower a program, write ``model.pte``, and open it.

    Raises:
        InputError: if ExecuTorch lacks an operator.
    """
    path = order.folder / FILE
    content, arena = _lowered(made.program)
    path.write_bytes(content)
    (order.folder / "model.json").write_text(json.dumps({"parts": made.parts}))
    opened = open_(path, threads=order.threads)
    plan = f"{arena:,} bytes of memory planned, beside XNNPACK's own"
    return replace(opened, dynamic=made.parts is not None, notes=(*made.notes, plan))


@dataclass(frozen=True)
class Single:
    """A program for one input.

    Attributes:
        program: what to lower.
        parts: of each input and of each answer whether its first dimension is the batch's;
            ``None`` if the model fixes its batch size.
        notes: what to know beside.
    """

    program: ExportedProgram
    parts: tuple[list[bool], list[bool]] | None
    notes: tuple[str, ...]


def single(order: BuildRequest) -> Single:
    """The program of a model for one input, or for the example's batch where the model fixes it.

    Raises:
        InputError: if torch.export cannot trace the model.
    """
    batch = batch_of(order)
    with analysis_mode(order.model), torch.no_grad():
        subject = flat(order)
        given = [*subject.args, *subject.kwargs.values()]
        mine = [bool(t.dim()) and len(t) == batch for t in given]
        pair, single = ([_sized(t, n) if m else t for t, m in zip(given, mine, strict=True)]
                        for n in (2, 1))  # fmt: skip
        try:
            two, one = (_called(subject, values) for values in (pair, single))
        except Exception:  # the model's own, of another batch size
            two, one = [], []
        answers = [a.dim() > 0 and len(a) == 2 and len(b) == 1
                   for a, b in zip(two, one, strict=len(two) == len(one))]  # fmt: skip
        found = _program(subject, single) if answers else None
        if found is not None:
            return Single(found, (mine, answers), ("one input at a time",))
        found = _program(subject, given)
    assert found is not None
    note = f"for a batch of {batch} only: the model fixes it"
    return Single(found, None, (note,) if batch is not None else ())


def _sized(tensor: Tensor, count: int) -> Tensor:
    return tensor.repeat(count, *[1] * (tensor.dim() - 1))[:count]


def _called(subject: Flat, values: Sequence[Tensor]) -> Sequence[Tensor]:
    count = len(subject.args)
    named = dict(zip(subject.kwargs, values[count:], strict=True))
    found: Sequence[Tensor] = subject.model(*values[:count], **named)
    return found


def _program(subject: Flat, values: Sequence[Tensor]) -> ExportedProgram:
    count = len(subject.args)
    named = dict(zip(subject.kwargs, values[count:], strict=True))
    program = export(subject.model, tuple(values[:count]), named)
    if isinstance(program, Exception):
        raise untraceable(program, subject) from program
    return program


def _lowered(program: ExportedProgram) -> tuple[bytes, int]:
    """The bytes of a ``.pte``, and those of the arena that it plans.

    Raises:
        InputError: with ExecuTorch's words, if it lacks an operator.
    """
    with silent():
        partition = importlib.import_module(
            "executorch.backends.xnnpack.partition.xnnpack_partitioner"
        )
        exir = importlib.import_module("executorch.exir")
        try:
            edge = exir.to_edge_transform_and_lower(
                program, partitioner=[partition.XnnpackPartitioner()]
            )
            made = edge.to_executorch()
            sizes = made.executorch_program.execution_plan[0].non_const_buffer_sizes
        except Exception as error:  # its own, of many types
            raise InputError(f"ExecuTorch cannot express it: {first_line(error)}") from error
    return made.buffer, sum(sizes)


def open_(path: Path, *, threads: int) -> Session:
    """Open a ``.pte`` whose bytes have been checked; the threads are all of this process's.

    Raises:
        InputError: if ExecuTorch cannot read it.
    """
    with silent():
        runtime = importlib.import_module("executorch.runtime")
        native = importlib.import_module("executorch.extension.pybindings.portable_lib")
    native._unsafe_reset_threadpool(threads)
    try:
        checked = runtime.Verification.InternalConsistency
        program = runtime.Runtime.get().load_program(path, verification=checked)
        method = program.load_method("forward")
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"ExecuTorch cannot read '{path.name}': {first_line(error)}") from error
    beside = path.with_name("model.json")
    parts = json.loads(beside.read_text())["parts"] if beside.is_file() else None
    one = _computing(method, program)
    return Session(one if parts is None else _one_by_one(one, *parts), path, parts is not None)


def _computing(method: Any, program: Any) -> Compute:
    def compute(inputs: Sequence[Tensor]) -> Answers:
        assert program is not None  # the method reads its memory
        found = method.execute([t.detach().contiguous() for t in inputs])
        return [t.clone() for t in found]  # they lie in the planned memory, until the next call

    return compute


def _one_by_one(one: Compute, given: Sequence[bool], answers: Sequence[bool]) -> Compute:
    """Any batch, an input at a time; what has no batch is the same in each."""

    def compute(inputs: Sequence[Tensor]) -> Answers:
        count = max((len(t) for t, mine in zip(inputs, given, strict=True) if mine), default=1)
        found = [
            one([t[i : i + 1] if mine else t for t, mine in zip(inputs, given, strict=True)])
            for i in range(count)
        ]
        return [
            torch.cat(rows) if mine else rows[0]
            for rows, mine in zip(zip(*found, strict=True), answers, strict=True)
        ]

    return compute
