"""``prunus run`` and ``prunus resume``."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from prunus.commands.shared import DATA, JSON, THREADS, says_errors, set_data
from prunus.errors import InputError, Interrupted


@click.command()
@click.argument("recipe")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the run is kept.")
@DATA
@THREADS
@JSON
@says_errors
def run(
    recipe: str,
    changes: tuple[str, ...],
    folder: Path | None,
    data: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train, prune, judge and report, by a RECIPE: a name or a YAML file.

    Started again after a crash, the same command goes on where it was.

    \b
    Examples:
      prunus run iterative
      prunus run gradual task=mnist target=0.98 --data ~/data
      prunus run one_shot criterion=fisher schedule=one_shot rounds=1
      prunus run my/recipe.yaml task=my/task.py 'scope.exclude=[head]'
      prunus run iterative target=guard 'guard={max_drop: 0.01}'
    """
    set_data(data)
    from prunus.ideas import code_digests, short_hash
    from prunus.recipe_file import load

    made = load(recipe, changes)
    if made.task is None:
        raise InputError(
            "the recipe names no task: add task=digits, or task=my/task.py (prunus init writes one)"
        )
    digests = code_digests(made)
    where = folder or Path("runs") / f"{made.name}-{short_hash([made.digest(), digests])}"
    if digests and not as_json:
        for file, digest in digests.items():
            click.echo(f"runs code from {file} (sha256 {digest[:12]})")
    _go(where, as_json, lambda **hooks: _start(made, where, **hooks))


def _start(recipe: Any, folder: Path, **hooks: Any) -> Any:
    from prunus import prune, randomness
    from prunus.call import find_task

    with randomness.kept():
        randomness.seed(recipe.seed)
        task = find_task(recipe.task)
    return prune(task, recipe, folder=folder, **hooks), task.metric_name


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@DATA
@THREADS
@JSON
@says_errors
def resume(folder: Path, data: Path | None, threads: int | None, as_json: bool) -> None:
    """Go on with the run in FOLDER, to the same answer as if it had not stopped.

    \b
    Example:
      prunus resume runs/iterative-1a2b3c4d
    """
    set_data(data)
    from prunus.run_folder import recipe_of

    made = recipe_of(folder)
    _go(folder, as_json, lambda **hooks: _start(made, folder, **hooks))


def _go(folder: Path, as_json: bool, start: Callable[..., Any]) -> None:
    from prunus import console

    show = console.choose(as_json=as_json)
    with _stoppable() as stopped:
        try:
            result, metric_name = start(watch=show, stop=lambda: bool(stopped))
        except Interrupted:
            show.close()
            raise Interrupted(f"stopped and saved; go on with: prunus resume {folder}") from None
        except BaseException:
            show.close()
            raise
    from prunus.report import write_report

    report = write_report(folder)
    show.finish(result, metric_name, str(report))


@contextmanager
def _stoppable() -> Iterator[list[int]]:
    """Ctrl-C asks to stop at the next step; a second one stops at once."""
    stopped: list[int] = []

    def ask(number: int, frame: object) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)
        click.echo("saving, then stopping (again to stop at once) …", err=True)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
