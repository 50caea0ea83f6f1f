"""The mask and the weights in turns, each made good for the other, and then the weights alone."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt, Interval
from torch import Tensor

from prunus.methods.repairs.least_squares import conjugate_gradients
from prunus.methods.solvers import Pattern, keep_highest


def alps(
    weight: Tensor,
    hessian: Tensor,
    pattern: Pattern,
    *,
    steps: Annotated[int, Interval(ge=1, le=10_000)] = 300,
    penalty: Annotated[float, Gt(0)] = 0.03,
    damping: Annotated[float, Gt(0)] = 0.01,
    polish: Annotated[int, Interval(ge=0, le=10_000)] = 20,
) -> tuple[Tensor, Tensor]:
    """ALPS: min tr (W − Ŵ) H (W − Ŵ)ᵀ over sparse W, by alternating directions.

    With D the sparse copy of W, V the dual and ρ the penalty, each step sets
    W ← (Ŵ H − V + ρ D)(H + ρ I)⁻¹, D ← the largest of W + V/ρ, V ← V + ρ (W − D). ρ grows by 1.3,
    1.2 or 1.1 while a tenth, half a percent or any of the mask changes within three steps; when
    none does, the mask stays and its weights are fitted by conjugate gradients. Columns are scaled
    to an H of diagonal one first.

    Args:
        weight: ``[out, in]``, Ŵ.
        hessian: the mean of x xᵀ, ``[in, in]``.
        pattern: how much stays.
        steps: at most.
        penalty: ρ at first.
        damping: added to H's diagonal, as a part of its mean.
        polish: steps of conjugate gradients on the mask that was found.

    Source: Meng et al. 2024, ALPS: improved optimization for highly sparse one-shot pruning for
    large language models, arXiv:2406.07831.

    >>> x = torch.tensor([[1.0, 1.0], [1.0, 1.0]])  # two inputs that are the same
    >>> made = alps(torch.tensor([[1.0, 2.0]]), x.T @ x / 2, Pattern(0.5), damping=1e-4)[1]
    >>> [round(float(v), 2) for v in made[0]]
    [0.0, 3.0]
    """
    h = hessian.float().clone()
    h.diagonal().add_(damping * h.diagonal().mean().clamp(min=torch.finfo(h.dtype).tiny))
    scale = h.diagonal().rsqrt()
    h = h * scale[:, None] * scale
    given = weight.float() / scale
    values, vectors = torch.linalg.eigh(h)
    target = given @ h
    sparse, mask = given, torch.ones_like(given, dtype=torch.bool)
    dual, before, rho = torch.zeros_like(given), mask, penalty
    for step in range(steps):
        whole = ((target - dual + rho * sparse) @ vectors / (values + rho)) @ vectors.T
        wanted = whole + dual / rho
        mask = keep_highest(wanted.abs(), pattern, by_row=False)
        sparse = wanted * mask
        dual = dual + rho * (whole - sparse)
        if step % 3 == 0:
            moved = int((mask != before).sum()) / max(1, int(mask.sum()))
            if not moved:
                break
            rho *= 1.3 if moved >= 0.1 else 1.2 if moved >= 0.005 else 1.1
            before = mask
    kept = mask.to(h)[None]
    found = conjugate_gradients(h[None], target.T[None], sparse[None], kept, 1e-9, polish)
    best = min((sparse, found[0]), key=lambda w: float((((w - given) @ h) * (w - given)).sum()))
    return mask, (best * scale * mask).to(weight.dtype)
