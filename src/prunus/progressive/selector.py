"""What goes: a criterion's scores, shared out by an allocation, as masks. It keeps no state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn

from prunus._common.distributed import assert_same
from prunus.errors import InputError
from prunus.methods.signals import SignalContext, collect
from prunus.methods.signals.grad_sq_running import refuse_frozen
from prunus.pruning.decide import (
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
from prunus.types import Counts, Group, Masks


class Choice(NamedTuple):
    """Masks, and the units that each group keeps."""

    masks: Masks
    counts: Counts


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
    """

    recipe: Recipe
    methods: Methods
    calibration: Iterable[Any] | None = None
    loss: Callable[[nn.Module, Any], Tensor] | None = None

    @cached_property
    def reads_training(self) -> bool:
        """Whether the criterion reads the gradients of the training itself."""
        return bool(self.recipe.trait("criterion", "RUNNING"))

    def refuse(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """What the criterion needs and was not given.

        Raises:
            InputError: saying what to give.
        """
        reads = self.recipe.trait("criterion", "CALIBRATION")
        if reads and (self.calibration is None or self.loss is None):
            raise InputError(
                f"criterion {self.recipe.criterion.name} needs gradients: pass calibration "
                "(batches) and loss (a function of model and batch); magnitude needs neither"
            )
        if self.recipe.trait("structure", "ROTATES") and self.calibration is None:
            raise InputError(
                "structure: rotate turns to the principal directions of what the model computes "
                "on calibration batches: pass calibration (batches; with loss, unless they are "
                "the model's inputs)"
            )
        if self.reads_training:
            refuse_frozen(parameters)

    def choose(
        self,
        model: nn.Module,
        space: PruningSpace,
        kept: Masks,
        goal: Sparsity,
        running: Mapping[str, Tensor],
        scores: Mapping[Group, Tensor] = MappingProxyType({}),
    ) -> Choice:
        """The masks for a goal; nothing is changed.

        Args:
            model: as it is.
            space: its units.
            kept: masks that hold already: what they remove stays removed.
            goal: how much is to go.
            running: statistics of the training so far, by parameter name.
            scores: of units, in place of the criterion's.
        """
        if not space.groups:  # every group of a smaller model is down to its last unit
            return Choice(dict(kept), {})
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        score = collect(self.methods.criterion, self._context(model, space, running))
        alive = kept_units(space.groups, kept, shapes)
        coupled = space.analysis is not None
        density = {g: unit_density(g, kept, shapes) for g in space.groups if coupled}
        units = LazyUnits(space.groups, score, alive, density)
        for group in space.groups if units.in_memory else ():
            given = scores.get(group)
            units.hold(group, unit_scores(group, score) if given is None else given.clone())
        limits, cost = limits_of(space.groups, alive), space.cost_model
        once = self.recipe.order == "all"
        amount = goal.requested if once else goal.target
        counts = allocate(units, self.methods.allocation, amount, limits, cost)
        if not once:
            counts = bottom_up(counts, goal.progress, self.methods.schedule)
        masks = masks_from(units, counts, kept, shapes)
        return Choice(assert_same(masks, "masks"), counts)

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
        )


def scored(model: nn.Module, space: PruningSpace) -> dict[str, nn.Parameter]:
    """The parameters whose elements count, in a unit's score and in the sparsity."""
    every = dict(model.named_parameters())
    names = dict.fromkeys(m.name for g in space.groups for m in g.members if m.scored)
    return {name: every[name] for name in names}
