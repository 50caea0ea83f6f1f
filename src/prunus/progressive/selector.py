"""What goes: a criterion's scores, shared out by an allocation, as masks. It keeps no state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn

from prunus._common.distributed import assert_same
from prunus._common.loaders import keeping_generators
from prunus.errors import InputError, RunError
from prunus.methods.signals import SignalContext, by_unit, collect, updates
from prunus.methods.signals._running import refuse_frozen
from prunus.pruning.bounded import bounded
from prunus.pruning.damage import damage, loss_on
from prunus.pruning.decide import (
    Alive,
    LazyUnits,
    allocate,
    bottom_up,
    kept_units,
    limits_of,
    masks_from,
)
from prunus.pruning.space import PruningSpace
from prunus.pruning.units import unit_density, unit_scores
from prunus.recipe.resolve import Methods
from prunus.recipe.schema import Recipe
from prunus.types import Counts, Damage, Group, Limits, Masks

TRIED = ("READS_INPUTS", "READS_EXAMPLE", "BY_UNIT")
"""Traits of criteria that may not fit a model, which a first batch shows."""


class Choice(NamedTuple):
    """Masks, the units that each group keeps, and what to know of how they were chosen."""

    masks: Masks
    counts: Counts
    notes: tuple[str, ...] = ()


class Sparsity(NamedTuple):
    """How much is to go.

    Attributes:
        progress: of the schedule, 0 to 1.
        requested: of what the target counts, now.
        target: at the end.
    """

    progress: float
    requested: float
    target: float


@dataclass(frozen=True)
class Selector:
    """Chooses masks by a recipe's criterion and allocation.

    Attributes:
        recipe: seed and order of the groups.
        methods: the functions that the recipe names.
        calibration: batches for criteria that need gradients.
        loss: ``(model, batch) -> scalar`` for the same.
        example: an input of the model, for criteria that pass it through.
    """

    recipe: Recipe
    methods: Methods
    calibration: Iterable[Any] | None = None
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    example: Any = None

    @cached_property
    def reads_training(self) -> bool:
        """Whether the criterion reads the gradients of the training itself."""
        return bool(self.recipe.trait("criterion", "RUNNING"))

    @cached_property
    def updates(self) -> list[Callable[..., None]]:
        """What takes in the gradients of a step."""
        return updates(self.methods.criterion)

    def refuse(self, model: nn.Module, space: PruningSpace) -> None:
        """What the criterion needs and was not given.

        Raises:
            InputError: saying what to give.
        """
        reads = self.recipe.trait("criterion", "CALIBRATION")
        if reads and (self.calibration is None or self.loss is None):
            raise InputError(
                f"criterion {self.recipe.criterion.name} reads calibration data: pass calibration "
                "(batches) and loss (a function of model and batch); magnitude needs neither"
            )
        adapts = self.recipe.target is not None and self.recipe.target.adapt
        if adapts and (self.calibration is None or self.loss is None):
            raise InputError(
                "target.adapt measures what each group costs: pass calibration (batches) and loss "
                "(a function of model and batch), or leave adapt out"
            )
        if self.measures and (self.calibration is None or self.loss is None):
            raise InputError(
                f"allocation {self.recipe.allocation.name} measures the loss on calibration data: "
                "pass calibration (batches) and loss (a function of model and batch); uniform, erk "
                "and global need neither"
            )
        if self.recipe.trait("structure", "ROTATES") and self.calibration is None:
            raise InputError(
                "structure: rotate turns to the principal directions of what the model computes "
                "on calibration batches: pass calibration (batches; with loss, unless they are "
                "the model's inputs)"
            )
        if self.reads_training:
            refuse_frozen(scored(model, space))
        batches = self.calibration
        tried = any(self.recipe.trait("criterion", key) for key in TRIED)
        if tried and not isinstance(batches, Iterator):
            with keeping_generators(batches):
                first = None if batches is None else list(islice(batches, 1))
            collect(
                self.methods.criterion, replace(self._context(model, space, {}), calibration=first)
            )

    def choose(
        self,
        model: nn.Module,
        space: PruningSpace,
        kept: Masks,
        goal: Sparsity,
        running: Mapping[str, Tensor],
        scores: Mapping[Group, Tensor] = MappingProxyType({}),
        known: Damage | None = None,
        most: Mapping[str, float] = MappingProxyType({}),
    ) -> Choice:
        """The masks for a goal; nothing is changed.

        Args:
            model: as it is.
            space: its units.
            kept: masks that hold already: what they remove stays removed.
            goal: how much is to go.
            running: statistics of the training so far, by parameter name.
            scores: of units, in place of the criterion's.
            known: what :meth:`scan` gave; where the allocation needs it, it is measured else.
            most: of groups by name, the largest part that may be gone by now.
        """
        if not space.groups:  # every group of a smaller model is down to its last unit
            return Choice(dict(kept), {})
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        units, alive, score = self._ranked(model, space, kept, running, scores)
        for group in units.missing:
            units.hold(group, unit_scores(group, score, self.recipe.unit_score.reduce))
        once = self.recipe.order == "all"
        amount = goal.requested if once else goal.target
        limits = space.limits(alive, amount, goal.target, most)
        if amount >= goal.target:
            limits = space.caps.nearest(limits, limits_of(space.groups, alive), units)
        method = self.methods.allocation
        if self.measures:
            found = known or self._damage(model, units, kept, limits, lambda group: None)
            method = partial(method, damage=found)
        allocation = bounded(method, {**space.caps.of, **space.held_back(most).of})
        counts = allocate(units, allocation, amount, limits, space.cost_model)
        if not once:
            counts = bottom_up(counts, goal.progress, self.methods.schedule)
        masks = masks_from(units, counts, kept, shapes)
        return Choice(assert_same(masks, "masks"), counts, self._remarks(units))

    def scan(
        self,
        model: nn.Module,
        space: PruningSpace,
        kept: Masks,
        running: Mapping[str, Tensor],
        on_group: Callable[[Group], None],
    ) -> Damage:
        """What removing part of each group alone costs on the calibration data.

        Args:
            model: is as it was afterwards.
            space: its units.
            kept: masks that hold already.
            running: statistics of the training so far.
            on_group: told before each group.
        """
        units, alive, _ = self._ranked(model, space, kept, running, {})
        return self._damage(model, units, kept, space.limits(alive), on_group)

    def shares(
        self,
        model: nn.Module,
        space: PruningSpace,
        kept: Masks,
        running: Mapping[str, Tensor],
        fewer: Mapping[str, int],
    ) -> dict[str, float]:
        """How much the loss rises when one group alone keeps so many units.

        Args:
            model: is as it was afterwards.
            space: its units.
            kept: masks that hold already.
            running: statistics of the training so far.
            fewer: units, by the name of a group.
        """
        units, alive, _ = self._ranked(model, space, kept, running, {})
        limits = space.limits(alive)
        own = {g: fewer[g.name] for g in space.groups if g.name in fewer}
        found = damage(model, units, kept, limits, self._measure(model), counts=own)
        return {g.name: max(pairs[-1][1] - pairs[0][1], 0.0) for g, pairs in found.items()}

    def _measure(self, model: nn.Module) -> Callable[[], float]:
        batches, loss = self.calibration, self.loss
        assert batches is not None
        assert loss is not None
        return partial(loss_on, model, loss, batches, self.recipe.seed)

    def _damage(
        self,
        model: nn.Module,
        units: LazyUnits,
        kept: Masks,
        limits: Mapping[Group, Limits],
        on_group: Callable[[Group], None],
    ) -> Damage:
        return damage(model, units, kept, limits, self._measure(model), on_group=on_group)

    @property
    def measures(self) -> bool:
        """Whether the allocation reads what removing part of one group alone costs."""
        return bool(self.recipe.trait("allocation", "MEASURES"))

    def _ranked(
        self,
        model: nn.Module,
        space: PruningSpace,
        kept: Masks,
        running: Mapping[str, Tensor],
        scores: Mapping[Group, Tensor],
    ) -> tuple[LazyUnits, Alive, Callable[[Any], Tensor]]:
        """The scores of all units, which hold those that are given, what is left, the criterion."""
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        alive = kept_units(space.groups, kept, shapes)
        score = collect(self.methods.criterion, self._context(model, space, running))
        whole = by_unit(self.methods.criterion)
        if whole and not scores:
            scores = {group: score(group) for group in space.groups}
        how = self.recipe.unit_score
        coupled = space.analysis is not None
        of_rest = coupled and not whole and how.reduce == "mean"
        density = {g: unit_density(g, kept, shapes) for g in space.groups if of_rest}
        units = LazyUnits(space.groups, score, alive, density, how.reduce, how.normalize)
        for group, given in scores.items():
            units.hold(group, given.clone())
        return units, alive, score

    def _remarks(self, units: LazyUnits) -> tuple[str, ...]:
        """What a criterion that reads data could not tell apart.

        Raises:
            RunError: if that is everything: a choice would be one by position.
        """
        if not any(self.recipe.trait("criterion", key) for key in ("CALIBRATION", "RUNNING")):
            return ()
        name = self.recipe.criterion.name
        why = "do gradients vanish, or is every calibration batch the same constant?"
        several = [g for g in units if g.units > 1]
        if several and len(units.even) == len(several) and len({*units.even.values()}) == 1:
            raise RunError(
                f"criterion {name} gives every unit the same score, "
                f"{next(iter(units.even.values())):g}, and tells nothing apart: {why} Look at the "
                "batches and the loss, or use magnitude"
            )
        return tuple(
            f"criterion {name} gives all units of {g.name} the same score, {score:g}: which of "
            f"them go is decided by their place ({why})"
            for g, score in units.even.items()
        )

    def _context(
        self, model: nn.Module, space: PruningSpace, running: Mapping[str, Tensor]
    ) -> SignalContext:
        return SignalContext(
            model=model,
            parameters=scored(model, space),
            calibration=self.calibration,
            loss=self.loss,
            seed=self.recipe.seed,
            running=running,
            groups=space.groups,
            example=self.example,
        )


def scored(model: nn.Module, space: PruningSpace) -> dict[str, nn.Parameter]:
    """The parameters whose elements count, in a unit's score and in the sparsity."""
    every = dict(model.named_parameters())
    names = dict.fromkeys(m.name for g in space.groups for m in g.members if m.scored)
    return {name: every[name] for name in names}
