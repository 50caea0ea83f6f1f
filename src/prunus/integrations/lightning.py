"""Pruning inside a Lightning Trainer."""

from __future__ import annotations

import inspect
import math
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from prunus.compaction.files.artifact import joined_file, packed, parts_of
from prunus.compaction.files.artifact import load as load_file
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
    goes on from it, smaller models too. Averages of the weights that Lightning's callbacks keep
    (``WeightAveraging``, ``StochasticWeightAveraging``) are kept masked as well. Where a guard
    ends pruning, it ends the training.

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

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Say in the checkpoint of a smaller model what :func:`load` needs to open it."""
        if self.pruner is not None and self.pruner.kept:
            manifest, tensors = parts_of(packed(pl_module))
            more = {n: t for n, t in tensors.items() if n not in checkpoint["state_dict"]}
            checkpoint[KEY] = {"manifest": manifest, "names": list(tensors), "tensors": more}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Build the pruner, or go on with a checkpoint's."""
        self._unwatch()
        saved, self._saved = self._saved or None, None
        if trainer.ckpt_path and saved is None:
            raise InputError(
                f"'{trainer.ckpt_path}' holds no state of the pruner, so it cannot resume: use a "
                "checkpoint that was saved with PruneCallback; to prune a trained model load its "
                "weights (load_from_checkpoint) and call fit without ckpt_path"
            )
        if self.pruner is None:
            self.pruner = self._pruner_of(pl_module, saved)
        batches, steps = trainer.num_training_batches, trainer.estimated_stepping_batches
        known = math.isfinite(steps) and steps > 0
        self._join(
            trainer.optimizers,
            steps=int(steps) - (0 if saved else trainer.global_step) if known else None,
            per_epoch=math.ceil(batches / trainer.accumulate_grad_batches)
            if math.isfinite(batches)
            else None,
            saved=saved,
            copies=_averages(trainer),
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

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Look once more: other callbacks copy averages into the module when training ends."""
        if self.pruner is None:  # a limit of time, steps or epochs was reached before
            warnings.warn("the training took no step, so nothing was pruned", stacklevel=2)
        self._finish()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """And for the last time, after what every other callback did at the end of the fit."""
        if stage == "fit":
            self._finish()


def _averages(trainer: Any) -> list[nn.Module]:
    """The averages of the module that Lightning's own callbacks keep, and torch's in any other."""
    found = []
    for callback in trainer.callbacks:
        averages = any(c.__name__ == "StochasticWeightAveraging" for c in type(callback).__mro__)
        kinds = nn.Module if averages else AveragedModel
        found += [value for value in vars(callback).values() if isinstance(value, kinds)]
    return found


KEY = "prunus"
"""What a checkpoint of a smaller model has under this key opens it."""


def load(kind: Any, checkpoint: str | Path, **settings: Any) -> Any:
    """Open a checkpoint of a module that shrank, as ``load_from_checkpoint`` opens others.

    Args:
        kind: the module's class.
        checkpoint: that a Trainer with :class:`PruneCallback` wrote.
        settings: arguments of the class that the checkpoint does not hold, or that replace what
            it does; a plain module that is an argument is made as for the dense model.

    Returns:
        The module, in eval mode.

    Raises:
        InputError: if the checkpoint cannot be read without running code from it, or does not fit.

    Example::

        trainer = Trainer(callbacks=[PruneCallback(recipe, example=batch)])
        trainer.fit(module, loader)
        trainer.save_checkpoint("small.ckpt")
        small = prunus.lightning.load(Module, "small.ckpt")
    """
    tree = _checkpoint(checkpoint)
    module = _made(kind, tree, settings)
    weights, own = tree.get("state_dict", {}), tree.get(KEY)
    if own is None:
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:  # of torch: names or sizes that differ
            raise InputError(
                f"'{checkpoint}' does not fit {kind.__name__} and does not say how it shrank "
                f"({str(error).partition(chr(10))[0]}): save it with PruneCallback among the "
                "Trainer's callbacks, or write the model with prunus.save"
            ) from None
        return module.eval()
    try:
        tensors = {name: own["tensors"].get(name, weights.get(name)) for name in own["names"]}
        data = joined_file(own["manifest"], tensors)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"'{checkpoint}' is damaged: {error!r}") from None
    with tempfile.TemporaryDirectory(prefix="prunus-") as folder:
        file = Path(folder) / "model.safetensors"
        file.write_bytes(data)
        return load_file(file, module)


def _made(kind: Any, tree: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """A module of a class, from the hyperparameters of a checkpoint."""
    saved, name = dict(tree.get("hyper_parameters", {})), tree.get("hparams_name")
    accepted = inspect.signature(kind.__init__).parameters
    if name in accepted and name != "kwargs":
        saved = {name: saved}
    elif not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        saved = {key: value for key, value in saved.items() if key in accepted}
    try:
        return kind(**{**saved, **settings})
    except TypeError as error:
        raise InputError(
            f"{kind.__name__} cannot be made from the checkpoint's hyperparameters ({error}): pass "
            "what is missing, load(Class, checkpoint, name=value)"
        ) from None


def _checkpoint(path: str | Path) -> dict[str, Any]:
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, OSError, RuntimeError, …
        raise InputError(
            f"'{path}' cannot be read without running code from it: save only plain "
            f"hyperparameters ({error})"
        ) from None
    if not isinstance(tree, dict):
        raise InputError(f"'{path}' is no checkpoint of Lightning")
    return tree


def _read(path: str | Path, key: str) -> Mapping[str, Any] | None:
    """A callback's state in a checkpoint, read without running code from it."""
    tree = _checkpoint(path)
    found: Mapping[str, Any] | None = tree.get("callbacks", {}).get(key)
    return found or None
