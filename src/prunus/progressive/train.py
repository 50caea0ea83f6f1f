"""One training phase of a run: the user's loop between cut and judgment."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from prunus._common.distributed import share_buffers
from prunus.errors import InputError, Interrupted, RunError
from prunus.progressive.cut import revives
from prunus.progressive.engine import PruningEngine
from prunus.progressive.phase import Budget, Run
from prunus.progressive.state import RunContext, RunState, blob, save
from prunus.pruning.masks import apply
from prunus.recipe import duration
from prunus.recipe.schema import Recipe


def train(job: RunContext, at: RunState, limit: Budget, *, enforced: bool) -> None:
    recipe, engine = job.engine.recipe, job.engine
    dense = at.phase == "dense"
    length = length_of(job, at)
    if job.train is None or (dense and length.value == 0):
        return
    if not takes_run(job.train):
        _train_plainly(job, at)
        return
    if length.value == 0:
        return
    if at.saved is None:
        engine.enforce(enforced)
    methods = engine.selector.methods
    dense_rate = _factor(methods.dense_rate, lambda p: 1.0)
    rate: Callable[[float], float] | None = dense_rate
    if not dense:
        rate = None if methods.rate is None else _factor(methods.rate, dense_rate)
    if dense and recipe.learning_rate is None and recipe.trait("dense.learning_rate", "CONSTANT"):
        rate = None  # the loop's own schedule
    run = Run(
        engine,
        round=at.index,
        length=length,
        gradual=not recipe.in_rounds and at.phase in ("train", "free"),
        rate=rate,
        data_seed=recipe.seed,
    )
    run.epoch, run.per_epoch = at.epoch, at.per_epoch
    run.saved, run.carried = at.saved, at.optimizer
    _watch_training(job, at, limit, run, dense)
    try:
        job.train(engine.model, run)
    finally:
        run.end()
    if run.optimizer is None:
        raise InputError(
            "train(model, run) never called run.attach(optimizer): call it before training"
        )
    if run.done == 0:
        raise RunError(
            "train took no optimizer step: iterate over run.batches(loader) and call "
            "optimizer.step()"
        )
    at.step += run.done
    at.epoch, at.per_epoch = run.epoch + 1, run.per_epoch
    at.optimizer = _optimizer_state(run.optimizer)
    at.names = names_of(engine.model, run.optimizer)
    at.saved = None


def length_of(job: RunContext, at: RunState) -> duration.Duration:
    """Of the phase; what ``revive`` brings back after retraining trains for half of the next."""
    recipe = job.engine.recipe
    retrain = recipe.retrain
    if recipe.last_retrain is not None and at.progress >= 1:
        retrain = recipe.last_retrain
    length = duration.parse(recipe.dense.length if at.phase == "dense" else retrain)
    if at.phase == "dense" or at.index == 1 or not revives(job.engine, "after"):
        return length
    half = length.value / 2
    if length.unit == "it":
        half = float(math.ceil(half) if at.phase == "revived" else math.floor(half))
    return dataclasses.replace(length, value=half)


def _factor(
    rate: Callable[..., float], dense: Callable[[float], float]
) -> Callable[[float], float]:
    return lambda progress: float(rate(progress, dense))


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
    state = optimizer.state_dict()["state"]
    return copy.deepcopy(state) if isinstance(state, dict) else {}


def names_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Of the optimizer's parameters, in its order."""
    names = {id(p): n for n, p in model.named_parameters()}
    return [names.get(id(p), "") for group in optimizer.param_groups for p in group["params"]]


