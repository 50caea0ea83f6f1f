"""A run's models in the runtimes that will serve them: every round timed, the last one built."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunus.compaction.compact import compact
from prunus.deployment.deploy import candidates, deploy
from prunus.deployment.table import Deployment
from prunus.errors import InputError
from prunus.position import Job
from prunus.recipe import Deploy, Recipe
from prunus.runtimes import find

BATCHES = 8
"""Of calibration, for runtimes that quantise."""
SECONDS = 0.5
"""Of timing, for every round and runtime."""


def serves(recipe: Recipe) -> bool:
    """Whether a run ends with an artefact."""
    return recipe.deploy is not None or recipe.quantize != "none"


def round_latency(job: Job) -> dict[str, float]:
    """Median milliseconds of the model as it stands, by runtime; empty where nothing deploys it.

    Compact where the recipe makes it so; runtimes that take minutes to build are left to the end.
    """
    recipe = job.pruner.recipe
    if not serves(recipe) or job.example is None:
        return {}
    how = recipe.deploy or Deploy()
    names, _ = candidates(how.runtime, quantised=False)
    names = [n for n in names if not getattr(find(n), "SLOW", False)] or names
    made = deploy(
        _as_it_would_end(job), example=job.example, runtime=names, batch_sizes=(how.batch,),
        threads=how.threads, seconds=SECONDS,
    )  # fmt: skip
    return {r.runtime: t.median_ms for r in made.rows for t in r.latency.values() if r.good}


def _as_it_would_end(job: Job) -> nn.Module:
    """The model as it would be handed over now."""
    pruner = job.pruner
    waits = pruner.recipe.compact == "end" and pruner.view.analysis is not None
    if not waits or all(bool(m.all()) for m in pruner.masks.values()):
        return pruner.model
    return compact(pruner.model, pruner.masks, job.example).model


def serve(job: Job) -> Deployment | None:
    """Build the finished model for its runtime, calibrated and judged there.

    Raises:
        InputError: if no example is given, or int8 is asked and nothing can calibrate it.
    """
    recipe, pruner = job.pruner.recipe, job.pruner
    if not serves(recipe):
        return None
    how = recipe.deploy or Deploy()
    guard = recipe.guard
    calibration: list[Any] = []
    if recipe.quantize == "int8":
        from prunus.deployment.inputs import inputs_of

        assert pruner.calibration is not None
        assert pruner.loss is not None
        calibration = inputs_of(pruner.model, pruner.loss, pruner.calibration, limit=BATCHES)
    return deploy(
        pruner.model,
        example=job.example,
        runtime=how.runtime,
        quantize=recipe.quantize,
        folder=None if job.journal.folder is None else job.journal.folder / "deployed",
        against=job.dense,
        evaluate=job.evaluate,
        better="higher" if guard is None else guard.better,
        calibration=calibration,
        max_drop=0.01 if guard is None else guard.max_drop,
        batch_sizes=tuple(dict.fromkeys((how.batch, 16))),
        threads=how.threads,
        watch=lambda text: job.watch({"event": "note", "text": f"deploy: {text}"}),
    )


def refuse_unserved(recipe: Recipe, example: Any, calibration: Any, loss: Any) -> None:
    """What an artefact needs and was not given.

    Raises:
        InputError: saying what to give.
    """
    if not serves(recipe):
        return
    if example is None:
        raise InputError("deploy: give example=, an input, from which the artefact is built")
    if recipe.quantize == "int8" and (calibration is None or loss is None):
        raise InputError(
            "quantize: int8 is calibrated on data: give calibration (batches) and loss "
            "(a function of model and batch)"
        )
    if recipe.deploy is not None and recipe.deploy.runtime != "auto":
        find(recipe.deploy.runtime)
