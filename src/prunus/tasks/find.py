"""Tasks and models by name, from the package or from a file of the user's."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from prunus._common import rng as randomness
from prunus._common.packages import lacking
from prunus.errors import InputError, PrunusError
from prunus.methods.catalog import find, is_own, own_file
from prunus.recipe.schema import Recipe
from prunus.recipe.specs import Spec
from prunus.tasks.base import Task


def task_of(recipe: Recipe) -> Task:
    """The task that a recipe names, made with its seed; the random state is left as it was.

    Raises:
        InputError: if there is none of that name, or it fails.
    """
    assert recipe.task is not None
    with randomness.preserve_rng():
        randomness.seed(recipe.seed)
        return find_task(recipe.located(recipe.task), recipe.place_of)


def find_task(spec: Spec, place_of: Callable[[str], Path] = Path) -> Task:
    """A task by name, or from a Python file with a function ``task`` (or the one named).

    Args:
        spec: its name and settings. A text for a parameter that is annotated with ``Path`` is a
            path, and the task gets the place.
        place_of: where such a path lies.

    Raises:
        InputError: if there is none, or it makes no :class:`Task`.
    """
    name = spec.name if own_file(spec.name) != spec.name else f"{spec.name}:task"
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
        task = function(**_placed(spec.settings, known, place_of))
    except PrunusError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(f"task {spec.name}: {lacking(error)}") from error
    except Exception as error:  # the user's function runs
        raise InputError(f"task {spec.name} fails: {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise InputError(f"task {spec.name} returned {type(task).__name__}, not a prunus.Task")
    return task


def _placed(
    settings: Mapping[str, Any],
    known: Mapping[str, inspect.Parameter],
    place_of: Callable[[str], Path],
) -> dict[str, Any]:
    """Settings, with paths for texts where the task's function says that it takes paths."""

    def placed(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [placed(one) for one in value]
        return place_of(os.fspath(value)) if isinstance(value, (str, Path)) else value

    def takes_paths(key: str) -> bool:
        return "Path" in re.findall(r"\w+", str(known[key].annotation))

    return {key: placed(v) if takes_paths(key) else v for key, v in settings.items()}


def find_model(name: str) -> tuple[nn.Module, Any]:
    """A model and an example of its input: a task's, or what a function in a file returns.

    Raises:
        InputError: if there is none.
    """
    if not is_own(name):
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
