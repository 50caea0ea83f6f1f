"""``prunus deploy``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunus.cli.shared import DATA, JSON, says_errors, set_data, show
from prunus.errors import InputError
from prunus.methods.catalog import meant, names
from prunus.methods.traits import trait

if TYPE_CHECKING:
    from prunus.deployment.table import Deployment

WRITTEN = "deploy.json"
"""The file that a run's folder gets; the report reads it."""
ARTIFACTS = "deployed"
BATCHES = 8
"""Of calibration, for runtimes that quantize."""


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--runtime", "runtimes", multiple=True, default=("auto",), show_default=True,
    help="A name (prunus list runtimes), or auto for all; may be given several times.",
)  # fmt: skip
@click.option(
    "--batch", "batches", type=click.IntRange(1), multiple=True, default=(1, 16),
    show_default="1 and 16", help="Sizes to time; the first decides. May be given several times.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Processor threads."
)
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
    help="Of timing, for each artifact and batch size.",
)  # fmt: skip
@click.option(
    "--max-drop", type=click.FloatRange(0), default=0.01, show_default=True,
    help="Of the metric, that int8 may cost.",
)  # fmt: skip
@click.option(
    "--folder", type=click.Path(path_type=Path),
    help="Where artifacts are kept (default: RUN/deployed; of a function's model, nowhere).",
)  # fmt: skip
@DATA
@JSON
@says_errors
def deploy(
    run: str,
    runtimes: tuple[str, ...],
    batches: tuple[int, ...],
    folder: Path | None,
    data: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Build the model of a RUN for the runtime that is fastest here, and show all of them.

    RUN is the folder of a finished run: every runtime's answers are compared with PyTorch's, its
    metric is computed on the validation data, and it is timed beside the dense model. The fastest
    is kept in RUN/deployed, the table in RUN/deploy.json. A function in a Python file that returns
    a model and an example of its input is deployed alone.

    \b
    Examples:
      prunus deploy runs/channels-1a2b3c4d
      prunus deploy runs/channels-1a2b3c4d --runtime onnxruntime --batch 1 --threads 2
      prunus deploy my/model.py:make --folder artifacts
    """
    set_data(data)
    if "auto" in runtimes and len(runtimes) > 1:
        raise InputError("--runtime: auto stands for all of them; name it alone, or name others")
    settings |= {
        "runtime": "auto" if "auto" in runtimes else runtimes,
        "batch_sizes": batches,
        "on_event": _says(as_json),
    }
    if Path(run).is_dir():
        made, kept = _of_run(Path(run), folder, settings), Path(run) / WRITTEN
    else:
        made, kept = _of_model(run, folder, settings), None
    _show(made, as_json)
    if kept is not None and not as_json:
        click.echo(f"wrote {kept}")


def _says(as_json: bool) -> Any:
    import json

    def say(text: str) -> None:
        click.echo(json.dumps({"event": "note", "text": text}) if as_json else f"… {text}")

    return say


def _of_run(run: Path, folder: Path | None, settings: dict[str, Any]) -> Deployment:
    from prunus.deployment.calibration import inputs_of
    from prunus.deployment.deploy import deploy as deploy_model
    from prunus.deployment.table import write_table
    from prunus.progressive.finished import open_run

    done = open_run(run)
    task = done.task
    batches = task.train if task.calibration is None else task.calibration
    made = deploy_model(
        done.pruned,
        example=task.example,
        folder=folder or run / ARTIFACTS,
        baseline=done.dense,
        better="higher" if done.recipe.guard is None else done.recipe.guard.better,
        evaluate=lambda model: task.metric(model, task.validation),
        calibration=inputs_of(done.pruned, task.loss, batches, limit=BATCHES),
        **settings,
    )
    if trait("runtimes", made.runtime, "NEEDS_MODEL") and made.path is not None:
        _copy(run / "model.safetensors", made.path)
    write_table(made, run / WRITTEN)
    return made


def _copy(file: Path, folder: Path) -> None:
    """The run's own file instead: it says, too, which numbers of modules became smaller."""
    from prunus._common.files import write_atomically

    write_atomically(folder / "model.safetensors", file.read_bytes())


def _of_model(name: str, folder: Path | None, settings: dict[str, Any]) -> Deployment:
    from prunus.deployment.deploy import deploy as deploy_model
    from prunus.tasks.find import find_model

    if ".py" not in name and name not in names("tasks"):
        raise InputError(f"there is no run folder and no task '{name}'; {meant('tasks', name)}")
    model, example = find_model(name)
    if example is None:
        raise InputError(f"{name} has no example of an input: return (model, example)")
    return deploy_model(model, example=example, folder=folder, **settings)


def _show(made: Deployment, as_json: bool) -> None:
    import json

    from prunus.deployment.table import table

    if as_json:
        plain = made.to_dict()
        for row in plain.pop("rows"):
            click.echo(json.dumps({"event": "row", **row}))
        click.echo(json.dumps({"event": "deployed", **plain}))
        return
    click.echo()
    show(table(made.rows, made.runtime))
    click.echo()
    for text in made.summary():
        click.echo(text)
    if made.path is not None:
        click.echo(f"kept {made.path}")
