"""Few numbers that learn in place of many: W + BA, and zeros of W stay zeros."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunus._common.modules import joined


class LowRank(nn.Module):
    """W + (B·A)·α/r, with B at first zero; where W has many zeros, on what is not zero alone.

    Args:
        weight: W, ``[out, in]``.
        rank: r.
        generator: of A.

    Source: Hu et al. 2022, arXiv:2106.09685; on survivors, Zhang et al. 2023, arXiv:2305.18403.

    >>> part = LowRank(torch.eye(2), 1, torch.Generator().manual_seed(0))
    >>> _ = part.b.data.fill_(1.0)
    >>> part(torch.eye(2)).count_nonzero().item()  # off the diagonal there are zeros
    2
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        out, inputs = weight.shape
        drawn = torch.randn(rank, inputs, generator=generator) / math.sqrt(inputs)
        self.a = nn.Parameter(drawn.to(weight))
        self.b = nn.Parameter(weight.new_zeros(out, rank))
        self.register_buffer("stays", stays(weight), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """W as it is now."""
        change = 2.0 * self.b @ self.a
        mask = self.get_buffer("stays") if self.stays is not None else None
        return weight + (change if mask is None else change * mask)


MANY = 0.05
"""Zeros, as a part of a matrix, from which on they are no chance."""


def stays(weight: Tensor) -> Tensor | None:
    """What of a matrix with many zeros is not zero; ``None`` of one that is dense."""
    mask: Tensor = weight.detach() != 0
    return mask if 1 - mask.float().mean() > MANY else None


def grow(model: nn.Module, blocks: Collection[str], rank: int, seed: int) -> list[str]:
    """Let the linear layers of blocks learn by a low rank; all else stays as it is.

    Returns:
        The parameters that learn, by name.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found = []
    for block in blocks:
        for path, module in list(model.get_submodule(block).named_modules()):
            if type(module) is nn.Linear and not parametrize.is_parametrized(module):
                part = LowRank(module.weight.detach(), rank, generator)
                parametrize.register_parametrization(module, "weight", part)
                full = joined(block, path)
                found += [f"{full}.parametrizations.weight.0.{n}" for n in ("a", "b")]
    return found


def merge(model: nn.Module) -> None:
    """What was learned becomes part of the weights."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
