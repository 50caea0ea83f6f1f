"""Where a run is, how it is saved, and how it goes on from there."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from prunus._common import rng as randomness
from prunus._common.distributed import gather, size
from prunus._common.metrics import Metric
from prunus.progressive.engine import Pruner
from prunus.progressive.journal import Journal
from prunus.progressive.phase import Limit
from prunus.recipe import duration
from prunus.types import Round, State

Watch = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """What does not change during a run."""

    pruner: Pruner
    journal: Journal
    train: Callable[..., Any] | None
    evaluate: Metric | None
    evaluate_train: Metric | None
    example: Any
    watch: Watch
    stop: Callable[[], bool]
    dense: nn.Module | None = None
    """A copy of the model as it was given, where the recipe deploys the result beside it."""
    again: Callable[[], nn.Module] | None = None
    """Makes the model anew, so that the dense one can be tested beside the result."""
    keeps: bool = True
    """Whether the last accepted round is kept, to return to."""

    @property
    def model(self) -> nn.Module:
        return self.pruner.model


@dataclass
class Position:
    """Where a run is: saved with every snapshot, so that it goes on from there."""

    phase: str = "dense"
    progress: float = 0.0
    asked: float = 0.0
    rounds: list[Round] = field(default_factory=list)
    step: int = 0
    epoch: int = 0
    per_epoch: int | None = None
    seconds: float = 0.0
    round_began: float = 0.0
    accepted: dict[str, str] | None = None
    blobs: dict[str, dict[str, str]] = field(default_factory=dict)
    optimizer: dict[Any, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)  # of the optimizer's parameters, in its order
    saved: dict[str, Any] | None = None
    why: str = ""

    @property
    def index(self) -> int:
        """The number of the round at work."""
        return len(self.rounds)


def blob(state: State) -> dict[str, Any]:
    return {"tensors": state.tensors, "optimizer": state.optimizer}


def unblob(saved: dict[str, Any]) -> State:
    return State(saved["tensors"], saved["optimizer"])


def model_state(job: Job, at: Position) -> dict[str, Any]:
    return {**blob(job.pruner.state(at.optimizer)), "pruner": Pruner.state_dict(job.pruner)}


def put_back(job: Job, at: Position, saved: dict[str, Any]) -> None:
    state = unblob(saved)
    Pruner.load_state_dict(job.pruner, saved["pruner"])  # its shapes first
    job.pruner.load(state)
    at.optimizer = state.optimizer


def save(job: Job, at: Position, limit: Limit) -> None:
    at.seconds = limit.seconds
    blobs = dict(at.blobs)
    if at.accepted is not None:
        blobs["accepted"] = at.accepted
    keep = tuple(b["name"] for b in blobs.values())
    if job.journal.folder is None:  # nothing to go on from once the process is gone
        job.journal.forget(keep)
        return
    values = {k: v for k, v in vars(at).items() if k not in ("rounds", "blobs", "optimizer")}
    tree = {
        **model_state(job, at),
        "position": {**values, "rounds": [dataclasses.asdict(r) for r in at.rounds]},
        "blobs": blobs,
        "rng": gather(randomness.state()),
        "threads": torch.get_num_threads(),
    }
    job.journal.snapshot(
        tree,
        keep=keep,
        round=at.index,
        phase=at.phase,
        step=at.step,
        seconds=round(at.seconds, 3),
    )


def begin(job: Job) -> Position:
    """The position from which a run goes on: its newest good snapshot, or the start."""
    tree = job.journal.latest()
    for problem in job.journal.damaged:
        job.watch({"event": "note", "text": f"{problem}; the last good one before is used"})
    if tree is None:
        at = Position()
        at.blobs["start"] = job.journal.store("start", blob(job.pruner.state()))
        if duration.parse(job.pruner.recipe.dense.length).value:
            job.journal.write("start", time=time.time())
        return at
    position = dict(tree["position"])
    at = Position(**{**position, "rounds": [Round(**r) for r in position["rounds"]]})
    at.blobs = {k: v for k, v in tree["blobs"].items() if k != "accepted"}
    torch.set_num_threads(tree["threads"])
    put_back(job, at, tree)
    randomness.set_state(randomness.own(tree["rng"]))
    if len(tree["rng"]) != size():
        text = f"saved by {len(tree['rng'])} processes, resumed by {size()}: the bits will differ"
        job.watch({"event": "note", "text": text})
    if at.phase == "end":
        job.watch({"event": "note", "text": "this run is finished; here is what it ended with"})
        return at
    job.journal.write("resumed", step=at.step, round=at.index, time=time.time())
    job.watch({"event": "note", "text": f"resumed in round {at.index}"})
    return at
