"""``prunus measure``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from prunus.cli.shared import DATA, JSON, says_errors, set_data, show
from prunus.errors import InputError
from prunus.methods.catalog import meant, names

WRITTEN = "measure.json"
"""The file that a run's folder gets; the report reads it."""


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1),
    multiple=True,
    default=(1, 16),
    show_default="1 and 16",
    help="Items of a pass; may be given several times.",
)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Processor threads."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Time for each model and batch.",
)
@DATA
@JSON
@says_errors
def measure(
    run: str,
    batches: tuple[int, ...],
    threads: int,
    seconds: float,
    data: Path | None,
    as_json: bool,
) -> None:
    """Measure size, latency, memory and energy of a RUN's model beside the dense one.

    RUN is the folder of a finished run, which gets the figures as measure.json. A task, or a
    function in a Python file that returns a model and an example of its input, is measured alone.

    \b
    Examples:
      prunus measure runs/channels-1a2b3c4d
      prunus measure runs/channels-1a2b3c4d --batch 1 --batch 64 --threads 2
      prunus measure my/model.py:make --json
    """
    set_data(data)
    settings = {"batch_sizes": batches, "threads": threads, "seconds": seconds}
    if Path(run).is_dir():
        plain = _of_run(Path(run), settings)
    else:
        plain = _of_model(run, settings)
    if as_json:
        import json

        click.echo(json.dumps(plain))
        return
    _print(plain)
    if Path(run).is_dir():
        click.echo(f"wrote {Path(run) / WRITTEN}")


def _of_run(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    import json

    from prunus._common.files import write_atomically
    from prunus.measurement.measure import measure as measure_model
    from prunus.progressive.finished import open_run

    done = open_run(folder)
    found = measure_model(done.pruned, done.task.example, baseline=done.dense, **settings)
    plain = found.to_dict()
    write_atomically(folder / WRITTEN, json.dumps(plain, indent=1).encode())
    return plain


def _of_model(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    from prunus.measurement.measure import measure as measure_model
    from prunus.tasks.find import find_model

    if ".py" not in name and name not in names("tasks"):
        raise InputError(f"there is no run folder and no task '{name}'; {meant('tasks', name)}")
    model, example = find_model(name)
    return measure_model(model, example, **settings).to_dict()


def _print(plain: dict[str, Any]) -> None:
    from prunus.measurement.table import machine, table

    show(table(plain))
    click.echo()
    click.echo(machine(plain))
    for note in plain["warnings"]:
        click.echo(f"note: {note}")
