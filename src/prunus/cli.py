"""The command line. torch is imported only once a command needs it."""

from __future__ import annotations

import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from prunus import __version__
from prunus.errors import InputError, Interrupted, PrunusError

Command = TypeVar("Command", bound=Callable[..., Any])


class _Help(click.Group):
    """Commands in the order in which one needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["run", "resume", "report", "compare", "plan", "units", "init", "list"]


@click.group(cls=_Help, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="prunus")
def cli() -> None:
    """Progressive pruning for PyTorch: judged, rolled back, resumable, exact.

    \b
    Examples:
      prunus run iterative                          the embedded digits, in rounds, to 95 %
      prunus run gradual task=mnist target=0.98     another task and target
      prunus run my/recipe.yaml task=my/task.py     your own model and data
      prunus plan iterative                         what would happen, without training
      prunus list                                   everything that can be named in a recipe
    """


def _threads(ctx: click.Context, parameter: click.Parameter, value: int | None) -> int | None:
    if value is not None:
        os.environ["OMP_NUM_THREADS"] = str(value)
    return value


_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
_DEBUG = click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
_DATA = click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder of the data sets (default: the variable PRUNUS_DATA).",
)
_THREADS = click.option(
    "--threads", type=click.IntRange(1), callback=_threads, is_eager=True,
    help="Processor threads (default: torch's own choice).",
)  # fmt: skip


def _says_errors(command: Command) -> Command:
    """One clear message and the exit code; a traceback with --debug alone."""

    @functools.wraps(command)
    def wrapped(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except PrunusError as error:
            if debug:
                traceback.print_exc()
            click.echo(f"Error: {error}" if error.exit_code != 130 else str(error), err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            sys.exit(130)
        except BrokenPipeError:
            sys.exit(1)
        except Exception as error:
            if debug:
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}, line {where.lineno}"
            click.echo(
                f"Error: {type(error).__name__}: {error} ({place}); --debug shows the traceback",
                err=True,
            )
            sys.exit(1)

    return _DEBUG(wrapped)  # type: ignore[return-value]


@cli.command()
@click.argument("recipe")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the run is kept.")
@_DATA
@_THREADS
@_JSON
@_says_errors
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
    _set_data(data)
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


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@_DATA
@_THREADS
@_JSON
@_says_errors
def resume(folder: Path, data: Path | None, threads: int | None, as_json: bool) -> None:
    """Go on with the run in FOLDER, to the same answer as if it had not stopped.

    \b
    Example:
      prunus resume runs/iterative-1a2b3c4d
    """
    _set_data(data)
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


@cli.command()
@click.argument("recipe")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
@_DATA
@_THREADS
@_JSON
@_says_errors
def plan(
    recipe: str, changes: tuple[str, ...], data: Path | None, threads: int | None, as_json: bool
) -> None:
    """Say what a RECIPE would do, without training: counts, reach, steps, estimated time.

    \b
    Examples:
      prunus plan iterative
      prunus plan gradual task=mnist target=0.99 allocation=erk
    """
    _set_data(data)
    from prunus.dry_run import dry_run, print_plan
    from prunus.recipe_file import load

    print_plan(dry_run(load(recipe, changes)), as_json=as_json)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@_JSON
@_says_errors
def report(folder: Path, as_json: bool) -> None:
    """Write the HTML report and the PNG pictures of the run in FOLDER again.

    \b
    Example:
      prunus report runs/iterative-1a2b3c4d
    """
    from prunus.report import write_report

    path = write_report(folder)
    click.echo(f'{{"event": "report", "path": "{path}"}}' if as_json else str(path))


@cli.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@_JSON
@_says_errors
def compare(folders: tuple[Path, ...], as_json: bool) -> None:
    """Set two or more runs beside each other.

    \b
    Example:
      prunus compare runs/iterative-1a2b3c4d runs/gradual-5e6f7a8b
    """
    from prunus.report.compare import compare as rows_of

    if len(folders) < 2:
        raise InputError("compare needs two runs or more: prunus compare RUN RUN")
    _print_rows(rows_of(folders), as_json)


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    import json

    from rich.console import Console
    from rich.table import Table

    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for row in rows:
        table.add_column(str(row["name"]), justify="right", overflow="fold")
    for key in rows[0]:
        if key != "name":
            table.add_row(key.replace("_", " "), *(_cell(row[key]) for row in rows))
    Console(highlight=False).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@cli.command()
@click.argument("model")
@click.option(
    "--heads",
    type=click.Choice(["whole", "dims"]),
    default="whole",
    help="At attention: whole heads, or the same dimensions of every head.",
)
@click.option("--all", "everything", is_flag=True, help="Name every dimension, not the first four.")
@_DATA
@_JSON
@_says_errors
def units(model: str, heads: Any, everything: bool, data: Path | None, as_json: bool) -> None:
    """Say what can be removed from a MODEL, and what cannot and why.

    MODEL is a task, or a function in a Python file that returns a model and an example of its
    input (or a prunus.Task).

    \b
    Examples:
      prunus units digits
      prunus units my/model.py:make --heads dims
    """
    _set_data(data)
    import json
    from dataclasses import asdict

    from prunus.call import find_model
    from prunus.graph.listing import units as units_of

    made, example = find_model(model)
    found = units_of(made, example, heads=heads)
    if not as_json:
        click.echo("\n".join(found.lines(10_000 if everything else 4)))
        return
    for kind in found.coupled:
        row = {"units": len(kind), "head": kind.head, "places": [list(p) for p in kind.places]}
        click.echo(json.dumps(row))
    for pin in found.pinned:
        click.echo(json.dumps({"stays": asdict(pin)}))


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("."))
@_says_errors
def init(folder: Path) -> None:
    """Write task.py and recipe.yaml into FOLDER, ready to run and to edit.

    \b
    Example:
      prunus init my_project && prunus run my_project/recipe.yaml
    """
    from prunus.template import write_template

    for path in write_template(folder):
        click.echo(f"wrote {path}")
    click.echo(f"next: edit both, then: prunus run {folder / 'recipe.yaml'}")


@cli.command(name="list")
@click.argument("axis", required=False)
@_JSON
@_says_errors
def list_(axis: str | None, as_json: bool) -> None:
    """Everything that a recipe can name, one line each, with its source.

    \b
    Examples:
      prunus list
      prunus list criteria
    """
    import json

    from prunus.errors import did_you_mean
    from prunus.folder import AXES, entries, recipe_entries

    sections = {name: entries(name) for name in (*AXES, "tasks")}
    sections["recipes"] = recipe_entries()
    if axis is not None and axis not in sections:
        raise InputError(f"there is no '{axis}' to list; {did_you_mean(axis, sections)}")
    for section, found in sections.items():
        if axis not in (None, section):
            continue
        if as_json:
            for e in found:
                click.echo(json.dumps({"axis": section, **vars(e)}))
            continue
        click.secho(section, bold=True)
        for e in found:
            settings = f" ({', '.join(e.settings)})" if e.settings else ""
            source = f"  [{e.source}]" if e.source else ""
            click.echo(f"  {e.name}{settings}: {e.line}{source}")
        click.echo()


def _set_data(data: Path | None) -> None:
    if data is not None:
        if not data.is_dir():
            raise InputError(f"--data: there is no folder '{data}'")
        os.environ["PRUNUS_DATA"] = str(data)


def main() -> None:
    """Entry point of the command ``prunus``."""
    cli()
