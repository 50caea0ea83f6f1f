"""A run's models in the runtimes that will serve them: every round timed, the last one built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from prunus._common.distributed import on_rank_zero, world_size
from prunus.compaction.compact import compact, smaller_pair
from prunus.compaction.cut import cut_of
from prunus.compaction.files.artifact import save
from prunus.deployment.calibration import inputs_of
from prunus.deployment.deploy import candidates, deploy
from prunus.deployment.module import open_artifact
from prunus.deployment.table import Deployment
from prunus.errors import InputError, PrunusError
from prunus.methods.traits import trait
from prunus.progressive.engine import PruningEngine
from prunus.progressive.record import Record
from prunus.progressive.result import Compaction
from prunus.progressive.state import RunContext
from prunus.recipe.parts import Deploy
from prunus.recipe.schema import Recipe
from prunus.runtimes import find
from prunus.types import Masks

BATCHES = 8
"""Of calibration, for runtimes that quantize."""
SECONDS = 0.5
"""Of timing, for every round and runtime."""


def serves(recipe: Recipe) -> bool:
    """Whether a run ends with an artifact."""
    return recipe.deploy is not None or recipe.quantize != "none"


def round_latency(job: RunContext, dense: Mapping[str, float]) -> dict[str, float]:
    """Median milliseconds of the model as it stands, by runtime; empty where nothing deploys it.

    Compact where the recipe makes it so; runtimes that take minutes to build are left to the end.
    The dense model is timed in the same run, and the round's time is scaled by what that takes now
    against round 0, so that rounds compare although the machine's speed wavers between them.

    Args:
        job: at the end of a round.
        dense: what round 0 found; empty in round 0 itself.
    """
    recipe = job.engine.recipe
    if not serves(recipe) or job.example is None:
        return {}
    how = recipe.deploy or Deploy()
    try:
        made = deploy(
            _as_it_would_end(job), example=job.example, runtime=_sure(how.runtime),
            compare_with=_exact(how.runtime), batch_sizes=(how.batch,), threads=how.threads,
            calibration=_calibration(job), seconds=SECONDS,
            baseline=job.baseline if dense else None,
        )  # fmt: skip
    except PrunusError as error:  # an engine that fails costs no round
        job.note(f"the round was not timed: {error}")
        return {}
    ms = {(r.runtime, r.model): t.median_ms for r in made.rows for t in r.latency.values()
          if r.good}  # fmt: skip
    own = {name: time for (name, model), time in ms.items() if model == "pruned"}
    if not dense:
        return own
    both = [name for name in own if (name, "dense") in ms and name in dense]
    return {name: own[name] * dense[name] / ms[name, "dense"] for name in both}


def _as_it_would_end(job: RunContext) -> nn.Module:
    """The model as it would be handed over now."""
    engine = job.engine
    waits = engine.recipe.compact == "end" and engine.space.analysis is not None
    return smaller(engine, engine.masks) if waits else engine.model


def smaller(engine: PruningEngine, masks: Masks) -> nn.Module:
    """A copy of the model without what masks remove; the model itself where that is nothing."""
    if all(bool(m.all()) for m in masks.values()):
        return engine.model
    if engine.space.analysis is None:
        return compact(engine.model, masks, engine.example).model
    cut = cut_of(engine.space.analysis, masks)
    return smaller_pair(engine.model, masks, cut, engine.example)[0]


def serve(job: RunContext, compaction: Compaction | None) -> Deployment | None:
    """Build the finished model for its runtime, calibrated and judged there.

    An engine that fails costs no result: the run ends without an artifact, and says why. Of
    several ranks the first builds it, and gets it.

    Args:
        job: that is done.
        compaction: how its model became smaller, if it did.
    """
    if not serves(job.engine.recipe):
        return None
    found: list[Deployment] = []
    try:
        on_rank_zero(lambda: found.append(_kept(job) or _served(job, compaction)))
        return found[0] if found else None
    except PrunusError as error:
        job.journal.write("not deployed", why=str(error))
        job.note(f"no artifact was made: {error}")
        return None


def _kept(job: RunContext) -> Deployment | None:
    """What the run ended with when it was finished, if its artifact opens without the model."""
    folder = job.journal.folder
    if folder is None or not any(e["event"] == "end" for e in job.journal.events):
        return None
    made = Record(folder).result.get("deployment")
    if made is None or trait("runtimes", made["runtime"], "NEEDS_MODEL"):
        return None
    path = folder / "deployed" / made["runtime"]
    try:
        return Deployment.from_dict(made, open_artifact(path, threads=made["threads"]), path)
    except InputError:  # taken away, damaged, or its runtime is not installed any more
        return None


def _served(job: RunContext, compaction: Compaction | None) -> Deployment:
    recipe, engine = job.engine.recipe, job.engine
    how = recipe.deploy or Deploy()
    guard = recipe.guard
    made = deploy(
        engine.model,
        example=job.example,
        runtime=how.runtime,
        compare_with=_exact(how.runtime) if recipe.quantize == "int8" else (),
        quantize=recipe.quantize,
        folder=None if job.journal.folder is None else job.journal.folder / "deployed",
        baseline=job.dense,
        # By one rank alone it would wait for ever where it speaks to the others.
        evaluate=job.evaluate if world_size() == 1 else None,
        better="higher" if guard is None else guard.better,
        calibration=_calibration(job),
        max_drop=_allowed(job),
        batch_sizes=tuple(dict.fromkeys((how.batch, 16))),
        threads=how.threads,
        on_event=lambda text: job.note(f"deploy: {text}"),
    )
    if (
        made.path is not None
        and compaction is not None
        and trait("runtimes", made.runtime, "NEEDS_MODEL")
    ):
        # With the numbers that modules keep, which the model alone does not tell.
        save(engine.model, made.path / made.model.card.file, compaction.attributes)
    return made


def _calibration(job: RunContext) -> list[Any]:
    """Inputs for what quantizes; none where the recipe does not."""
    engine = job.engine
    if engine.recipe.quantize != "int8":
        return []
    batches, loss = engine.selector.calibration, engine.selector.loss
    assert batches is not None
    assert loss is not None
    return inputs_of(engine.model, loss, batches, limit=BATCHES)


def _allowed(job: RunContext) -> float:
    """How much worse the metric of an int8 artifact may be than the pruned model's."""
    guard = job.engine.recipe.guard
    if guard is None or not guard.relative:
        return 0.01 if guard is None else guard.max_drop
    metrics = [e["metric"] for e in job.journal.events if e["event"] == "round"]
    return float(guard.max_drop * abs(metrics[0] or 0.0))


