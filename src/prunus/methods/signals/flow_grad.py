"""How much of what flows through a network depends on each weight; no data is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.activations import read_by
from prunus._common.inputs import arguments
from prunus._common.modules import detached_copy, held
from prunus._common.names import unwrapped
from prunus._common.nested import map_tensors, own_containers, tensors_of
from prunus._common.torch_internals import AnyBatchNorm
from prunus.errors import InputError
from prunus.methods.signals import SignalContext

READS_EXAMPLE = True
ITERATES = True


def flow_grad(context: SignalContext) -> Mapping[str, Tensor]:
    """∂R/∂|w| with R = 1ᵀ (∏ |W|) 1: ones pass a copy in float64 whose weights are absolute.

    The copy is in eval mode and has no biases; a norm is its scale alone, |γ| / √(σ² + ε) of a
    batch norm, |γ| of others. Of the example the shapes count, and whole numbers as they are.

    Raises:
        InputError: without an example, or if the model does not run in float64.
    """
    if context.example is None:
        raise InputError(
            "this criterion passes ones through the model: pass example, an input of the model, "
            "whose shape counts; magnitude needs none"
        )
    model = unwrapped(context.model)
    twin = detached_copy(model).double().eval()
    own, names = dict(twin.named_parameters()), {id(p): n for n, p in model.named_parameters()}
    wanted = [own[names[id(p)]] for p in context.parameters.values()]
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.is_floating_point():
                parameter.requires_grad_(True).abs_()
            if "bias" in name.rpartition(".")[2]:
                parameter.zero_()
    for module in twin.modules():
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, AnyBatchNorm)):
            module.register_forward_hook(_scale_alone, with_kwargs=True)
    args, kwargs = own_containers(map_tensors(_ones, arguments(context.example)))
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        try:
            answers = tensors_of(twin(*args, **kwargs))
        except Exception as error:  # of the model's code, which may hold float32 of its own
            raise InputError(
                f"this criterion runs the model in float64, which fails ({type(error).__name__}: "
                f"{error}): use magnitude, or snip with calibration"
            ) from error
        flows = [a.sum() for a in answers if a.is_floating_point() and a.requires_grad]
        if not flows:
            raise InputError("this criterion needs answers that depend on weights: use magnitude")
        found = torch.autograd.grad(flows, wanted, allow_unused=True)
    made = zip(context.parameters, wanted, found, strict=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in made}


def _ones(tensor: Tensor) -> Tensor:
    return torch.ones_like(tensor, dtype=torch.float64) if tensor.is_floating_point() else tensor


def _scale_alone(norm: nn.Module, args: tuple[Any, ...], kwargs: Any, answer: Tensor) -> Tensor:
    """What a norm gives, without what it takes away and divides by: of one item that is nothing."""
    given = read_by(args, kwargs)
    own = held(norm._parameters, "weight")
    scale = torch.ones((), dtype=given.dtype) if own is None else own
    spread = held(norm._buffers, "running_var")
    if spread is not None:
        scale = scale / (spread + float(getattr(norm, "eps", 0.0))).sqrt()
    if isinstance(norm, (nn.GroupNorm, AnyBatchNorm)) and scale.dim():
        channel = 1 if given.dim() > 1 else 0
        scale = scale.view(-1, *[1] * (given.dim() - channel - 1))
    return given * scale
