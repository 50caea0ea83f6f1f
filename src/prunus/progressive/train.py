"""One training phase of a run: the user's loop between cut and judgment."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from prunus._common import loaders
from prunus._common.distributed import share_buffers
from prunus.errors import InputError, Interrupted, RunError
from prunus.progressive.continuity import Continuity
from prunus.progressive.cut import revives
from prunus.progressive.distill import Lessons
from prunus.progressive.engine import PruningEngine
from prunus.progressive.phase import Budget, Run
from prunus.progressive.shrinks import original_kept
from prunus.progressive.state import RunContext, RunState, blob, remember, save
from prunus.pruning.masks import put_back
from prunus.pruning.optimizers import (
    AnyOptimizer,
    is_inner_step,
    overflowed,
    parameters_of,
    uncompiled,
)
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
    _watch_data(job, at, run, "dense" if dense else "retrain")
    run.loss = job.loss
    lessons = None if dense else teaching(job, at)
    run.teaching = None if lessons is None else lessons.loss
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
    if run.teaching is not None and not run.taught:
        raise RunError(
            "the recipe names a teacher, but train never called run.distill(batch): let it give "
            "the loss"
        )
    if run.done < run.steps and not limit.reached(at.step + run.done, run.per_epoch):
        remember(
            job, at,
            f"the training of round {at.index} ended after {run.done} of {run.steps} optimizer "
            "steps: iterate over run.batches(loader) to its end, or ask for a shorter one",
        )  # fmt: skip
    at.step += run.done
    at.epoch, at.per_epoch = run.epoch + 1, run.per_epoch
    at.optimizer = _optimizer_state(run.optimizer)
    at.names = names_of(engine.model, run.optimizer)
    at.saved = None


def teaching(job: RunContext, at: RunState) -> Lessons | None:
    """The lessons with the dense model of round 0 as the teacher, if the recipe wants that."""
    settings = job.engine.recipe.teacher
    teacher = job.taught_by or job.teacher
    if settings is None or teacher is None:
        return None
    if job.taught_by is None:
        put_back(teacher, job.journal.fetch(at.blobs["dense"])["tensors"])
    how = {key: value for key, value in settings if key != "model"}
    kept = original_kept(job.engine.shrinks)
    return Lessons(teacher, kept=kept, **how)


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


def _optimizer_state(optimizer: AnyOptimizer) -> dict[Any, Any]:
    state = optimizer.state_dict()["state"]
    return copy.deepcopy(state) if isinstance(state, dict) else {}


def names_of(model: nn.Module, optimizer: AnyOptimizer) -> list[str]:
    """Of the optimizer's parameters, in its order."""
    names = {id(p): n for n, p in model.named_parameters()}
    return [names.get(id(p), "") for group in optimizer.param_groups for p in group["params"]]


def _watch_training(job: RunContext, at: RunState, limit: Budget, run: Run, dense: bool) -> None:
    """Rewind points, progress, snapshots, limits: what happens at steps and between batches."""
    recipe = job.engine.recipe
    back: Any = recipe.trait("restore", "REWINDS_TO") if dense else None
    last_save = [run.saved["done"] if run.saved else 0]

    def on_step(run: Run) -> None:
        if job.watched:
            job.followers.after_step(job.engine.model)
        if back is not None and run.done == rewind_step(recipe, run.steps, run.per_epoch):
            assert run.optimizer is not None
            share_buffers(job.model)
            state = job.engine.state(_optimizer_state(run.optimizer))
            at.blobs["rewind"] = job.journal.store("rewind", blob(state))
        sparsity = None if dense else job.engine.sparsity
        job.on_event({"event": "step", "round": at.index, "done": run.done, "steps": run.steps,
                      "sparsity": sparsity})  # fmt: skip

    def on_boundary(run: Run) -> None:
        # a stream has no epochs, and the default is one: such a run is saved between its rounds
        epochs = run.per_epoch is None and duration.parse(recipe.snapshot).unit == "ep"
        length = duration.parse(recipe.snapshot).steps(per_epoch=run.per_epoch or 0)
        every = run.steps if epochs else max(1, length)
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

    def on_epoch(taken: int) -> None:
        if length_of(job, at).unit == "ep" and run.per_epoch and 3 * taken <= 2 * run.per_epoch:
            remember(
                job, at,
                f"an epoch was counted as {run.per_epoch} optimizer steps and had {taken}, so that "
                "lengths in epochs are more passes over the data than they say: with accumulated "
                "gradients write run.batches(loader, steps_per_epoch=…)",
            )  # fmt: skip

    run.on_epoch, run.on_step, run.on_boundary = on_epoch, on_step, on_boundary
    run.must_stop = lambda: limit.reached(at.step + run.done, run.per_epoch)


def _watch_data(job: RunContext, at: RunState, run: Run, phase: str) -> None:
    """Compare data and optimizer with those before a stop, and note what cannot be repeated."""
    run.holder = job.train
    if at.saved is None:
        loaders.restart(job.train, job.engine.recipe.seed, 1 + at.epoch, 1)
    watch = Continuity(at.seen, at.before, partial(remember, job, at))

    def on_attach(optimizer: AnyOptimizer) -> None:
        saved = None if run.saved is None else run.saved["optimizer"]
        if not watch.optimizer(optimizer, phase, saved):
            run.carried = None

    def on_loader(loader: Any) -> None:
        for text in loaders.remarks(loader):
            watch.note(text)
        due = watch.due
        if due is not None and due != run.epoch and not loaders.goes_on(loader):
            on_first_batch(due, run.first_batch(loader, due))

    def on_first_batch(epoch: int, batch: Any) -> None:
        watch.first_batch(epoch, batch, run.per_epoch)

    run.on_attach = on_attach
    if job.journal.folder is not None:  # else nothing is ever resumed
        run.on_loader, run.on_first_batch = on_loader, on_first_batch


def rewind_step(recipe: Recipe, whole: int, per_epoch: int | None) -> int | None:
    """The step of round 0, of so many, to which rounds return, if they do.

    Raises:
        InputError: if round 0 is shorter.
    """
    back = recipe.trait("restore", "REWINDS_TO")
    if back is None:
        return None
    length = duration.parse(back)
    k = length.steps(per_epoch=per_epoch, whole=whole)
    k = max(k, 1) if length.value else k  # a small part of few steps is the first one, not none
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
    elif recipe.regularize is not None:
        reason = "a regularizer follows the steps of an optimizer"
    elif recipe.regrow is not None:
        reason = "weights grow between the steps of an optimizer"
    elif recipe.teacher is not None:
        reason = "a teacher answers in run.distill(batch)"
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
    loaders.restart(job.train, engine.recipe.seed, 1 + at.index, 2)

    def after_step(optimizer: Optimizer, *_: object) -> None:
        nonlocal steps
        inner = is_inner_step(optimizer)
        if parameters_of(optimizer) & masked and not inner and not overflowed(optimizer):
            steps += 1

    engine.watch()
    hook = register_optimizer_step_post_hook(uncompiled(after_step))
    try:
        assert job.train is not None
        job.train(engine.model)
    finally:
        hook.remove()
        engine.detach()
    if steps == 0:
        raise RunError(
            "train changed nothing: no optimizer step touched a pruned weight of this model "
            "(does it train a copy, or return immediately?)"
        )
    at.step += steps
