"""Layers that compute ``W x + b``, fitted one after the other in the order of a pass."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn

from prunus._common.activations import Place, is_affine, places, watch
from prunus._common.distributed import total
from prunus._common.lockstep import walking
from prunus._common.modules import evaluating, held, holders
from prunus._common.names import module_names
from prunus._common.torch_internals import AnyBatchNorm
from prunus._common.unfolding import at_once, columns, rows, spatial, weight_rows
from prunus.errors import InputError
from prunus.methods.repairs import RepairContext
from prunus.methods.repairs._norms import averaging, norms_of

MOST_POSITIONS = 2**15
"""Positions of a call that are looked at: of more, these many, evenly spaced."""
LIVE, MOST_HELD = 3, 2**30
"""Tensors of a layer's size that live in a pass there; bytes that passes hold while they wait."""
MOST_THREADS = 2**10
"""Of passes that wait; torch gives each of them workers of its own."""


@dataclass
class Moments:
    """Sums over calibration data, of each group of a layer; those of a call are added in float64.

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
    order: Sequence[Place] = (),
    *,
    by_batch: bool = True,
) -> None:
    """Fit each layer on what those before it, fitted already, give it.

    Args:
        context: with a reference.
        fit: changes a layer, by what it reads and what it should give.
        wanted: which layers are fitted at all.
        order: the layers as the batches meet them, where that is known.
        by_batch: whether batch norms of the masked model go by the statistics of each batch, not
            by those that they have.

    Raises:
        InputError: if the reference is missing or has other shapes.
    """
    reference = context.reference
    if reference is None:
        raise InputError(
            "this repair compares each layer with the model before the cut: pass reference"
        )
    model, plain = context.model, module_names(context.model)
    names, modules = module_names(reference), dict(reference.named_modules())
    twins = {names[path]: module for path, module in modules.items() if is_affine(module)}
    passes = [*context.passes()]
    if not passes:
        raise InputError("calibration contains no batch (an exhausted iterator? pass a list)")
    owners = holders(model)
    chosen = []
    for place in order or places(model, passes):
        twin, weight = twins.get(plain[place.name]), place.module.get_parameter("weight")
        if twin is None or twin.get_parameter("weight").shape != weight.shape:
            raise InputError(
                f"'{place.name}' has another shape than in the reference: repair the masked "
                "model, and make it smaller afterwards (a recipe's repair does so)"
            )
        own = place.module.parameters(recurse=False)  # tied ones belong to more than one layer
        if all(owners[id(p)] == 1 for p in own) and wanted(place.module):
            chosen.append((place, twin))
    for side_by_side, some in groupby(chosen, lambda pair: _fits(pair[0], len(passes))):
        way = _side_by_side if side_by_side else _from_the_start
        with closing(way(context, [*some], norms_of(model) if by_batch else [])) as found:
            for place, moments in found:
                if moments.differs:
                    fit(place, moments)


def _fits(place: Place, passes: int) -> bool:
    """Whether passes may wait at a layer, all of the model and all of the reference."""
    held = place.size * place.module.get_parameter("weight").element_size() * passes
    few = 2 * passes * torch.get_num_threads() <= MOST_THREADS
    return place.calls == 1 and not place.strays and few and 2 * LIVE * held <= MOST_HELD


def _side_by_side(
    context: RepairContext, layers: list[tuple[Place, nn.Module]], norms: list[AnyBatchNorm]
) -> Generator[tuple[Place, Moments], None, None]:
    """All batches go on from layer to layer through both models."""
    model, reference = context.model, context.reference
    assert reference is not None
    with ExitStack() as stack:
        for module in (model, reference):
            stack.enter_context(evaluating(module))
        stack.enter_context(averaging(norms, momentum=0.0))
        reach, twins = (
            stack.enter_context(walking(module, own, context.passes()))
            for module, own in ((model, [p.module for p, _ in layers]),
                                (reference, [twin for _, twin in layers]))
        )  # fmt: skip
        for place, twin in layers:
            found = _none(place)
            for seen, wanted in zip(reach(place.module), twins(twin), strict=True):
                if seen is not None and wanted is not None:
                    _add(found, place.module, *seen, wanted[1])
            yield place, _over_ranks(found)


def _from_the_start(
    context: RepairContext, layers: list[tuple[Place, nn.Module]], norms: list[AnyBatchNorm]
) -> Generator[tuple[Place, Moments], None, None]:
    """Each batch comes to a layer anew, one after the other; a layer may be called many times."""
    assert context.reference is not None
    for place, twin in layers:
        found, there = _none(place), Place(place.name, twin, place.calls)
        for inputs in context.passes():
            wanted: list[Tensor] = []
            watch(context.reference, there, [inputs], lambda _, y: wanted.append(y))  # noqa: B023
            left = iter(wanted)
            watch(
                context.model,
                place,
                [inputs],
                lambda x, y: _add(found, place.module, x, y, next(left, None)),  # noqa: B023
                averaging(norms, momentum=0.0),
            )
        yield place, _over_ranks(found)


def _none(place: Place) -> Moments:
    rows = kernel_rows(place.module)
    groups = getattr(place.module, "groups", 1)
    size = rows.shape[1] + (bias_of(place.module) is not None)
    return Moments(
        rows.new_zeros((groups, size, size), dtype=torch.float64),
        rows.new_zeros((groups, size, len(rows) // groups), dtype=torch.float64),
    )


def _over_ranks(found: Moments) -> Moments:
    total([found.xx, found.xy, found.gap, found.size, found.count])
    return found


def _add(found: Moments, module: nn.Module, x: Tensor, y: Tensor, wanted: Tensor | None) -> None:
    """What one call tells: unfolded a few items at a time."""
    if wanted is None or wanted.shape != y.shape:  # the reference goes another way with these data
        return
    found.gap += ((y.double() - wanted.double()) ** 2).sum().cpu()
    found.size += (wanted.double() ** 2).sum().cpu()
    every = max(1, -(-(wanted.numel() // len(kernel_rows(module))) // MOST_POSITIONS))
    size = at_once(module, x, wanted)
    parts = zip(x.split(size), wanted.split(size), strict=True) if size < len(x) else [(x, wanted)]
    for some, answers in parts:
        read = columns(module, some, every, places=spatial(module, answers))
        given = rows(module, answers)[:, ::every]
        if read.dtype.itemsize < 4:
            read, given = read.float(), given.float()
        if bias_of(module) is not None:
            read = torch.cat([read, read.new_ones((*read.shape[:2], 1))], dim=2)
        turned = read.transpose(1, 2)
        found.xx += turned @ read
        found.xy += turned @ given
        found.count += read.shape[1]


def kernel_rows(module: nn.Module) -> Tensor:
    """A layer's weight, a row for each output."""
    return weight_rows(module, module.get_parameter("weight").detach())


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
        found.append(weight_rows(place.module, kept) if kept.dim() > 1 else kept[:, None])
    return torch.cat(found, dim=1)
