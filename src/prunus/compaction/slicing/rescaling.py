"""Wide RMS norms as plain ones: by another scale and another eps."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from prunus._common.modules import holders
from prunus.compaction.slicing.attributes import Attribute
from prunus.compaction.slicing.norms import Wide, Widening, WideRMSNorm
from prunus.compaction.verifying.verify import TOLERANCE, Double, difference


def rescale(model: nn.Module) -> list[Attribute]:
    """Make the wide RMS norms of a finished model plain ones of their own class, in place.

    With d of D indices left, and a mean over d:

        x / √(Σx² / D + eps)·w = x / √(Σx² / d + eps·D/d)·(w·√(D/d))

    Whether the class multiplies by w or by 1 + w is found by trying, in float64. One stays wide
    whose weight another module has too, or is of a type in which the product would be rounded
    coarsely, or whose eps depends on the type (``nn.RMSNorm`` without one). An optimizer would
    take other steps afterwards than before: it is for when training has ended.

    Returns:
        What changed beside the weights.

    >>> model = nn.Sequential(nn.RMSNorm(2, eps=1.0))
    >>> Widening("0", None, 8).set(model)
    >>> before = model(torch.ones(1, 2))
    >>> changed = rescale(model)
    >>> model[0], model[0].weight[0].item(), torch.allclose(model(torch.ones(1, 2)), before)
    (RMSNorm((2,), eps=4.0, elementwise_affine=True), 2.0, True)
    """
    users = holders(model)
    found: list[Attribute] = []
    for path, module in model.named_modules():
        if not isinstance(module, Wide) or isinstance(module, nn.LayerNorm):
            continue
        assert isinstance(module, nn.Module)
        own = list(module.parameters())
        if (
            len(own) == 1
            and users[id(own[0])] == 1
            and own[0].dtype in (torch.float32, torch.float64)
        ):
            found += _plain(model, path, own[0])
    return found


def _plain(model: nn.Module, path: str, weight: nn.Parameter) -> list[Attribute]:
    """A norm made plain, and what changed; nothing if none of the ways gives its numbers."""
    wide: Any = model.get_submodule(path)
    squared = wide.counted / len(weight)
    if isinstance(wide, WideRMSNorm) and wide.eps is None:
        return []
    held = weight.detach().double()
    for value in (held * squared**0.5, (1 + held) * squared**0.5 - 1):
        twin = copy.deepcopy(wide)
        for change in _changes("", wide, squared):
            change.set(twin)
        next(iter(twin.parameters())).data = value
        if _equal(wide, twin, len(weight)):
            changes = _changes(path, wide, squared)
            for change in changes:
                change.set(model)
            weight.data.copy_(value)
            return changes
    return []


def _changes(path: str, wide: Any, squared: float) -> list[Attribute]:
    changes: list[Attribute] = [Widening(path, wide.counted, None)]
    if isinstance(wide, WideRMSNorm):
        assert wide.eps is not None
        changes.append(Attribute(path, "eps", wide.eps, wide.eps * squared))
    return changes


def _equal(wide: nn.Module, plain: nn.Module, width: int) -> bool:
    """Whether two norms give the same, of numbers so small that eps counts as well."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, width, generator=generator, dtype=torch.float64)
    x *= torch.tensor([[1.0], [1e-1], [1e-2], [1e-3]])
    device = next(plain.parameters()).device
    with torch.no_grad(), Double():
        found = [copy.deepcopy(m).double()(x.to(device)) for m in (wide, plain)]
    return difference(*([f] for f in found))[0] < TOLERANCE
