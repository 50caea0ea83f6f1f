"""What the callbacks of other people's training loops share."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunus._common.metrics import Metric
from prunus._common.packages import pip_line
from prunus.errors import InputError, RunError
from prunus.progressive.in_loop import in_steps
from prunus.progressive.pruner import Pruner
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
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        what = "is not installed" if absent else f"fails: {type(error).__name__}: {error}"
        raise InputError(f"{module} is needed here and {what}: {pip_line(packages)}") from error


@dataclass(frozen=True)
class CallbackConfig:
    """How to prune whatever model a loop turns out to train."""

    recipe: Recipe
    evaluate: Metric | None
    calibration: Iterable[Any] | None
    loss: Callable[[nn.Module, Any], Tensor] | None
    example: Any

    @property
    def shrinks(self) -> bool:
        """Whether the model becomes smaller on the way."""
        return self.recipe.compact == "every_round"

    def pruner(self, model: nn.Module, saved: Mapping[str, Any] | None = None) -> Pruner:
        """Of a model, which is made as small as it was when it was saved."""
        made = Pruner(
            model,
            self.recipe,
            evaluate=self.evaluate,
            calibration=self.calibration,
            loss=self.loss,
            example=self.example,
        )
        if saved is not None:
            made.take_shapes(saved)
        return made

    def join(
        self,
        pruner: Pruner,
        optimizer: object,
        *,
        steps: int | None,
        per_epoch: int | None,
        saved: Mapping[str, Any] | None,
    ) -> None:
        """Let a pruner join a loop.

        Args:
            pruner: made by :meth:`pruner`.
            optimizer: of the loop.
            steps: that the loop will take; they are the recipe's where it has no ``retrain``.
            per_epoch: steps in an epoch, if it is known.
            saved: the pruner's state; model and optimizer are as they were with it.

        Raises:
            InputError: if the loop ends before the recipe, or state and weights do not belong
                together.
        """
        own = duration.parse(self.recipe.retrain).value > 0
        asked = None if own else steps
        total = in_steps(self.recipe, asked, per_epoch)[1]
        if steps is not None and total is not None and total > steps and saved is None:
            raise InputError(
                f"steps: the recipe asks for {total} optimizer steps, and the training takes "
                f"{steps}: train longer, or shorten dense and retrain"
            )
        pruner.join(optimizer, steps=asked, steps_per_epoch=per_epoch, saved=saved)
        if saved is not None and saved["enforced"]:
            try:
                check(pruner.model, pruner.masks)
            except RunError as error:
                raise InputError(
                    f"the weights do not belong to the pruner's state that was found: {error}"
                ) from None


def order(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    evaluate: Metric | None,
    calibration: Iterable[Any] | None,
    loss: Callable[[nn.Module, Any], Tensor] | None,
    example: Any,
) -> CallbackConfig:
    """An order, checked as far as it can be without a model.

    Raises:
        InputError: for a recipe that cannot run in a loop of someone else's.
    """
    loaded = Recipe.load(recipe)
    problem = own_loop_conflict(loaded, judged=evaluate is not None)
    if problem is not None:
        raise InputError(problem)
    return CallbackConfig(loaded, evaluate, calibration, loss, example)


def ended_by_guard(pruner: Pruner) -> bool:
    """Whether more training would only lead away from what the guard accepted."""
    return pruner.done and pruner.recipe.guard is not None
