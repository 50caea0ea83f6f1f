"""Pruning inside a Hugging Face Trainer, and folders of what became of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from prunus._common.files import freeze, thaw, write_atomically
from prunus._common.given import length_of
from prunus.compaction.files.pretrained import load as load
from prunus.compaction.files.pretrained import save as save
from prunus.errors import InputError
from prunus.integrations.callback import LoopCallback, optional
from prunus.integrations.hf_teacher import Learning
from prunus.integrations.hf_teacher import TeacherCallback as TeacherCallback

_TrainerCallback: Any = optional("transformers", "TrainerCallback", ["transformers", "accelerate"])

FILE = "prunus.safetensors"
"""What a checkpoint gets beside model and optimizer."""


class PruneCallback(LoopCallback, _TrainerCallback):
    """Prunes the model of a ``transformers.Trainer`` while it trains.

    ``Trainer(..., callbacks=[PruneCallback(recipe)])``. The recipe runs at the optimizer's steps,
    as with :class:`prunus.Pruner`; one without ``retrain`` is spread over the whole training.
    ``sparsity`` joins what is logged, checkpoints get a file ``prunus.safetensors``, and
    ``trainer.train(resume_from_checkpoint=…)`` goes on from it. Where a guard ends pruning, it
    ends the training.

    Its arguments are those of :class:`~prunus.integrations.callback.LoopCallback`.
    """

    def resume(self, model: nn.Module, checkpoint: str | Path) -> None:
        """Make a model as small as that of a checkpoint, so that its weights can be loaded.

        Call it before ``trainer.train(resume_from_checkpoint=checkpoint)`` where the model shrinks
        during training, or where the checkpoint does not lie in the Trainer's ``output_dir``.

        Args:
            model: the Trainer's, as it was before any pruning.
            checkpoint: the folder.

        Raises:
            InputError: if the folder holds no state of a pruner, or that of another recipe.
        """
        self._saved = _read(Path(checkpoint))
        self._unwatch()
        self.pruner = self._pruner_of(model, self._saved["pruner"])

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Watch that no smaller model is loaded unprepared."""
        if self._shrinks and model is not None and self._saved is None:
            self._watch = model.register_load_state_dict_pre_hook(_refuse_smaller)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None,
        train_dataloader: Any = None, **_: Any,
    ) -> None:  # fmt: skip
        """Build the pruner, or go on with a checkpoint's."""
        self._unwatch()
        if args.load_best_model_at_end:
            raise InputError(
                "load_best_model_at_end would bring back weights from before the last cuts: leave "
                "it out; a guard in the recipe returns to the last round that was good enough"
            )
        if self._saved is None:
            self.pruner = None  # of a training before this one
        saved, self._saved = self._saved, None
        if state.global_step and saved is None:
            saved = _read(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        if saved is not None and saved["step"] != state.global_step:
            raise InputError(
                f"the pruner's state is from step {saved['step']}, but the Trainer resumes at "
                f"{state.global_step}: pass resume() the folder that resume_from_checkpoint names"
            )
        own = None if saved is None else saved["pruner"]
        if self.pruner is None or self.pruner.model is not model:
            self.pruner = self._pruner_of(model, own)
        batches = length_of(train_dataloader)
        self._join(
            optimizer,
            steps=state.max_steps,
            per_epoch=batches and math.ceil(batches / args.gradient_accumulation_steps),
            saved=own,
        )
        if (teacher := self.pruner.recipe.teacher) is not None:
            if teacher.mix:
                raise InputError(
                    "teacher.mix: the Trainer gives the model its inputs, and prunus only hears "
                    "the answers: leave mix out"
                )
            self._steps.callback(Learning(model, self.pruner._lessons, args).remove)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop where the guard did."""
        if self._ended_by_guard:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Add the sparsity."""
        if self.pruner is not None and logs is not None:
            logs["sparsity"] = self.pruner.sparsity
            state.log_history[-1]["sparsity"] = self.pruner.sparsity

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Complete the checkpoint; written last, so that one without the file is not whole."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.pruner is not None and state.is_world_process_zero and folder.is_dir():
            tree = {"step": state.global_step, "pruner": self.pruner.state_dict()}
            write_atomically(folder / FILE, freeze(tree))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Judge a round at work; masks are no longer enforced, removed weights stay zero."""
        self._finish()


def _read(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    try:
        tree = thaw(path.read_bytes())
        return {"step": tree["step"], "pruner": tree["pruner"]}
    except FileNotFoundError:
        raise InputError(
            f"'{path}' does not exist, so the pruner cannot resume: use a checkpoint that was "
            "saved with PruneCallback; for one outside output_dir call resume(model, folder) first"
        ) from None
    except Exception as error:  # of reading damaged bytes: KeyError, ValueError, …
        raise InputError(
            f"'{path}' is damaged ({error}): resume from an earlier checkpoint"
        ) from None


def _refuse_smaller(module: nn.Module, state_dict: Mapping[str, Any], *_: Any) -> None:
    own = module.state_dict()
    for name, tensor in state_dict.items():
        if name in own and own[name].shape != tensor.shape:
            raise InputError(
                f"'{name}' is {tuple(tensor.shape)} in the checkpoint and {tuple(own[name].shape)} "
                "in the model, which shrank while it was pruned: call callback.resume(model, "
                "checkpoint) before trainer.train(resume_from_checkpoint=checkpoint)"
            )
