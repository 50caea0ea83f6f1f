"""The one object that changes a model while it trains: what runs and loops drive."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.optim import Optimizer

from prunus.compaction.cut import IndexCut, cut_of
from prunus.compaction.rewriting.submodules import cut_from_kept
from prunus.compaction.shrink import (
    ShrinkStep,
    grow,
    refuse_for_shrinking,
    shrink,
    smaller_masks,
)
from prunus.compaction.slicing.drop import put_back_modules
from prunus.errors import InputError
from prunus.progressive.gradual import Gradual, gradual_memory
from prunus.progressive.regrow import Regrowth
from prunus.progressive.regularize import Regularizer
from prunus.progressive.running import Running
from prunus.progressive.selector import Selector, Sparsity, scored
from prunus.progressive.shrinks import Shrunk, as_saved, saved
from prunus.pruning.copies import Copy
from prunus.pruning.decide import Cost, kept_units, kept_weights
from prunus.pruning.enforce import Enforcer
from prunus.pruning.masks import apply, copy_of, densities, finite, put_back
from prunus.pruning.optimizers import AnyOptimizer, each_of, optimizer_of, pace_of, sole, uncompiled
from prunus.pruning.scope import initial_masks
from prunus.pruning.space import build_space
from prunus.pruning.sparse_training import SparseTraining
from prunus.pruning.target import refuse_forced, target_of
from prunus.recipe.resolve import resolve
from prunus.recipe.schema import Recipe
from prunus.types import Damage, Group, Kept, Masks, State


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
        optimizer: that trains the model, or several as one.
        enforcer: keeps what is removed at zero.

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
        self.sparse = SparseTraining(self.recipe.sparse_training)
        self.model, self.example = model, example
        self.selector = Selector(self.recipe, resolve(self.recipe), calibration, loss, example)
        self.space = build_space(model, self.recipe, self.selector.methods, example)
        finite(model)
        self.target = target_of(self.recipe, self.space, model)
        self.selector.refuse(model, self.space)
        self.running = Running(self.selector, lambda: scored(self.model, self.space))
        self.gradual = Gradual()
        self.shrinks: list[Shrunk] = []
        self.dropped: dict[str, nn.Module] = {}
        self.optimizer: AnyOptimizer | None = None
        self.tries: Callable[[Masks], None] | None = None  # applies masks that may be undone
        self.damage: Damage | None = None  # where it is known
        self.most: dict[str, float] = {}  # of groups, the largest part that may be gone by now
        self.in_place = False  # whether others hold the model, so that it must stay this object
        self.after_step: Callable[[], None] = lambda: None
        self.tell: Callable[[str], None] = lambda text: warnings.warn(text, stacklevel=2)
        self._hooks = ExitStack()
        self.enforcer, self._enforced = Enforcer(), True
        methods = self.selector.methods
        self.regrowth = Regrowth(self.recipe, methods.regrow, self.enforcer)
        self.regularizer = Regularizer(self.recipe, methods.regularize, lambda: self.choose(1.0))
        self.regularizer.refuse(model, self.space)
        names = {m.name for g in self.space.groups for m in g.members if m.scored}
        layers = [la for la in self.space.layers if la.name in names]
        self.initial_masks: Masks = initial_masks(model, layers)
        self._weights = {n: p.numel() for n, p in model.named_parameters() if n in names}
        self._start_state: State | None = None
        self._set_masks(dict(self.initial_masks))
        self.start = self.achieved
        refuse_forced(self.space, max(self.target, self.start), self._alive)

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "what prunes a model is not pickled, nor copied without model and optimizer: save "
            "pruner.state_dict() and load it into a new Pruner; copy.deepcopy((model, optimizer, "
            "pruner)) copies all three"
        )

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
        """Weights kept ÷ those of the dense model, by group; where units are coupled, by layer."""
        if self.space.analysis is None:
            alive = self._alive
            return {g.name: kept_weights(g, alive[g]) / g.weights for g in self.space.groups}
        return densities(dict(self.model.named_parameters()), self.masks, self._weights)

    def l1(self, sums: Mapping[str, float]) -> float:
        """Σ|w| over the scope, from those of each parameter."""
        return sum(sums[name] for name in scored(self.model, self.space))

    # --- following an optimizer

    def attach(self, optimizer: object, copies: Iterable[Copy] = ()) -> AnyOptimizer:
        """Follow an optimizer until :meth:`detach`.

        Args:
            optimizer: that trains the model, or a list of all that do; wrappers around it are
                looked through. Of several, the last one that has a weight in scope sets the pace.
            copies: of the model, to keep masked as well, such as an EMA.
        """
        self.detach()
        real = optimizer_of(optimizer)
        if self.recipe.compact == "every_round":
            refuse_for_shrinking(sole(real), copies, shrunk=bool(self.shrinks))
        self.optimizer = real
        self._refresh()
        self.enforcer.install(real, self.model, copies)
        self._hooks.enter_context(self.sparse.over(self.model, self.enforcer))
        scope = {id(self.model.get_parameter(la.name)) for la in self.space.layers}
        pace = pace_of(real, scope)
        self._hooks.callback(pace.register_step_post_hook(uncompiled(self._after_step)).remove)
        self.running.attach(real, self._hooks)
        return real

    def watch(self) -> None:
        """Enforce masks whatever trains, until :meth:`detach`: of a loop that names nothing."""
        self.detach()
        self._refresh()
        self.enforcer.install(None, self.model)
        self._hooks.enter_context(self.sparse.over(self.model, self.enforcer))

    def detach(self) -> None:
        """Take all hooks off; masks stay."""
        self.enforcer.remove()
        self._hooks.close()

    def begin(
        self, steps: int, per_epoch: int | None = None, *, gradual: bool = True, dense: bool = False
    ) -> None:
        """The next training, of so many optimizer steps, in which the schedule runs if gradual."""
        if gradual:
            self.gradual = Gradual.over(steps, self.recipe.schedule, per_epoch)
        self.regrowth.begin(0 if dense else steps, per_epoch)
        self.regularizer.begin(dense=dense)

    def enforce(self, enforced: bool) -> None:
        """Enforce the masks from now on, or let removed weights train."""
        self._enforced = enforced
        self._refresh()

    def _after_step(self, pace: Optimizer, *_: object) -> None:
        if not self.enforcer.took_step(pace):
            self.regrowth.capture()
            return
        self.running.after_step()
        self.regularizer.after_step(self.model, self.space, self.masks, self.optimizer)
        progress = self.gradual.advance()
        if progress is not None:
            self._scheduled_cut(progress)
        before = self.masks
        masks = self.regrowth.after_step(self.model, self.space, before, self.initial_masks)
        if masks is not None:
            assert self.optimizer is not None
            self._set_masks(masks)
            self.regrowth.exchange(self.model, each_of(self.optimizer), before, masks)
        self.after_step()

    def _scheduled_cut(self, progress: float) -> None:
        requested = self.scheduled(progress)
        final = progress >= 1
        if not self._revives and self.recipe.order == "all" and requested <= self.achieved + 1e-12:
            return
        before = self.state() if self._revives else None
        self.cut(progress, requested)
        if before is None:
            return
        apply(self.model, self.masks)
        if not final:
            self._start_state = self._start_state or before
            memory = gradual_memory(self._start_state, before)
            self.load(self.selector.methods.restore(self.state(), self.masks, memory))
        self.enforce(final)

    # --- cutting

    def scheduled(self, progress: float) -> float:
        """The sparsity that the schedule asks for."""
        if self.recipe.until_guard:
            return max(min(progress, self.space.reach(self._alive, self.most)), self.start)
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
        masks, counts, notes = self.selector.choose(
            self.model, self.space, self.removed, goal, self.running.tensors, scores, self.damage,
            self.most,
        )  # fmt: skip
        for text in notes:
            self.tell(text)
        self.regrowth.keep(self.model, masks)
        self._set_masks(masks)
        apply(self.model, masks) if self.tries is None else self.tries(masks)
        if self.recipe.order != "bottom_up":
            return requested
        return (self.space.cost_model or Cost(self.space.groups))(counts)

    def choose(self, progress: float) -> Masks:
        """The masks that a cut at this progress would give; nothing is changed."""
        goal = Sparsity(progress, self.scheduled(progress), self.target)
        seen, known = self.running.tensors, (self.damage, self.most)
        return self.selector.choose(
            self.model, self.space, self.removed, goal, seen, {}, *known
        ).masks  # fmt: skip

    @property
    def removed(self) -> Masks:
        """Masks whose removed weights stay removed in a cut."""
        return self.initial_masks if self._revives else self.masks

    # --- becoming smaller, and larger again

    def shrink(
        self, optimizer: AnyOptimizer | None = None, *, trains: bool = False
    ) -> ShrinkStep | None:
        """Take every unit out that the masks remove; ``None`` if there is none.

        Args:
            optimizer: whose state is sliced along.
            trains: whether the smaller model is trained further; an InputError if it cannot be.

        Raises:
            RunError: if the smaller model does not equal the masked one; nothing is changed then.
        """
        assert self.space.analysis is not None
        cut = cut_of(self.space.analysis, self.masks)
        return self._shrink(cut, optimizer, trains=trains) if cut.units() else None

    def _shrink(self, cut: IndexCut, optimizer: AnyOptimizer | None, **how: bool) -> ShrinkStep:
        step = shrink(self.model, cut, self.example, optimizer, in_place=self.in_place, **how)
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
        self.running.follow(kept)
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
            step = as_saved(done, saved_step, self.optimizer)
            self.shrinks[-1] = self.shrinks[-1]._replace(step=step)

    # --- state

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {n: tuple(p.shape) for n, p in self.model.named_parameters()}

    def _set_masks(self, masks: Masks) -> None:
        self.masks = masks
        self._alive = kept_units(self.space.groups, masks, self._shapes())
        self.sparsity, self.achieved = self.space.removed_fraction(self._alive)
        self._refresh()

    def _refresh(self) -> None:
        self.enforcer.set_masks(self.model, self.masks if self._enforced else self.initial_masks)

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
            "running": dict(self.running.tensors),
            "shrinks": saved(self.shrinks),
            "start": None if self._start_state is None else self._start_state.tensors,
            **self.regrowth.state(),
            **self.regularizer.state(self.masks),
            **self.sparse.state(),
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
        self.running.load(values["running"])
        start = values["start"]
        self._start_state = None if start is None else State(dict(start), {})
        self._set_masks(dict(values["masks"]))
        self.regrowth.load(values, self.model)
        self.regularizer.load(values, self.masks)
        self.sparse.load(values)
