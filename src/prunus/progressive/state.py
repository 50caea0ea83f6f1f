"""Where a run is, how it is saved, and how it goes on from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from prunus._common import rng as randomness
from prunus._common.distributed import gather, world_size
from prunus._common.metrics import Metric
from prunus.progressive.engine import PruningEngine
from prunus.progressive.journal import Journal
from prunus.progressive.phase import Budget
from prunus.progressive.result import Round, as_named, as_written
from prunus.pruning.masks import saved_with
from prunus.recipe import duration
from prunus.recipe.schema import Recipe
from prunus.types import State

OnEvent = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class RunContext:
    """What does not change during a run."""

    engine: PruningEngine
    journal: Journal
    train: Callable[..., Any] | None
    evaluate: Metric | None
    evaluate_train: Metric | None
    on_event: OnEvent
    should_stop: Callable[[], bool]
    dense: nn.Module | None = None
    """A copy of the model as it was given, where the recipe deploys the result beside it."""
    again: Callable[[], nn.Module] | None = None
    """Makes the model anew, so that the dense one can be tested beside the result."""
    keeps: bool = True
    """Whether the last accepted round is kept, to return to."""

    @property
    def model(self) -> nn.Module:
        return self.engine.model

    @property
    def example(self) -> Any:
        return self.engine.example

    def note(self, text: str) -> None:
        """Tell who watches."""
        self.on_event({"event": "note", "text": text})


@dataclass
class RunState:
    """Where a run is: saved with every snapshot, so that it goes on from there."""

    phase: str = "dense"
    progress: float = 0.0
    requested: float = 0.0
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
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the names that run folders have for them; no tensors."""
        own = {k: v for k, v in vars(self).items() if k not in ("rounds", "blobs", "optimizer")}
        return {**as_written(own), "rounds": [r.to_dict() for r in self.rounds]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> RunState:
        """What :meth:`to_dict` gave."""
        rounds = [Round.from_dict(r) for r in plain["rounds"]]
        return cls(**{**as_named(cls, plain), "rounds": rounds})

    @property
    def index(self) -> int:
        """The number of the round at work."""
        return len(self.rounds)


def blob(state: State) -> dict[str, Any]:
    return {"tensors": state.tensors, "optimizer": state.optimizer}


def unblob(saved: dict[str, Any]) -> State:
    return State(saved["tensors"], saved["optimizer"])


def model_state(job: RunContext, at: RunState) -> dict[str, Any]:
    """What a snapshot is written of: no copy."""
    now = State(saved_with(job.model), at.optimizer)
    return {**blob(now), "pruner": job.engine.state_dict()}


def put_back(job: RunContext, at: RunState, saved: dict[str, Any]) -> None:
    state = unblob(saved)
    job.engine.load_state_dict(saved["pruner"])  # its shapes first
    job.engine.load(state)
    at.optimizer = state.optimizer


def save(job: RunContext, at: RunState, limit: Budget) -> None:
    at.seconds = limit.seconds
    blobs = dict(at.blobs)
    if at.accepted is not None:
        blobs["accepted"] = at.accepted
    keep = tuple(b["name"] for b in blobs.values())
    if job.journal.folder is None:  # nothing to go on from once the process is gone
        job.journal.forget(keep)
        return
    tree = {
        **model_state(job, at),
        "position": at.to_dict(),
        "blobs": blobs,
        "rng": gather(randomness.state()),
        "threads": torch.get_num_threads(),
    }
    seconds = round(at.seconds, 3)
    job.journal.snapshot(
        tree, keep=keep, round=at.index, phase=at.phase, step=at.step, seconds=seconds
    )


def _recalls_start(recipe: Recipe) -> bool:
    """Whether the restore will ask for the model as it was given."""
    back: Any = recipe.trait("restore", "REWINDS_TO")
    at_once = back is not None and duration.parse(back).value == 0
    return at_once or recipe.trait("restore", "RECALLS") == "start"


def begin(job: RunContext) -> RunState:
    """The position from which a run goes on: its newest good snapshot, or the start."""
    tree = job.journal.latest()
    for problem in job.journal.damaged:
        job.note(problem)
    if tree is None:
        at = RunState()
        if _recalls_start(job.engine.recipe):
            at.blobs["start"] = job.journal.store("start", blob(job.engine.state()))
        if duration.parse(job.engine.recipe.dense.length).value:
            job.journal.write("start", time=time.time())
        return at
    at = RunState.from_dict(tree["position"])
    at.blobs = {k: v for k, v in tree["blobs"].items() if k != "accepted"}
    torch.set_num_threads(tree["threads"])
    put_back(job, at, tree)
    randomness.set_state(randomness.of_this_rank(tree["rng"]))
    saved, now = len(tree["rng"]), world_size()
    if saved != now:
        job.note(f"saved by {saved} processes, resumed by {now}: the bits will differ")
    if at.phase == "end":
        job.note("this run is finished; here is its result")
        return at
    job.journal.write("resumed", step=at.step, round=at.index, time=time.time())
    job.note(f"resumed in round {at.index}")
    return at
