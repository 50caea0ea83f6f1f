"""``prunus plan``."""

from __future__ import annotations

import click

from prunus.cli import completion
from prunus.cli.shared import DATA, JSON, THREADS, says_errors
from prunus.cli.trust import TRUST, ask


@click.command()
@click.argument("recipe", shell_complete=completion.recipes)
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=completion.changes)
@DATA
@THREADS
@TRUST
@JSON
@says_errors
def plan(recipe: str, changes: tuple[str, ...], as_json: bool) -> None:
    """Say what a RECIPE would do, without training: counts, reach, steps, estimated time.

    \b
    Examples:
      prunus plan iterative
      prunus plan gradual task=mnist target=0.99 allocation=erk
    """
    from prunus.cli.dry_run import dry_run, print_plan
    from prunus.recipe.resolve import code_that_runs
    from prunus.recipe.schema import Recipe

    made = Recipe.load(recipe, changes)
    ask(code_that_runs(made))
    print_plan(dry_run(made), as_json=as_json)
