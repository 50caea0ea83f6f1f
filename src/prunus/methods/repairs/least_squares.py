"""What is left of each layer fitted to what the whole layer gave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from annotated_types import Gt, Interval
from torch import Tensor, nn

from prunus._common.activations import Place
from prunus._common.unfolding import of_weight_rows
from prunus.methods.repairs import RepairContext
from prunus.methods.repairs._affine import Moments, bias_of, kept_rows, kernel_rows, layer_by_layer
from prunus.methods.repairs.batch_norm import settle

NEEDS_REFERENCE = True


def least_squares(
    context: RepairContext,
    *,
    ridge: Annotated[float, Gt(0)] = 1e-4,
    steps: Annotated[int, Interval(ge=1, le=10_000)] = 100,
) -> None:
    """The weights and the bias that stay, fitted to what the layer before the cut gave.

    For each row w of a linear layer or convolution, in the order of the pass:
    min over the entries that stay of Σ_t (w·x_t − y_t)² + λ‖w − w₀‖², where x_t is what the
    layer reads in the masked model (layers before it are fitted already), y_t what it gave before
    the cut, w₀ the present weights, and λ = ridge · mean diagonal of Σ x xᵀ. Solved by conjugate
    gradients on the entries that stay, all rows at once. Batch norms go by the statistics that they
    have; in the end they get those of what they read now, and γ and β that leave each answer as it
    is, so that training begins where this ends.

    Args:
        context: with a reference.
        ridge: pull toward the present weights.
        steps: of conjugate gradients at most.

    Source: He, Zhang, Sun 2017 (channels), arXiv:1707.06168; Meng et al. 2024 (ALPS, single
    weights), arXiv:2406.07831.

    >>> whole, masked = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    >>> _ = whole.weight.data.copy_(torch.tensor([[1.0, 1.0]]))
    >>> _ = masked.weight.data.copy_(torch.tensor([[1.0, 0.0]]))
    >>> x = torch.tensor([[1.0, 1.0], [2.0, 2.0]])  # the second column is the first
    >>> kept = {"weight": torch.tensor([[True, False]])}
    >>> least_squares(RepairContext(masked, whole, kept, lambda: [((x,), {})]))
    >>> masked.weight.data
    tensor([[1.9999, 0.0000]])
    """
    fit_layers(context, ridge, steps)
    settle(context)


def fit_layers(
    context: RepairContext,
    ridge: float = 1e-4,
    steps: int = 100,
    wanted: Callable[[nn.Module], bool] = lambda module: True,
    order: Sequence[Place] = (),
) -> None:
    """Fit layers, in the order of the pass, on what those before them give.

    Args:
        context: with a reference.
        ridge: as :func:`least_squares`.
        steps: likewise.
        wanted: which layers.
        order: the layers as batches meet them, where that is known.
    """

    def fit(place: Place, moments: Moments) -> None:
        kept = kept_rows(context, place)
        groups = len(moments.xx)
        present = _with_bias(place).double().unflatten(0, (groups, -1))
        mask = kept.unflatten(0, (groups, -1)).double()
        fitted = conjugate_gradients(moments.xx, moments.xy, present, mask, ridge, steps)
        _write(place, fitted.flatten(0, 1))

    layer_by_layer(context, fit, wanted, order, by_batch=False)


def conjugate_gradients(
    xx: Tensor, xy: Tensor, start: Tensor, kept: Tensor, ridge: float, steps: int
) -> Tensor:
    """Rows that minimize a quadratic over the entries that stay.

    Args:
        xx: ``[groups, n, n]``, Σ x xᵀ.
        xy: ``[groups, n, rows]``, Σ x yᵀ.
        start: ``[groups, rows, n]``; also what the ridge pulls toward.
        kept: the same shape, 1 for entries that stay and 0 for others.
        ridge: relative to the mean of the diagonal.
        steps: at most.
    """
    diagonal = xx.diagonal(dim1=1, dim2=2)
    pull = ridge * diagonal.mean(dim=1)[:, None, None].clamp(min=torch.finfo(xx.dtype).tiny)
    scale = 1 / (diagonal[:, None] + pull)
    found = start * kept
    rest = (xy.transpose(1, 2) - found @ xx - pull * (found - start)) * kept
    ahead = rest * scale
    direction, product = ahead, (rest * ahead).sum(2, keepdim=True)
    enough = 1e-16 * product
    for _ in range(steps):
        along = (direction @ xx + pull * direction) * kept
        curve = (direction * along).sum(2, keepdim=True)
        length = torch.where(curve > 0, product / curve, torch.zeros_like(curve))
        found = found + length * direction
        rest = rest - length * along
        ahead = rest * scale
        new = (rest * ahead).sum(2, keepdim=True)
        if bool((new <= enough).all()):
            break
        direction = ahead + torch.where(product > 0, new / product, torch.zeros_like(new)) * (
            direction
        )
        product = new
    return found * kept


def _with_bias(place: Place) -> Tensor:
    weight, bias = kernel_rows(place.module), bias_of(place.module)
    return weight if bias is None else torch.cat([weight, bias.detach()[:, None]], dim=1)


def _write(place: Place, fitted: Tensor) -> None:
    weight, bias = place.module.get_parameter("weight"), bias_of(place.module)
    with torch.no_grad():
        matrix = fitted if bias is None else fitted[:, :-1]
        weight.copy_(of_weight_rows(place.module, matrix))
        if bias is not None:
            bias.copy_(fitted[:, -1])
