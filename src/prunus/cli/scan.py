"""``prunus scan``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from prunus.cli import completion
from prunus.cli.shared import DATA, JSON, THREADS, says_errors, show
from prunus.cli.trust import TRUST, ask


@click.command()
@click.argument("subject", shell_complete=completion.runs_or_recipes)
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=completion.changes)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where scan.json and scan.png go (default: the run's folder, else nowhere).",
)
@DATA
@THREADS
@TRUST
@JSON
@says_errors
def scan(subject: str, changes: tuple[str, ...], folder: Path | None, as_json: bool) -> None:
    """Measure what removing part of each layer alone would cost, before pruning.

    SUBJECT is the folder of a finished run, whose dense model is measured, or a recipe, whose dense
    model is trained first if the recipe says so. Its structure, scope and criterion count; the loss
    is that of the task on its calibration data. allocation=measured prunes by these curves.

    \b
    Examples:
      prunus scan runs/iterative-1a2b3c4d
      prunus scan iterative dense=5ep --folder scans/digits
      prunus scan channels task=my/task.py dense=0
    """
    from prunus.errors import InputError
    from prunus.progressive.finished import open_run
    from prunus.progressive.prune import prune
    from prunus.progressive.record import Record
    from prunus.progressive.scan import scan as measure
    from prunus.recipe.resolve import code_that_runs
    from prunus.recipe.schema import Recipe
    from prunus.tasks.find import task_of

    finished = Path(subject).is_dir()
    if finished:
        _ = Record(Path(subject)).yaml  # or it says that the folder holds no run
    recipe = Recipe.load(str(Path(subject) / "recipe.yaml") if finished else subject, changes)
    ask(code_that_runs(recipe))
    if finished:
        done = open_run(subject)
        task, model, folder = done.task, done.dense, folder or Path(subject)
    else:
        task = task_of(recipe)
        dense = recipe.dense.model_dump()
        trained = {"dense": dense, "rounds": 1, "target": 0, "seed": recipe.seed}
        model = prune(task, trained, progress=not as_json).model
    if task.calibration is None:
        raise InputError("scan: the task has no calibration batches: give it Task.calibration")
    found = measure(
        model, task.calibration, task.loss, recipe=recipe, example=task.example,
        on_group=None if as_json else lambda name: click.echo(f"measuring {name}", err=True),
    )  # fmt: skip
    place = None if folder is None else found.save(folder)
    if as_json:
        click.echo(json.dumps(found.to_dict()))
        return
    click.echo(f"loss {found.loss:.4f} as it is; how it changes when part of one group goes:\n")
    show(found.table())
    if place is not None:
        click.echo(f"\nwritten     {place}")
    click.echo("prune by it: allocation=measured")