def _watch_training(job: RunContext, at: RunState, limit: Budget, run: Run, dense: bool) -> None:
    """Rewind points, progress, snapshots, limits: what happens at steps and between batches."""
    recipe = job.engine.recipe
    back: Any = recipe.trait("restore", "REWINDS_TO") if dense else None
    last_save = [run.saved["done"] if run.saved else 0]

    def on_step(run: Run) -> None:
        if back is not None and run.done == rewind_step(recipe, run.steps, run.per_epoch):
            assert run.optimizer is not None
            share_buffers(job.model)
            state = job.engine.state(_optimizer_state(run.optimizer))
            at.blobs["rewind"] = job.journal.store("rewind", blob(state))
        sparsity = None if dense else job.engine.sparsity
        job.on_event({"event": "step", "round": at.index, "done": run.done, "steps": run.steps,
                      "sparsity": sparsity})  # fmt: skip

    def on_boundary(run: Run) -> None:
        every = max(1, duration.parse(recipe.snapshot).steps(per_epoch=run.per_epoch))
        stopping = job.should_stop()
        if stopping or (run.done - last_save[0] >= every and run.done < run.steps):
            last_save[0] = run.done
            at.per_epoch = run.per_epoch
            share_buffers(job.model)
            at.saved = run.state()
            save(job, at, limit)
            at.saved = None
        if stopping:
            raise Interrupted("stopped")

    if back is not None and run.saved is None and duration.parse(back).value == 0:
        at.blobs["rewind"] = at.blobs["start"]
    run.on_step, run.on_boundary = on_step, on_boundary
    run.must_stop = lambda: limit.reached(at.step + run.done, run.per_epoch)


def rewind_step(recipe: Recipe, whole: int, per_epoch: int | None) -> int | None:
    """The step of round 0, of so many, to which rounds return, if they do.

    Raises:
        InputError: if round 0 is shorter.
    """
    back = recipe.trait("restore", "REWINDS_TO")
    if back is None:
        return None
    k = duration.parse(back).steps(per_epoch=per_epoch, whole=whole)
    if k > whole:
        raise InputError(
            f"restore: {recipe.restore.name}: k is step {k}, but round 0 has only {whole}"
        )
    return k


def takes_run(train: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(train).parameters.values()
    except (TypeError, ValueError):
        return True
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in places if p.default is p.empty]
    return len(required) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters)


def refuse_plain_train(engine: PruningEngine, train: Callable[..., Any] | None) -> None:
    """What a ``train(model)`` without ``run`` cannot do.

    Raises:
        InputError: with the reason.
    """
    if train is None or takes_run(train):
        return
    recipe = engine.recipe
    reason = ""
    if not recipe.in_rounds:
        reason = "gradual pruning cuts inside the training"
    elif duration.parse(recipe.trait("restore", "REWINDS_TO") or 0).value > 0:
        reason = f"{recipe.restore.name} needs the state at a step of round 0"
    elif recipe.learning_rate is not None:
        reason = "the recipe's learning_rate drives the optimizer"
    elif revives(engine, "before") or revives(engine, "after"):
        reason = f"{recipe.restore.name} switches the masks off for part of the training"
    elif recipe.compact == "every_round":
        reason = "the optimizer's state must be sliced with the model"
    elif engine.selector.reads_training:
        reason = f"{recipe.criterion.name} reads the gradients of the training"
    if reason:
        raise InputError(
            f"train(model) cannot be used with this recipe: {reason}. Use train(model, run), "
            "call run.attach(optimizer) and iterate over run.batches(loader)"
        )


def _train_plainly(job: RunContext, at: RunState) -> None:
    """A ``train(model)`` that knows nothing of runs: masks through a hook on all optimizers."""
    engine = job.engine
    masked = {
        id(p) for n, p in engine.model.named_parameters() if n in engine.masks or not engine.masks
    }
    steps = 0

    def after_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
        nonlocal steps
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if held & masked:
            steps += 1
            apply(engine.model, engine.masks)

    hook = register_optimizer_step_post_hook(after_step)
    try:
        assert job.train is not None
        job.train(engine.model)
    finally:
        hook.remove()
    if steps == 0:
        raise RunError(
            "train changed nothing: no optimizer step touched a pruned weight of this model "
            "(does it train a copy, or return immediately?)"
        )
    at.step += steps
