"""``prunus units``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunus.cli import completion
from prunus.cli.shared import DATA, JSON, says_errors, show
from prunus.cli.trust import TRUST, ask, ask_file
from prunus.errors import InputError

if TYPE_CHECKING:
    from prunus.recipe.schema import Recipe


@click.command()
@click.argument("model", shell_complete=completion.models_or_recipes)
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=completion.changes)
@click.option(
    "--heads",
    type=click.Choice(["whole", "dims"]),
    default="whole",
    help="At attention: whole heads, or the same dimensions of every head.",
)
@click.option("--hidden", is_flag=True, help="Count the widths that norms count as well.")
@click.option("--all", "everything", is_flag=True, help="Name every dimension, not the first four.")
@DATA
@TRUST
@JSON
@says_errors
def units(
    model: str, changes: tuple[str, ...], heads: Any, hidden: bool, everything: bool, as_json: bool
) -> None:
    """Say what can be removed from a MODEL, and what cannot and why.

    MODEL is a task, or a function in a Python file that returns a model and an example of its
    input (or a prunus.Task), or a recipe or a folder with one: then the model is that of its task,
    --heads and --hidden are those of its structure, and the limits and targets of single layers
    are shown.

    \b
    Examples:
      prunus units digits
      prunus units my/model.py:make --heads dims
      prunus units channels task=digits limits.0.most=0.3
    """
    from prunus.graph.listing import units as units_of
    from prunus.tasks.find import find_model

    limits: dict[str, tuple[float, float]] = {}
    if (recipe := _recipe(model, changes)) is None:
        ask_file(model)
        made, example = find_model(model)
    else:
        made, example, limits = _of_recipe(recipe)
        heads = "dims" if recipe.trait("structure", "HEADS") == "dims" else "whole"
        hidden = recipe.trait("structure", "HIDDEN") is True
    found = units_of(made, example, heads=heads, hidden=hidden)
    if not as_json:
        click.echo("\n".join(found.summary(10_000 if everything else 4)))
        _show(limits)
        return
    for kind in found.coupled:
        click.echo(json.dumps(kind.to_dict()))
    for pin in found.pinned:
        click.echo(json.dumps({"stays": asdict(pin)}))
    for group, ends in limits.items():
        click.echo(json.dumps({"group": group, "limits": ends}))


def _recipe(name: str, changes: tuple[str, ...]) -> Recipe | None:
    """The recipe of that name, file or folder, if there is one and no task of that name."""
    from prunus.methods.catalog import names, recipe_entries
    from prunus.recipe.schema import Recipe

    known = {e.name for e in recipe_entries()} - set(names("tasks"))
    if name in known or Path(name).suffix in (".yaml", ".yml") or Path(name).is_dir():
        return Recipe.load(name, changes)
    if changes:
        raise InputError(f"{changes[0]} changes a recipe, and {name} is none: name a recipe")
    return None


def _of_recipe(recipe: Recipe) -> tuple[Any, Any, dict[str, tuple[float, float]]]:
    """Its task's model and example, and between which sparsities the recipe lets groups end."""
    from prunus.pruning.space import build_space
    from prunus.recipe.resolve import code_that_runs, resolve
    from prunus.tasks.find import task_of

    if recipe.task is None:
        raise InputError("the recipe names no task, so there is no model: add task=…")
    ask(code_that_runs(recipe))
    task = task_of(recipe)
    made = task.model()
    caps = build_space(made, recipe, resolve(recipe), task.example).caps
    return made, task.example, {g.name: (c.least, c.most) for g, c in caps.of.items()}


def _show(limits: dict[str, tuple[float, float]]) -> None:
    from prunus._common.tables import Table
    from prunus.cli.dry_run import limits_text

    if limits:
        click.echo()
        show(Table(("group", "limits"), [(n, limits_text(*ends)) for n, ends in limits.items()]))
