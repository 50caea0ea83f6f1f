"""What the callbacks of other people's training loops share."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunus._common.given import given_batches, given_copies, given_hooks
from prunus._common.metrics import Metric
from prunus._common.packages import pip_line
from prunus._common.steps import through_training_step
from prunus.compaction.reopening import reopening
from prunus.errors import InputError, RunError
from prunus.progressive.in_loop import in_steps
from prunus.progressive.pruner import Pruner
from prunus.pruning.copies import Copy
from prunus.pruning.masks import check
from prunus.recipe import duration
from prunus.recipe.rules import own_loop_conflict
from prunus.recipe.schema import Recipe


def optional(module: str, name: str, packages: Sequence[str]) -> Any:
    """A name from a package that may be missing or broken.

    Raises:
        InputError: saying how to install it.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a broken package raises anything when imported
        absent = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        what = "is not installed" if absent else f"fails: {type(error).__name__}: {error}"
        raise InputError(f"{module} is needed here and {what}: {pip_line(packages)}") from error


class LoopCallback:
    """What the callbacks for other people's loops have in common.

    Args:
        recipe: a :class:`Recipe`, the name of one, a file or a mapping.
        evaluate: ``evaluate(model) -> float`` for the rounds; a guard needs it.
        calibration: batches for criteria that need gradients.
        loss: ``(model, batch) -> scalar`` for the same.
        example: an input (a tuple, a mapping of keyword arguments) for structures found by
            analysis; the model needs a ``forward`` for these.
        copies: of the model, to keep masked as well, as in :class:`prunus.Pruner`: modules, or
            mappings of parameter names to tensors, such as an EMA that another callback keeps.
        teacher: where the recipe names one, another than the dense model, as in
            :class:`prunus.Pruner`.
        metric: what ``evaluate`` returns is called.

    Attributes:
        pruner: the :class:`prunus.Pruner`, from the beginning of the training on.
        notes: after it, of a model that became smaller, how it is saved and opened again.

    Raises:
        InputError: for what cannot be pruned in a loop of someone else's, with the reason.
    """

    def __init__(
        self,
        recipe: Recipe | Mapping[str, Any] | str | Path,
        *,
        evaluate: Metric | None = None,
        calibration: Iterable[Any] | None = None,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        example: Any = None,
        copies: Iterable[Copy] = (),
        teacher: nn.Module | str | Path | None = None,
        metric: str = "metric",
    ) -> None:
        self._recipe = Recipe.load(recipe)
        problem = own_loop_conflict(self._recipe, judged=evaluate is not None)
        if problem is not None:
            raise InputError(problem)
        given_hooks(evaluate=evaluate, loss=loss)
        calibration = given_batches(calibration, "calibration")
        self._given = {
            "evaluate": evaluate, "calibration": calibration, "loss": loss, "example": example,
            "copies": given_copies(copies), "teacher": teacher,
            "metric": metric,
        }  # fmt: skip
        self.pruner: Pruner | None = None
        self.notes: tuple[str, ...] = ()
        self._steps = ExitStack()
        self._saved: Any = None
        self._watch: Any = None

    def __repr__(self) -> str:
        """The pruner, and what to know of the model that it leaves."""
        notes = "".join(f"\nnote: {text}" for text in self.notes)
        return f"<{type(self).__name__}: {self.pruner or 'its training has not begun'}{notes}>"

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle gets: there is none of a training at work."""
        if self.pruner is not None and not self.pruner._finished:
            raise InputError(
                "this callback is pruning a model: copy or pickle it before the training begins, "
                "and save a training by the Trainer's checkpoints"
            )
        return dict(vars(self))

    @property
    def _shrinks(self) -> bool:
        """Whether the model becomes smaller on the way."""
        return self._recipe.compact == "every_round"

    def _pruner_of(self, model: nn.Module, saved: Mapping[str, Any] | None = None) -> Pruner:
        """Of a model, which is made as small as it was when it was saved."""
        self._steps.close()
        example = self._steps.enter_context(through_training_step(model, self._given["example"]))
        made = Pruner(model, self._recipe, **{**self._given, "example": example})
        if saved is not None:
            made.take_shapes(saved)
        return made

    def _join(
        self,
        optimizer: object,
        *,
        steps: int | None,
        per_epoch: int | None,
        saved: Mapping[str, Any] | None,
        copies: Iterable[Copy] = (),
    ) -> None:
        """Let the pruner join a loop.

        Args:
            optimizer: of the loop, or a list of them.
            steps: that the loop will take; they are the recipe's where it has no ``retrain``.
            per_epoch: steps in an epoch, if it is known.
            saved: the pruner's state; model and optimizer are as they were with it.
            copies: of the model that the loop keeps.

        Raises:
            InputError: if the loop ends before the recipe, or state and weights do not belong
                together.
        """
        assert self.pruner is not None
        own = duration.parse(self._recipe.retrain).value > 0
        shared = None if own else steps
        total = in_steps(self._recipe, shared, per_epoch)[1]
        if steps is not None and total is not None and total > steps and saved is None:
            raise InputError(
                f"steps: the recipe needs {total} optimizer steps, but the training takes "
                f"{steps}: train longer, or shorten dense and retrain"
            )
        self.pruner.join(
            optimizer, steps=shared, steps_per_epoch=per_epoch, saved=saved, copies=copies
        )
        if saved is not None and saved["enforced"]:
            try:
                check(self.pruner.model, self.pruner.masks)
            except RunError as error:
                raise InputError(
                    f"the weights do not match the pruner's state that was found: {error}"
                ) from None

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    @property
    def _ended_by_guard(self) -> bool:
        """Whether more training would only lead away from what the guard accepted."""
        pruner = self.pruner
        return pruner is not None and pruner.done and pruner.recipe.guard is not None

    def _finish(self) -> None:
        """Judge a round at work; masks are no longer enforced, removed weights stay zero."""
        if self.pruner is not None:
            self.pruner.finish()
            if self.pruner.kept:
                self.notes = reopening(self.pruner.model, self._given["example"])
        self._steps.close()
