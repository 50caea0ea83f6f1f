"""Convolutions of a program as sequences of sparse ones, where that measures faster."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus._common.timing import interleaved
from prunus.errors import InputError
from prunus.kernels.conv import laid_out, whole
from prunus.kernels.conv_native import calls
from prunus.kernels.conv_prepared import PreparedConvs
from prunus.kernels.conv_product import follow
from prunus.kernels.conv_steps import Program, Step
from prunus.kernels.conv_values import Value, sizes_of
from prunus.kernels.layouts import Cut
from prunus.runtimes._sparse_regions import Region, regions, zeros

SECONDS = 0.02
"""Of timing, for each form of a convolution."""
BETTER = 0.97
"""A sequence must take at most this part of the time that torch takes for the same."""
CACHE = 6144
"""Floats of pictures that stay in the first cache, about."""
Form = tuple[int, int, int, int, int]
"""Rows side by side, rows of a block, vectors of a tile, channels of a band, whether shifted."""


@dataclass(frozen=True)
class ConvChoice:
    """How a region is computed at a batch size.

    Attributes:
        batch: pictures at which it was measured.
        forms: of its convolutions, by the names of their steps.
        ms: that the sequence takes.
        dense_ms: that torch takes.
    """

    batch: int
    forms: Mapping[str, Form]
    ms: float
    dense_ms: float

    @property
    def wins(self) -> bool:
        """Whether it is sparse."""
        return self.ms <= BETTER * self.dense_ms


def conv_sites(module: fx.GraphModule) -> list[Region]:
    """What a program has of them."""
    return regions(module)


def forms(weight: Tensor, step: Step, width: int) -> list[Form]:
    """What is worth a try for a convolution whose result has rows of so many pixels.

    >>> len(forms(torch.ones(4, 4, 1, 1), Step("conv", 0), 14)) > 1
    True
    """
    taps, count = step.taps, weight.shape[1] * step.groups
    rows = step.kernel[0] if taps > 1 else 1
    most = max(1, min(count, 65536 // taps))
    found: list[Form] = []
    blocks = [(1, 4)] if zeros(weight) < 0.5 else []
    for side, height in [(1, 1), (2, 1), (4, 1), *blocks]:
        held = calls().prunus_vectors(side * height)
        for shifted in (0, 1) if step.kernel[1] > 1 else (0,):
            strip = 16 * held + (rows - 1) * width
            views = step.kernel[1] if shifted else 1
            near = max(4, CACHE // (strip * views))
            for band in dict.fromkeys((min(near, most), min(4 * near, most))):
                found.append((side, height, held, band, shifted))
    return found


def packed(weight: Tensor, step: Step, form: Form) -> tuple[Step, Tensor, Tensor]:
    """A step of a form, the layout of its weight, and the values.

    Raises:
        InputError: if there is no such form.
    """
    side, height, vectors, band, shifted = form
    cut = Cut(side, height, 64, band * step.taps, 512)
    if vectors < 1:
        raise InputError(f"a strip of {vectors} vectors is not possible")
    layout, values = laid_out(whole(weight, step.groups), cut)
    return replace(step, vectors=vectors, shifted=bool(shifted)), layout.numbers, values


def prepared(region: Region, chosen: Mapping[str, Form]) -> PreparedConvs:
    """The sequence of a region, with its weights packed.

    Raises:
        InputError: if a convolution has no form.
    """
    steps: list[Step] = []
    layouts, values, biases = [], [], []
    none = torch.empty(0, dtype=torch.int32)
    for name, step in zip(region.names, region.program.steps, strict=True):
        if not step.weighted:
            steps.append(step)
            continue
        weight, bias = region.weights[step.number], region.biases[step.number]
        made, layout, own = step, none, weight.reshape(-1).contiguous()
        if step.kind == "conv":
            if name not in chosen:
                raise InputError(f"the table has no form for '{name}': deploy again")
            made, layout, own = packed(weight, step, chosen[name])
        steps.append(made)
        layouts.append(layout)
        values.append(own)
        biases.append(torch.empty(0) if bias is None else bias.contiguous())
    program = Program(region.program.inputs, tuple(steps), region.program.outputs)
    return PreparedConvs(program, values, layouts, biases)


def densely(region: Region, inputs: Sequence[Tensor]) -> list[Tensor]:
    """A region by torch."""
    biases = [torch.empty(0) if b is None else b for b in region.biases]
    return follow(region.program, inputs, region.weights, biases)


def inputs_of(region: Region, batch: int) -> list[Value]:
    """Channels and sizes of what a region reads."""
    found = []
    for node in region.inputs:
        _, channels, height, width = node.meta["val"].shape
        found.append(Value(channels, (height, width)))
    return found


def choose_convs(region: Region, batch: int, known: dict[Any, Form] | None = None) -> ConvChoice:
    """The fastest form of every convolution, and the whole region against torch.

    Args:
        region: of a program.
        batch: pictures.
        known: forms of convolutions that were measured, by what makes them alike.
    """
    known = {} if known is None else known
    given = inputs_of(region, batch)
    sizes = sizes_of(region.program, given)
    chosen = {}
    for i, (name, step) in enumerate(zip(region.names, region.program.steps, strict=True)):
        if step.kind == "conv":
            weight, x = region.weights[step.number], sizes[step.x]
            key = (*weight.shape, step.groups, step.stride, step.padding, step.dilation, x.size,
                   round(zeros(weight), 2), batch)  # fmt: skip
            if key not in known:
                width = sizes[region.program.inputs + i].size[1]
                known[key] = _fastest(weight, step, torch.randn(batch, x.channels, *x.size), width)
            chosen[name] = known[key]
    made = prepared(region, chosen)
    tensors = [torch.randn(batch, v.channels, *v.size) for v in given]
    with torch.inference_mode():
        found = interleaved(
            {"sparse": lambda: made(*tensors), "dense": lambda: densely(region, tensors)},
            seconds=0.2,
        )
    return ConvChoice(batch, chosen, found["sparse"].median_ms, found["dense"].median_ms)


def _fastest(weight: Tensor, step: Step, x: Tensor, width: int) -> Form:
    alone = replace(step, x=0, more=-1, number=0)
    tried: dict[Form, PreparedConvs] = {}
    for form in forms(weight, step, width):
        made, layout, values = packed(weight, alone, form)
        program = Program(1, (made,), (1,))
        tried[form] = PreparedConvs(program, [values], [layout], [torch.empty(0)])
    with torch.inference_mode():
        found = interleaved(
            {str(form): partial(call, x) for form, call in tried.items()},
            seconds=SECONDS,
        )
    return min(tried, key=lambda form: found[str(form)].median_ms)


class ConvLayers(nn.Module):
    """In the place of a region; at batch sizes where torch is faster, torch computes it."""

    def __init__(self, region: Region, choices: Sequence[ConvChoice]) -> None:
        super().__init__()
        self.choices = sorted(choices, key=lambda c: c.batch)
        best = next(c for c in self.choices if c.wins)
        self.prepared = prepared(region, best.forms)
        self.dense = None if all(c.wins for c in self.choices) else region

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """The region's values that others read."""
        if self.dense is not None:
            near = min(self.choices, key=lambda c: abs(c.batch - len(inputs[0])))
            if not near.wins:
                return densely(self.dense, inputs)
        return self.prepared(*inputs)


