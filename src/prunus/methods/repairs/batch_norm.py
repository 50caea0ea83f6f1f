"""Statistics of batch norms estimated anew by forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from prunus._common.activations import read_by
from prunus._common.as_written import looked_into
from prunus._common.distributed import mean
from prunus._common.modules import evaluating, held, holders
from prunus._common.torch_internals import AnyBatchNorm
from prunus.methods.repairs import RepairContext
from prunus.methods.repairs._norms import ALONE, averaging, kept_on_error, norms_of


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
    norms = norms_of(context.model)
    if not norms:
        return
    with kept_on_error(norms), evaluating(context.model), torch.no_grad(), averaging(norms):
        for norm in norms:
            norm.reset_running_stats()
        _pass(context)
        _over_ranks(norms)


def settle(context: RepairContext) -> None:
    """Running statistics of what each batch norm reads, and γ and β that leave its answers as are.

    γ' = γ σ'/σ, β' = β + γ (μ' − μ)/σ, with σ = √(variance + ε): in training a norm then goes by
    statistics like those that it has. A norm without γ and β of its own stays as it is.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.BatchNorm1d(1, eps=0.0))
    >>> batches = [((torch.tensor([[1.0], [3.0]]),), {})]
    >>> settle(RepairContext(model.eval(), None, {}, lambda: batches))
    >>> model[0].running_mean, model(torch.tensor([[3.0]]))
    (tensor([2.]), tensor([[3.]], grad_fn=<NativeBatchNormBackward0>))
    """
    norms = _own(context.model)
    if not norms:
        return
    before = [_statistics(norm) for norm in norms]
    with kept_on_error(norms), evaluating(context.model), torch.no_grad(), ExitStack() as hooks:
        read = [_Reads() for _ in norms]
        for norm, reads in zip(norms, read, strict=True):
            hooks.callback(norm.register_forward_pre_hook(reads.see, with_kwargs=True).remove)
        _pass(context)
        for norm, reads in zip(norms, read, strict=True):
            reads.write(norm)
        _over_ranks(norms)
        for norm, former in zip(norms, before, strict=True):
            _take_over(norm, *former, *_statistics(norm))


def _own(model: nn.Module) -> list[AnyBatchNorm]:
    """The norms whose γ and β are parameters, of no other module and not computed."""
    owners = holders(model)
    found = []
    for norm in norms_of(model):
        pair = [held(norm._parameters, key) for key in ("weight", "bias")]
        if all(p is not None and owners[id(p)] == 1 for p in pair):
            found.append(norm)
    return found


def _statistics(norm: AnyBatchNorm) -> tuple[Tensor, Tensor]:
    """Mean and variance, in float64 and not those of the norm itself."""
    mean, variance = (norm.get_buffer(f"running_{name}") for name in ("mean", "var"))
    return mean.to(torch.float64, copy=True), variance.to(torch.float64, copy=True)


def _take_over(
    norm: AnyBatchNorm, mean: Tensor, variance: Tensor, new_mean: Tensor, new_variance: Tensor
) -> None:
    weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    scale = (variance + norm.eps).sqrt()
    bias.copy_(bias + weight * (new_mean - mean) / scale)  # a removed γ is zero: β stays
    weight.copy_(weight * (new_variance + norm.eps).sqrt() / scale)


class _Reads:
    """Means over calls of the statistics of what a norm reads."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []
        self.calls = 0

    def see(self, norm: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        """Before a call."""
        lines = read_by(args, named).movedim(1, 0).flatten(1).double()
        if lines.shape[1] < 2:
            raise ValueError(ALONE)
        found = [lines.mean(1), lines.var(1)]
        self.sums = [a + b for a, b in zip(self.sums, found, strict=True)] if self.calls else found
        self.calls += 1

    def write(self, norm: AnyBatchNorm) -> None:
        """What was seen, as the norm's statistics; those of one that was not called stay."""
        for name, found in zip(("running_mean", "running_var"), self.sums, strict=False):
            norm.get_buffer(name).copy_(found / self.calls)


def _pass(context: RepairContext) -> None:
    for inputs in context.passes():
        looked_into(context.model, inputs)


def _over_ranks(norms: Sequence[AnyBatchNorm]) -> None:
    own = {str(i): b for i, b in enumerate(b for m in norms for b in m.buffers())}
    for number, found in mean(own).items():
        own[number].copy_(found)
