"""Sequences of convolutions by the kernels; arguments are checked before a pointer is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import addressof, byref, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.errors import InputError
from prunus.kernels import conv_native as native
from prunus.kernels.conv_plan import Plan, plan
from prunus.kernels.conv_steps import Program, Step
from prunus.kernels.conv_values import picture, values_of
from prunus.kernels.layouts import checked, dense
from prunus.kernels.native import NOT_FINITE, REFUSED, library
from prunus.kernels.pattern import described

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x, "relu": torch.relu, "relu6": F.relu6, "gelu": F.gelu, "silu": F.silu,
}  # fmt: skip
REMEMBERED = 8
"""Sizes of pictures for which a sequence keeps its plans."""
_PLANS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""By the first layout: what was laid out for it."""


def sequence(
    program: Sequence[int],
    inputs: Sequence[Tensor],
    values: Sequence[Tensor],
    layouts: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> list[Tensor]:
    """What a sequence of convolutions gives for pictures.

    Where an input or a sum is not finite, and for float64, torch computes it densely: 0 · ∞ is
    NaN, as in dense arithmetic.

    Args:
        program: the numbers of a :class:`~prunus.kernels.conv_steps.Program`.
        inputs: ``[batch, channels, height, width]``.
        values: of every layout, in its order; of a depthwise step ``[channels · taps]``.
        layouts: tiles of ``[out, in · taps]``; empty for a depthwise step.
        biases: ``[out]``, or empty.

    Raises:
        InputError: if something does not fit, before anything is computed.
    """
    given = tuple(program)
    if not len(values) == len(layouts) == len(biases) or not inputs:
        raise InputError(
            f"{len(values)} values, {len(layouts)} layouts and {len(biases)} biases: one of each "
            "for all weights, and at least one input"
        )
    kind = inputs[0].dtype
    refuse(inputs, values, biases, kind)
    if kind == torch.float64:
        return densely(Program.of(given), inputs, values, layouts, biases)
    made = _planned(given, inputs, layouts)
    refuse_sizes(made, values, biases)
    if not inputs[0].shape[0]:
        return [torch.empty((0, *shape[1:])) for shape in made.shapes]
    tables = [pointers(t) for t in (layouts, values, biases)]
    found = run(made, inputs, tables)
    return densely(Program.of(given), inputs, values, layouts, biases) if found is None else found


def run(made: Plan, inputs: Sequence[Tensor], tables: Sequence[Any]) -> list[Tensor] | None:
    """Call the kernels: everything fits. Nothing comes back where something is not finite."""
    whole = [x.contiguous() for x in inputs]
    outputs = [torch.empty(shape) for shape in made.shapes]
    bases = pointers([*whole, *outputs])
    call = native.Sequence(
        made.steps_at, made.count, made.room, addressof(bases), *map(addressof, tables),
        torch.get_num_threads(), 0,
    )  # fmt: skip
    status = native.calls().prunus_sequence(byref(call))
    if status == REFUSED:
        raise InputError(f"there is no memory for {len(whole[0])} pictures at once")
    return None if status == NOT_FINITE else outputs


def pointers(tensors: Sequence[Tensor]) -> Any:
    """Where tensors lie, as an array for the kernels; nowhere for empty ones."""
    return (c_void_p * len(tensors))(*[t.data_ptr() or None for t in tensors])


def _planned(program: tuple[int, ...], inputs: Sequence[Tensor], layouts: Sequence[Tensor]) -> Plan:
    """The plan for these sizes; a new one where none was made."""
    key = (program, library().name, tuple(x.shape for x in inputs))
    known: dict[Any, Plan] = {}
    if layouts:
        known = _PLANS.setdefault(layouts[0], known)
    found = known.get(key)
    if found is None or not found.fits(layouts):
        found = planned(Program.of(program), inputs, layouts)
        if len(known) >= REMEMBERED:
            known.pop(next(iter(known)), None)
        known[key] = found
    return found


def planned(program: Program, inputs: Sequence[Tensor], layouts: Sequence[Tensor]) -> Plan:
    """A plan for pictures of these sizes; none of no pictures is one of one."""
    pictures = [picture(x, "an input") for x in inputs]
    batch = inputs[0].shape[0]
    if any(x.shape[0] != batch for x in inputs):
        raise InputError("the inputs of a sequence are of one batch size")
    return plan(program, max(1, batch), pictures, layouts)


def refuse(
    inputs: Sequence[Tensor], values: Sequence[Tensor], biases: Sequence[Tensor], kind: torch.dtype
) -> None:
    """Tensors that are not all of one type on the CPU, or weights that are not flat."""
    for what, tensors in (("an input", inputs), ("the values", values), ("a bias", biases)):
        for t in tensors:
            plain = t.dtype == kind and t.device.type == "cpu" and t.layout == torch.strided
            flat = what == "an input" or (t.dim() == 1 and t.is_contiguous())
            if not plain or not flat or kind not in (torch.float32, torch.float64):
                raise InputError(
                    f"{what} of a sequence of convolutions is float32 on the CPU, as all of it is "
                    f"(or float64), weights flat; not {described(t)}"
                )


def refuse_sizes(made: Plan, values: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    """Weights and biases that are not as many as a plan reads."""
    for i, (held, bias) in enumerate(zip(values, biases, strict=True)):
        if held.numel() < made.values[i] or bias.numel() not in (0, made.channels[i]):
            raise InputError(
                f"weights {i} are {made.values[i]} values and a bias of {made.channels[i]} or "
                f"none, not {held.numel()} and {bias.numel()}"
            )


def densely(
    program: Program, inputs: Sequence[Tensor], values: Sequence[Tensor],
    layouts: Sequence[Tensor], biases: Sequence[Tensor],
) -> list[Tensor]:  # fmt: skip
    """The same by torch, every zero multiplied."""
    pictures = [picture(x, "an input") for x in inputs]
    sizes = values_of(program, pictures, layouts)
    for step in program.steps:
        if step.kind == "conv":
            checked(layouts[step.number], values[step.number])
    weights: list[Tensor | None] = [None] * len(values)
    for step in program.steps:
        if step.weighted:
            i = step.number
            weights[i] = weight_of(step, sizes[step.x].channels, values[i], layouts[i])
    return follow(program, inputs, weights, biases)


def follow(
    program: Program, inputs: Sequence[Tensor], weights: Sequence[Tensor | None],
    biases: Sequence[Tensor],
) -> list[Tensor]:  # fmt: skip
    """The steps in torch, by whole weights ``[out, in, rows, columns]``."""
    found = list(inputs)
    for step in program.steps:
        own = (weights[step.number], biases[step.number]) if step.weighted else ()
        y = plain(step, found[step.x], *own)
        if step.more >= 0:
            y = y + found[step.more]
        found.append(_ACTIVATIONS[step.activation](y))
    return [found[i].contiguous() for i in program.outputs]


def plain(
    step: Step, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """One step in torch, without what is added and the activation."""
    if step.kind in ("conv", "depthwise"):
        assert weight is not None
        groups = step.channels if step.kind == "depthwise" else step.groups
        own = bias if bias is not None and bias.numel() else None
        return F.conv2d(x, weight, own, step.stride, step.padding, step.dilation, groups)
    if step.kind == "max":
        return F.max_pool2d(x, step.kernel, step.stride, step.padding, step.dilation)
    if step.kind == "average":
        return F.avg_pool2d(x, step.kernel, step.stride, step.padding)
    return x.mean((2, 3), keepdim=True) if step.kind == "mean" else x


def weight_of(step: Step, channels: int, values: Tensor, layout: Tensor) -> Tensor:
    """The whole weight ``[out, in ÷ groups, rows, columns]`` of a step."""
    if step.kind == "depthwise":
        return values[: step.channels * step.taps].view(step.channels, 1, *step.kernel)
    found = dense(layout, values).view(step.channels, channels, *step.kernel)
    if step.groups == 1:
        return found
    apart = found.view(step.groups, -1, step.groups, channels // step.groups, *step.kernel)
    return torch.cat([apart[i, :, i] for i in range(step.groups)])
