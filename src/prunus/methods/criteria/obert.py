"""What the loss loses to second order, with small blocks of a Fisher matrix of many batches."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor


def obert(
    weight: Tensor,
    fisher_blocks: Tensor,
    *,
    block_size: Annotated[int, Ge(1)] = 50,
    damping: Annotated[float, Gt(0)] = 1e-7,
) -> Tensor:
    """oBERT: w_i² / (2 [F⁻¹]_ii) with F = λ I + (1/N) Σ_n g_n g_nᵀ, block by block.

    Blocks are accumulated while batches pass, so that memory does not grow with their number.
    Survivors are not updated: retraining does that.

    Args:
        weight: ``[...]``.
        fisher_blocks: ``[blocks, block_size, block_size]``, without λ.
        block_size: weights of a block, one after the other.
        damping: λ.

    Source: Kurtic et al. 2022, arXiv:2203.07259.

    >>> import torch
    >>> obert(torch.tensor([1.0, 2.0]), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), damping=1.0)
    tensor([1., 2.])
    """
    blocks = fisher_blocks.double()
    damped = blocks + damping * torch.eye(blocks.shape[-1], dtype=blocks.dtype).to(blocks)
    factor = torch.linalg.cholesky(damped)
    inverse = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)
    inverse = inverse.flatten()[: weight.numel()].view_as(weight)
    score = weight.detach().double().square() / (2 * inverse)
    return score.to(torch.promote_types(weight.dtype, torch.float32))
