"""``prunus deploy``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunus.cli import completion
from prunus.cli.shared import DATA, JSON, model_of, says_errors, show, timing_options
from prunus.cli.trust import TRUST, ask
from prunus.errors import InputError
from prunus.methods.traits import trait

if TYPE_CHECKING:
    from prunus.deployment.table import Deployment

WRITTEN = "deploy.json"
"""The file that a run's folder gets; the report reads it."""
ARTIFACTS = "deployed"
BATCHES = 8
"""Of calibration, for runtimes that quantize."""


@click.command()
@click.argument("run", metavar="RUN", shell_complete=completion.runs_or_models)
@click.option(
    "--runtime", "runtimes", multiple=True, default=("auto",), show_default=True,
    shell_complete=completion.runtimes,
    help="A name (prunus list runtimes), or auto for all; may be given several times.",
)  # fmt: skip
@timing_options(
    batch="Sizes to time; the first decides. May be given several times.",
    seconds="Of timing, for each artifact and batch size.",
)
@click.option(
    "--max-drop", type=click.FloatRange(0), default=0.01, show_default=True,
    help="Of the metric, that int8 may cost.",
)  # fmt: skip
@click.option(
    "--folder", type=click.Path(path_type=Path),
    help="Where artifacts are kept (default: RUN/deployed; of a function's model, nowhere).",
)  # fmt: skip
@DATA
@TRUST
@JSON
@says_errors
def deploy(
    run: str,
    runtimes: tuple[str, ...],
    batches: tuple[int, ...],
    folder: Path | None,
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
    if "auto" in runtimes and len(runtimes) > 1:
        raise InputError("--runtime: auto stands for all of them; name it alone, or name others")

    def say(text: str) -> None:
        click.echo(json.dumps({"event": "note", "text": text}) if as_json else f"… {text}")

    settings |= {
        "runtime": "auto" if "auto" in runtimes else runtimes,
        "batch_sizes": batches,
        "on_event": say,
    }
    if Path(run).is_dir():
        made, kept = _of_run(Path(run), folder, settings), Path(run) / WRITTEN
    else:
        made, kept = _of_model(run, folder, settings), None
    _show(made, as_json)
    if kept is not None and not as_json:
        click.echo(f"wrote {kept}")


def _of_run(run: Path, folder: Path | None, settings: dict[str, Any]) -> Deployment:
    from prunus._common.files import write_atomically, write_json
    from prunus.deployment.calibration import inputs_of
    from prunus.deployment.deploy import deploy as deploy_model
    from prunus.progressive.finished import open_run
    from prunus.progressive.record import Record
    from prunus.recipe.resolve import code_that_runs

    ask(code_that_runs(Record(run).recipe))
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
        # The run's own file instead: it says, too, which numbers of modules became smaller.
        write_atomically(made.path / "model.safetensors", (run / "model.safetensors").read_bytes())
    write_json(run / WRITTEN, made.to_dict())
    return made


def _of_model(name: str, folder: Path | None, settings: dict[str, Any]) -> Deployment:
    from prunus.deployment.deploy import deploy as deploy_model

    model, example = model_of(name)
    if example is None:
        raise InputError(f"{name} has no example of an input: return (model, example)")
    return deploy_model(model, example=example, folder=folder, **settings)


def _show(made: Deployment, as_json: bool) -> None:
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
