"""Convolutions under masks that train: forward and backward multiply what is there alone."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.errors import InputError
from prunus.kernels import conv_native as native
from prunus.kernels.conv import cut
from prunus.kernels.conv_plan import Plan
from prunus.kernels.conv_product import REMEMBERED, planned, pointers, sequence, weight_of
from prunus.kernels.conv_steps import Pair, Program, Step
from prunus.kernels.layouts import head_of, packed, placed, tiles, unpacked
from prunus.kernels.native import NOT_FINITE, REFUSED, library
from prunus.kernels.operator import LIBRARY
from prunus.kernels.pattern import Pattern
from prunus.kernels.tangents import refuse_tangents

SIGNATURES = (
    "sparse_conv(Tensor x, Tensor weight, Tensor layout, Tensor order, Tensor turned, "
    "Tensor turned_order, Tensor? bias, int[] stride, int[] padding, int[] dilation) -> Tensor",
    "sparse_conv_backward(Tensor dy, Tensor x, Tensor weight, Tensor layout, Tensor order, "
    "Tensor turned, Tensor turned_order, int[] stride, int[] padding, int[] dilation, bool of_x, "
    "bool of_weight) -> (Tensor, Tensor)",
)


_PLANS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""By the layout: gradients of the sizes that were met."""


@dataclass(frozen=True, eq=False)
class ConvLayouts:
    """What the operator reads of a mask ``[out, in, rows, columns]``.

    Attributes:
        layout, order: of the matrix ``[out, in · taps]``; values come from the whole weight.
        turned, turned_order: of the convolution that takes the gradient back.
        rows: channels out.
    """

    layout: Tensor
    order: Tensor
    turned: Tensor
    turned_order: Tensor
    rows: int

    @classmethod
    def of(cls, mask: Tensor) -> ConvLayouts:
        """Of a mask of any type: what is not zero is kept."""
        place = torch.arange(mask.numel(), dtype=torch.int32).view(mask.shape)
        made = []
        for there, own in ((mask, place), (_turned(mask), _turned(place))):
            pattern = Pattern.of(there.flatten(1))
            layout = tiles(pattern, cut(there))
            made += [layout.numbers, placed(layout.order, own.flatten()[pattern.flat()])]
        return cls(made[0], made[1], made[2], made[3], mask.shape[0])

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Pair = (1, 1),
        padding: Pair = (0, 0), dilation: Pair = (1, 1),
    ) -> Tensor:  # fmt: skip
        """conv2d(x, weight ⊙ mask) + bias; the gradient of what the mask removes is zero."""
        refuse_tangents(x, weight, bias)
        found: Tensor = torch.ops.prunus.sparse_conv(
            x, weight, self.layout, self.order, self.turned, self.turned_order, bias,
            stride, padding, dilation,
        )  # fmt: skip
        return found


def _turned(weight: Tensor) -> Tensor:
    """``[in, out, …]`` with its taps the other way round: what the gradient is convolved with."""
    return weight.transpose(0, 1).flip(2, 3)


