"""A model as torch.export's program, for any batch size, and any length, where it allows that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from prunus._common.torch_internals import open_sizes
from prunus.errors import InputError, first_line
from prunus.graph.exporting import export
from prunus.graph.guard import expression
from prunus.graph.trace import analysis_mode
from prunus.runtimes import BuildRequest
from prunus.runtimes._arguments import batched, open_dims, variants
from prunus.runtimes._flat import Flat, flat
from prunus.runtimes._pools import Plain
from prunus.runtimes._recurrent import Whole, in_torch, packs
from prunus.runtimes._sizes import Sizes


@dataclass(frozen=True)
class Exported:
    """A program and the sizes that it takes.

    Attributes:
        program: its arguments are the example's tensors, flattened; so are its answers.
        dynamic: whether the batch size is free.
        sizes: the others.
        notes: what to know beside.
        names: of its arguments.
    """

    program: ExportedProgram
    dynamic: bool
    sizes: Sizes
    notes: tuple[str, ...]
    names: tuple[str, ...]


def exported(order: BuildRequest) -> Exported:
    """The program that the runtimes of torch share; see ``export_freely``."""

    def made() -> Exported:
        found = export_freely(order)
        return replace(found, program=in_torch(found.program))

    return order.once("exported", made)


def export_freely(order: BuildRequest) -> Exported:
    """Export with a free batch size and those sizes free in which inputs differ, or as many of
    them as the model allows; else for the example's alone.

    Recurrent layers are the operators of :mod:`prunus.runtimes._recurrent` where sizes are free.

    Raises:
        InputError: with the reason, if the model cannot be exported.
    """
    batch = batch_of(order)
    with analysis_mode(order.model), torch.no_grad(), Plain():
        subject = flat(order)
        for wanted in _wishes(order):
            made = _free(subject, order, wanted)
            if made is not None:
                return made
        program = export(subject.model, subject.args, subject.kwargs)
    if isinstance(program, Exception):
        raise untraceable(program, subject) from program
    notes = () if batch is None else (f"for a batch of {batch} only: the model fixes it",)
    return Exported(_unplaced(program), False, Sizes(), notes, subject.names)


def untraceable(error: Exception, subject: Flat) -> InputError:
    """What to say where export fails; its words for a packed sequence are those of a size."""
    packed = False
    with contextlib.suppress(Exception), torch.no_grad():
        packed = packs(subject.model, subject.args, subject.kwargs)
    hint = (
        "; its recurrent layers get packed sequences, which export does not follow: give a model "
        "whose forward does not pack (one sequence at a time needs no padding), or take "
        "runtime='eager'"
    )
    return InputError(f"torch.export cannot trace it: {first_line(error)}{hint if packed else ''}")


def _unplaced(program: ExportedProgram) -> ExportedProgram:
    """Without the lines of the user's files that each operator comes from."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def batch_of(order: BuildRequest) -> int | None:
    """The leading size of the example's first tensor with dimensions."""
    return next((int(t.shape[0]) for t in order.tensors if t.dim()), None)


Dims = Sequence[frozenset[int]]
"""Dimensions of each input tensor."""


def _wishes(order: BuildRequest) -> Iterator[Dims]:
    """Dimensions to leave free: the batch's and the open ones, one of the two, in this order."""
    batch = [frozenset({0} if is_batch else ()) for is_batch in batched(order)]
    other = open_dims(order)
    if any(other):
        yield [a | b for a, b in zip(batch, other, strict=True)]
    if any(batch):
        yield batch
    if any(batch) and any(other):
        yield other


def _free(subject: Flat, order: BuildRequest, wanted: Dims) -> Exported | None:
    """The program with these dimensions free, if the first of them stay so.

    A batch of one is doubled first: sizes of one broadcast, and export never leaves them free.
    """

    def grown(value: Tensor, is_batch: bool) -> Tensor:
        return torch.cat([value, value]) if is_batch and len(value) == 1 else value

    values = [*map(grown, _broad(order), batched(order))]
    free = [dict.fromkeys(sorted(own), Dim.AUTO) or None for own in wanted]
    count = len(subject.args)
    kwargs = dict(zip(subject.kwargs, values[count:], strict=True))
    shapes = dict(zip(subject.names, free, strict=True))
    with Whole():
        program = export(subject.model, tuple(values[:count]), kwargs, shapes)
    if isinstance(program, Exception):  # many refuse: their code branches on sizes
        return None
    found = _sizes(program)
    if found is None:
        return None
    kept = [frozenset(d for d in own if d == 0 or isinstance(sizes[d], str))
            for sizes, own in zip(found.of, wanted, strict=True)]  # fmt: skip
    if kept != [*wanted]:  # of the example's sizes where the model fixes them
        return _free(subject, order, kept)
    dynamic = any(isinstance(sizes[0], str) and is_batch
                  for sizes, is_batch in zip(found.of, batched(order), strict=True))  # fmt: skip
    dynamic = dynamic and _takes(found, values, batched(order))
    if any(is_batch and 0 in own for is_batch, own in zip(batched(order), wanted, strict=True)):
        if not dynamic:
            return None
    elif not found.open:
        return None
    notes = (*_settled(order, found), *([] if dynamic else [_fixed(order)]))
    return Exported(_unplaced(program), dynamic, found, notes, subject.names)


COUNTS = (2, 3, 16, 64)
"""Batch sizes that a program with a free one takes; what stops before is no free one."""


def _takes(found: Sizes, values: Sequence[Tensor], is_batch: Sequence[bool]) -> bool:
    built = [tuple(t.shape) for t in values]
    batch = next(shape[0] for shape, own in zip(built, is_batch, strict=True) if own)
    for count in COUNTS:
        shapes = [(count, *shape[1:]) if own else shape
                  for shape, own in zip(built, is_batch, strict=True)]  # fmt: skip
        if found.problem(shapes, built, batch=batch, count=count) is not None:
            return False
    return True


def _broad(order: BuildRequest) -> list[Tensor]:
    """The example, or the first of the inputs like it whose open sizes are no ones: they
    broadcast, and a program would learn less."""

    def least(tensors: list[Tensor]) -> int:
        pairs = zip(tensors, open_dims(order), strict=True)
        return min((t.shape[d] for t, own in pairs for d in own), default=2)

    every = variants(order)
    return next((tensors for tensors in every if least(tensors) > 1), every[0])


def _sizes(program: ExportedProgram) -> Sizes | None:
    """What a program takes; ``None`` where that hangs on more than its inputs' sizes."""
    names = program.graph_signature.user_inputs
    nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    known = open_sizes([nodes[str(name)].meta.get("val") for name in names])
    if known is None or len(known[0]) != len(names):
        return None
    found = Sizes(tuple(known[0]), tuple(known[1]))
    try:
        for text in (*found.conditions, *(s for of in found.of for s in of if isinstance(s, str))):
            expression(text)
    except InputError:  # involved beyond what can be computed again
        return None
    return found


def _settled(order: BuildRequest, found: Sizes) -> Iterator[str]:
    """Which sizes the model fixes although inputs differ in them."""
    for number, own in enumerate(open_dims(order)):
        for d in sorted(own):
            size = found.of[number][d]
            if isinstance(size, int):
                yield f"size {d} of input {number} is {size} only: the model fixes it"


def _fixed(order: BuildRequest) -> str:
    return f"for a batch of {batch_of(order)} only: the model fixes it"


def write_pt2(order: BuildRequest, program: ExportedProgram) -> Path:
    """Write a program as ``model.pt2``."""
    path = order.folder / "model.pt2"
    torch.export.save(program, path)
    return path
