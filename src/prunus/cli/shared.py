"""What commands have in common: options, and how they say what went wrong."""

from __future__ import annotations

import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from prunus._common.own_code import where
from prunus._common.packages import lacking
from prunus._common.tables import Table
from prunus.errors import InputError, PrunusError

Command = TypeVar("Command", bound=Callable[..., Any])


def _sets(name: str, option: str, **settings: Any) -> Callable[[Command], Command]:
    """An option that sets a variable of the environment, before anything reads it."""

    def put(ctx: click.Context, parameter: click.Parameter, value: object) -> None:
        if value is not None:
            os.environ[name] = str(value)

    return click.option(option, callback=put, is_eager=True, expose_value=False, **settings)


JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
DEBUG = click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
DATA = _sets(
    "PRUNUS_DATA", "--data", type=click.Path(exists=True, file_okay=False),
    help="Folder of the data sets (default: the variable PRUNUS_DATA).",
)  # fmt: skip
THREADS = _sets(
    "OMP_NUM_THREADS", "--threads", type=click.IntRange(1),
    help="Processor threads (default: torch's own choice).",
)  # fmt: skip


def timing_options(
    *, batch: str, seconds: str, batches: tuple[int, ...] = (1, 16)
) -> Callable[[Command], Command]:
    """What all that takes the time of a model asks for, with the help of two of the options."""
    options = (
        click.option("--batch", "batches", type=click.IntRange(1), multiple=True,
                     default=batches, show_default="1 and 16", help=batch),
        click.option("--threads", type=click.IntRange(1), default=1, show_default=True,
                     help="Processor threads."),
        click.option("--seconds", type=click.FloatRange(0, min_open=True), default=1.0,
                     show_default=True, help=seconds),
    )  # fmt: skip
    return lambda command: functools.reduce(lambda c, option: option(c), options[::-1], command)


def says_errors(command: Command) -> Command:
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
        except ModuleNotFoundError as error:
            if debug:
                raise
            click.echo(f"Error: {lacking(error)}", err=True)
            sys.exit(InputError.exit_code)
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            sys.exit(130)
        except BrokenPipeError:
            sys.exit(1)
        except Exception as error:  # a fault of ours or of the user's code: one line, no traceback
            if debug:
                raise
            place = where(error)
            click.echo(
                f"Error: {type(error).__name__}: {error} ({place}); --debug shows the traceback",
                err=True,
            )
            sys.exit(1)

    return DEBUG(wrapped)  # type: ignore[return-value]


def model_of(name: str) -> tuple[Any, Any]:
    """Model and example of a task, or of a function in a Python file.

    Raises:
        InputError: if it is neither, nor the folder of a run.
    """
    from prunus.cli.trust import ask_file
    from prunus.methods.catalog import meant, names, own_file
    from prunus.tasks.find import find_model

    if own_file(name) is None and name not in names("tasks"):
        raise InputError(f"there is no run folder and no task '{name}'; {meant('tasks', name)}")
    ask_file(name)
    return find_model(name)


def show(table: Table) -> None:
    """Print a table; its head and strong rows are bold on a terminal."""
    for i, line in enumerate(table.lines()):
        click.secho(line, bold=i == 0 or i - 1 in table.strong)


@contextmanager
def stoppable() -> Iterator[list[int]]:
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
