"""Masks on weights: applied, checked, and the tensors that a model is put back to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunus._common.kinds import kind_of
from prunus._common.names import matched, plain_names
from prunus._common.parts import computable, parts
from prunus._common.topk import count
from prunus.errors import InputError, RunError
from prunus.types import Masks

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def match_names(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Masks under the parameter names of this model, wrapped (``module.``) or not.

    Raises:
        InputError: if a mask names no parameter or could mean two, has a shape that does not fit,
            or holds other numbers than 0 and 1.
    """
    if not isinstance(masks, Mapping) or not all(isinstance(name, str) for name in masks):
        raise InputError(f"masks is {kind_of(masks)}: give parameter name to bool, True = kept")
    parameters = dict(model.named_parameters())
    plain = plain_names(model)
    found = {}
    for name, full in matched(masks, {n: plain[n] for n in parameters}).items():
        if full is None:
            raise InputError(f"the masks name '{name}', which the model does not have")
        mask, shape = _as_bool(name, masks[name]), parameters[full].shape
        try:
            mask.expand(shape)
        except RuntimeError:
            raise InputError(
                f"the mask of '{name}' is {tuple(mask.shape)}, but the parameter is {tuple(shape)}"
            ) from None
        found[full] = mask
    return found


def _as_bool(name: str, mask: object) -> Tensor:
    """A mask of whatever type: numbers that are 0 or 1 alone say the same."""
    if not isinstance(mask, Tensor) or mask.is_meta:
        raise InputError(
            f"the mask of '{name}' is {kind_of(mask)}: give a bool tensor that has values"
        )
    if mask.layout is not torch.strided:
        mask = mask.to_dense()
    if mask.dtype is torch.bool:
        return mask
    if bool(((mask != 0) & (mask != 1)).any()):
        raise InputError(
            f"the mask of '{name}' is {mask.dtype} and holds other numbers than 0 and 1: give a "
            "bool tensor, True = kept"
        )
    return mask != 0


def beside(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of parameters where these are: out of a file they come on the CPU.

    >>> found = beside({"w": torch.ones(1, device="meta")}, {"w": torch.ones(1)})
    >>> found["w"].device
    device(type='meta')
    """
    return {n: t.to(parameters[n].device) if n in parameters else t for n, t in tensors.items()}


@torch.no_grad()
def apply(model: nn.Module, masks: Masks) -> None:
    """Set removed weights to exactly zero."""
    parameters = dict(model.named_parameters())
    for name, mask in match_names(model, masks).items():
        zero(parameters[name], mask)


@torch.no_grad()
def zero(weight: Tensor, mask: Tensor) -> None:
    """Set what a mask removes to exactly zero, NaN too: a product of integers, part by part."""
    torch.clear_autocast_cache()  # which has a cast of the weight as it was
    integer, mask = _INTEGERS.get(weight.element_size()), mask.to(weight.device)
    if integer is None:
        weight.masked_fill_(~mask, 0)
        return
    for part, kept in parts(weight.detach().view(integer), mask.expand(weight.shape)):
        part.mul_(kept)


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
    torch.clear_autocast_cache()
    own = model.state_dict()
    for name, value in tensors.items():
        if name not in own or own[name].shape != value.shape:
            raise RunError(
                f"'{name}' is not in the model any more as it was: something replaced or removed a "
                "module or parameter, which cannot be undone; leave the model's modules in place"
            )
        own[name].copy_(value)


@torch.no_grad()
def check(model: nn.Module, masks: Masks) -> None:
    """Removed weights are zero and the others finite, or an error that names the parameter.

    Raises:
        RunError: if not.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise RunError(f"'{name}' is pruned, and not in the model any more: keep its modules")
        if not_zero(parameters[name], mask):
            raise RunError(
                f"removed weights of '{name}' are not zero: something writes to them outside "
                "the optimizer step (a master copy, an EMA, a loaded state?)"
            )
    finite(model)


def not_zero(weight: Tensor, mask: Tensor) -> bool:
    """Whether something is left of what a mask removes."""
    both = parts(weight.detach(), mask.to(weight.device).expand(weight.shape))
    return any(bool(part.bool().bitwise_and_(~kept).any()) for part, kept in both)


def all_finite(values: Tensor) -> bool:
    """Whether no element is NaN or infinite; there must be one."""
    low, high = torch.aminmax(computable(values))
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


def densities(
    tensors: Mapping[str, Tensor], masks: Masks, dense: Mapping[str, int]
) -> dict[str, float]:
    """Weights that masks leave ÷ those of the dense model.

    Args:
        tensors: parameters by name, smaller than dense ones perhaps.
        masks: of them; what has none is whole.
        dense: weights of the dense model by name; one that is gone by now has none left.

    >>> densities({"w": torch.ones(2, 3)}, {"w": torch.tensor([[True], [False]])}, {"w": 12})
    {'w': 0.25}
    """
    found = {}
    for name, whole in dense.items():
        mask, tensor = masks.get(name), tensors.get(name)
        left = 0 if tensor is None else tensor.numel()
        if mask is not None:
            left = count(mask) * left // max(1, mask.numel())
        found[name] = left / whole
    return found