def _step(
    weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Step:
    high, wide = weight.shape[2:]
    return Step(
        "conv", 0, -1, 0, weight.shape[0], (high, wide), _pair(stride), _pair(padding),
        _pair(dilation), shifted=wide > 1,
    )  # fmt: skip


def _pair(given: Sequence[int]) -> Pair:
    return given[0], given[1]


def sparse_conv(
    x: Tensor, weight: Tensor, layout: Tensor, order: Tensor, turned: Tensor, turned_order: Tensor,
    bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """conv2d of the weights ``[out, in, rows, columns]`` that the layout keeps."""
    held = packed(order, weight.reshape(-1))
    own = held.new_empty(0) if bias is None else bias.detach().contiguous()
    program = Program(1, (_step(weight, stride, padding, dilation),), (1,)).numbers()
    return sequence(program, [x], [held], [layout], [own])[0]


def sparse_conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, layout: Tensor, order: Tensor, turned: Tensor,
    turned_order: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    of_x: bool, of_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of x and of the weight, which is zero where the layout keeps nothing.

    dx convolves dy with the turned weights; with a stride torch computes it.
    """
    none = x.new_empty(0)
    step = _step(weight, stride, padding, dilation)
    back = [d * (k - 1) - p for d, k, p in zip(dilation, step.kernel, padding, strict=True)]
    dx = dw = none
    if of_x and step.stride == (1, 1) and min(back) >= 0:
        program = Program(1, (_step(_turned(weight), stride, back, dilation),), (1,)).numbers()
        held = packed(turned_order, weight.reshape(-1))
        dx = sequence(program, [dy], [held], [turned], [none])[0]
    elif of_x:
        whole = weight_of(step, x.shape[1], packed(order, weight.reshape(-1)), layout)
        dx = _by_torch(dy, x, whole, step, 0)
    if of_weight:
        found = None if x.dtype != torch.float32 else weights_gradient(step, x, dy, layout)
        if found is None:
            there = torch.zeros(weight.numel(), dtype=torch.bool)
            there[order[order >= 0].long()] = True
            dw = _by_torch(dy, x, weight, step, 1) * there.view(weight.shape)
        else:
            dw = unpacked(order, found, weight.numel()).view(weight.shape)
    return dx, dw


def _by_torch(dy: Tensor, x: Tensor, weight: Tensor, step: Step, number: int) -> Tensor:
    found: Tensor = torch.ops.aten.convolution_backward(
        dy, x, weight, None, step.stride, step.padding, step.dilation, False, [0, 0], 1,
        [number == 0, number == 1, False],
    )[number]  # fmt: skip
    return found


def weights_gradient(step: Step, x: Tensor, dy: Tensor, layout: Tensor) -> Tensor | None:
    """Σ over pixels of dy · x for every value of a layout, in its order; nothing if not finite.

    Args:
        step: the convolution.
        x: ``[batch, in, height, width]``, float32.
        dy: of the result's shape.
        layout: tiles of ``[out, in · taps]``.
    """
    count = head_of(layout).values
    made = torch.zeros(count)
    if not x.shape[0] or not count:
        return made
    given = [x.contiguous(), dy.contiguous()]
    known: dict[Any, Plan] = _PLANS.setdefault(layout, {})
    key = (step, library().name, x.shape)
    if key not in known:
        whole = planned(Program(2, (replace(step, more=1),), (2,)), given, [layout])
        if len(known) >= REMEMBERED:
            known.pop(next(iter(known)), None)
        known[key] = _as_gradient(whole, count)
    plan = known[key]
    bases = pointers([*given, made])
    tables = [pointers(t) for t in ([layout], [made], [made.new_empty(0)])]
    call = native.Sequence(
        plan.steps_at, plan.count, plan.room, ctypes.addressof(bases),
        *map(ctypes.addressof, tables), torch.get_num_threads(), 0,
    )  # fmt: skip
    status = native.calls().prunus_sequence(ctypes.byref(call))
    if status == REFUSED:
        raise InputError(f"there is no memory for {len(x)} pictures at once")
    return None if status == NOT_FINITE else made


def _as_gradient(plan: Plan, count: int) -> Plan:
    """A plan that adds dy to a convolution of x, as one that multiplies them."""
    steps = []
    for step in plan.steps[: plan.count]:
        if step.kind == native.CONVOLUTION:
            step.kind, step.y_base, step.y = native.GRADIENT, 3, 0
        elif step.bare:
            continue  # that copies the result out
        steps.append(step)
    return replace(
        plan, steps=(native.Step * len(steps))(*steps), count=len(steps), shapes=((count,),)
    )


def _fake(
    x: Tensor, weight: Tensor, layout: Tensor, order: Tensor, turned: Tensor, turned_order: Tensor,
    bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    size = _step(weight, stride, padding, dilation).size(*x.shape[2:])
    return x.new_empty((x.shape[0], weight.shape[0], *size))


def _fake_backward(
    dy: Tensor, x: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:  # fmt: skip
    of_x, of_weight = rest[-2:]
    none = x.new_empty(0)
    return (
        x.new_empty(x.shape) if of_x else none,
        weight.new_empty(weight.shape) if of_weight else none,
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _, ctx.stride, ctx.padding, ctx.dilation = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    of_x, of_weight, *_ = ctx.needs_input_grad
    of_bias = ctx.needs_input_grad[6]
    dx, dw = torch.ops.prunus.sparse_conv_backward(
        dy, *ctx.saved_tensors, ctx.stride, ctx.padding, ctx.dilation, of_x, of_weight
    )
    return (
        dx if of_x else None, dw if of_weight else None, None, None, None, None,
        dy.sum((0, 2, 3)) if of_bias else None, None, None, None,
    )  # fmt: skip


def _twice(ctx: Any, *gradients: Tensor) -> NoReturn:
    raise InputError("sparse layers have no second derivatives: take them of the dense model")


_FUNCTIONS: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = (
    (sparse_conv, _fake), (sparse_conv_backward, _fake_backward),
)  # fmt: skip
for _signature, (_function, _shape) in zip(SIGNATURES, _FUNCTIONS, strict=True):
    _name = LIBRARY.define(_signature)
    LIBRARY.impl(_name, _function, "CPU")
    torch.library.register_fake(f"prunus::{_name}", _shape, lib=LIBRARY)
torch.library.register_autograd("prunus::sparse_conv", _backward, setup_context=_save, lib=LIBRARY)
torch.library.register_autograd("prunus::sparse_conv_backward", _twice, lib=LIBRARY)
