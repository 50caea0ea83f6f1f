"""Layers that compute ``W x + b``, fitted one after the other in the order of a pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prunus._common.activations import Place, at_once, columns, places, rows, watch
from prunus._common.distributed import total
from prunus._common.modules import held
from prunus.errors import InputError
from prunus.methods.repairs import RepairContext
from prunus.methods.repairs._norms import averaging, norms_of

MOST_POSITIONS = 2**15
"""Positions of a call that are looked at: of more, these many, evenly spaced."""


@dataclass
class Moments:
    """Sums over calibration data, of each group of a layer, in float64.

    Attributes:
        xx: ``[groups, columns, columns]``, Σ x xᵀ of what the masked model's layer reads; a
            last column of ones where the layer has a bias.
        xy: ``[groups, columns, outputs]``, Σ x yᵀ with what the layer of the reference gives.
        gap: Σ of the squared differences of what both give.
        size: Σ of the squares of what the reference gives.
        count: positions.
    """

    xx: Tensor
    xy: Tensor
    gap: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    size: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    count: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    @property
    def differs(self) -> bool:
        """Whether the masked layer gives anything else than the reference."""
        return float(self.gap) > 1e-12 * float(self.size)


def layer_by_layer(
    context: RepairContext,
    fit: Callable[[Place, Moments], None],
    wanted: Callable[[nn.Module], bool] = lambda module: True,
) -> None:
    """Fit each layer on what those before it, fitted already, give it.

    Args:
        context: with a reference.
        fit: changes a layer, by what it reads and what it should give.
        wanted: which layers are fitted at all.

    Raises:
        InputError: if the reference is missing or has other shapes.
    """
    reference = context.reference
    if reference is None:
        raise InputError(
            "this repair compares each layer with the model before the cut: pass reference"
        )
    model, twins = context.model, dict(reference.named_modules())
    first = next(iter(context.passes()), None)
    if first is None:
        raise InputError("calibration contains no batch (an exhausted iterator? pass a list)")
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for place in places(model, first):
        twin, weight = twins.get(place.name), place.module.get_parameter("weight")
        if twin is None or twin.get_parameter("weight").shape != weight.shape:
            raise InputError(
                f"'{place.name}' has another shape than in the reference: repair the masked "
                "model, and make it smaller afterwards (a recipe's repair does so)"
            )
        alone = owners[id(weight)] == 1  # tied ones belong to more than one layer
        if alone and wanted(place.module):
            moments = _moments(context, place, Place(place.name, twin, place.calls), reference)
            if moments.differs:
                fit(place, moments)


def _moments(context: RepairContext, place: Place, twin: Place, reference: nn.Module) -> Moments:
    weight = place.module.get_parameter("weight")
    groups = getattr(place.module, "groups", 1)
    more = bias_of(place.module) is not None
    size, outputs = weight[0].numel() + more, len(weight) // groups
    zeros = weight.new_zeros
    found = Moments(
        zeros((groups, size, size), dtype=torch.float64),
        zeros((groups, size, outputs), dtype=torch.float64),
    )
    norms = norms_of(context.model)  # the statistics that they have are of the model before
    for inputs in context.passes():
        wanted: list[Tensor] = []
        watch(reference, twin, [inputs], lambda read, given: wanted.append(given))  # noqa: B023
        left = iter(wanted)
        watch(
            context.model,
            place,
            [inputs],
            lambda x, y: _add(found, place.module, x, y, next(left)),  # noqa: B023
            averaging(norms, momentum=0.0),
        )
    total([found.xx, found.xy, found.gap, found.size, found.count])
    return found


def _add(found: Moments, module: nn.Module, x: Tensor, y: Tensor, wanted: Tensor) -> None:
    """What one call tells: unfolded a few items at a time."""
    found.gap += ((y.double() - wanted.double()) ** 2).sum().cpu()
    found.size += (wanted.double() ** 2).sum().cpu()
    every = max(1, -(-(wanted.numel() // len(kernel_rows(module))) // MOST_POSITIONS))
    size = at_once(module, x, wanted)
    parts = zip(x.split(size), wanted.split(size), strict=True) if size < len(x) else [(x, wanted)]
    for some, answers in parts:
        read = columns(module, some)[:, ::every].double()
        given = rows(module, answers)[:, ::every].double()
        if bias_of(module) is not None:
            read = torch.cat([read, read.new_ones((*read.shape[:2], 1))], dim=2)
        found.xx += read.transpose(1, 2) @ read
        found.xy += read.transpose(1, 2) @ given
        found.count += read.shape[1]


def kernel_rows(module: nn.Module) -> Tensor:
    """A layer's weight, a row for each output."""
    return module.get_parameter("weight").detach().flatten(1)


def bias_of(module: nn.Module) -> Tensor | None:
    """A layer's bias."""
    bias: Tensor | None = held(module._parameters, "bias")
    return bias


def kept_rows(context: RepairContext, place: Place) -> Tensor:
    """Which entries of :func:`kernel_rows`, and of the bias behind them, may be other than zero."""
    names = {id(p): n for n, p in context.model.named_parameters()}
    found = []
    for key in ("weight", "bias"):
        parameter = held(place.module._parameters, key)
        if parameter is None:
            continue
        mask = context.masks.get(names[id(parameter)])
        kept = torch.ones_like(parameter, dtype=torch.bool)
        kept = kept if mask is None else mask.to(kept.device).expand(kept.shape)
        found.append(kept.flatten(1) if kept.dim() > 1 else kept[:, None])
    return torch.cat(found, dim=1)
