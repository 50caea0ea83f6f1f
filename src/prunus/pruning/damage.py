"""What removing part of one group alone costs: the loss on calibration data, group by group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsFloat

import torch
from torch import Tensor, nn

from prunus._common.calibrating import calibrating
from prunus._common.distributed import number as over_ranks
from prunus._common.kinds import kind_of
from prunus._common.nested import own_containers
from prunus.errors import InputError
from prunus.pruning.decide import LazyUnits, masks_from
from prunus.types import Damage, Group, Limits, Masks

PARTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Of the units of a group, the parts whose removal is measured."""

Measure = Callable[[], float]


def damage(
    model: nn.Module,
    units: LazyUnits,
    kept: Masks,
    limits: Mapping[Group, Limits],
    measure: Measure,
    *,
    parts: Sequence[float] = PARTS,
    counts: Mapping[Group, int] | None = None,
    on_group: Callable[[Group], None] = lambda group: None,
) -> Damage:
    """Of each group, what is measured when so many of its units are kept and all others stay.

    Args:
        model: is as it was afterwards, even if something fails.
        units: scores; of a group the lowest go first.
        kept: masks that hold already.
        limits: what can stay and must.
        measure: less is better.
        parts: of the units that can stay, to be removed.
        counts: of some groups, what is kept in place of that; the others are left out.
        on_group: told before each.

    Returns:
        Pairs of units kept and what was measured, the most first: that is the model as it is.
    """
    found: dict[Group, tuple[tuple[int, float], ...]] = {}
    whole = measure()
    for group in units if counts is None else counts:
        on_group(group)
        most, least = limits[group].most, limits[group].least
        wanted = {max(least, round(most * (1 - p))) for p in parts} - {most}
        pairs = [(most, whole)]
        for count in sorted(wanted if counts is None else {counts[group]}, reverse=True):
            with _removed(model, units, group, count, kept):
                pairs.append((count, measure()))
        found[group] = tuple(pairs)
    return found


class _removed:  # noqa: N801  # a context
    """A model with so many units of one group left."""

    def __init__(
        self, model: nn.Module, units: LazyUnits, group: Group, count: int, kept: Masks
    ) -> None:
        own = {m.name for m in group.members}
        self._parameters = {n: p for n, p in model.named_parameters() if n in own}
        shapes = {n: tuple(p.shape) for n, p in self._parameters.items()}
        held = {n: mask for n, mask in kept.items() if n in own}
        self._masks = masks_from(units.alone(group), {group: count}, held, shapes)

    @torch.no_grad()
    def __enter__(self) -> None:
        torch.clear_autocast_cache()  # which has casts of the weights as they were
        self._before = {n: p.detach().clone() for n, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            parameter.detach().masked_fill_(~self._masks[name].to(parameter.device), 0)

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        torch.clear_autocast_cache()
        for name, parameter in self._parameters.items():
            parameter.detach().copy_(self._before[name])


def loss_on(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    calibration: Iterable[Any],
    seed: int,
) -> float:
    """The mean loss of calibration batches, in eval mode; of several ranks the mean.

    Raises:
        InputError: if there is no batch, or the loss is not finite.
    """
    losses: list[float] = []
    with calibrating(model, calibration, loss, seed) as inner:
        losses.extend(_losses(inner, loss, calibration))
    if not losses:
        raise InputError("calibration contains no batch (an exhausted iterator? pass a list)")
    mean = over_ranks(sum(losses) / len(losses), "the loss on calibration data")
    assert mean is not None
    return mean if mean == mean else float("inf")


def _losses(
    model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], calibration: Iterable[Any]
) -> Iterator[float]:
    for batch in calibration:
        found = loss(model, own_containers(batch))
        if not isinstance(found, SupportsFloat) or getattr(found, "numel", lambda: 1)() != 1:
            raise InputError(f"loss returned {kind_of(found)}: return a scalar")
        yield float(found)
