"""A finished run, opened from its folder alone: the dense model and the pruned one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from prunus._common import rng as randomness
from prunus.compaction.files.artifact import load as load_model
from prunus.errors import InputError
from prunus.progressive.folder import DENSE
from prunus.progressive.record import Record
from prunus.pruning.masks import put_back
from prunus.tasks.base import Task
from prunus.tasks.find import task_of


@dataclass(frozen=True)
class Finished(Record):
    """A finished run with its models.

    Attributes:
        task: of the run, made anew.
        dense: the model of round 0, in eval mode.
        pruned: the run's model, in eval mode.
    """

    task: Task
    dense: nn.Module
    pruned: nn.Module


def open_run(folder: str | Path) -> Finished:
    """Open the finished run of a task.

    Raises:
        InputError: if the folder holds no run, one that is not finished, or one that was started
            from Python (its task is not known); or if the task has no example.
    """
    folder = Path(folder)
    recipe = Record(folder).recipe
    model_file, dense_file = folder / "model.safetensors", folder / DENSE
    if recipe.task is None:
        raise InputError(
            f"the run in '{folder}' was started from Python, so its task is unknown: open its "
            f"model there, prunus.load('{model_file}', model=…)"
        )
    if not all(f.is_file() for f in (folder / "result.json", model_file, dense_file)):
        raise InputError(
            f"the run in '{folder}' is not finished; resume it with: prunus resume {folder}"
        )
    task = task_of(recipe)
    with randomness.preserve_rng():
        dense = task.model().eval()
        put_back(dense, load_file(dense_file))
        pruned = load_model(model_file, task.model())
    if task.example is None:
        raise InputError(
            f"task {recipe.task.name} has no example input: let it return prunus.Task(…, example=…)"
        )
    return Finished(folder, task, dense, pruned)
