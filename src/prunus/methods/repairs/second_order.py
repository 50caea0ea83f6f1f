"""What is left of the weights moved to where the loss, to second order, loses least by the cut."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from prunus.errors import InputError
from prunus.methods.repairs import RepairContext
from prunus.methods.repairs.batch_norm import batch_norm
from prunus.methods.signals import SignalContext
from prunus.methods.signals._blocks import in_blocks
from prunus.methods.signals.fisher_blocks import fisher_blocks

NEEDS_REFERENCE = True
NEEDS_LOSS = True


def second_order(
    context: RepairContext,
    *,
    block_size: Annotated[int, Ge(1)] = 50,
    damping: Annotated[float, Gt(0)] = 1e-7,
) -> None:
    """The update of WoodFisher and oBERT: δ = argmin ½ δᵀ F δ with δ_Q = −w_Q, block by block.

    F = λ I + (1/N) Σ_n g_n g_nᵀ is measured on the model before the cut, Q is what goes, all of it
    at once, and R what stays: w_R ← w_R + F_RR⁻¹ F_RQ w_Q. Batch norms are estimated anew behind
    it. Its criterion is ``obert``, of the same blocks.

    Args:
        context: with a reference, batches and a loss.
        block_size: weights of a block, one after the other.
        damping: λ.

    Raises:
        InputError: without what it needs.

    Source: Singh & Alistarh 2020, arXiv:2004.14340; of several weights at once: Kurtic et al. 2022,
    arXiv:2203.07259.

    >>> from torch import nn
    >>> whole, masked = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    >>> for layer, row in ((whole, [1.0, 1.0]), (masked, [1.0, 0.0])):
    ...     _ = layer.weight.data.copy_(torch.tensor([row]))
    >>> x = torch.tensor([[1.0, 0.5]])  # half as much of the first weight gives the same
    >>> kept = {"weight": torch.tensor([[True, False]])}
    >>> loss = lambda model, batch: model(batch).square().sum()
    >>> second_order(RepairContext(masked, whole, kept, lambda: [((x,), {})], [x], loss))
    >>> masked.weight.data
    tensor([[1.5000, 0.0000]])
    """
    reference = context.reference
    if reference is None:
        raise InputError("repair: second_order measures the model before the cut: pass reference")
    if context.loss is None:
        raise InputError("repair: second_order reads gradients: pass loss (of model and batch)")
    own, before = (dict(m.named_parameters()) for m in (context.model, reference))
    cut = {n: m for n, m in context.masks.items() if n in own and not bool(m.all())}
    if cut:
        look = SignalContext(
            reference, {n: before[n] for n in cut}, context.batches, context.loss, context.seed,
            None, settings={"block_size": block_size},
        )  # fmt: skip
        blocks = fisher_blocks(look)
        for name, mask in cut.items():
            kept = mask.to(own[name].device).expand(own[name].shape)
            _move(own[name], before[name].detach(), kept, blocks[name], damping)
    batch_norm(context)


@torch.no_grad()
def _move(weight: Tensor, whole: Tensor, kept: Tensor, blocks: Tensor, damping: float) -> None:
    """w_R ← w_R + F_RR⁻¹ F_RQ w_Q; rows and columns of what goes are those of the identity."""
    size = blocks.shape[-1]
    stays = in_blocks(kept[None].double(), size)[:, 0]  # [blocks, size]
    gone = in_blocks((whole * ~kept)[None].double(), size)[:, 0]
    identity = torch.eye(size, dtype=torch.float64, device=blocks.device)
    damped = blocks.double() + damping * identity
    inner = damped * stays[:, :, None] * stays[:, None, :] + torch.diag_embed(1 - stays)
    pull = stays * (damped @ gone[:, :, None])[..., 0]
    step = torch.cholesky_solve(pull[:, :, None], torch.linalg.cholesky(inner))[..., 0]
    moved = step.flatten()[: weight.numel()].view_as(weight)
    weight.add_((moved * kept).to(weight.dtype))
