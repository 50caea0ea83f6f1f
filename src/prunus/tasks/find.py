"""Tasks and models by name, from the package or from a file of the user's."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from prunus._common import rng as randomness
from prunus._common.packages import lacking
from prunus.errors import InputError, PrunusError
from prunus.methods.catalog import find
from prunus.recipe.fields import Spec
from prunus.recipe.schema import Recipe
from prunus.tasks.base import Task


def task_of(recipe: Recipe) -> Task:
    """The task that a recipe names, made with its seed; the random state is left as it was.

    Raises:
        InputError: if there is none of that name, or it fails.
    """
    assert recipe.task is not None
    with randomness.preserve_rng():
        randomness.seed(recipe.seed)
        return find_task(recipe.task)


def find_task(spec: Spec) -> Task:
    """A task by name, or from a Python file with a function ``task`` (or the one named).

    Raises:
        InputError: if there is none, or it makes no :class:`Task`.
    """
    name = spec.name
    if name.endswith(".py"):
        name += ":task"
    try:
        function = find("tasks", name)
    except ModuleNotFoundError as error:
        raise InputError(f"task {spec.name}: {lacking(error)}") from None
    known = inspect.signature(function).parameters
    unknown = [key for key in spec.settings if key not in known]
    if unknown:
        raise InputError(
            f"task {spec.name} has no setting {', '.join(unknown)}; it has: {', '.join(known)}"
        )
    try:
        task = function(**spec.settings)
    except PrunusError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(f"task {spec.name}: {lacking(error)}") from error
    except Exception as error:  # the user's function runs
        raise InputError(f"task {spec.name} fails: {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise InputError(f"task {spec.name} returned {type(task).__name__}, not a prunus.Task")
    return task


def find_model(name: str) -> tuple[nn.Module, Any]:
    """A model and an example of its input: a task's, or what a function in a file returns.

    Raises:
        InputError: if there is none.
    """
    path, _, function = name.partition(":")
    if not path.endswith(".py") or not function:
        task = find_task(Spec(name=name))
        return task.model(), task.example
    made = find("tasks", name)()
    if isinstance(made, Task):
        return made.model(), made.example
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        return made
    raise InputError(
        f"{name} returned {type(made).__name__}: return (model, example), or a prunus.Task"
    )
