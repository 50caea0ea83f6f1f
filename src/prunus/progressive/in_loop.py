"""Rounds inside a training loop of someone else's: they go on at its optimizer steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from prunus._common.metrics import Metric
from prunus.errors import InputError, RunError
from prunus.progressive.distill import Lessons, own_teacher
from prunus.progressive.ending import ended
from prunus.progressive.engine import PruningEngine
from prunus.progressive.guard import refuse_unclear
from prunus.progressive.journal import Journal
from prunus.progressive.judge import judge
from prunus.progressive.loop import phases
from prunus.progressive.phase import Budget, Loss
from prunus.progressive.scoring import given_score
from prunus.progressive.state import RunContext, RunState, blob, put_back
from prunus.progressive.train import length_of, names_of, rewind_step, teaching
from prunus.progressive.verdict import asks_for_items
from prunus.pruning.masks import apply
from prunus.pruning.optimizers import AnyOptimizer
from prunus.recipe import duration
from prunus.recipe.schema import Recipe


def in_steps(recipe: Recipe, steps: int | None, per_epoch: int | None) -> tuple[Recipe, int | None]:
    """The recipe with all lengths in optimizer steps, and their sum as far as it is known.

    Args:
        recipe: whose epochs are counted.
        steps: of the loop. Gradual pruning has all that ``dense`` leaves; rounds without a
            ``retrain`` share them out evenly.
        per_epoch: steps in an epoch.

    Raises:
        InputError: if a length is missing, or the loop is too short.
    """

    def count(length: str | float | int | None) -> int:
        parsed = duration.parse(length or 0)
        return parsed.steps(per_epoch=per_epoch) if parsed.value else 0

    dense, last = count(recipe.dense.length), count(recipe.last_retrain)
    rounds = recipe.rounds if recipe.in_rounds else 1
    retrain = count(recipe.retrain) if recipe.in_rounds or steps is None else 0
    if steps is not None and not retrain:
        if rounds is None:
            raise InputError(
                "retrain: with target: guard, the number of rounds is not known in advance: set "
                "the length of each, for example retrain: 500it"
            )
        first = rounds if not last or rounds == 1 else rounds - 1
        left = steps - dense - (last if rounds > 1 else 0)
        retrain = left // first
        last = last or left - retrain * (rounds - 1)
    if retrain < 1:
        raise InputError(
            f"steps: {'unknown' if steps is None else f'{steps} are too few'} (dense has {dense}):"
            " pass the optimizer steps to prune over, for example steps=1000, or set retrain in "
            "the recipe"
        )
    total = None if rounds is None else dense + retrain * (rounds - 1) + (last or retrain)
    if steps is not None and total is not None and total > steps:
        raise InputError(
            f"steps: the recipe needs {total} (dense {dense}, then {rounds} rounds of {retrain}"
            f"{f', the last of {last}' if last else ''}), but the loop has {steps}: shorten retrain"
        )
    lengths = (dense, retrain, last if recipe.in_rounds else 0)
    return with_lengths(recipe, lengths), total


def with_lengths(recipe: Recipe, lengths: Sequence[int]) -> Recipe:
    """The recipe with these lengths of dense, retrain and last_retrain (0: none) in steps."""
    dense, retrain, last = lengths
    values = {
        "dense": recipe.dense.model_copy(update={"length": f"{dense}it"}),
        "retrain": f"{retrain}it",
        "last_retrain": f"{last}it" if last else None,
    }
    return recipe.model_copy(update=values)


def lengths_of(recipe: Recipe) -> tuple[int, ...]:
    """What :func:`with_lengths` set."""
    every = (recipe.dense.length, recipe.retrain, recipe.last_retrain or "0it")
    return tuple(duration.parse(length).steps() for length in every)


class LoopRounds:
    """Prune, restore, judge and roll back between two optimizer steps of a loop.

    It runs the same phases as :func:`prunus.prune`; what lies between two of them is trained by
    the loop, one optimizer all through.
    """

    def __init__(
        self,
        engine: PruningEngine,
        evaluate: Metric | None,
        per_epoch: int | None,
        metric_name: str = "metric",
        taught_by: nn.Module | None = None,
    ) -> None:
        assert engine.optimizer is not None
        recipe = engine.recipe
        self.optimizer: AnyOptimizer = engine.optimizer
        self.job = RunContext(
            engine=engine,
            journal=Journal(None),
            train=_elsewhere,
            evaluate=evaluate,
            evaluate_train=None,
            on_event=lambda event: None,
            should_stop=lambda: False,
            keeps=recipe.guard is not None or recipe.teacher is not None,
            teacher=own_teacher(recipe, engine.model, taught_by),
            taught_by=taught_by,
            metric_name=metric_name,
        )
        self.limit = Budget(recipe.limit)
        self.at = RunState(per_epoch=per_epoch)
        self.taken, self.length = 0, 0
        self.lessons: Lessons | None = None
        self.taught = False  # whether a batch of this phase learned from the teacher
        self.rewinds_at = rewind_step(recipe, lengths_of(recipe)[0], None)
        self._phases = phases(self.job, self.at, self.limit)

    def begin(self) -> None:
        """Go to where training is due: through round 0 and the first cut, if it needs none."""
        job, guard = self.job, self.job.engine.recipe.guard
        refuse_unclear(guard, job.metric_name, None)
        trains = bool(lengths_of(job.engine.recipe)[0])
        unclear = guard is not None and not guard.says_better and trains
        if unclear or asks_for_items(guard):
            given = given_score(guard, job.evaluate, job.model)
            refuse_unclear(guard, job.metric_name, given)
            self.job = job = dataclasses.replace(job, untrained=given if trains else None)
            self._phases = phases(job, self.at, self.limit)
        recalls = job.engine.recipe.trait("restore", "RECALLS")
        if self.rewinds_at == 0 or recalls == "start":
            name = "rewind" if self.rewinds_at == 0 else "start"
            self.at.blobs[name] = self.job.journal.store(name, blob(self.job.engine.state()))
        self._go_on()

    def after_step(self) -> None:
        """Count an optimizer step; at the end of a phase do all that lies before the next."""
        at, engine = self.at, self.job.engine
        if at.phase == "end":
            return
        self.taken += 1
        if self.lessons is not None and not self.taught:
            raise RunError(NEVER_TAUGHT)
        if at.phase == "dense" and self.taken == self.rewinds_at:
            state = engine.state(self.optimizer.state_dict()["state"])
            at.blobs["rewind"] = self.job.journal.store("rewind", blob(state))
        if self.taken >= self.length or self.limit.reached(at.step + self.taken, at.per_epoch):
            self._go_on()

    def _go_on(self) -> None:
        engine = self.job.engine
        while True:
            with self._between_steps():
                enforced = next(self._phases, None)
            if enforced is None:
                self._end()
                return
            engine.enforce(enforced)
            self._let_teach()
            self.length = length_of(self.job, self.at).steps()
            retrains = self.at.phase in ("train", "free")
            dense, gradual = self.at.phase == "dense", retrains and not engine.recipe.in_rounds
            engine.begin(self.length, self.at.per_epoch, gradual=gradual, dense=dense)
            if self.length:
                return

    def _let_teach(self) -> None:
        """From the first cut on the dense model teaches."""
        self.lessons = None if self.at.phase == "dense" else teaching(self.job, self.at)
        self.taught = False

    def learned(self) -> Lessons | None:
        """The lessons of this phase, which somebody learns from."""
        self.taught = self.taught or self.lessons is not None
        return self.lessons

    def teaches(self, model: nn.Module, batch: Any, loss: Loss | None) -> Tensor:
        """The loss of a batch, for :func:`prunus.distill`."""
        if (lessons := self.learned()) is not None:
            return lessons.loss(model, batch, loss)
        if loss is None:
            raise InputError(
                "distill: before the first cut nobody teaches, so the loss is all: give loss"
            )
        return loss(model, batch)

    @contextmanager
    def _between_steps(self) -> Iterator[None]:
        """The run's state has what was trained; the optimizer gets what a restore left of it."""
        at = self.at
        at.step, self.taken = at.step + self.taken, 0
        trained = self.optimizer.state_dict()["state"]
        at.optimizer, at.names = trained, names_of(self.job.engine.model, self.optimizer)
        yield
        if at.optimizer is not trained:
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": at.optimizer, "param_groups": groups})
        at.optimizer = {}

    def finish(self) -> None:
        """The loop ends here: judge a round at work, and leave the last one that was accepted."""
        at = self.at
        if at.phase == "end":
            return
        why = f"the training ended in round {at.index}, at optimizer step {at.step + self.taken}"
        with self._between_steps():
            if at.phase in ("train", "free"):
                judge(self.job, at, self.limit)
            elif at.phase == "revived" and at.accepted is not None:
                put_back(self.job, at, self.job.journal.fetch(at.accepted))
        at.phase = "end"
        at.reason = ended(self.job.engine, why, at.rounds)
        self._end()

    def _end(self) -> None:
        engine = self.job.engine
        engine.enforce(True)
        apply(engine.model, engine.masks)

    def state(self) -> dict[str, Any]:
        """Plain values and tensors to go on from, without model and optimizer."""
        kept = dict(self.at.blobs)
        if self.at.accepted is not None:
            kept["accepted"] = self.at.accepted
        names = (
            "phase",
            "progress",
            "asked",
            "step",
            "per_epoch",
            "round_began",
            "why",
            "rounds",
            "most",
        )
        plain = self.at.to_dict()
        return {
            **{name: plain[name] for name in names},
            "seconds": self.limit.seconds,
            "taken": self.taken,
            "length": self.length,
            "kept": {name: self.job.journal.fetch(entry) for name, entry in kept.items()},
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Return to what :meth:`state` gave; model, masks and optimizer are there already."""
        values = dict(saved)
        kept = {n: self.job.journal.store(n, tree) for n, tree in values.pop("kept").items()}
        self.taken, self.length = values.pop("taken"), values.pop("length")
        self.at = RunState.from_dict(values)
        self.job.engine.most = dict(self.at.most)
        self.at.accepted, self.at.blobs = kept.pop("accepted", None), kept
        self.limit = Budget(self.job.engine.recipe.limit, self.at.seconds)
        self._phases = phases(self.job, self.at, self.limit)
        next(self._phases, None)  # to where the loop trains
        self._let_teach()


NEVER_TAUGHT = (
    "the recipe names a teacher, and an optimizer step was taken without it: let the loop's loss "
    "be prunus.distill(model, pruner, batch, loss=loss)"
)


def _elsewhere(model: nn.Module) -> None:
    raise AssertionError("the loop trains")
