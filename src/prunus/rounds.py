"""The loop, visible as a whole: prune, restore, retrain, judge, go on or roll back."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from prunus import costs, duration, randomness
from prunus.errors import InputError, Interrupted, RunError
from prunus.guard import accepts, last_accepted, next_progress
from prunus.journal import Journal
from prunus.masks import apply, check, finite
from prunus.pruner import Pruner
from prunus.restore._memory import Memory
from prunus.run import Limit, Run
from prunus.types import Masks, Round, State

Evaluate = Callable[[nn.Module], float]
Watch = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """What does not change during a run."""

    pruner: Pruner
    journal: Journal
    train: Callable[..., Any] | None
    evaluate: Evaluate | None
    evaluate_train: Evaluate | None
    example: Any
    watch: Watch
    stop: Callable[[], bool]

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
    saved: dict[str, Any] | None = None
    why: str = ""

    @property
    def index(self) -> int:
        """The number of the round at work."""
        return len(self.rounds)


def all_rounds(job: Job, at: Position) -> Position:
    """Run a job from a position to its end."""
    limit = Limit(job.pruner.recipe.limit, at.seconds)
    while at.phase != "end":
        if at.phase == "dense":
            _train(job, at, limit, enforced=True)
            _judge(job, at, limit)
            at.phase = "next"
        if at.phase == "next":
            _choose_next(job, at, limit)
            _save(job, at, limit)
            if job.stop() and at.phase != "end":
                raise Interrupted("stopped")
        if at.phase == "revived":  # removed weights, back since the last round, train first
            _train(job, at, limit, enforced=False)
            at.phase = "cut"
        if at.phase == "cut":
            enforced = _cut(job, at)
            at.phase = "train" if enforced else "free"
        if at.phase in ("train", "free"):
            _train(job, at, limit, enforced=at.phase == "train")
            _judge(job, at, limit)
            at.phase = "next"
    return at


def _choose_next(job: Job, at: Position, limit: Limit) -> None:
    pruner = job.pruner
    at.round_began = limit.seconds
    progress, at.why = next_progress(at.rounds, pruner.recipe, pruner.asks)
    if progress is not None and limit.reached(at.step, at.per_epoch):
        progress, at.why = None, f"the limit of {limit.text} is reached"
    if progress is None:
        at.phase = "end"
        return
    at.progress, at.asked = progress, pruner.asks(progress)
    revived = _revives(pruner, "after") and at.index > 1 and job.train is not None
    at.phase = "revived" if revived else "cut"
    job.watch({"event": "round", "round": at.index, "asked": at.asked})


# --- prune and restore


def _cut(job: Job, at: Position) -> bool:
    """Cut and restore; whether the masks are enforced while retraining."""
    pruner = job.pruner
    gradual = not pruner.recipe.in_rounds and job.train is not None
    if gradual:
        pruner.hold(pruner.recipe.restore.name != "revive")
        return pruner.recipe.restore.name != "revive"
    before = pruner.state(at.optimizer)
    asked = pruner.cut(at.progress, at.asked)
    at.asked = asked
    hard = at.progress >= 1 and not pruner.recipe.until_guard
    if _revives(pruner, "before") and hard:  # the last cut is hard
        pruner.hold(True)
        return True
    if pruner.recipe.restore.settings.get("values") == "cut":
        at.blobs["cut"] = job.journal.store("cut", _blob(before))
    if not _revives(pruner, "after"):
        _restore(job, at)
    held = not _revives(pruner, "before")
    pruner.hold(held)
    if held:
        apply(pruner.model, pruner.masks)
    return held


def _restore(job: Job, at: Position) -> None:
    pruner = job.pruner

    def remembered(name: str) -> Callable[[], State]:
        return lambda: _unblob(job.journal.fetch(at.blobs[name]))

    memory = Memory(
        start=remembered("start"),
        rewind=remembered("rewind"),
        cut=remembered("cut"),
        fresh=lambda: State(_fresh(pruner.model, pruner.recipe.seed, at.index), {}),
    )
    state = pruner.ideas.restore(pruner.state(at.optimizer), pruner.masks, memory)
    pruner.load(state)
    at.optimizer = state.optimizer


def _revives(pruner: Pruner, when: str) -> bool:
    restore = pruner.recipe.restore
    return restore.name == "revive" and restore.settings.get("when", "before") == when


def _fresh(model: nn.Module, seed: int, round: int) -> dict[str, torch.Tensor]:
    """Newly initialised parameters and buffers.

    Raises:
        InputError: for a module that cannot initialise itself, by name.
    """
    twin = copy.deepcopy(model)
    with randomness.kept():
        randomness.seed(seed, 7, round)
        for name, module in twin.named_modules():
            own = list(module.parameters(recurse=False))
            reset = getattr(module, "reset_parameters", None) or getattr(
                module, "_reset_parameters", None
            )
            if callable(reset):
                reset()
            elif own:
                raise InputError(
                    f"restore: reinitialize: '{name}' ({type(module).__name__}) has parameters of "
                    "its own and no reset_parameters(): add that method"
                )
    return dict(twin.state_dict())


# --- train


def _train(job: Job, at: Position, limit: Limit, *, enforced: bool) -> None:
    recipe, pruner = job.pruner.recipe, job.pruner
    dense = at.phase == "dense"
    length = _length(job, at)
    if job.train is None or (dense and length.value == 0):
        return
    if not _takes_run(job.train):
        _train_plainly(job, at)
        return
    if length.value == 0:
        return
    if at.saved is None:
        pruner.hold(enforced)
    dense_rate = _factor(pruner.ideas.dense_rate, lambda p: 1.0)
    rate = (
        dense_rate
        if dense
        else (None if pruner.ideas.rate is None else _factor(pruner.ideas.rate, dense_rate))
    )
    if dense and recipe.learning_rate is None and recipe.dense.learning_rate.name == "constant":
        rate = None  # the loop's own schedule
    run = Run(
        pruner,
        round=at.index,
        length=length,
        gradual=not recipe.in_rounds and at.phase in ("train", "free"),
        rate=rate,
        data_seed=recipe.seed,
    )
    run.epoch, run.per_epoch, run.saved, run.carried = (
        at.epoch,
        at.per_epoch,
        at.saved,
        at.optimizer,
    )
    _watch_training(job, at, limit, run, dense)
    try:
        job.train(pruner.model, run)
    finally:
        run.end()
    if run.optimizer is None:
        raise InputError("train(model, run) never called run.attach(optimizer)")
    if run.done == 0:
        raise RunError("train took no optimizer step: iterate run.batches(loader) and step")
    at.step += run.done
    at.epoch, at.per_epoch = run.epoch + 1, run.per_epoch
    at.optimizer = _plain_state(run.optimizer)
    at.saved = None


def _length(job: Job, at: Position) -> duration.Duration:
    """Of the phase; what ``revive`` brings back after retraining trains for half of the next."""
    recipe = job.pruner.recipe
    length = duration.parse(recipe.dense.length if at.phase == "dense" else recipe.retrain)
    if at.phase == "dense" or at.index == 1 or not _revives(job.pruner, "after"):
        return length
    half = length.value / 2
    if length.unit == "it":
        half = float(math.ceil(half) if at.phase == "revived" else math.floor(half))
    return dataclasses.replace(length, value=half)


def _factor(
    rate: Callable[..., float], dense: Callable[[float], float]
) -> Callable[[float], float]:
    return lambda progress: float(rate(progress, dense))


def _plain_state(optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
    state = optimizer.state_dict()["state"]
    return copy.deepcopy(state) if isinstance(state, dict) else {}


def _watch_training(job: Job, at: Position, limit: Limit, run: Run, dense: bool) -> None:
    """Rewind points, progress, snapshots, limits: what happens at steps and between batches."""
    recipe = job.pruner.recipe
    rewinds = dense and recipe.restore.name == "rewind"
    last_save = [run.saved["done"] if run.saved else 0]

    def rewind_step() -> int:
        k = duration.parse(recipe.restore.settings.get("k", 0))
        return k.steps(per_epoch=run.per_epoch, whole=run.steps)

    def on_step(run: Run) -> None:
        if rewinds and run.done == 1 and rewind_step() > run.steps:
            raise InputError(
                f"restore: rewind: k is step {rewind_step()}, and round 0 has {run.steps} only"
            )
        if rewinds and run.done == rewind_step():
            assert run.optimizer is not None
            state = job.pruner.state(_plain_state(run.optimizer))
            at.blobs["rewind"] = job.journal.store("rewind", _blob(state))
        job.watch(
            {
                "event": "step",
                "round": at.index,
                "done": run.done,
                "steps": run.steps,
                "sparsity": None if dense else job.pruner.sparsity,
            }
        )

    def on_boundary(run: Run) -> None:
        every = max(1, duration.parse(recipe.snapshot).steps(per_epoch=run.per_epoch))
        stopping = job.stop()
        if stopping or (run.done - last_save[0] >= every and run.done < run.steps):
            last_save[0] = run.done
            at.per_epoch = run.per_epoch
            at.saved = run.state()
            _save(job, at, limit)
            at.saved = None
        if stopping:
            raise Interrupted("stopped")

    if (
        rewinds
        and run.saved is None
        and duration.parse(recipe.restore.settings.get("k", 0)).value == 0
    ):
        at.blobs["rewind"] = at.blobs["start"]
    run.on_step, run.on_boundary = on_step, on_boundary
    run.must_stop = lambda: limit.reached(at.step + run.done, run.per_epoch)


def _takes_run(train: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(train).parameters.values()
    except (TypeError, ValueError):
        return True
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in places if p.default is p.empty]
    return len(required) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters)


def refuse_plain_train(pruner: Pruner, train: Callable[..., Any] | None) -> None:
    """What a ``train(model)`` without ``run`` cannot do.

    Raises:
        InputError: with the reason.
    """
    if train is None or _takes_run(train):
        return
    recipe = pruner.recipe
    reason = ""
    if not recipe.in_rounds:
        reason = "gradual pruning cuts inside the training"
    elif (
        recipe.restore.name == "rewind"
        and duration.parse(recipe.restore.settings.get("k", 0)).value > 0
    ):
        reason = "rewind needs the state at a step of round 0"
    elif recipe.learning_rate is not None:
        reason = "the recipe's learning_rate drives the optimizer"
    elif _revives(pruner, "before") or _revives(pruner, "after"):
        reason = "revive switches the masks off for a part of the training"
    elif pruner.recipe.criterion.name == "fisher_running":
        reason = "fisher_running reads the gradients of the training"
    if reason:
        raise InputError(
            f"train(model) cannot be used with this recipe: {reason}. Take train(model, run), "
            "call run.attach(optimizer) and iterate run.batches(loader)"
        )


def _train_plainly(job: Job, at: Position) -> None:
    """A ``train(model)`` that knows nothing of runs: masks through a hook on all optimizers."""
    pruner = job.pruner
    masked = {
        id(p) for n, p in pruner.model.named_parameters() if n in pruner.masks or not pruner.masks
    }
    steps = 0

    def after_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
        nonlocal steps
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if held & masked:
            steps += 1
            apply(pruner.model, pruner.masks)

    hook = register_optimizer_step_post_hook(after_step)
    try:
        assert job.train is not None
        job.train(pruner.model)
    finally:
        hook.remove()
    if steps == 0:
        raise RunError(
            "train changed nothing: no optimizer step touched a pruned weight of this model "
            "(does it train a copy, or end at once?)"
        )
    at.step += steps


# --- judge


def _judge(job: Job, at: Position, limit: Limit) -> None:
    pruner, recipe = job.pruner, job.pruner.recipe
    dense = at.phase == "dense"
    finite(pruner.model)
    free = at.phase == "free" and pruner.masks
    trained = pruner.state(at.optimizer) if free else None
    apply(pruner.model, pruner.masks)
    check(pruner.model, pruner.masks)
    metric = score(job.evaluate, pruner.model, "evaluate")
    first = at.rounds[0].metric if at.rounds else metric
    if dense:
        verdict = "dense"
    elif metric is None or recipe.guard is None:
        verdict = "not judged" if metric is None else "accepted"
    else:
        verdict = "accepted" if accepts(recipe.guard, metric, first) else "rejected"
    made = Round(
        index=at.index,
        step=at.step,
        progress=0.0 if dense else at.progress,
        asked=pruner.start if dense else at.asked,
        achieved=pruner.sparsity,
        metric=metric,
        verdict=verdict,
        train_metric=score(job.evaluate_train, pruner.model, "evaluate_train"),
        l1=pruner.l1,
        densities=pruner.densities,
        cost=costs.measure(pruner.model, job.example, pruner.masks),
        seconds=limit.seconds - at.round_began,
    )
    at.rounds.append(made)
    if trained is not None and verdict != "rejected":
        pruner.load(trained)
    if _revives(pruner, "after") and verdict == "accepted" and at.progress < 1:
        _restore(job, at)
    at.phase = "next"
    if verdict == "rejected":
        _roll_back(job, at)
    else:
        at.accepted = job.journal.store("accepted", _model(job, at))
    event = dataclasses.asdict(made)
    job.journal.write("round", **event)
    job.watch({"event": "judged", "row": made, "of": recipe.rounds})


def score(evaluate: Evaluate | None, model: nn.Module, name: str) -> float | None:
    """A metric, with the model in eval mode and no trace left in it.

    Raises:
        InputError: if what comes back is no number.
        RunError: if it is not finite.
    """
    if evaluate is None:
        return None
    modes = [(m, m.training) for m in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), randomness.kept():
            value: object = evaluate(model)
    finally:
        for module, training in modes:
            module.training = training
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise InputError(
            f"{name} returned {type(value).__name__}, not a number: return the metric as float"
        )
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} returned no number: {error}") from None
    if not math.isfinite(number):
        raise RunError(f"{name} returned {number}: the metric must be finite")
    return number


def _roll_back(job: Job, at: Position) -> None:
    assert at.accepted is not None
    _put_back(job, at, job.journal.fetch(at.accepted))
    job.journal.write("rollback", to=last_accepted(at.rounds).index)


# --- saving


def _blob(state: State) -> dict[str, Any]:
    return {"tensors": state.tensors, "optimizer": state.optimizer}


def _unblob(saved: dict[str, Any]) -> State:
    return State(saved["tensors"], saved["optimizer"])


def _model(job: Job, at: Position) -> dict[str, Any]:
    return {**_blob(job.pruner.state(at.optimizer)), "pruner": job.pruner.state_dict()}


def _put_back(job: Job, at: Position, saved: dict[str, Any]) -> None:
    state = _unblob(saved)
    job.pruner.load(state)
    at.optimizer = state.optimizer
    job.pruner.load_state_dict(saved["pruner"])


def _save(job: Job, at: Position, limit: Limit) -> None:
    at.seconds = limit.seconds
    blobs = dict(at.blobs)
    if at.accepted is not None:
        blobs["accepted"] = at.accepted
    values = {k: v for k, v in vars(at).items() if k not in ("rounds", "blobs", "optimizer")}
    tree = {
        **_model(job, at),
        "position": {**values, "rounds": [dataclasses.asdict(r) for r in at.rounds]},
        "blobs": blobs,
        "rng": randomness.state(),
        "threads": torch.get_num_threads(),
    }
    job.journal.snapshot(
        tree,
        keep=tuple(b["name"] for b in blobs.values()),
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
        at.blobs["start"] = job.journal.store("start", _blob(job.pruner.state()))
        if duration.parse(job.pruner.recipe.dense.length).value:
            job.journal.write("start", time=time.time())
        return at
    position = dict(tree["position"])
    at = Position(**{**position, "rounds": [Round(**r) for r in position["rounds"]]})
    at.blobs = {k: v for k, v in tree["blobs"].items() if k != "accepted"}
    torch.set_num_threads(tree["threads"])
    _put_back(job, at, tree)
    randomness.set_state(tree["rng"])
    job.journal.write("resumed", step=at.step, round=at.index, time=time.time())
    job.watch({"event": "note", "text": f"resumed in round {at.index}"})
    return at


def final_masks(job: Job, at: Position) -> Masks:
    """Return to the last accepted round, removed weights exactly zero."""
    assert at.accepted is not None
    _put_back(job, at, job.journal.fetch(at.accepted))
    apply(job.model, job.pruner.masks)
    return dict(job.pruner.masks)
