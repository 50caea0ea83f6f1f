"""Values of recipes from names and files, and what is wrong with them, each with its place."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    Event,
    ScalarEvent,
)

from prunus._common import examples
from prunus._common.kinds import given_path, kind_of
from prunus.errors import InputError, did_you_mean
from prunus.methods.catalog import is_own, meant, names, own_file
from prunus.recipe.fields import AXIS, ENDS, RecipeFields

LIBRARY = Path(__file__).parent / "library"
"""prunus's own recipes."""


def read(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe by name, file or mapping, not checked yet.

    Raises:
        InputError: if there is no such file, or it holds no YAML mapping.
    """
    if isinstance(source, Mapping):
        return dict(source)
    if not isinstance(source, (str, Path)):
        raise InputError(_no_recipe(source))
    path = recipe_path(given_path(source, "recipe"))
    return {"name": path.stem.lstrip("."), **_read(path)}


def _no_recipe(source: object) -> str:
    wanted = "give a recipe's name, a file, or a mapping such as {'target': 0.9}"
    if isinstance(source, (list, tuple)):
        return (
            f"one recipe is taken, and this is a {type(source).__name__} of {len(source)}: call "
            f"prune once for each, one after the other; {wanted}"
        )
    if isinstance(source, (int, float)) and not isinstance(source, bool):
        return f"the recipe is {source!r}: write {{'target': {source!r}}}"
    if hasattr(source, "forward") or hasattr(source, "requires_grad"):
        return f"the recipe is a {type(source).__name__}: the model comes first; {wanted}"
    return f"the recipe is {kind_of(source)}: {wanted}"


def recipe_path(source: str | Path) -> Path:
    """The file of a recipe: prunus's own or an example's by name, a path, a folder with one.

    Raises:
        InputError: if there is none, or a folder has several.
    """
    known = {p.stem: p for p in LIBRARY.glob("*.yaml")} | examples.recipes()
    path = Path(source)
    if str(source) in known:
        return known[str(source)]
    if path.is_file():
        return path
    if (inside := _in_folder(path)) is not None:
        return inside
    raise InputError(
        f"there is no recipe or file '{source}' (looked in {Path.cwd()}); "
        f"{did_you_mean(str(source), known)}{examples.hint()}"
    )


def _in_folder(folder: Path) -> Path | None:
    """The recipe of a run's folder, an example's or a project's.

    It is ``recipe.yaml``, the only one, or the one called like the folder or like code beside it.
    """
    if (folder / "recipe.yaml").is_file():
        return folder / "recipe.yaml"
    found = sorted(folder.glob("*.yaml"))
    if len(found) > 1:
        own = {folder.resolve().name, *(p.stem for p in folder.glob("*.py"))}
        known = ", ".join(map(str, found))
        found = [p for p in found if p.stem in own]
        if len(found) != 1:
            raise InputError(f"'{folder}' has several recipes, name one of them: {known}")
    return found[0] if found else None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            values = parsed(file.read(LONGEST + 1).decode())
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' is not a YAML file: {_short(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"'{path}' should contain keys and values, such as target: 0.9")
    return {str(k): v for k, v in values.items()}


SHOWN = 20
"""Errors that are listed."""
LONGEST, MOST, DEEPEST = 50_000, 2_000, 30
"""Bytes of a recipe's text; values in it, those that aliases repeat counted each time; nesting."""


def parsed(text: str) -> Any:
    """The value of a YAML text, which takes no longer than its length makes it.

    Raises:
        ValueError: if it is none, or is larger than any recipe.

    >>> parsed("{target: 0.9}")
    {'target': 0.9}
    """
    if len(text) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST:,} characters")
    if max(len(word) for word in re.split(r"[^0-9a-fxoA-FXO_]", text)) > 400:
        raise ValueError("it contains a number or a word of more than 400 characters")
    try:
        _refuse_large(yaml().parse(text))
        return yaml().load(text)
    except YAMLError as error:
        raise ValueError(str(error)) from None


