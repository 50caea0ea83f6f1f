"""Products by the kernels: arguments are checked here, before any pointer is used."""

from __future__ import annotations

from ctypes import byref

import torch
import torch.nn.functional as F
from torch import Tensor

from prunus.errors import InputError, did_you_mean
from prunus.kernels.layouts import FULL, KINDS, checked, dense, head_of
from prunus.kernels.native import NOT_FINITE, REFUSED, TILES, Gradient, Product, library
from prunus.kernels.pattern import described

ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "silu": 3}
"""What may follow a product at once; GELU is the exact one."""
_TORCH = {"relu": torch.relu, "gelu": F.gelu, "silu": F.silu}


def product(
    numbers: Tensor,
    values: Tensor,
    x: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """activation(x · Wᵀ + bias + residual), W given by a layout and its values.

    Where an input is not finite, zeros are not skipped: 0 · ∞ is NaN, as in dense arithmetic.

    Args:
        numbers: a layout of W ``[rows, cols]``.
        values: in its order.
        x: ``[…, cols]``, float32; float64 as well where the values are.
        bias: ``[rows]``.
        residual: of the result's shape ``[…, rows]``.
        activation: ``none``, ``relu``, ``gelu`` or ``silu``.

    Raises:
        InputError: if shapes, types or devices do not fit, before anything is computed.
    """
    head = checked(numbers, values)
    kind = values.dtype if values.dtype == torch.float64 else torch.float32
    flat = _matrix(x, head.cols, kind, "the input")
    if activation not in ACTIVATIONS:
        raise InputError(
            f"there is no activation '{activation}'; {did_you_mean(activation, ACTIVATIONS)}"
        )
    if bias is not None:
        if bias.shape != (head.rows,) or bias.dtype != kind or bias.device.type != "cpu":
            raise InputError(f"the bias is {kind} ({head.rows},) on the CPU, not {described(bias)}")
        bias = bias.contiguous()
    shape = (*x.shape[:-1], head.rows)
    more = None
    if residual is not None:
        if residual.shape != shape:
            raise InputError(f"the residual is of shape {shape}, not {described(residual)}")
        more = _matrix(residual, head.rows, kind, "the residual")
    y = torch.empty(shape, dtype=kind)
    call = Product(
        numbers.data_ptr(), values.data_ptr(), flat.data_ptr(), y.data_ptr(),
        None if bias is None else bias.data_ptr(), None if more is None else more.data_ptr(),
        len(flat), flat.stride(0), head.rows, 0 if more is None else more.stride(0),
        KINDS[values.dtype], ACTIVATIONS[activation], torch.get_num_threads(), 0,
    )  # fmt: skip
    status = library().call.prunus_product(byref(call))
    if status == REFUSED:
        raise InputError(f"there is no memory for a product of {len(flat)} tokens")
    if status == NOT_FINITE:
        return densely(numbers, values, x, bias=bias, residual=residual, activation=activation)
    return y


def densely(
    numbers: Tensor,
    values: Tensor,
    x: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """The same by torch, every zero multiplied."""
    return plain(x, dense(numbers, values), bias=bias, residual=residual, activation=activation)


def plain(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """activation(x · weightᵀ + bias + residual) in torch."""
    y = F.linear(x, weight, bias)
    if residual is not None:
        y = y + residual
    return _TORCH[activation](y) if activation in _TORCH else y


def gradient(numbers: Tensor, x: Tensor, dy: Tensor) -> Tensor:
    """The gradient of every value of a layout of tiles: Σ over tokens of dy[row] · x[column].

    Args:
        numbers: the layout, of ``[rows, cols]``.
        x: ``[…, cols]``, float32 or float64.
        dy: ``[…, rows]``, of the same type.

    Returns:
        ``[values]``, in the layout's order; what it pads with gets numbers that mean nothing.
    """
    head, kind = head_of(numbers), x.dtype
    if kind not in FULL or head.kind != TILES:
        raise InputError(f"gradients are computed by tiles, in float32, not {described(x)}")
    flat, grad = _matrix(x, head.cols, kind, "the input"), _matrix(dy, head.rows, kind, "dy")
    if len(flat) != len(grad):
        raise InputError(f"{len(flat)} tokens of input have {len(grad)} of gradient")
    made = torch.empty(head.values, dtype=kind)
    call = Gradient(
        numbers.data_ptr(), made.data_ptr(), flat.data_ptr(), grad.data_ptr(),
        len(flat), flat.stride(0), grad.stride(0), KINDS[kind], torch.get_num_threads(),
    )  # fmt: skip
    if library().call.prunus_gradient(byref(call)) == REFUSED:
        raise InputError(f"there is no memory for the gradient of {len(flat)} tokens")
    return made


def _matrix(value: Tensor, width: int, kind: torch.dtype, what: str) -> Tensor:
    """As rows that are each contiguous, without a copy where it has such."""
    fits = value.dim() >= 1 and value.shape[-1] == width and value.dtype == kind
    if not fits or value.device.type != "cpu" or value.layout != torch.strided:
        raise InputError(f"{what} is {kind} (…, {width}) on the CPU, not {described(value)}")
    count = value.numel() // width if width else value.shape[:-1].numel()
    flat = value.reshape(count, width)
    if width > 1 and flat.stride(1) != 1:
        flat = flat.contiguous()
    return flat
