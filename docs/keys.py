"""The tables of "a Task, and a recipe: every key", made from the types that check them."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from prunus.methods.catalog import entries
from prunus.recipe.fields import AXIS, RecipeFields
from prunus.recipe.schema import Recipe
from prunus.recipe.specs import Spec
from prunus.tasks.base import Task


def page() -> str:
    """Every key of a task and of a recipe, as Markdown."""
    return "\n".join([
        "## A Task", "", *_table(("attribute", "what it is", "default"), _task_rows()), "",
        "## A recipe", "", *_table(("key", "values", "default", "what it says"), _rows()), "",
        *_nested(), *_methods(),
    ])  # fmt: skip


def _task_rows() -> list[tuple[str, ...]]:
    says = arguments(Task)
    return [(f"`{f.name}`", says[f.name], _default(f.default)) for f in dataclasses.fields(Task)]


def _rows() -> list[tuple[str, ...]]:
    says = arguments(Recipe)
    return [
        (
            f"`{name}`",
            _values(name, field.annotation) + _range([field]),
            _default(field.get_default(call_default_factory=True)),
            says[name],
        )
        for name, field in RecipeFields.model_fields.items()
    ]


def _nested() -> list[str]:
    """The keys inside keys."""
    lines = []
    for name, model in nested(RecipeFields).items():
        rows = [
            (
                f"`{name}.{key}`",
                _values(f"{name}.{key}", f.annotation) + _range([f]),
                _default(f.get_default(call_default_factory=True)),
            )
            for key, f in model.model_fields.items()
            if not (issubclass(model, Spec) and key == "name")
        ]
        about = inspect.cleandoc(model.__doc__ or "").replace("``", "`")
        lines += [f"### {name}", "", about, "", *_table(("key", "values", "default"), rows), ""]
    return lines


def _methods() -> list[str]:
    """What can be named, with its settings."""
    fields: dict[str, list[str]] = {}
    for field, axis in AXIS.items():
        fields.setdefault(axis, []).append(f"`{field}`")
    lines = ["## What a key can name", "",
             "Each is a file in `src/prunus/methods`; a function in a file of your own is named "
             "`path/to/file.py:function`, relative to the recipe.", ""]  # fmt: skip
    for axis, keys in fields.items():
        rows = [
            (f"`{e.name}`", ", ".join(f"`{s}`" for s in e.settings), e.line.replace("``", "`"))
            for e in entries(axis)
        ]
        lines += [f"### {' and '.join(keys)}", "", *_table(("name", "settings", ""), rows), ""]
    return lines


def nested(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The keys of a model whose values have keys of their own, and those values' models."""
    found = {}
    for name, field in model.model_fields.items():
        for part in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel) and part is not Spec:
                found[name] = part
    return found


def arguments(owner: type) -> dict[str, str]:
    """What a docstring says about each argument or attribute."""
    text = inspect.getdoc(owner) or ""
    found = re.search(
        r"^(?:Args|Attributes):\n(.*?)(?:^\S|^\n>>>|\Z)", text, re.DOTALL | re.MULTILINE
    )
    parts = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", found[1] if found else "", re.MULTILINE)
    return {name: " ".join(what.split()).replace("``", "`") for name, what in parts}


def _values(name: str, kind: Any) -> str:
    """A type in words."""
    if name in AXIS:
        return "a name, or `{name: …, setting: …}`"
    parts = [p for p in typing.get_args(kind) if p is not types.NoneType]
    origin = typing.get_origin(kind)
    if {str, float, int} <= {*parts}:
        return "a length"
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if origin is typing.Annotated:
        return _values(name, parts[0]) + _range(kind.__metadata__)
    if origin in (tuple, list):
        return "a list"
    if origin in (dict, collections.abc.Mapping):
        return f"{_values(name, parts[1])} by pattern"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_values(name, part) for part in parts))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"[keys](#{name.split('.')[0]})" if kind is not Spec else "a name"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "`true`, `false`"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _range(metadata: Iterable[Any]) -> str:
    """The limits of a number."""
    signs = {"gt": "> ", "ge": "≥ ", "lt": "< ", "le": "≤ "}
    limits = [m for one in metadata for m in (*getattr(one, "metadata", ()), one)]
    found = [f"{sign}{getattr(m, key):g}" for m in limits for key, sign in signs.items()
             if getattr(m, key, None) is not None]  # fmt: skip
    return f" {', '.join(found)}" if found else ""


def _default(value: Any) -> str:
    if value in (PydanticUndefined, dataclasses.MISSING):
        return "required"
    if isinstance(value, Spec):
        value = value.to_dict()
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, dict) and not any(value.values()):
        value = None
    if value is None or not (value or isinstance(value, (bool, int, float))):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines]


if __name__ == "__main__":
    print(page())