def _refuse_large(events: Iterable[Event]) -> None:
    """Before anything is built: aliases repeat what they name, and merge keys (``<<``) copy it."""
    known: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = [(None, 0)]  # anchors and values of what is begun

    def count(anchor: str | None, values: int) -> None:
        above, before = open_[-1]
        open_[-1] = above, before + values
        if anchor is not None:
            known[anchor] = values
        if before + values > MOST:
            raise ValueError(f"it contains more than {MOST:,} values, aliases counted each time")

    for event in events:
        if isinstance(event, CollectionStartEvent):
            open_.append((event.anchor, 1))
            if len(open_) - 1 > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} deep")
        elif isinstance(event, CollectionEndEvent):
            count(*open_.pop())
        elif isinstance(event, AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_):
                raise ValueError("an alias stands inside what it repeats")
            count(None, known.get(event.anchor, 1))
        elif isinstance(event, ScalarEvent):
            count(event.anchor, 1)


def _short(error: Exception) -> str:
    return textwrap.shorten(str(error), 300, placeholder=" …")


def change(values: dict[str, Any], written: str) -> None:
    """Set what ``key=value`` says, in place.

    Raises:
        InputError: if it is no change.
    """
    key, equals, text = written.partition("=")
    if not equals or not key:
        raise InputError(
            f"'{written:.200}' is not a change: write key=value, for example target=0.95"
        )
    try:
        value = parsed(text)
    except ValueError as error:
        raise InputError(f"'{written:.200}': {_short(error)}") from None
    *parents, last = _steps(key)
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


def _steps(key: str) -> list[str]:
    """The keys that a change goes through; patterns of layers keep their dots.

    >>> _steps("target.layers.encoder.*"), _steps("limits.encoder.0.most")
    (['target', 'layers', 'encoder.*'], ['limits', 'encoder.0', 'most'])
    """
    if key.startswith("target.layers."):
        return ["target", "layers", key.removeprefix("target.layers.")]
    pattern, _, last = key.removeprefix("limits.").rpartition(".")
    if key.startswith("limits.") and pattern:
        return ["limits", pattern, last]
    return key.split(".")


_SHORT = {"target": "sparsity", "dense": "length"}


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line an error: where, what is wrong, what is allowed."""
    lines, found = [], error.errors()
    for item in found[:SHOWN]:
        where = ".".join(str(part) for part in item["loc"] if not str(part).startswith("function"))
        if item["type"] == "extra_forbidden":
            fields = _fields(model, [str(p) for p in item["loc"][:-1]])
            hint = did_you_mean(str(item["loc"][-1]), fields)
            lines.append(f"  {where}: there is no such key; {hint}")
            continue
        message = str(item["msg"]).removeprefix("Value error, ")
        if item["type"] == "dict_type":
            message = "give a mapping"
        if item["type"] == "model_type":
            message = _wanted(_fields(model, [str(part) for part in item["loc"]]))
        got = item.get("input")
        short = f" (got {got!r:.60})" if item["type"] != "value_error" and "input" in item else ""
        lines += [f"  {where}: {m}{short}" if where else f"  {m}" for m in message.split("\n")]
    more = [f"  … and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return [*dict.fromkeys(lines), *more]


def _wanted(keys: Sequence[str]) -> str:
    """What is wanted where a value is no mapping."""
    if list(keys) == ["name"]:
        return "give one name, or a mapping: a name and its settings"
    return f"give a mapping with keys of {', '.join(keys)}"


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


def unknown_methods(recipe: RecipeFields) -> list[str]:
    """Names that no folder knows; settings are checked when the method is loaded."""
    problems = []
    for field, spec in recipe.specs().items():
        axis = AXIS[field]
        name = attrgetter(field)(recipe).name  # as it is written
        if own_file(name) == name:
            problems.append(f"  {field}: name the function as well: {name}:function")
        elif not is_own(spec.name) and spec.name not in names(axis):
            problems.append(f"  {field}: there is no '{spec.name}'; {meant(axis, spec.name)}")
    if recipe.task is not None:
        name = recipe.located(recipe.task).name
        if own_file(name) is None and name not in names("tasks"):
            problems.append(
                f"  task: there is no '{name}'; {meant('tasks', name)}; or a file 'my/task.py'"
            )
    return problems


def yaml() -> YAML:
    """A reader and writer of YAML 1.2."""
    made = YAML(typ="safe", pure=True)  # YAML 1.2
    made.default_flow_style = False
    made.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    return made
