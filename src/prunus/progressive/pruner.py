"""Pruning inside a training loop of one's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.metrics import Metric
from prunus.compaction.cut import cut_of
from prunus.compaction.search import find_plan
from prunus.compaction.shrink import follow, refuse_replacing
from prunus.errors import InputError
from prunus.progressive import engine as pruner
from prunus.progressive.in_loop import LoopRounds, in_steps, lengths_of, with_lengths
from prunus.progressive.result import Round
from prunus.pruning.masks import apply
from prunus.recipe.fields import Spec
from prunus.recipe.resolve import bind
from prunus.recipe.rules import own_loop_conflict
from prunus.recipe.schema import Recipe


class Pruner(pruner.Pruner):
    """Prunes a model inside a training loop of your own, gradually or in rounds.

    Build it after model and optimizer; nothing else in the loop changes. After every optimizer
    step it zeroes what is removed; at the steps of the recipe it removes more, and in rounds
    judges and rolls back. It uses public hooks only: no method is patched, no module wrapped,
    ``state_dict`` keys stay.

    Args:
        model: pruned in place.
        recipe: a :class:`Recipe`, the name of one, a file or a mapping.
        optimizer: that trains the model; without it nothing is done until :meth:`join`.
        steps: optimizer steps of the loop. A gradual schedule runs over all of them that
            ``dense`` leaves; by default it has the recipe's ``retrain``. Rounds share them out
            evenly where the recipe has no ``retrain``.
        steps_per_epoch: needed where the recipe counts epochs.
        evaluate: ``evaluate(model) -> float``, called at the end of every round (of a gradual
            recipe: before and after), between two optimizer steps; a guard needs it.
        calibration: batches for criteria that need gradients.
        loss: ``(model, batch) -> scalar`` for the same.
        example: an input (or a tuple of inputs), from which the order of execution is read.

    Attributes:
        masks: parameter name to bool, True = kept.
        sparsity: removed weights ÷ weights in scope, by the masks; of coupled units: ÷ weights in
            scope of which a unit can go.
        reached: the part of what the target counts that is gone: the sparsity, or of a bound
            such as ``max_macs`` what the dense model has more than the compact one.
        steps: optimizer steps that the recipe asks for; ``None`` where the guard decides, and
            more than that where it rejects rounds.

    Raises:
        InputError: for whatever cannot be pruned as asked, before anything is changed.

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
    ) -> None:
        super().__init__(model, recipe, calibration=calibration, loss=loss, example=example)
        self.evaluate = evaluate
        self.steps: int | None = None
        self._digest = self.recipe.digest()
        self._rounds: LoopRounds | None = None
        if optimizer is not None:
            self.join(optimizer, steps=steps, steps_per_epoch=steps_per_epoch)

    def join(
        self,
        optimizer: object,
        *,
        steps: int | None = None,
        steps_per_epoch: int | None = None,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        """Join a loop, at its beginning or where another training was saved.

        Args:
            optimizer: as in the constructor, like ``steps`` and ``steps_per_epoch``.
            steps: see there.
            steps_per_epoch: see there.
            saved: what :meth:`state_dict` gave, where model and optimizer are loaded already.
        """
        problem = own_loop_conflict(self.recipe, judged=self.evaluate is not None)
        if problem is not None:
            raise InputError(problem)
        self.recipe, self.steps = in_steps(self.recipe, steps, steps_per_epoch)
        if self.recipe.compact == "every_round":
            self._refuse_another_object()
        self.attach(optimizer)
        if self._in_rounds:
            self._rounds = LoopRounds(self, self.evaluate, steps_per_epoch)
        if saved is not None:
            self.load_state_dict(saved)
            return
        apply(self.model, self.masks)
        if self._rounds is not None:
            self._rounds.begin()
        else:
            assert self.steps is not None
            self.begin(self.steps, steps_per_epoch)

    @property
    def _in_rounds(self) -> bool:
        """Whether there is more to do than the cuts of a gradual schedule."""
        recipe = self.recipe
        trains = lengths_of(recipe)[0] > 0
        return recipe.in_rounds or trains or self.evaluate is not None or recipe.limit is not None

    def _refuse_another_object(self) -> None:
        """Refuse a model that cannot become smaller while others hold it.

        Raises:
            InputError: with the way out.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise InputError(
                "compact: every_round: what wraps the model in several processes keeps buckets of "
                "the old sizes: leave it out, and call prunus.compact after the training"
            )
        self.in_place = True
        if self.shrinks:
            return
        ideas = self.methods
        try:  # the widths are what counts here, so any criterion does
            magnitude = bind("criteria", Spec(name="magnitude"))
            self.methods = dataclasses.replace(ideas, criterion=magnitude)
            masks, _ = self._choose(1.0, min(self.target, 0.3))
        finally:
            self.methods = ideas
        assert self.space.analysis is not None
        cut = cut_of(self.space.analysis, masks)
        if cut.units():
            refuse_replacing(find_plan(self.model, cut, self.example))

    def _after_step(self, *_: object) -> None:
        super()._after_step()
        if self._rounds is not None:
            self._rounds.after_step()

    @property
    def rounds(self) -> tuple[Round, ...]:
        """Every round so far, rejected ones too; of a gradual recipe only where it is judged."""
        return () if self._rounds is None else tuple(self._rounds.at.rounds)

    @property
    def done(self) -> bool:
        """Whether the recipe asks for no more steps; masks are held for as long as you train."""
        if self._rounds is not None:
            return self._rounds.at.phase == "end"
        return self.steps is not None and self.step >= self.steps

    @property
    def reason(self) -> str:
        """Why pruning ended; empty while it goes on."""
        if self._rounds is not None:
            return self._rounds.at.reason
        return "the schedule is at its end" if self.done else ""

    def finish(self) -> None:
        """End pruning with the training: judge a round at work, take the hooks off."""
        if self._rounds is not None:
            self._rounds.finish()
        self.detach()

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from, for your own checkpoints: plain values and tensors."""
        rounds = None if self._rounds is None else self._rounds.state()
        return {
            **super().state_dict(),
            "recipe": self._digest,
            "lengths": lengths_of(self.recipe) if self.optimizer is not None else None,
            "steps": self.steps,
            "given": dict(self.initial_masks),
            "began_at": self.start,
            "rounds": rounds,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Return to what :meth:`state_dict` gave.

        A model that had become smaller gets its shapes here: load its weights and the optimizer
        afterwards.

        Raises:
            InputError: if it is of another recipe.
        """
        self.refuse_other(saved)
        if not _begins_with(saved["shrinks"], self):
            follow(self, [])
        super().load_state_dict(saved)
        self.steps = saved["steps"]
        # The model at hand may be a pruned one already, from a checkpoint.
        self.initial_masks, self.start = dict(saved["given"]), saved["began_at"]
        self._refresh()
        if saved["lengths"] is not None:
            self.recipe = with_lengths(self.recipe, saved["lengths"])
        if self._rounds is not None:
            self._rounds.load(saved["rounds"])

    def refuse_other(self, saved: Mapping[str, Any]) -> None:
        """Refuse the state of another recipe's pruner.

        Raises:
            InputError: if it is one.
        """
        if saved["recipe"] != self._digest:
            raise InputError(
                "this state was saved by a pruner with another recipe: give that recipe again, or "
                "start from the beginning"
            )


def _begins_with(saved: Iterable[Mapping[str, Any]], pruner: Pruner) -> bool:
    """Whether a model's shrinks are the first of those saved."""
    own = [s.plan.surgery.kept for s in pruner.shrinks]
    theirs = [s["kept"] for s in saved][: len(own)]
    return len(own) == len(theirs) and all(
        a.keys() == b.keys() and all(map(_same, a.values(), (b[k] for k in a)))
        for a, b in zip(own, theirs, strict=True)
    )


def _same(one: Iterable[Tensor | None], other: Iterable[Tensor | None]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)
