"""``prunus run`` and ``prunus resume``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from prunus.cli import completion
from prunus.cli.shared import DATA, JSON, THREADS, says_errors, stoppable
from prunus.cli.trust import TRUST, announce, ask
from prunus.errors import InputError, Interrupted

BOARD = click.option(
    "--tensorboard", is_flag=True, help="Write every judged round to tensorboard/ in its folder."
)


@click.command()
@click.argument("recipe", shell_complete=completion.recipes)
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=completion.changes)
@click.option("--folder", type=click.Path(path_type=Path), help="Where the run is kept.")
@DATA
@THREADS
@BOARD
@JSON
@says_errors
def run(
    recipe: str, changes: tuple[str, ...], folder: Path | None, tensorboard: bool, as_json: bool
) -> None:
    """Train, prune, judge and report, by a RECIPE: a name, a YAML file, or a folder with one.

    Run again after a crash, the same command picks up where it left off.

    \b
    Examples:
      prunus run iterative
      prunus run gradual task=mnist target=0.98 --data ~/data
      prunus run one_shot criterion=fisher schedule=one_shot rounds=1
      prunus run my/recipe.yaml task=my/task.py 'scope.exclude=[head]'
      prunus run examples/translation --data ~/data
      prunus run iterative target=guard rounds=null 'guard={max_drop: 0.01}'
    """
    from prunus.recipe.resolve import code_that_runs, folder_name
    from prunus.recipe.schema import Recipe

    made = Recipe.load(recipe, changes)
    if made.task is None:
        raise InputError(
            "the recipe names no task: add task=digits, or task=my/task.py (prunus init writes one)"
        )
    where = folder or Path("runs") / folder_name(made)
    announce(code_that_runs(made))
    _go(where, as_json, tensorboard, lambda **hooks: _start(made, where, **hooks))


def _start(recipe: Any, folder: Path, **hooks: Any) -> Any:
    from prunus.progressive.prune import prune
    from prunus.tasks.find import task_of

    task = task_of(recipe)
    return prune(task, recipe, folder=folder, **hooks), task.metric_name


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), shell_complete=completion.runs)
@DATA
@THREADS
@BOARD
@TRUST
@JSON
@says_errors
def resume(folder: Path, tensorboard: bool, as_json: bool) -> None:
    """Continue the run in FOLDER; the result is the same as if it had never stopped.

    \b
    Example:
      prunus resume runs/iterative-1a2b3c4d
    """
    from prunus.progressive.folder import recipe_of
    from prunus.recipe.resolve import code_that_runs

    made = recipe_of(folder)
    ask(code_that_runs(made))
    _go(folder, as_json, tensorboard, lambda **hooks: _start(made, folder, **hooks))


def _go(folder: Path, as_json: bool, tensorboard: bool, start: Callable[..., Any]) -> None:
    from prunus.cli import console

    with _board(folder, tensorboard) as board, stoppable() as stopped:
        show = console.choose(as_json=as_json)

        def watch(event: Mapping[str, Any]) -> None:
            show(event)
            board(event)

        try:
            result, metric_name = start(on_event=watch, should_stop=lambda: bool(stopped))
        except Interrupted:
            raise Interrupted(f"stopped and saved; continue with: prunus resume {folder}") from None
        finally:
            show.close()
    show.finish(result, metric_name, _report(folder))


def _report(folder: Path) -> str | None:
    """The page of a run; without its packages a note, for the run itself is done."""
    from prunus.report import why_not

    reason = why_not()
    if reason is not None:
        click.echo(f"no report: {reason}", err=True)
        return None
    from prunus.report.page import write_report

    return str(write_report(folder))


@contextmanager
def _board(folder: Path, wanted: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """TensorBoard's hook, or one that does nothing."""
    if not wanted:
        yield lambda event: None
        return
    from prunus.integrations.tensorboard import writer

    with writer(folder) as board:
        yield board