def _sure(runtime: str) -> str:
    """The runtime, or for ``auto`` the one that runs whatever PyTorch runs."""
    return "eager" if runtime == "auto" else runtime


def _exact(runtime: str) -> list[str]:
    """In float32: the engine that is named, or all that build quickly."""
    if runtime != "auto" and find(runtime).FACTS.exact:
        return [runtime]
    names, _ = candidates("auto", quantized=False)
    return [n for n in names if not find(n).FACTS.slow]


def refuse_unserved(recipe: Recipe, example: Any, calibration: Any, loss: Any) -> None:
    """What an artifact needs and was not given.

    Raises:
        InputError: saying what to give.
    """
    if not serves(recipe):
        return
    if example is None:
        raise InputError("deploy: pass example=, an input, from which the artifact is built")
    if recipe.quantize == "int8" and world_size() > 1:
        raise InputError(
            "quantize: int8 is judged by evaluate in the runtime, and no rank can do that alone: "
            "leave it out, and call prunus.deploy(…, quantize='int8') after the run"
        )
    if recipe.quantize == "int8" and (calibration is None or loss is None):
        raise InputError(
            "quantize: int8 is calibrated on data: pass calibration (batches) and loss "
            "(a function of model and batch)"
        )
    runtime = "auto" if recipe.deploy is None else recipe.deploy.runtime
    if runtime != "auto":
        find(runtime)
