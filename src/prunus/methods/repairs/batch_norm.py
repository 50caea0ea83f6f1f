"""Statistics of batch norms estimated anew by forward passes."""

from __future__ import annotations

import torch

from prunus._common.as_written import looked_into
from prunus._common.distributed import mean
from prunus._common.modules import evaluating
from prunus.methods.repairs import RepairContext
from prunus.methods.repairs._norms import averaging, kept_on_error, norms_of


def batch_norm(context: RepairContext) -> None:
    """Running mean and variance of each batch norm: means of those of the calibration batches.

    μ = (1/B) Σ_b mean(x_b), σ² = (1/B) Σ_b var(x_b), with the unbiased variance. A norm that is
    frozen in eval mode inside a model that trains stays as it is. Needs no labels.

    Raises:
        InputError: if a batch has one value for each channel; the statistics are then as before.

    Source: Li, Wang, Shi, Liu, Hou 2016 (AdaBN), arXiv:1603.04779.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> batches = [((torch.tensor([[1.0], [3.0]]),), {}), ((torch.tensor([[5.0], [7.0]]),), {})]
    >>> batch_norm(RepairContext(model, None, {}, lambda: batches))
    >>> model[0].running_mean, model[0].running_var
    (tensor([4.]), tensor([2.]))
    """
    model = context.model
    norms = norms_of(model)
    if not norms:
        return
    with kept_on_error(norms), evaluating(model), torch.no_grad(), averaging(norms):
        for norm in norms:
            norm.reset_running_stats()
        for inputs in context.passes():
            looked_into(model, inputs)
        own = {str(i): b for i, b in enumerate(b for m in norms for b in m.buffers())}
        for number, found in mean(own).items():
            own[number].copy_(found)
