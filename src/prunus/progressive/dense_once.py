"""The dense phase that several runs have in common: the first one trains it for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import torch

from prunus._common import rng as randomness
from prunus._common.distributed import world_size
from prunus._common.files import digest, freeze, tensors_digest, thaw, write_atomically
from prunus._common.torch_internals import torch_version
from prunus.progressive.engine import PruningEngine
from prunus.progressive.folder import identity
from prunus.progressive.regularize import regularizes
from prunus.progressive.selector import scored
from prunus.progressive.state import RunContext, RunState
from prunus.pruning.masks import put_back, saved_with
from prunus.recipe import duration
from prunus.recipe.resolve import short_hash
from prunus.recipe.schema import Recipe


def dense_key(engine: PruningEngine) -> str | None:
    """What two runs have the same of if their dense phases end with the same bits, as one word.

    That is all that the phase reads: task and code, initial weights, masks and random numbers, seed
    and lengths, threads; where the criterion learns from this training or a restore returns to
    a step of it, these too. ``None`` if there is no such phase, or a clock may end it.
    """
    recipe = engine.recipe
    length = duration.parse(recipe.dense.length)
    by_time = recipe.limit is not None and duration.parse(recipe.limit).unit == "min"
    if not length.value or by_time or world_size() > 1:
        return None
    latency = recipe.target is not None and recipe.target.latency is not None
    own = identity(engine)
    return short_hash(
        [
            None if recipe.task is None else recipe.task.to_dict(),
            {k: own[k] for k in ("code", "parameters", "weights")},
            tensors_digest(dict(engine.masks)),
            sorted(_numbers(randomness.state())),
            recipe.seed,
            recipe.dense.model_dump(mode="json"),
            recipe.learning_rate is None,
            recipe.limit,
            _rewinds_to(recipe),
            recipe.target.model_dump(mode="json") if recipe.target and latency else None,
            [recipe.criterion.to_dict(), sorted(scored(engine.model, engine.space))]
            if engine.selector.reads_training
            else None,
            torch.get_num_threads(),
            torch_version(),
            *([recipe.digest()] if regularizes(recipe, dense=True) else ()),  # all may count
        ]
    )


def _rewinds_to(recipe: Recipe) -> Any:
    """The step inside the dense phase to which rounds return; 0 is known without it."""
    back: Any = recipe.trait("restore", "REWINDS_TO")
    return back if back is not None and duration.parse(back).value else None


def _numbers(state: dict[str, Any]) -> list[str]:
    return [digest(freeze({name: value})) for name, value in state.items()]


def train_once(job: RunContext, at: RunState, train: Callable[[], None]) -> None:
    """Train the dense model, or take it over from a run that did."""
    assert job.dense_file is not None
    with job.dense_file() as path:
        found = _read(path)
        if found is not None:
            job.note("round 0: the dense model of another trial with the same dense phase")
            _take_over(job, at, found)
            return
        train()
        data = freeze(_state(job, at))
        write_atomically(path, digest(data).encode() + data)


def _state(job: RunContext, at: RunState) -> dict[str, Any]:
    rewind = None if _rewinds_to(job.engine.recipe) is None else at.blobs["rewind"]
    engine = job.engine.state_dict()
    return {
        "tensors": saved_with(job.model),
        "optimizer": at.optimizer,
        "position": at.to_dict(),
        "engine": {name: engine[name] for name in ("step", "running")},
        "earlier": None if rewind is None else job.journal.fetch(rewind),
        "rng": randomness.state(),
    }


def _take_over(job: RunContext, at: RunState, found: dict[str, Any]) -> None:
    put_back(job.model, found["tensors"])
    job.engine.load_state_dict({**job.engine.state_dict(), **found["engine"]})
    there = RunState.from_dict(found["position"])
    for name in ("step", "epoch", "per_epoch", "names", "seen", "notes"):
        setattr(at, name, getattr(there, name))
    at.optimizer, at.saved = found["optimizer"], None
    if found["earlier"] is not None:
        at.blobs["rewind"] = job.journal.store("rewind", found["earlier"])
    elif job.engine.recipe.trait("restore", "REWINDS_TO") is not None:
        at.blobs["rewind"] = at.blobs["start"]
    randomness.set_state(found["rng"])


def _read(path: Path) -> dict[str, Any] | None:
    """What was written, unless it is damaged."""
    try:
        data = path.read_bytes()
        found = thaw(data[64:]) if digest(data[64:]).encode() == data[:64] else None
    except (OSError, ValueError, LookupError, TypeError, safetensors.SafetensorError):
        return None
    return found
