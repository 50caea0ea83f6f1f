"""The one object that changes a model while it trains: what runs and loops drive."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from prunus.compaction.cut import IndexCut, cut_of, take
from prunus.compaction.rewriting.submodules import cut_from_kept
from prunus.compaction.search import find_plan
from prunus.compaction.shrink import (
    ShrinkStep,
    grow,
    refuse_for_shrinking,
    refuse_replacing,
    shrink,
    smaller_masks,
)
from prunus.compaction.slicing.drop import put_back_modules
from prunus.costs.l1 import l1_of
from prunus.errors import InputError
from prunus.methods.restores._memory import Memory
from prunus.methods.signals.grad_sq_running import DECAY
from prunus.progressive.gradual import Gradual
from prunus.progressive.selector import Selector, Sparsity, scored
from prunus.progressive.shrinks import Shrunk, as_saved, saved
from prunus.pruning.decide import Cost, kept_units, kept_weights
from prunus.pruning.enforce import Enforcer, real_optimizer
from prunus.pruning.masks import apply, copy_of, finite, put_back
from prunus.pruning.scope import initial_masks
from prunus.pruning.space import build_space, target_of
from prunus.recipe.fields import Spec
from prunus.recipe.resolve import bind, resolve
from prunus.recipe.schema import Recipe
from prunus.types import Group, Kept, Masks, State


class PruningEngine:
    """A model, its units and masks, and the steps by which they change.

    It uses public hooks only: no method is patched, no module wrapped, ``state_dict`` keys stay.

    Its arguments are those of :class:`prunus.Pruner`.

    Attributes:
        selector: chooses masks.
        space: the units of the model as it stands.
        masks: parameter name to bool, True = kept.
        gradual: which optimizer steps cut.
        shrinks: what made the model smaller so far.
        optimizer: that trains the model.

    Raises:
        InputError: for whatever cannot be pruned as asked, before anything is changed.

    >>> model = nn.Linear(8, 1)
    >>> engine = PruningEngine(model, {"target": 0.5})
    >>> engine.cut(1.0), engine.sparsity, int((model.weight == 0).sum())
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
        self.recipe = Recipe.load(recipe)
        self.model, self.example = model, example
        self.selector = Selector(self.recipe, resolve(self.recipe), calibration, loss)
        self.space = build_space(model, self.recipe, self.selector.methods, example)
        finite(model)
        self.target = target_of(self.recipe, self.space)
        self.selector.refuse(scored(model, self.space))
        self.running: dict[str, Tensor] = {}
        self.gradual = Gradual()
        self.shrinks: list[Shrunk] = []
        self.dropped: dict[str, nn.Module] = {}
        self.optimizer: Optimizer | None = None
        self.in_place = False  # whether others hold the model, so that it must stay this object
        self.after_step: Callable[[], None] = lambda: None
        self._hooks: list[RemovableHandle] = []
        self._enforcer, self._enforced = Enforcer(), True
        names = {m.name for g in self.space.groups for m in g.members if m.scored}
        self.initial_masks: Masks = initial_masks(
            model, [la for la in self.space.layers if la.name in names]
        )
        self._units = {g.name: g.units for g in self.space.groups}
        self._start_state: State | None = None
        self._set_masks(dict(self.initial_masks))
        self.start = self.achieved

    # --- what it is now

    @property
    def counts_in(self) -> str:
        """What ``requested`` and ``achieved`` count."""
        return "sparsity" if self.space.cost_model is None else self.space.cost_model.name

    @property
    def _revives(self) -> bool:
        """Whether removed weights come back between cuts."""
        return self.recipe.trait("restore", "RELEASES") is not None

    @property
    def densities(self) -> dict[str, float]:
        """Kept ÷ all, by group: weights, or of coupled units those of the dense model."""
        groups, alive = self.space.groups, self._alive
        if self.space.analysis is None:
            return {g.name: kept_weights(g, alive[g]) / g.weights for g in groups}
        left = {g.name: g.units if (a := alive[g]) is None else int(a.sum()) for g in groups}
        return {name: left.get(name, 1) / units for name, units in self._units.items()}

    @property
    def l1(self) -> float:
        """Σ|w| over the scope."""
        with torch.no_grad():
            weights = scored(self.model, self.space).values()
            return sum(map(l1_of, weights))

    # --- following an optimizer

    def attach(self, optimizer: object, copies: Iterable[nn.Module] = ()) -> Optimizer:
        """Follow an optimizer until :meth:`detach`.

        Args:
            optimizer: that trains the model; wrappers around it are looked through.
            copies: modules to keep masked as well, such as an EMA.
        """
        self.detach()
        real = real_optimizer(optimizer)
        if self.recipe.compact == "every_round":
            refuse_for_shrinking(real, copies, shrunk=bool(self.shrinks))
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
        self.gradual = Gradual.over(steps, self.recipe.schedule, per_epoch)

    def enforce(self, enforced: bool) -> None:
        """Enforce the masks from now on, or let removed weights train."""
        self._enforced = enforced
        self._refresh()

    def _after_step(self, *_: object) -> None:
        if self.selector.reads_training:
            self._read_gradients()
        progress = self.gradual.advance()
        if progress is not None:
            self._scheduled_cut(progress)
        self.after_step()

    def _read_gradients(self) -> None:
        """After the step: where a closure computes them (Lightning), before it they are old."""
        with torch.no_grad():
            for name, weight in scored(self.model, self.space).items():
                if weight.grad is None:
                    continue
                square = weight.grad.detach().float().square()
                past = self.running.get(name)
                self.running[name] = square if past is None else past.lerp_(square, 1 - DECAY)

    def _scheduled_cut(self, progress: float) -> None:
        requested = self.scheduled(progress)
        final = progress >= 1
        if not self._revives and self.recipe.order == "all" and requested <= self.achieved + 1e-12:
            return
        if not self._revives:
            self.cut(progress, requested)
            return
        before = self.state()
        self.cut(progress, requested)
        apply(self.model, self.masks)
        if not final:
            restore = self.selector.methods.restore
            self.load(restore(self.state(), self.masks, self._memory(before)))
        self.enforce(final)

    def _memory(self, cut: State) -> Memory:
        def unavailable() -> State:
            raise InputError("restore: gradual pruning keeps no earlier state to return to")

        if self._start_state is None:
            self._start_state = cut
        start = self._start_state
        return Memory(lambda: start, unavailable, lambda: cut, unavailable)

    # --- cutting

    def scheduled(self, progress: float) -> float:
        """The sparsity that the schedule asks for."""
        if self.recipe.until_guard:
            return max(progress, self.start)
        target = max(self.target, self.start)
        return self.selector.methods.schedule(progress, self.start, target)

    def cut(
        self,
        progress: float,
        requested: float | None = None,
        scores: Mapping[Group, Tensor] = MappingProxyType({}),
    ) -> float:
        """Choose masks and apply them; the model is unchanged if that fails.

        Args:
            progress: of the schedule, 0 to 1.
            requested: the sparsity, by default what the schedule asks for.
            scores: of units, in place of the criterion's.

        Returns:
            The sparsity requested of the groups together.
        """
        requested = self.scheduled(progress) if requested is None else requested
        goal = Sparsity(progress, requested, self.target)
        masks, counts = self.selector.choose(
            self.model, self.space, self._removed, goal, self.running, scores
        )
        self._set_masks(masks)
        apply(self.model, masks)
        if self.recipe.order != "bottom_up":
            return requested
        return (self.space.cost_model or Cost(self.space.groups))(counts)

    def choose(self, progress: float) -> Masks:
        """The masks that a cut at this progress would give; nothing is changed."""
        goal = Sparsity(progress, self.scheduled(progress), self.target)
        return self.selector.choose(self.model, self.space, self._removed, goal, self.running).masks

    @property
    def _removed(self) -> Masks:
        """Masks whose removed weights stay removed in a cut."""
        return self.initial_masks if self._revives else self.masks

    def counts(self, requested: float) -> dict[str, tuple[int, int]]:
        """Weights (of coupled groups: units) kept and all, by group, if so much were cut now."""
        goal, groups = Sparsity(1.0, requested, self.target), self.space.groups
        masks, counts = self.selector.choose(self.model, self.space, self.masks, goal, self.running)
        if self.space.analysis is not None:
            return {g.name: (int(counts[g]), g.units) for g in groups}
        alive = kept_units(groups, masks, self._shapes())
        return {g.name: (kept_weights(g, alive[g]), g.weights) for g in groups}

    # --- becoming smaller, and larger again

    def shrink(self, optimizer: Optimizer | None = None) -> ShrinkStep | None:
        """Take every unit out that the masks remove; ``None`` if there is none.

        Args:
            optimizer: whose state is sliced along.

        Raises:
            RunError: if the smaller model does not equal the masked one; nothing is changed then.
        """
        assert self.space.analysis is not None
        cut = cut_of(self.space.analysis, self.masks)
        return self._shrink(cut, optimizer) if cut.units() else None

    def _shrink(self, cut: IndexCut, optimizer: Optimizer | None) -> ShrinkStep:
        step = shrink(self.model, cut, self.example, optimizer, in_place=self.in_place)
        self.adopt(step)
        return step

    def adopt(self, step: ShrinkStep) -> None:
        """Go on with the model that a shrink gave."""
        kept, shapes = step.kept, step.tensors
        self.shrinks.append(Shrunk(step, self.space, self.initial_masks))
        self.model = step.after
        names = {n for n, _ in self.model.named_parameters()}
        self.space = build_space(
            self.model, self.recipe, self.selector.methods, self.example,
            layers=[la for la in self.space.layers if la.name in names],
            dense=self.space, traced=step.traced,
        )  # fmt: skip
        self.running = {n: take(t, kept[n]) if n in kept else t for n, t in self.running.items()}
        self.initial_masks = smaller_masks(self.initial_masks, kept, shapes)
        self._set_masks(smaller_masks(self.masks, kept, shapes))

    def unshrink(self) -> None:
        """Undo the last shrink; values are for the caller to fill in."""
        last = self.shrinks[-1]
        model = grow(last.step, self.optimizer)
        self.shrinks.pop()
        self.model, self.space, self.initial_masks = model, last.space, last.initial_masks
        self._set_masks({})

    def follow(self, steps: Sequence[Mapping[str, Any]]) -> None:
        """Bring the model to where saved shrinks lead: forward from the dense one, or back."""
        if self.dropped and not steps:
            put_back_modules(self.model, self.dropped)
            self.dropped = {}
        while len(self.shrinks) > len(steps):
            self.unshrink()
        for saved_step in steps[len(self.shrinks) :]:
            assert self.space.analysis is not None
            plain: Kept = {name: tuple(indices) for name, indices in saved_step["kept"].items()}
            done = self._shrink(cut_from_kept(self.space.analysis, plain), None)
            step = as_saved(done, saved_step)
            self.shrinks[-1] = self.shrinks[-1]._replace(step=step)

    def stay_in_place(self) -> None:
        """Refuse a model that cannot become smaller while others hold it.

        Raises:
            InputError: with the way out.
        """
        self.in_place = True
        if self.shrinks:
            return
        assert self.space.analysis is not None
        # The widths are what counts here, so any criterion does.
        magnitude = bind("criteria", Spec(name="magnitude"))
        methods = dataclasses.replace(self.selector.methods, criterion=magnitude)
        goal = Sparsity(1.0, min(self.target, 0.3), self.target)
        trial = dataclasses.replace(self.selector, methods=methods)
        masks, _ = trial.choose(self.model, self.space, self.masks, goal, {})
        cut = cut_of(self.space.analysis, masks)
        if cut.units():
            refuse_replacing(find_plan(self.model, cut, self.example))

    # --- state

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {n: tuple(p.shape) for n, p in self.model.named_parameters()}

    def _set_masks(self, masks: Masks) -> None:
        self.masks = masks
        self._alive = kept_units(self.space.groups, masks, self._shapes())
        self.sparsity, self.achieved = self.space.removed_fraction(self._alive)
        self._refresh()

    def _refresh(self) -> None:
        self._enforcer.set(self.model, self.masks if self._enforced else self.initial_masks)

    def state(self, optimizer_state: dict[Any, Any] | None = None) -> State:
        """A copy of all that training changes."""
        return State(copy_of(self.model), optimizer_state or {})

    def load(self, state: State) -> None:
        """Put parameters and buffers back, in place."""
        put_back(self.model, state.tensors)

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from, as plain values and tensors."""
        gradual = self.gradual
        return {
            "step": gradual.step,
            "masks": dict(self.masks),
            "enforced": self._enforced,
            "cuts": (gradual.first, gradual.last, gradual.every),
            "running": dict(self.running),
            "shrinks": saved(self.shrinks),
            "start": None if self._start_state is None else self._start_state.tensors,
        }

    def load_state_dict(
        self, values: Mapping[str, Any], *, initial_masks: Masks | None = None
    ) -> None:
        """Return to what :meth:`state_dict` gave.

        Args:
            values: that state.
            initial_masks: with which the model came, where the one at hand is no sign of that.
        """
        self.follow(values["shrinks"])
        if initial_masks is not None:
            self.initial_masks = dict(initial_masks)
        first, last, every = values["cuts"]
        self.gradual = Gradual(first, last, every, values["step"])
        self._enforced = values["enforced"]
        self.running = dict(values["running"])
        start = values["start"]
        self._start_state = None if start is None else State(dict(start), {})
        self._set_masks(dict(values["masks"]))
