"""What the loss loses to second order, with blocks of the inverse Fisher matrix."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from prunus.methods.signals._blocks import in_blocks


def woodfisher(
    weight: Tensor,
    gradients: Tensor,
    *,
    block_size: Annotated[int, Ge(1)] = 1000,
    damping: Annotated[float, Gt(0)] = 1e-5,
) -> Tensor:
    """WoodFisher: w_i² / (2 [F⁻¹]_ii) with F = λ I + (1/N) Σ_n g_n g_nᵀ, block by block.

    The inverse by Woodbury: F⁻¹ = (I − Gᵀ (λ N I + G Gᵀ)⁻¹ G) / λ with the N gradients as rows
    of G, so that blocks may be large where batches are few. All gradients are held.

    Args:
        weight: ``[...]``.
        gradients: ``[N, ...]``, of each calibration batch.
        block_size: weights of a block, one after the other.
        damping: λ.

    Source: Singh & Alistarh 2020, arXiv:2004.14340.

    >>> import torch
    >>> woodfisher(torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.0]]), damping=1.0)
    tensor([1., 2.])
    """
    grads = in_blocks(gradients.double(), min(block_size, weight.numel()))
    count = grads.shape[1]
    inner = grads @ grads.mT + damping * count * torch.eye(count, dtype=grads.dtype).to(grads)
    factor: Tensor = torch.linalg.cholesky(inner)
    explained = torch.linalg.solve_triangular(factor, grads, upper=False).square().sum(1)
    inverse = ((1 - explained) / damping).flatten()[: weight.numel()].view_as(weight)
    score: Tensor = weight.detach().double().square() / (2 * inverse.clamp(min=1e-300))
    return score.to(torch.promote_types(weight.dtype, torch.float32))
