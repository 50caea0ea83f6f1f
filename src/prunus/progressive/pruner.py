"""Pruning inside a training loop of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.metrics import Metric
from prunus.errors import InputError
from prunus.progressive.engine import PruningEngine
from prunus.progressive.in_loop import LoopRounds, in_steps, lengths_of, with_lengths
from prunus.progressive.result import Round
from prunus.progressive.shrinks import begins, original_kept
from prunus.pruning.masks import apply
from prunus.recipe.rules import own_loop_conflict
from prunus.recipe.schema import Recipe
from prunus.types import Kept, Masks


class Pruner:
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
        self._engine = PruningEngine(
            model, recipe, calibration=calibration, loss=loss, example=example
        )
        self._engine.after_step = self._after_step
        self._evaluate = evaluate
        self._steps: int | None = None
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
        engine = self._engine
        problem = own_loop_conflict(engine.recipe, judged=self._evaluate is not None)
        if problem is not None:
            raise InputError(problem)
        engine.recipe, self._steps = in_steps(engine.recipe, steps, steps_per_epoch)
        if engine.recipe.compact == "every_round":
            _refuse_several_processes()
            engine.stay_in_place()
        engine.attach(optimizer)
        if self._in_rounds:
            self._rounds = LoopRounds(engine, self._evaluate, steps_per_epoch)
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
        return recipe.in_rounds or trains or self._evaluate is not None or recipe.limit is not None

    def _after_step(self) -> None:
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
        """Why pruning ended; empty while it goes on."""
        if self._rounds is not None:
            return self._rounds.at.reason
        return "the schedule is finished" if self.done else ""

    def finish(self) -> None:
        """End pruning with the training: judge a round at work, take the hooks off."""
        if self._rounds is not None:
            self._rounds.finish()
        self._engine.detach()

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from, for your own checkpoints: plain values and tensors."""
        engine = self._engine
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
        self._engine.follow(saved["shrinks"])

    def _refuse_other(self, saved: Mapping[str, Any]) -> None:
        if saved["recipe"] != self._digest:
            raise InputError(
                "this state was saved by a pruner with another recipe: use that one, or start over"
            )

    def __getattr__(self, name: str) -> Any:
        """Names that this object once had say where to look."""
        if name in _ELSEWHERE:
            raise AttributeError(f"Pruner has no '{name}': {_ELSEWHERE[name]}")
        raise AttributeError(f"'Pruner' object has no attribute '{name}'")


_INTERNAL = ("asks", "hold", "see", "given", "shrinks", "dropped", "running", "ideas", "target",
             "start", "in_place", "collects_running")  # fmt: skip
_ELSEWHERE = {
    name: where
    for where, names in {
        "it is 'achieved' now": ("reached",),
        "it is 'reason' now": ("why",),
        "a loop is joined by Pruner(…, optimizer) or join()": ("attach", "begin"),
        "finish() removes the hooks": ("detach",),
        "rounds[-1] has it, once a round was judged": ("densities", "l1", "counts_in"),
        "prunus.units(model, example) shows what can go": ("layers", "groups", "view", "space"),
        "prunus.prune(model, recipe) cuts at once": ("cut", "choose", "counts"),
        "state_dict() and load_state_dict() hold all of it": ("state", "load"),
        "load_state_dict() refuses the state of another recipe": ("refuse_other",),
        "it is the argument that you gave": (
            "optimizer",
            "evaluate",
            "calibration",
            "loss",
            "example",
        ),
        "it is internal now": _INTERNAL,
    }.items()
    for name in names
}
"""Names that a pruner no longer shows, and what to use instead."""


def _refuse_several_processes() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise InputError(
            "compact: every_round: the wrapper of a model in several processes keeps buckets of "
            "the old sizes: leave compact out, and call prunus.compact after training"
        )
