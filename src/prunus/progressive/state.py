"""Where a run is, how it is saved, and how it goes on from there."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus import costs
from prunus._common import rng as randomness
from prunus._common.batch import Batch, find_batch
from prunus._common.distributed import gather, world_size
from prunus._common.inputs import arguments
from prunus._common.metrics import Metric
from prunus.deployment.build import Baseline
from prunus.progressive.engine import PruningEngine
from prunus.progressive.holding import followers_of
from prunus.progressive.journal import Journal
from prunus.progressive.phase import Budget
from prunus.progressive.result import Round, as_named, as_written
from prunus.pruning.followers import Followers
from prunus.pruning.masks import saved_with
from prunus.pruning.trial import Trial
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
    """A copy of the model as it was given, where the recipe sets the result beside it."""
    again: Callable[[], nn.Module] | None = None
    """Makes the model anew, so that the dense one can be tested beside the result."""
    watched: bool = True
    """Whether ``train`` is somebody's own, which may keep averages that nobody named."""
    loss: Callable[[nn.Module, Any], torch.Tensor] | None = None
    """``(model, batch) -> scalar``."""
    teacher: nn.Module | None = None
    """A copy of the model as it was given, to hold what round 0 made of it."""
    taught_by: nn.Module | None = None
    """Another teacher than the dense model, which the caller gave."""
    trial: Trial | None = None
    """Where masks alone change the model: they are tried on it, and nothing is stored."""
    keeps: bool = True
    """Whether the last accepted round is kept, to return to."""
    metric_name: str = "metric"
    """What the metric is called."""
    dense_file: Callable[[], AbstractContextManager[Path]] | None = None
    """The file of a dense phase that other runs share, while no other process trains it."""
    untrained: float | None = None
    """The metric of the model as it was given, where the recipe trains it first."""

    @property
    def model(self) -> nn.Module:
        return self.engine.model

    @property
    def example(self) -> Any:
        return self.engine.example

    @cached_property
    def baseline(self) -> Baseline | None:
        """The dense model beside which every round is timed; it is built once."""
        return None if self.dense is None else Baseline(self.dense)

    @cached_property
    def followers(self) -> Followers:
        """What there was when training began, so that averages of the model show at the end."""
        return followers_of(self.engine)

    @cached_property
    def batch(self) -> Batch:
        """The items in the example, of one of which MACs are counted."""
        none = self.example is None
        return Batch(1, ()) if none else find_batch(self.model, arguments(self.example))

    def cost(self, sums: Mapping[str, float] | None = None) -> Mapping[str, float | None]:
        """What the model costs as it stands; ``sums`` are Σ|w| by parameter where known."""
        return costs.measure(self.model, self.example, self.engine.masks, self.batch, sums=sums)

    def cost_notes(self, cost: Mapping[str, float | None]) -> tuple[str, ...]:
        """What to know of such figures."""
        return costs.notes(self.model, self.example, cost["macs"], self.batch)

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
    seen: dict[str, Any] = field(default_factory=dict)  # of data and optimizers, to be compared
    notes: list[str] = field(default_factory=list)  # for the result
    most: dict[str, float] = field(default_factory=dict)  # of groups that rejections hold back
    before: dict[str, Any] = field(default_factory=dict)  # what a stopped process had seen

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the names that run folders have for them; no tensors."""
        left_out = ("rounds", "blobs", "optimizer", "before")
        own = {k: v for k, v in vars(self).items() if k not in left_out}
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


def remember(job: RunContext, at: RunState, text: str) -> None:
    """Tell who watches, once, and in the result."""
    if text not in at.notes:
        at.notes.append(text)
        job.note(text)


def blob(state: State) -> dict[str, Any]:
    return {"tensors": state.tensors, "optimizer": state.optimizer}


def unblob(saved: dict[str, Any]) -> State:
    return State(saved["tensors"], saved["optimizer"])


def model_state(job: RunContext, at: RunState) -> dict[str, Any]:
    """What a snapshot is written of: no copy."""
    now = State(saved_with(job.model), at.optimizer)
    return {**blob(now), "pruner": job.engine.state_dict(), "names": list(at.names)}


def put_back(job: RunContext, at: RunState, saved: dict[str, Any]) -> None:
    state = unblob(saved)
    job.engine.load_state_dict(saved["pruner"])  # its shapes first
    job.engine.load(state)
    at.optimizer = state.optimizer
    at.names = list(saved.get("names", at.names))  # fewer in a round that lost parameters


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
    scratch = "same_shape_from_scratch" in recipe.controls
    return at_once or scratch or recipe.trait("restore", "RECALLS") == "start"


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
    job.engine.most = dict(at.most)
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
    at.before = copy.deepcopy(at.seen)
    job.journal.write("resumed", step=at.step, round=at.index, time=time.time())
    job.note(f"resumed in round {at.index}")
    return at
