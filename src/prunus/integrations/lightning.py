"""Pruning inside a Lightning Trainer."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.metrics import Metric
from prunus.errors import InputError
from prunus.integrations.callback import ended_by_guard, optional, order
from prunus.progressive.pruner import Pruner
from prunus.recipe.schema import Recipe


def _home() -> str:
    """The package whose Trainer is in use: Lightning goes by two names."""
    old = "pytorch_lightning"
    return old if old in sys.modules and "lightning.pytorch" not in sys.modules else (
        "lightning.pytorch"
    )  # fmt: skip


_Callback: Any = optional(_home(), "Callback", ["lightning"])


class PruneCallback(_Callback):
    """Prunes a ``LightningModule`` while it trains.

    ``Trainer(..., callbacks=[PruneCallback(recipe)])``. The recipe runs at the optimizer's steps,
    as with :class:`prunus.Pruner`; one without ``retrain`` is spread over the whole training.
    ``sparsity`` is logged, checkpoints hold the pruner's state, and ``trainer.fit(ckpt_path=…)``
    goes on from it, smaller models too. Where a guard ends pruning, it ends the training.

    Args:
        recipe: a :class:`Recipe`, the name of one, a file or a mapping.
        evaluate: ``evaluate(module) -> float`` for the rounds; a guard needs it.
        calibration: batches for criteria that need gradients.
        loss: ``(module, batch) -> scalar`` for the same.
        example: an input (a tuple, a mapping of keyword arguments) for structures found by
            analysis; the module needs a ``forward`` for these.

    Attributes:
        pruner: the :class:`prunus.Pruner`, from the beginning of the training on.

    Raises:
        InputError: for what cannot be pruned in a Trainer, with the reason.
    """

    def __init__(
        self,
        recipe: Recipe | Mapping[str, Any] | str | Path,
        *,
        evaluate: Metric | None = None,
        calibration: Iterable[Any] | None = None,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        example: Any = None,
    ) -> None:
        self._order = order(recipe, evaluate, calibration, loss, example)
        self.pruner: Pruner | None = None
        self._saved: Mapping[str, Any] | None = None
        self._watch: Any = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Be there when the weights of a smaller model are loaded."""
        self.pruner = None
        if stage != "fit" or not self._order.shrinks:
            return

        def make_smaller(module: nn.Module, *_: Any) -> None:
            if trainer.ckpt_path and self.pruner is None:
                self.pruner = self._order.pruner(module, _read(trainer.ckpt_path, self.state_key))

        self._watch = pl_module.register_load_state_dict_pre_hook(make_smaller)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds until the training starts."""
        self._saved = state_dict

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints: plain values and tensors."""
        return {} if self.pruner is None else self.pruner.state_dict()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Build the pruner, or go on with a checkpoint's."""
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
        if len(trainer.optimizers) != 1:
            raise InputError(
                f"the module has {len(trainer.optimizers)} optimizers, and which of them trains "
                "the pruned weights is not known: use prunus.Pruner with that one"
            )
        saved, self._saved = self._saved or None, None
        if self.pruner is None:
            self.pruner = self._order.pruner(pl_module, saved)
        batches, steps = trainer.num_training_batches, trainer.estimated_stepping_batches
        known = math.isfinite(steps) and steps > 0
        self._order.join(
            self.pruner,
            trainer.optimizers[0],
            steps=int(steps) - (0 if saved else trainer.global_step) if known else None,
            per_epoch=math.ceil(batches / trainer.accumulate_grad_batches)
            if math.isfinite(batches)
            else None,
            saved=saved,
        )

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Log the sparsity; stop where the guard did."""
        if self.pruner is None:
            return
        if not trainer.barebones:
            self.log("sparsity", self.pruner.sparsity)
        if ended_by_guard(self.pruner):
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Judge a round at work; masks are no longer enforced, removed weights stay zero."""
        if self.pruner is not None:
            self.pruner.finish()


def _read(path: str | Path, key: str) -> Mapping[str, Any] | None:
    """A callback's state in a checkpoint, read without running code from it."""
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"'{path}' cannot be read without running code from it, and the model must become as "
            f"small as it is there: save plain hyperparameters only ({error})"
        ) from None
    found: Mapping[str, Any] | None = tree.get("callbacks", {}).get(key)
    return found or None
