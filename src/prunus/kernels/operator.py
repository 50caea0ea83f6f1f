"""The operators of ``torch.ops.prunus``: what autograd, export and the compiler see.

``sparse_linear`` has values that may train, and a gradient; ``packed_linear`` has values that lie
ready for each of several kernels, of which the number of tokens chooses one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from prunus.errors import InputError
from prunus.kernels.layouts import head_of, packed, unpacked
from prunus.kernels.product import gradient, plain, product

LIBRARY = torch.library.Library("prunus", "DEF")
"""Torch takes the definitions back with it."""
SIGNATURES = (
    "sparse_linear(Tensor x, Tensor values, Tensor layout, Tensor order, Tensor turned, "
    "Tensor turned_order, Tensor? bias, Tensor? residual, SymInt rows, str activation) -> Tensor",
    "sparse_linear_backward(Tensor dy, Tensor x, Tensor values, Tensor layout, Tensor order, "
    "Tensor turned, Tensor turned_order, bool of_x, bool of_values) -> (Tensor, Tensor)",
    "packed_linear(Tensor x, Tensor[] values, Tensor[] layouts, int[] least, Tensor? bias, "
    "Tensor? residual, SymInt rows, str activation) -> Tensor",
)


def sparse_linear(
    x: Tensor, values: Tensor, layout: Tensor, order: Tensor, turned: Tensor, turned_order: Tensor,
    bias: Tensor | None, residual: Tensor | None, rows: int, activation: str,
) -> Tensor:  # fmt: skip
    """activation(x · Wᵀ + bias + residual), with values in the pattern's order."""
    _refuse(layout, rows)
    return product(
        layout, packed(order, values), x, bias=bias, residual=residual, activation=activation
    )


def sparse_linear_backward(
    dy: Tensor, x: Tensor, values: Tensor, layout: Tensor, order: Tensor, turned: Tensor,
    turned_order: Tensor, of_x: bool, of_values: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of x and of the values; of those not wanted, nothing.

    dx = dy · W by the transposed pattern; of the values at the places of the pattern alone.
    """
    none = x.new_empty(0)
    dx = product(turned, packed(turned_order, values), dy) if of_x else none
    if not of_values:
        return dx, none
    return dx, unpacked(order, gradient(layout, x, dy), len(values))


def packed_linear(
    x: Tensor, values: Sequence[Tensor], layouts: Sequence[Tensor], least: Sequence[int],
    bias: Tensor | None, residual: Tensor | None, rows: int, activation: str,
) -> Tensor:  # fmt: skip
    """activation(x · Wᵀ + bias + residual), by the last kernel that is for so many tokens.

    Args:
        x: ``[…, cols]``.
        values: for each kernel, in its order; a matrix ``[rows, cols]`` is multiplied by torch.
        layouts: for each kernel; empty for a matrix.
        least: tokens from which on it is used; rising, the first is 0.
        bias: ``[rows]``.
        residual: ``[…, rows]``.
        rows: of W.
        activation: what follows.
    """
    if not (len(values) == len(layouts) == len(least)) or not least or least[0] != 0:
        raise InputError(
            f"{len(values)} values, {len(layouts)} layouts and limits {list(least)} do not fit: "
            "one of each for every kernel, the first from 0 tokens on"
        )
    tokens = x.numel() // x.shape[-1] if x.dim() and x.shape[-1] else 0
    number = max(i for i, limit in enumerate(least) if limit <= tokens)
    if values[number].dim() == 2:
        return plain(x, values[number], bias=bias, residual=residual, activation=activation)
    _refuse(layouts[number], rows)
    return product(
        layouts[number], values[number], x, bias=bias, residual=residual, activation=activation
    )


def _refuse(layout: Tensor, rows: int) -> None:
    found = head_of(layout).rows
    if found != rows:
        raise InputError(f"the layout is of {found} rows, not of {rows}")


def _backward(context: Any, dy: Tensor) -> tuple[Any, ...]:
    x, values, *pattern, _, _ = context.saved_tensors
    of_x, of_values, *_, of_bias, of_residual = context.needs_input_grad[:8]
    if context.activation != "none":
        dy = _before(context, dy)
    backward = torch.ops.prunus.sparse_linear_backward
    dx, own = backward(dy, x, values, *pattern, of_x, of_values)
    return (
        dx if of_x else None, own if of_values else None, None, None, None, None,
        dy.sum_to_size(dy.shape[-1:]) if of_bias else None, dy if of_residual else None,
        None, None,
    )  # fmt: skip


def _before(context: Any, dy: Tensor) -> Tensor:
    """The gradient before the activation, whose input is computed again."""
    given: Tensor = torch.ops.prunus.sparse_linear(*context.saved_tensors, context.rows, "none")
    if context.activation == "relu":
        return dy * (given > 0)
    if context.activation == "gelu":
        found: Tensor = torch.ops.aten.gelu_backward(dy, given)
        return found
    gate = torch.sigmoid(given)
    slope: Tensor = gate * (1 + given * (1 - gate))
    return dy * slope


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.rows, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _twice(ctx: Any, *gradients: Tensor) -> NoReturn:
    raise InputError("sparse layers have no second derivatives: take them of the dense model")


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], rest[-2]))


def _fake_backward(
    dy: Tensor, x: Tensor, values: Tensor, layout: Tensor, order: Tensor, turned: Tensor,
    turned_order: Tensor, of_x: bool, of_values: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    none = x.new_empty(0)
    return (
        x.new_empty(x.shape) if of_x else none,
        torch.empty_like(values) if of_values else none,
    )


_FUNCTIONS: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = (
    (sparse_linear, _fake), (sparse_linear_backward, _fake_backward), (packed_linear, _fake),
)  # fmt: skip
for _signature, (_function, _shape) in zip(SIGNATURES, _FUNCTIONS, strict=True):
    _name = LIBRARY.define(_signature)
    LIBRARY.impl(_name, _function, "CPU")
    torch.library.register_fake(f"prunus::{_name}", _shape, lib=LIBRARY)
torch.library.register_autograd(
    "prunus::sparse_linear", _backward, setup_context=_save, lib=LIBRARY
)
torch.library.register_autograd("prunus::sparse_linear_backward", _twice, lib=LIBRARY)
