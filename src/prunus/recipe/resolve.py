"""From names in a recipe to functions with their settings, checked against the signatures."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from prunus._common.own_files import beside, digest, digests
from prunus.errors import InputError
from prunus.methods import catalog as folder
from prunus.methods.signals import needed
from prunus.recipe.code_files import code_files
from prunus.recipe.fields import AXIS
from prunus.recipe.load import explain
from prunus.recipe.own_results import watched
from prunus.recipe.schema import Recipe
from prunus.recipe.specs import Spec
from prunus.types import Allocation, Criterion, Rate, Repair, Restore
from prunus.types import Schedule as ScheduleFunction


@dataclass(frozen=True)
class Methods:
    """The functions that a recipe names, their settings bound."""

    structure: Callable[..., Any]
    criterion: Criterion
    allocation: Allocation
    schedule: ScheduleFunction
    restore: Restore
    rate: Rate | None
    dense_rate: Rate
    repair: Repair | None = None
    regrow: Criterion | None = None
    regularize: Callable[..., None] | None = None


def resolve(recipe: Recipe) -> Methods:
    """Load the methods of a recipe.

    Raises:
        InputError: listing every unknown name and wrong setting.
    """
    problems: list[str] = []
    bound: dict[str, Callable[..., Any]] = {}
    for field, spec in recipe.specs().items():
        try:
            bound[field] = bind(AXIS[field], spec)
        except InputError as error:
            problems.append(f"  {field}: {error}")
    for field in () if problems else ("criterion", "regrow"):
        try:
            if field in bound:
                needed(bound[field])
        except InputError as error:
            problems.append(f"  {field}: {error}")
    if problems:
        raise InputError("the recipe:\n" + "\n".join(problems))
    rate, dense_rate = bound.pop("learning_rate", None), bound.pop("dense.learning_rate")
    return Methods(**bound, rate=rate, dense_rate=dense_rate)


def bind(axis: str, spec: Spec) -> Callable[..., Any]:
    """A method with its settings, validated by the annotations of its keyword-only parameters.

    >>> bind("schedules", Spec(name="early", within=0.5))(0.5, 0.0, 0.8)
    0.8
    """
    function = folder.find(axis, spec.name)
    hints = _hints(function)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints.get(parameter.name, Any), default)
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    model: type[BaseModel] = create_model("Settings", __config__=config, **fields)
    try:
        checked = model.model_validate(spec.settings)
    except ValidationError as error:
        lines = "; ".join(line.strip() for line in explain(error, model))
        raise InputError(f"{spec.name}: {lines}") from None
    given = {name: getattr(checked, name) for name in fields}
    made = functools.partial(function, **given) if given else function
    return watched(axis, spec.name, made) if folder.is_own(spec.name) else made


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Types of what a function takes, but for those that only a type checker imports."""
    found: dict[str, Any] = {}
    for name, written in getattr(function, "__annotations__", {}).items():
        alone = functools.partial(function)  # anything that can be called has room for annotations
        alone.__annotations__ = {name: written}
        with contextlib.suppress(NameError):
            scope = getattr(function, "__globals__", {})
            found |= typing.get_type_hints(alone, scope, include_extras=True)
    return found


def code_digests(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of every file of a user's own that the recipe names, by the name, and of what these
    run in turn."""
    found: dict[str, str] = {}
    for name, path in code_files(recipe).items():
        found |= digests(name, path) if folder.own_file(name) else {}
    return found


def code_that_runs(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of every file that is not prunus's or its examples', by where it lies from here."""
    here, found = Path.cwd(), {}
    for name, path in code_files(recipe).items():
        if folder.own_file(name) or path == recipe.path_of(name):  # a run's copy of an example
            for file in (path, *beside(path).values()):
                near = file.is_relative_to(here)
                found[str(file.relative_to(here) if near else file)] = digest(file)
    return found


def teacher_file(recipe: Recipe) -> Path | None:
    """The file that the recipe's teacher is in; ``None`` without one.

    Raises:
        InputError: if it is not there.
    """
    file = None if recipe.teacher is None else recipe.teacher.file
    if file is None:
        return None
    place = recipe.place_of(file)
    if not place.is_file():
        raise InputError(
            f"teacher: '{place}' is no file: name what prunus.save or a run wrote "
            "(model.safetensors in its folder), or dense for the model of round 0"
        )
    return place


def teacher_digest(recipe: Recipe) -> str | None:
    """SHA-256 of that file."""
    place = teacher_file(recipe)
    return None if place is None else digest(place)


def folder_name(recipe: Recipe) -> str:
    """What a run's folder is called unless it is named: of the recipe and its code."""
    teacher = [digest] if (digest := teacher_digest(recipe)) else []
    return f"{recipe.name}-{short_hash([recipe.digest(), code_digests(recipe), *teacher])}"


def short_hash(parts: object) -> str:
    """Eight hexadecimal digits of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
