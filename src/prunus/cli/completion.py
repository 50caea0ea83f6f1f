"""What the shell offers after a tab: recipes, changes, runs, tasks and runtimes by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def recipes(ctx: click.Context, parameter: click.Parameter, text: str) -> list[CompletionItem]:
    """Recipes by name, and files."""
    from prunus.methods.catalog import recipe_entries

    return [*_offer(((e.name, e.line) for e in recipe_entries()), text), *_files(text)]


def example_names(
    ctx: click.Context, parameter: click.Parameter, text: str
) -> list[CompletionItem]:
    """The examples of the checkout at hand."""
    from prunus._common import examples

    return _offer(((name, "") for name in sorted(examples.tasks())), text)


def runs(ctx: click.Context, parameter: click.Parameter, text: str) -> list[CompletionItem]:
    """Folders of runs: those in ``runs/``, and those below what is written."""
    above = text.rpartition("/")[0]
    places = [Path(above or "."), *([] if above else [Path("runs"), *Path("sweeps").glob("*")])]
    found = [p.parent.as_posix() for place in places for p in sorted(place.glob("*/run.json"))]
    folders = CompletionItem(text, type="dir")
    return [*_offer(((name, "") for name in found), text), folders]


def runs_or_recipes(
    ctx: click.Context, parameter: click.Parameter, text: str
) -> list[CompletionItem]:
    """Folders of runs, and recipes."""
    return [*runs(ctx, parameter, text), *recipes(ctx, parameter, text)]


def models(ctx: click.Context, parameter: click.Parameter, text: str) -> list[CompletionItem]:
    """Tasks by name, and files."""
    from prunus.methods.catalog import entries

    return [*_offer(((e.name, e.line) for e in entries("tasks")), text), *_files(text)]


def runs_or_models(
    ctx: click.Context, parameter: click.Parameter, text: str
) -> list[CompletionItem]:
    """Folders of runs, and what stands for a model alone."""
    return [*runs(ctx, parameter, text), *models(ctx, parameter, text)]


def models_or_recipes(
    ctx: click.Context, parameter: click.Parameter, text: str
) -> list[CompletionItem]:
    """What stands for a model, and recipes."""
    return [*models(ctx, parameter, text), *recipes(ctx, parameter, text)]


def runtimes(ctx: click.Context, parameter: click.Parameter, text: str) -> list[CompletionItem]:
    """Runtimes by name, and ``auto``."""
    from prunus.methods.catalog import entries

    every = [("auto", "all that are installed"), *((e.name, e.line) for e in entries("runtimes"))]
    return _offer(every, text)


def changes(ctx: click.Context, parameter: click.Parameter, text: str) -> list[CompletionItem]:
    """``key=``, and after it the methods that a key can name.

    bash takes ``=`` for a word of its own; other shells give the whole ``key=value``.
    """
    from prunus.recipe.fields import RecipeFields

    before = list(ctx.params.get(str(parameter.name)) or ())
    if not text and before and "=" not in before[-1]:  # click takes a lone sign for nothing
        return _values(before[-1], "", written="")
    if before[-1:] == ["="]:
        return _values(before[-2] if len(before) > 1 else "", text, written="")
    key, equals, value = text.partition("=")
    if equals:
        return _values(key, value, written=f"{key}=")
    return _offer(((f"{name}=", "") for name in RecipeFields.model_fields), text)


def _values(key: str, text: str, *, written: str) -> list[CompletionItem]:
    from prunus.methods.catalog import entries
    from prunus.recipe.fields import AXIS

    axis = {**AXIS, "task": "tasks", "deploy": "runtimes", "deploy.runtime": "runtimes"}.get(key)
    if axis is None:
        return []
    return _offer(((f"{written}{e.name}", e.line) for e in entries(axis)), written + text)


def _offer(found: Iterable[tuple[str, str]], text: str) -> list[CompletionItem]:
    return [CompletionItem(name, help=line or None) for name, line in found
            if name.startswith(text)]  # fmt: skip


def _files(text: str) -> list[CompletionItem]:
    return [CompletionItem(text, type="file")]
