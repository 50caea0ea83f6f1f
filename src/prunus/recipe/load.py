"""Recipes by name, file or mapping, checked at the door: every error at once, with its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml.error import YAMLError

from prunus._common import examples
from prunus.errors import InputError, RefusedError, did_you_mean
from prunus.methods.catalog import meant, names
from prunus.recipe.schema import ENDS, Recipe, yaml

LIBRARY = Path(__file__).parent / "library"
"""prunus's own recipes."""


def load(source: str | Path | Mapping[str, Any] | Recipe, changes: Sequence[str] = ()) -> Recipe:
    """A recipe by name, file, mapping or value, with ``key=value`` changes.

    Raises:
        InputError: listing everything that is wrong with it; a :class:`RefusedError` where every
            value is right and some cannot go together.

    >>> load("one_shot", ["target=0.5", "criterion.name=fisher"]).criterion.name
    'fisher'
    >>> load("channels", ["target.max_params=0.4"]).target.bound
    ('params', 0.4)
    """
    if isinstance(source, Recipe) and not changes:
        return source
    if isinstance(source, Recipe):
        values, where = source.to_dict(), "the recipe"
    elif isinstance(source, Mapping):
        values, where = dict(source), "the recipe"
    else:
        path = recipe_path(source)
        values, where = {"name": path.stem, **_read(path)}, f"recipe '{source}'"
    for change in changes:
        _change(values, change)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        alone = any(item["loc"] for item in error.errors())  # otherwise values that do not match
        kind = InputError if alone else RefusedError
        raise kind(f"{where}:\n" + "\n".join(explain(error, Recipe))) from None
    except RecursionError:
        raise InputError(f"{where}: nested too deeply") from None
    problems = _unknown_ideas(recipe)
    if problems:
        raise InputError(f"{where}:\n" + "\n".join(problems))
    return recipe


def recipe_path(source: str | Path) -> Path:
    """The file of a recipe: prunus's own or an example's by name, a path, a folder of a run.

    Raises:
        InputError: if there is none.
    """
    known = {p.stem: p for p in LIBRARY.glob("*.yaml")} | examples.recipes()
    path = Path(source)
    if str(source) in known:
        return known[str(source)]
    if path.is_file():
        return path
    if (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    raise InputError(
        f"there is no recipe or file '{source}' (looked in {Path.cwd()}); "
        f"{did_you_mean(str(source), known)}{examples.hint()}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml().load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"'{path}' is no YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"'{path}' should hold keys and values, such as target: 0.9")
    return {str(k): v for k, v in values.items()}


def _change(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise InputError(f"'{change}' is no change: write key=value, for example target=0.95")
    try:
        value = yaml().load(text)
    except (YAMLError, ValueError) as error:
        raise InputError(f"'{change}': {' '.join(str(error).split())}") from None
    *parents, last = key.split(".")
    place = values
    for parent in parents:
        inner = place.get(parent)
        if not isinstance(inner, dict):
            empty = inner is None or (parent, inner) == ("target", "guard")
            inner = {} if empty else {_SHORT.get(parent, "name"): inner}
        place[parent] = inner = dict(inner)
        place = inner
    if parents == ["target"] and last in ENDS:  # a new end of pruning takes the old one's place
        for key in ENDS:
            place.pop(key, None)
    place[last] = value


_SHORT = {"target": "sparsity", "dense": "length"}


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line an error: where, what is wrong, what is allowed."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"] if not str(part).startswith("function"))
        if item["type"] == "extra_forbidden":
            fields = _fields(model, [str(p) for p in item["loc"][:-1]])
            hint = did_you_mean(str(item["loc"][-1]), fields)
            lines.append(f"  {where}: there is no such key; {hint}")
            continue
        message = str(item["msg"]).removeprefix("Value error, ")
        got = item.get("input")
        short = f" (got {got!r:.60})" if item["type"] != "value_error" and "input" in item else ""
        lines += [f"  {where}: {m}{short}" if where else f"  {m}" for m in message.split("\n")]
    return list(dict.fromkeys(lines))


def _fields(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        if part not in model.model_fields:
            break
        found = model.model_fields[part].annotation
        inner = [a for a in (found, *getattr(found, "__args__", ())) if isinstance(a, type)]
        nested = [a for a in inner if issubclass(a, BaseModel)]
        if not nested:
            break
        model = nested[0]
    return list(model.model_fields)


_AXIS = {
    "structure": "structures",
    "criterion": "criteria",
    "allocation": "allocations",
    "schedule": "schedules",
    "restore": "restore",
    "learning_rate": "rates",
}


def _unknown_ideas(recipe: Recipe) -> list[str]:
    """Names that no folder knows; settings are checked when the idea is loaded."""
    problems = []
    specs = {key: getattr(recipe, key) for key in _AXIS}
    for key, spec in [*specs.items(), ("dense.learning_rate", recipe.dense.learning_rate)]:
        axis = _AXIS.get(key, "rates")
        if spec is None or ".py:" in spec.name:
            continue
        if spec.name not in names(axis):
            problems.append(f"  {key}: there is no '{spec.name}'; {meant(axis, spec.name)}")
    if recipe.task is not None and ".py" not in recipe.task.name:
        name = recipe.task.name
        if name not in names("tasks"):
            problems.append(
                f"  task: there is no '{name}'; {meant('tasks', name)}; or a file 'my/task.py'"
            )
    return problems
