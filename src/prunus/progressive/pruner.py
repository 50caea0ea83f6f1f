"""Pruning inside a training loop of one's own."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunus._common.given import (
    given_batches,
    given_copies,
    given_example,
    given_hooks,
    given_model,
)
from prunus._common.kinds import given_number, kind_of
from prunus._common.metrics import Metric
from prunus.errors import InputError
from prunus.progressive.distill import Lessons, given_teacher
from prunus.progressive.ending import ended, is_short
from prunus.progressive.engine import PruningEngine
from prunus.progressive.former_names import ELSEWHERE
from prunus.progressive.holding import finish, followers_of, hold
from prunus.progressive.in_loop import LoopRounds, in_steps, lengths_of, with_lengths
from prunus.progressive.in_place import stay_in_place
from prunus.progressive.phase import Loss
from prunus.progressive.renamed import renamed
from prunus.progressive.result import Round, counted
from prunus.progressive.shrinks import begins, original_kept
from prunus.pruning.copies import Copy
from prunus.pruning.followers import Followers
from prunus.pruning.masks import apply
from prunus.pruning.optimizers import each_of
from prunus.recipe.rules import own_loop_conflict
from prunus.recipe.schema import Recipe
from prunus.types import Kept, Masks

_SAVED = {"recipe", "lengths", "steps", "given", "began_at", "rounds", "shrinks", "masks", "cuts",
          "step", "enforced", "running", "start"}  # fmt: skip
"""What the state of a Pruner has."""


class Pruner:
    """Prunes a model inside a training loop of your own, gradually or in rounds.

    Build it after model and optimizer; nothing else in the loop changes. After every optimizer
    step it zeroes what is removed; at the steps of the recipe it removes more, and in rounds
    judges and rolls back. It uses public hooks only: no method is patched, no module wrapped,
    ``state_dict`` keys stay.

    Args:
        model: pruned in place.
        recipe: a :class:`Recipe`, the name of one, a file or a mapping.
        optimizer: that trains the model, or a list of all that do; without it nothing is done
            until :meth:`join`. Of several, the last one that has a weight in scope sets the pace.
        copies: of the model, to keep masked as well: modules such as an EMA, or mappings of
            parameter names to tensors. One that is not named and follows the model is warned of
            at :meth:`finish`.
        steps: optimizer steps of the loop. A gradual schedule runs over all of them that
            ``dense`` leaves; by default it has the recipe's ``retrain``. Rounds share them out
            evenly where the recipe has no ``retrain``.
        steps_per_epoch: needed where the recipe counts epochs.
        evaluate: ``evaluate(model) -> float``, called at the end of every round (of a gradual
            recipe: before and after), between two optimizer steps; a guard needs it.
        calibration: batches for criteria that need gradients.
        loss: ``(model, batch) -> scalar`` for the same.
        example: an input (or a tuple of inputs), from which the order of execution is read.
        teacher: where the recipe names one, another than the dense model: any model, or a file of
            one. The loop's loss is ``prunus.distill(model, pruner, batch, loss=loss)`` then.
        metric: what ``evaluate`` returns is called.

    Raises:
        InputError: for whatever cannot be pruned as asked, before anything is changed.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Linear(8, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> recipe = {"target": 0.5, "rounds": 2, "schedule": "linear"}
    >>> pruner = Pruner(model, recipe, optimizer, steps=4)
    >>> while not pruner.done:
    ...     optimizer.zero_grad()
    ...     model(torch.ones(2, 8)).square().mean().backward()
    ...     optimizer.step()
    >>> pruner.sparsity, int((model.weight == 0).sum()), len(pruner.rounds)
    (0.5, 4, 3)
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe | Mapping[str, Any] | str | Path,
        optimizer: object = None,
        *,
        steps: int | None = None,
        steps_per_epoch: int | None = None,
        evaluate: Metric | None = None,
        calibration: Iterable[Any] | None = None,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        example: Any = None,
        copies: Iterable[Copy] = (),
        teacher: nn.Module | str | Path | None = None,
        metric: str = "metric",
    ) -> None:
        given_model(model, "Pruner", values=True, code=True)
        given_hooks(evaluate=evaluate, loss=loss)
        self._engine = PruningEngine(
            model, recipe, calibration=given_batches(calibration, "calibration"), loss=loss,
            example=given_example(model, example),
        )  # fmt: skip
        self._engine.after_step = self._after_step
        self._evaluate, self._metric = evaluate, metric
        self._steps: int | None = None
        self._asked: tuple[int | None, int | None] = (None, None)
        self._as_given = self.recipe
        self._digest = self.recipe.digest()
        self._rounds: LoopRounds | None = None
        self._followers: Followers | None = None
        self._taught_by = given_teacher(teacher, model, self.recipe)
        self._copies = given_copies(copies)
        self._finished = False
        if optimizer is not None:
            self.join(optimizer, steps=steps, steps_per_epoch=steps_per_epoch)

    def join(
        self,
        optimizer: object,
        *,
        steps: int | None = None,
        steps_per_epoch: int | None = None,
        saved: Mapping[str, Any] | None = None,
        copies: Iterable[Copy] = (),
    ) -> None:
        """Join a loop, at its beginning or where another training was saved.

        Args:
            optimizer: as in the constructor, like ``steps`` and ``steps_per_epoch``.
            steps: see there.
            steps_per_epoch: see there.
            saved: what :meth:`state_dict` gave, where model and optimizer are loaded already.
            copies: of the model, beside those of the constructor.
        """
        engine = self._engine
        for name, number in (("steps", steps), ("steps_per_epoch", steps_per_epoch)):
            if number is not None:
                given_number(number, name, least=-math.inf, whole=True)
        problem = own_loop_conflict(engine.recipe, judged=self._evaluate is not None)
        if problem is not None:
            raise InputError(problem)
        self._asked = steps, steps_per_epoch
        engine.recipe, self._steps = in_steps(engine.recipe, steps, steps_per_epoch)
        if engine.recipe.compact == "every_round":
            stay_in_place(engine)
        self._copies += [c for c in copies if not any(c is own for own in self._copies)]
        engine.attach(optimizer, self._copies)
        self._followers = followers_of(engine)
        if self._in_rounds:
            self._rounds = LoopRounds(
                engine, self._evaluate, steps_per_epoch, self._metric, self._taught_by
            )
        if saved is not None:
            self.load_state_dict(saved)
            return
        apply(engine.model, engine.masks)
        if self._rounds is not None:
            self._rounds.begin()
        else:
            assert self._steps is not None
            engine.begin(self._steps, steps_per_epoch)

    @property
    def _in_rounds(self) -> bool:
        """Whether there is more to do than the cuts of a gradual schedule."""
        recipe = self.recipe
        trains = lengths_of(recipe)[0] > 0
        watched = self._evaluate is not None or recipe.limit is not None
        return recipe.in_rounds or trains or watched or recipe.teacher is not None

    def _teaches(self, model: nn.Module, batch: Any, loss: Loss | None) -> Tensor:
        """What :func:`prunus.distill` gives for a pruner."""
        if self._rounds is None or self.recipe.teacher is None:
            raise InputError("distill: the recipe of this pruner names no teacher: teacher: dense")
        return self._rounds.teaches(model, batch, loss)

    def _lessons(self) -> Lessons | None:
        """The lessons of the phase at work, for a loop whose model gives its own loss."""
        return None if self._rounds is None else self._rounds.learned()

    def _after_step(self) -> None:
        if self._followers is not None:
            self._followers.after_step(self._engine.model)
        if self._rounds is not None:
            self._rounds.after_step()

    @property
    def model(self) -> nn.Module:
        """The model as it stands."""
        return self._engine.model

    @property
    def recipe(self) -> Recipe:
        """The recipe; once the loop is joined, with all lengths in optimizer steps."""
        return self._engine.recipe

    @property
    def masks(self) -> Masks:
        """Parameter name to bool, True = kept."""
        return self._engine.masks

    @property
    def kept(self) -> Kept:
        """What is left of the model as it was given, as in :attr:`Result.kept`."""
        return original_kept(self._engine.shrinks)

    @property
    def sparsity(self) -> float:
        """Removed ÷ all weights in scope; of coupled units ÷ those of which a unit can go."""
        return self._engine.sparsity

    @property
    def achieved(self) -> float:
        """The part of what the target counts that is gone.

        That is the sparsity, or of a bound such as ``max_macs`` what the dense model has more than
        the compact one.
        """
        return self._engine.achieved

    @property
    def step(self) -> int:
        """Optimizer steps of the phase at work; of a gradual recipe all of them."""
        return self._engine.gradual.step

    @property
    def steps(self) -> int | None:
        """Optimizer steps that the recipe asks for.

        ``None`` where the guard decides; where it rejects rounds, more are taken.
        """
        return self._steps

    @property
    def rounds(self) -> tuple[Round, ...]:
        """Every round so far, rejected ones too; of a gradual recipe only where it is judged."""
        return () if self._rounds is None else tuple(self._rounds.at.rounds)

    @property
    def done(self) -> bool:
        """Whether the recipe asks for no more steps; masks are held for as long as you train."""
        if self._rounds is not None:
            return self._rounds.at.phase == "end"
        return self._steps is not None and self.step >= self._steps

    @property
    def reason(self) -> str:
        """Why pruning ended, what was requested and achieved; before that how far it is."""
        if self._rounds is not None and self.done:
            return self._rounds.at.reason
        if self.done:
            return ended(self._engine, "the schedule is finished")
        place = "" if self._steps is None else f" after {self.step} of {self._steps} steps"
        begun = "the loop ended" if self._finished else "not finished"
        return ended(self._engine, f"{begun}{place}")

    def finish(self) -> None:
        """End pruning with the training: judge a round at work, take the hooks off.

        Warns of removed weights that are not zero in the model (they are, afterwards), and in
        copies that follow it and were not named; and of a loop that ended before the recipe, where
        the model has less than was requested, or a guard might have allowed more.
        """
        loop = self._rounds
        taken = self.step if loop is None else loop.at.step + loop.taken
        early = not self._finished and not self.done and taken < (self._steps or math.inf)
        self._finished = True
        hold(self._engine)
        if self._rounds is not None:
            self._rounds.finish()
            hold(self._engine)
        if self._followers is not None:
            finish(self._engine, self._followers)
        self._rest()
        if early and (self.recipe.until_guard or is_short(self._engine)):
            warnings.warn(self.reason, stacklevel=2)

    def _rest(self) -> None:
        """Take the hooks off."""
        self._finished, self._followers = True, None
        self._engine.detach()

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from, for your own checkpoints: plain values and tensors.

        Removed weights that are not zero are named in a warning, and are zero afterwards.
        """
        engine = self._engine
        if engine.enforcer.installed:
            hold(engine)
        return {
            **engine.state_dict(),
            "recipe": self._digest,
            "lengths": None if engine.optimizer is None else lengths_of(engine.recipe),
            "steps": self._steps,
            "given": dict(engine.initial_masks),
            "began_at": engine.start,
            "rounds": None if self._rounds is None else self._rounds.state(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Return to what :meth:`state_dict` gave.

        A model that had become smaller gets its shapes here: load its weights and the optimizer
        afterwards.

        Raises:
            InputError: if it is of another recipe.
        """
        engine = self._engine
        self._refuse_other(saved)
        saved = renamed(saved, engine.model)
        if not begins(engine.shrinks, saved["shrinks"]):
            engine.follow([])
        # The model at hand may be a pruned one already, from a checkpoint.
        engine.load_state_dict(saved, initial_masks=saved["given"])
        self._steps, engine.start = saved["steps"], saved["began_at"]
        if saved["lengths"] is not None:
            engine.recipe = with_lengths(engine.recipe, saved["lengths"])
        if self._rounds is not None:
            self._rounds.load(saved["rounds"])

    def take_shapes(self, saved: Mapping[str, Any]) -> None:
        """Give the model the shapes that it was saved with.

        Raises:
            InputError: if the state is of another recipe.
        """
        self._refuse_other(saved)
        self._engine.follow(renamed(saved, self._engine.model)["shrinks"])

    def _refuse_other(self, saved: Mapping[str, Any]) -> None:
        lacking = _SAVED - (set(saved) if isinstance(saved, Mapping) else set())
        if lacking:
            raise InputError(
                f"this is no state of a Pruner ({kind_of(saved)} without {min(lacking)}): give "
                "what pruner.state_dict() gave"
            )
        if saved["recipe"] != self._digest:
            raise InputError(
                "this state was saved by a pruner with another recipe: use that one, or start over"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Pruner:
        """A pruner of the copies of model and optimizer, which goes on from here."""
        engine = self._engine
        if engine.shrinks:
            raise InputError(
                "this Pruner has made its model smaller, so it is not copied: build another one "
                "of the dense model and give it state_dict() of this one, as when resuming"
            )
        model, evaluate, loss, copies = copy.deepcopy(
            (engine.model, self._evaluate, engine.selector.loss, self._copies), memo
        )
        if "_modules" not in vars(model):  # it is being copied just now
            raise InputError(
                "this model is copied while it holds its own Pruner as an attribute: keep the "
                "pruner outside of the module, and copy.deepcopy((model, optimizer, pruner))"
            )
        made = type(self)(
            model, self._as_given, evaluate=evaluate, loss=loss, copies=copies,
            calibration=engine.selector.calibration, example=engine.example,
            teacher=self._taught_by, metric=self._metric,
        )  # fmt: skip
        memo[id(self)] = made
        if engine.optimizer is not None:
            (steps, per_epoch), saved = self._asked, copy.deepcopy(self.state_dict())
            optimizers = copy.deepcopy(list(each_of(engine.optimizer)), memo)
            made.join(optimizers, steps=steps, steps_per_epoch=per_epoch, saved=saved)
        if self._finished:
            made._rest()
        return made

    def __repr__(self) -> str:
        engine = self._engine
        return f"<Pruner: {counted(engine.counts_in)} {engine.achieved:.4g}: {self.reason}>"

    def __getattr__(self, name: str) -> Any:
        """Names that this object once had say where to look."""
        if name in ELSEWHERE:
            raise AttributeError(f"Pruner has no '{name}': {ELSEWHERE[name]}")
        raise AttributeError(f"'Pruner' object has no attribute '{name}'")
