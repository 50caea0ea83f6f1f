"""``prunus measure``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunus.cli import completion
from prunus.cli.shared import DATA, JSON, model_of, says_errors, show, timing_options
from prunus.cli.trust import TRUST, ask

if TYPE_CHECKING:
    from prunus.measurement.result import Measurement

WRITTEN = "measure.json"
"""The file that a run's folder gets; the report reads it."""


@click.command()
@click.argument("run", metavar="RUN", shell_complete=completion.runs_or_models)
@timing_options(
    batch="Items of a pass; may be given several times.",
    seconds="Time for each model and batch.",
    batches=(),  # 1 and 16 unless the example holds no batch
)
@DATA
@TRUST
@JSON
@says_errors
def measure(run: str, batches: tuple[int, ...], as_json: bool, **settings: Any) -> None:
    """Measure size, latency, memory and energy of a RUN's model beside the dense one.

    RUN is the folder of a finished run, which gets the figures as measure.json. A task, or a
    function in a Python file that returns a model and an example of its input, is measured alone.

    \b
    Examples:
      prunus measure runs/channels-1a2b3c4d
      prunus measure runs/channels-1a2b3c4d --batch 1 --batch 64 --threads 2
      prunus measure my/model.py:make --json
    """
    from prunus.measurement.measure import measure as measure_model

    settings["batch_sizes"] = batches or None
    folder = Path(run) if Path(run).is_dir() else None
    if folder is None:
        found = measure_model(*model_of(run), **settings)
    else:
        found = _of_run(folder, settings)
    if as_json:
        click.echo(json.dumps(found.to_dict()))
        return
    _print(found.to_dict())
    if folder is not None:
        click.echo(f"wrote {folder / WRITTEN}")


def _of_run(folder: Path, settings: dict[str, Any]) -> Measurement:
    from prunus._common.files import write_json
    from prunus.measurement.measure import measure as measure_model
    from prunus.progressive.finished import open_run
    from prunus.progressive.record import Record
    from prunus.recipe.resolve import code_that_runs

    ask(code_that_runs(Record(folder).recipe))
    done = open_run(folder)
    found = measure_model(done.pruned, done.task.example, baseline=done.dense, **settings)
    write_json(folder / WRITTEN, found.to_dict())
    return found


def _print(plain: dict[str, Any]) -> None:
    from prunus.measurement.table import machine, table

    show(table(plain))
    click.echo()
    click.echo(machine(plain))
    for note in plain["warnings"]:
        click.echo(f"note: {note}")
