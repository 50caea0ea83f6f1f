"""The one object that changes a model while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from prunus._common.distributed import assert_same
from prunus._common.layers import Layer
from prunus.compaction.shrink import ShrinkStep, follow, refuse_for_shrinking
from prunus.compaction.shrink import saved as saved_shrinks
from prunus.errors import InputError
from prunus.methods.restores._memory import Memory
from prunus.methods.signals import SignalContext, collect
from prunus.methods.signals.grad_sq_running import DECAY, refuse_frozen
from prunus.pruning.decide import (
    Cost,
    LazyUnits,
    allocate,
    bottom_up,
    kept_units,
    kept_weights,
    limits_of,
    masks_from,
)
from prunus.pruning.enforce import Enforcer, real_optimizer
from prunus.pruning.masks import apply, copy_of, finite, put_back
from prunus.pruning.scope import initial_masks
from prunus.pruning.space import PruningSpace, build_space, target_of
from prunus.pruning.units import unit_density
from prunus.recipe import duration
from prunus.recipe.resolve import Methods, resolve
from prunus.recipe.schema import Recipe
from prunus.types import Counts, Group, Masks, State

CUTS = 100
"""Cuts of a gradual run over its whole length, where the recipe does not space them."""


class Pruner:
    """A model, its masks, and the steps by which they change: what runs and loops drive.

    It uses public hooks only: no method is patched, no module wrapped, ``state_dict`` keys stay.

    Args:
        model: pruned in place.
        recipe: a :class:`Recipe`, the name of one, a file or a mapping.
        calibration: batches for criteria that need gradients.
        loss: ``(model, batch) -> scalar`` for the same.
        example: an input (or a tuple of inputs), from which the order of execution is read.

    Attributes:
        masks: parameter name to bool, True = kept.
        sparsity: removed weights ÷ weights in scope, by the masks; of coupled units: ÷ weights in
            scope of which a unit can go.
        reached: the part of what the target counts that is gone: the sparsity, or of a bound
            such as ``max_macs`` what the dense model has more than the compact one.

    Raises:
        InputError: for whatever cannot be pruned as asked, before anything is changed.

    >>> model = nn.Linear(8, 1)
    >>> pruner = Pruner(model, {"target": 0.5})
    >>> pruner.cut(1.0), pruner.sparsity, int((model.weight == 0).sum())
    (0.5, 0.5, 4)
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe | Mapping[str, Any] | str | Path,
        *,
        calibration: Iterable[Any] | None = None,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        example: Any = None,
    ) -> None:
        self.model = model
        self.recipe = Recipe.load(recipe)
        self.methods: Methods = resolve(self.recipe)
        self.calibration, self.loss = calibration, loss
        self.step = 0
        self.running: dict[str, Tensor] = {}
        self.masks: Masks = {}
        self.sparsity, self.achieved = 0.0, 0.0
        self._enforcer = Enforcer()
        self._hooks: list[RemovableHandle] = []
        self._enforced = True
        self._first_cut, self._last_cut, self._every = 0, -1, 1
        self._shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        self.example = example
        self.space = build_space(model, self.recipe, self.methods, example)
        finite(model)
        self.target = target_of(self.recipe, self.space)
        self._scored = dict.fromkeys(m.name for g in self.groups for m in g.members if m.scored)
        self._check_signals()
        given = initial_masks(model, [la for la in self.layers if la.name in self._scored])
        self.initial_masks: Masks = given
        self.shrinks: list[ShrinkStep] = []
        self.dropped: dict[str, nn.Module] = {}
        self.optimizer: Optimizer | None = None
        self.in_place = False  # whether others hold the model, so that it must stay this object
        self._units = {g.name: g.units for g in self.groups}
        self._set_masks(dict(given))
        self.start = self.achieved
        self._start_state: State | None = None

    def _check_signals(self) -> None:
        reads = self.recipe.trait("criterion", "CALIBRATION")
        if reads and (self.calibration is None or self.loss is None):
            raise InputError(
                f"criterion {self.recipe.criterion.name} needs gradients: give calibration "
                "(batches) and loss (a function of model and batch); magnitude needs neither"
            )
        self.collects_running = bool(self.recipe.trait("criterion", "RUNNING"))
        if self.collects_running:
            refuse_frozen(self._parameters())

    @property
    def counts_in(self) -> str:
        """What ``asked`` and ``reached`` count."""
        return "sparsity" if self.space.cost_model is None else self.space.cost_model.name

    @property
    def layers(self) -> list[Layer]:
        """The weights in scope."""
        return self.space.layers

    @property
    def groups(self) -> list[Group]:
        """Their units."""
        return self.space.groups

    # --- hooks

    def attach(self, optimizer: object, copies: Iterable[nn.Module] = ()) -> Optimizer:
        """Follow an optimizer until :meth:`detach`.

        Args:
            optimizer: that trains the model; wrappers around it are looked through.
            copies: modules to keep masked as well, such as an EMA.
        """
        self.detach()
        real = real_optimizer(optimizer)
        if self.recipe.compact == "every_round":
            refuse_for_shrinking(self.shrinks, real, copies)
        self.optimizer = real
        self._refresh()
        self._enforcer.install(real, self.model, copies)
        self._hooks.append(real.register_step_post_hook(self._after_step))
        return real

    def detach(self) -> None:
        """Take all hooks off; masks stay."""
        self._enforcer.remove()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def begin(self, steps: int, per_epoch: int | None = None) -> None:
        """Let the schedule run over the next ``steps`` optimizer steps."""
        plan = self.recipe.schedule
        first, last = (
            duration.parse(d).steps(per_epoch=per_epoch, whole=steps)
            for d in (plan.start, plan.end)
        )
        every = max(1, steps // CUTS)
        if plan.every is not None:
            every = max(1, duration.parse(plan.every).steps(per_epoch=per_epoch, whole=steps))
        if not 0 <= first <= last <= steps:
            raise InputError(
                f"schedule: start {plan.start} and end {plan.end} are steps {first} and {last} of "
                f"{steps}: 0 ≤ start ≤ end ≤ {steps} is needed"
            )
        self.step = 0
        self._first_cut, self._last_cut, self._every = first, max(last, 1), every

    def _read_gradients(self) -> None:
        """After the step: where a closure computes them (Lightning), before it they are old."""
        with torch.no_grad():
            for name, weight in self._parameters().items():
                if weight.grad is None:
                    continue
                square = weight.grad.detach().float().square()
                past = self.running.get(name)
                self.running[name] = square if past is None else past.lerp_(square, 1 - DECAY)

    def _after_step(self, *_: object) -> None:
        if self.collects_running:
            self._read_gradients()
        self.step += 1
        if self._first_cut <= self.step <= self._last_cut and (
            self.step == self._last_cut or (self.step - self._first_cut) % self._every == 0
        ):
            length = self._last_cut - self._first_cut
            progress = (self.step - self._first_cut) / length if length else 1.0
            self._scheduled_cut(progress)

    def _scheduled_cut(self, progress: float) -> None:
        asked = self.scheduled(progress)
        final = progress >= 1
        revives = self.recipe.trait("restore", "RELEASES") is not None
        if not revives and self.recipe.order == "all" and asked <= self.achieved + 1e-12:
            return
        if revives:
            before = self.state()
            self.cut(progress, asked)
            apply(self.model, self.masks)
            if not final:
                self.load(self.methods.restore(self.state(), self.masks, self._memory(before)))
            self.enforce(final)
        else:
            self.cut(progress, asked)

    # --- decisions

    def scheduled(self, progress: float) -> float:
        """The sparsity that the schedule asks for."""
        if self.recipe.until_guard:
            return max(progress, self.start)
        target = max(self.target, self.start)
        return self.methods.schedule(progress, self.start, target)

    def cut(self, progress: float, asked: float | None = None) -> float:
        """Choose masks and apply them; the model is unchanged if that fails.

        Args:
            progress: of the schedule, 0 to 1.
            asked: the sparsity, by default what the schedule asks for.

        Returns:
            The sparsity asked of the groups together.
        """
        asked = self.scheduled(progress) if asked is None else asked
        masks, counts = self._choose(progress, asked)
        self._set_masks(masks)
        apply(self.model, masks)
        return self._removed(counts) if self.recipe.order == "bottom_up" else asked

    def _removed(self, counts: Counts) -> float:
        return (self.space.cost_model or Cost(self.groups))(counts)

    def choose(self, progress: float) -> Masks:
        """The masks that a cut at this progress would give; nothing is changed."""
        return self._choose(progress, self.scheduled(progress))[0]

    def _choose(self, progress: float, asked: float) -> tuple[Masks, Counts]:
        released = self.recipe.trait("restore", "RELEASES") is not None
        kept = self.initial_masks if released else self.masks
        if not self.groups:  # every group of a smaller model is down to its last unit
            return dict(kept), {}
        units, counts = self._decide(progress, asked, kept)
        return assert_same(masks_from(units, counts, kept, self._shapes), "masks"), counts

    def _decide(self, progress: float, asked: float, kept: Masks) -> tuple[LazyUnits, Counts]:
        score = collect(self.methods.criterion, self._signals())
        alive = kept_units(self.groups, kept, self._shapes)
        coupled = self.space.analysis is not None
        density = {g: unit_density(g, kept, self._shapes) for g in self.groups if coupled}
        units = LazyUnits(self.groups, score, alive, density)
        limits = limits_of(self.groups, alive)
        if self.recipe.order == "all":
            return units, allocate(
                units, self.methods.allocation, asked, limits, self.space.cost_model
            )
        final = allocate(units, self.methods.allocation, self.target, limits, self.space.cost_model)
        return units, bottom_up(final, progress, self.methods.schedule)

    def counts(self, asked: float) -> dict[str, tuple[int, int]]:
        """Weights (of coupled groups: units) kept and all, by group, if ``asked`` were cut now."""
        units, counts = self._decide(1.0, asked, self.masks)
        masks = masks_from(units, counts, self.masks, self._shapes)
        alive = kept_units(self.groups, masks, self._shapes)
        if self.space.analysis is not None:
            return {g.name: (int(counts[g]), g.units) for g in self.groups}
        return {g.name: (kept_weights(g, alive[g]), g.weights) for g in self.groups}

    def _signals(self) -> SignalContext:
        return SignalContext(
            model=self.model,
            parameters=self._parameters(),
            calibration=self.calibration,
            loss=self.loss,
            seed=self.recipe.seed,
            running=self.running,
        )

    def _parameters(self) -> dict[str, nn.Parameter]:
        every = dict(self.model.named_parameters())
        return {name: every[name] for name in self._scored}

    # --- state

    def see(self, view: PruningSpace, given: Masks, masks: Masks) -> None:
        """Go on with a model that became smaller, or larger again."""
        self.space, self.initial_masks = view, given
        self._shapes = {n: tuple(p.shape) for n, p in self.model.named_parameters()}
        self._scored = dict.fromkeys(m.name for g in self.groups for m in g.members if m.scored)
        self._set_masks(masks)

    def _set_masks(self, masks: Masks) -> None:
        self.masks = masks
        self.sparsity, self.achieved = self.space.removed_fraction(masks, self._shapes)
        self._refresh()

    @property
    def densities(self) -> dict[str, float]:
        """Kept ÷ all, by group: weights, or of coupled units those of the dense model."""
        alive = kept_units(self.groups, self.masks, self._shapes)
        if self.space.analysis is None:
            return {g.name: kept_weights(g, alive[g]) / g.weights for g in self.groups}
        left = {g.name: g.units if (a := alive[g]) is None else int(a.sum()) for g in self.groups}
        return {name: left.get(name, 1) / units for name, units in self._units.items()}

    @property
    def l1(self) -> float:
        """Σ|w| over the scope."""
        with torch.no_grad():
            return sum(float(p.abs().sum(dtype=torch.float64)) for p in self._parameters().values())

    def enforce(self, enforced: bool) -> None:
        """Enforce the masks from now on, or let removed weights train."""
        self._enforced = enforced
        self._refresh()

    def _refresh(self) -> None:
        self._enforcer.set(self.model, self.masks if self._enforced else self.initial_masks)

    def state(self, optimizer_state: dict[Any, Any] | None = None) -> State:
        """A copy of all that training changes."""
        return State(copy_of(self.model), optimizer_state or {})

    def load(self, state: State) -> None:
        """Put parameters and buffers back, in place."""
        put_back(self.model, state.tensors)

    def _memory(self, cut: State) -> Memory:
        def unavailable() -> State:
            raise InputError("restore: gradual pruning remembers no earlier training")

        if self._start_state is None:
            self._start_state = cut
        start = self._start_state
        return Memory(lambda: start, unavailable, lambda: cut, unavailable)

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from, for your own checkpoints: plain values and tensors."""
        return {
            "step": self.step,
            "masks": dict(self.masks),
            "enforced": self._enforced,
            "cuts": (self._first_cut, self._last_cut, self._every),
            "running": dict(self.running),
            "shrinks": saved_shrinks(self),
            "start": None if self._start_state is None else self._start_state.tensors,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Return to what :meth:`state_dict` gave."""
        follow(self, saved["shrinks"])
        self.step = saved["step"]
        self._enforced = saved["enforced"]
        self._first_cut, self._last_cut, self._every = saved["cuts"]
        self.running = dict(saved["running"])
        start = saved["start"]
        self._start_state = None if start is None else State(dict(start), {})
        self._set_masks(dict(saved["masks"]))
