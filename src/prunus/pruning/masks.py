"""Masks on weights: applied, checked, and the tensors that a model is put back to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunus._common.layers import plain_name
from prunus._common.parts import parts
from prunus.errors import InputError, RunError
from prunus.types import Masks


def match_names(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Masks under the parameter names of this model, wrapped (``module.``) or not.

    Raises:
        InputError: if a mask names no parameter or has a shape that does not fit.
    """
    known = {plain_name(name): name for name, _ in model.named_parameters()}
    parameters = dict(model.named_parameters())
    matched = {}
    for name, mask in masks.items():
        full = known.get(plain_name(name))
        if full is None:
            raise InputError(f"the masks name '{name}', which the model does not have")
        shape = parameters[full].shape
        try:
            mask.expand(shape)
        except RuntimeError:
            raise InputError(
                f"the mask of '{name}' is {tuple(mask.shape)}, but the parameter is {tuple(shape)}"
            ) from None
        matched[full] = mask
    return matched


@torch.no_grad()
def apply(model: nn.Module, masks: Masks) -> None:
    """Set removed weights to exactly zero."""
    parameters = dict(model.named_parameters())
    for name, mask in match_names(model, masks).items():
        parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer that is saved with the model."""
    return {k: v.clone() for k, v in saved_with(model).items()}


def saved_with(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer that is saved with the model, itself."""
    saved = model.state_dict().items()
    return {k: v.detach() for k, v in saved if isinstance(v, Tensor)}


@torch.no_grad()
def put_back(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy such tensors into the model, in place."""
    own = model.state_dict()
    for name, value in tensors.items():
        own[name].copy_(value)


@torch.no_grad()
def check(model: nn.Module, masks: Masks) -> None:
    """Removed weights are zero and the others finite, or an error that names the parameter.

    Raises:
        RunError: if not.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        weight = parameters[name]
        both = parts(weight, mask.to(weight.device).expand(weight.shape))
        if any(bool(part.masked_fill(kept, 0).count_nonzero()) for part, kept in both):
            raise RunError(
                f"removed weights of '{name}' are not zero: something writes to them outside "
                "the optimizer step (a master copy, an EMA, a loaded state?)"
            )
    finite(model)


def all_finite(values: Tensor) -> bool:
    """Whether no element is NaN or infinite; there must be one."""
    low, high = torch.aminmax(values)
    return bool(torch.isfinite(low) & torch.isfinite(high))


@torch.no_grad()
def finite(model: nn.Module) -> None:
    """Every floating-point parameter is finite.

    Raises:
        RunError: naming the first that is not.
    """
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.numel() and not all_finite(weight):
            raise RunError(
                f"'{name}' holds NaN or infinity: the training diverged; a lower learning "
                "rate or gradient clipping may help"
            )