def put_convs(module: fx.GraphModule, region: Region, choices: Sequence[ConvChoice]) -> None:
    """A sequence in the place of a region's operators."""
    name, graph, last = f"sparse_{region.node.name}", module.graph, region.nodes[-1]
    module.add_submodule(name, ConvLayers(region, choices))
    with graph.inserting_after(last):
        call = graph.call_module(name, tuple(region.inputs))
    at = call
    for i, node in enumerate(region.outputs):
        with graph.inserting_after(at):
            at = made = graph.call_function(operator.getitem, (call, i))
        if node.meta["val"].dim() == 2:  # a mean that keeps no dimensions
            with graph.inserting_after(at):
                at = made = graph.call_function(torch.ops.aten.flatten.using_ints, (made, 1))
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
    for node in region.later:
        at.append(node)
        at = node
    for node in reversed(region.nodes):
        graph.erase_node(node)


def conv_choices(found: Any) -> list[ConvChoice]:
    """What the artifact keeps of them.

    Raises:
        KeyError, TypeError, ValueError: if it is something else.
    """

    def form(value: Any) -> Form:
        side, height, vectors, band, shifted = map(int, value)
        return side, height, vectors, band, shifted

    made = [
        ConvChoice(int(c["batch"]), {str(k): form(v) for k, v in c["forms"].items()},
                   float(c["ms"]), float(c["dense_ms"]))
        for c in found
    ]  # fmt: skip
    if not made:
        raise ValueError("convolutions without a choice")
    return made
