"""Pruning inside a Lightning Trainer."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.errors import InputError
from prunus.integrations.callback import LoopCallback, optional


def _home() -> str:
    """The package whose Trainer is in use: Lightning goes by two names."""
    old = "pytorch_lightning"
    return old if old in sys.modules and "lightning.pytorch" not in sys.modules else (
        "lightning.pytorch"
    )  # fmt: skip


_Callback: Any = optional(_home(), "Callback", ["lightning"])


class PruneCallback(LoopCallback, _Callback):
    """Prunes a ``LightningModule`` while it trains.

    ``Trainer(..., callbacks=[PruneCallback(recipe)])``. The recipe runs at the optimizer's steps,
    as with :class:`prunus.Pruner`; one without ``retrain`` is spread over the whole training.
    ``sparsity`` is logged, checkpoints hold the pruner's state, and ``trainer.fit(ckpt_path=…)``
    goes on from it, smaller models too. Where a guard ends pruning, it ends the training.

    Its arguments are those of :class:`~prunus.integrations.callback.LoopCallback`.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Be there when the weights of a smaller model are loaded."""
        self.pruner = None
        if stage != "fit" or not self._shrinks:
            return

        def make_smaller(module: nn.Module, *_: Any) -> None:
            if trainer.ckpt_path and self.pruner is None:
                self.pruner = self._pruner_of(module, _read(trainer.ckpt_path, self.state_key))

        self._watch = pl_module.register_load_state_dict_pre_hook(make_smaller)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds until the training starts."""
        self._saved = state_dict

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints: plain values and tensors."""
        return {} if self.pruner is None else self.pruner.state_dict()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Build the pruner, or go on with a checkpoint's."""
        self._unwatch()
        if len(trainer.optimizers) != 1:
            raise InputError(
                f"the module has {len(trainer.optimizers)} optimizers, and it is unknown which of "
                "them trains the pruned weights: use prunus.Pruner with that one"
            )
        saved, self._saved = self._saved or None, None
        if self.pruner is None:
            self.pruner = self._pruner_of(pl_module, saved)
        batches, steps = trainer.num_training_batches, trainer.estimated_stepping_batches
        known = math.isfinite(steps) and steps > 0
        self._join(
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
        if self._ended_by_guard:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Judge a round at work; masks are no longer enforced, removed weights stay zero."""
        self._finish()


def _read(path: str | Path, key: str) -> Mapping[str, Any] | None:
    """A callback's state in a checkpoint, read without running code from it."""
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, OSError, RuntimeError, …
        raise InputError(
            f"'{path}' cannot be read without running code from it, and its sizes are needed to "
            f"shrink the model: save only plain hyperparameters ({error})"
        ) from None
    found: Mapping[str, Any] | None = tree.get("callbacks", {}).get(key)
    return found or None
