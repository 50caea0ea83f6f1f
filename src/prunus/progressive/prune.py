"""The one call: prune a model, or a task, by a recipe."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunus._common import rng as randomness
from prunus._common.distributed import on_rank_zero, release, shared_stop, synchronize
from prunus._common.given import (
    given_batches,
    given_example,
    given_hooks,
    given_model,
    refuse_inference,
)
from prunus._common.kinds import given_path
from prunus._common.metrics import Metric, MetricEstimate
from prunus._common.modules import detached_copy, keeping_modes, trains
from prunus._common.steps import takes_steps
from prunus.compaction.reopening import reopening
from prunus.errors import InputError
from prunus.methods.repairs._norms import norms_of
from prunus.progressive.builtin import trainer
from prunus.progressive.controls import controls_of, refuse_controls, worth
from prunus.progressive.dense_once import dense_key
from prunus.progressive.deploy_step import refuse_unserved, serve, serves
from prunus.progressive.distill import given_teacher, own_teacher
from prunus.progressive.engine import PruningEngine
from prunus.progressive.folder import open_journal, recipe_of, write_result
from prunus.progressive.front import kept_front
from prunus.progressive.guard import better, direction_warning, refuse_unclear
from prunus.progressive.holding import note_of_copies
from prunus.progressive.judge import final_masks
from prunus.progressive.latency_target import calibrate_target, latency_verdict, prepared
from prunus.progressive.loop import all_rounds
from prunus.progressive.progress import shown
from prunus.progressive.repair import refuse_repair
from prunus.progressive.result import Result, last_accepted
from prunus.progressive.rotation import refuse_rotation, rotation_notes
from prunus.progressive.scoring import given_score, test_estimate
from prunus.progressive.shrinks import original_kept, original_masks
from prunus.progressive.smaller import compacted
from prunus.progressive.state import OnEvent, RunContext, RunState, begin, remember
from prunus.progressive.train import refuse_plain_train
from prunus.pruning.copies import leave_mark
from prunus.pruning.masks import copy_of, put_back
from prunus.pruning.trial import Trial
from prunus.recipe import duration
from prunus.recipe.rules import scans_too_often
from prunus.recipe.schema import Recipe
from prunus.recipe.specs import Spec
from prunus.tasks.base import Task, given_task
from prunus.tasks.find import find_task, task_of

Source = Recipe | Mapping[str, Any] | str | Path
DenseFile = Callable[[str], AbstractContextManager[Path]]
"""From the key of a dense phase to the file that other trials of a sweep may have left it in."""


@takes_steps
def prune(
    subject: nn.Module | Task | str,
    recipe: Source,
    *,
    train: Callable[..., Any] | None = None,
    evaluate: Metric | None = None,
    evaluate_train: Metric | None = None,
    test: Metric | None = None,
    calibration: Iterable[Any] | None = None,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    example: Any = None,
    teacher: nn.Module | str | Path | None = None,
    metric: str | None = None,
    folder: str | Path | None = None,
    on_event: OnEvent | None = None,
    should_stop: Callable[[], bool] | None = None,
    progress: bool = True,
    _dense: DenseFile | None = None,
) -> Result:
    """Prune a model progressively, in place.

    Without ``train`` it is one-shot: the masks for the target are chosen and applied at once.
    Where several processes train together (``torch.distributed``), every one of them calls it.

    Args:
        subject: a model; a :class:`Task`, which brings all the rest; or the name of one.
        recipe: a :class:`Recipe`, the name of one, a file, or a mapping of its values.
        train: ``train(model, run)``: call ``run.attach(optimizer)``, iterate
            ``run.batches(loader)``; called for round 0 if the recipe says ``dense``, and after
            each cut. A plain ``train(model)`` is enough for recipes in rounds.
        evaluate: ``evaluate(model) -> float`` on validation data, after every round; or a tensor
            with a value for each item, whose mean it is; or :class:`Scores`, which a guard can
            judge item by item and class by class. Of several ranks the mean counts.
        evaluate_train: the same on training data, to record the gap.
        test: the same on test data; called once, at the end. Where it returns a value for each
            item, the result has an interval; for a task the dense model's items beside it.
        calibration: batches for criteria that need gradients, and for ``repair``.
        loss: ``loss(model, batch) -> scalar`` for the same, and for ``run.distill(batch)``.
        example: an input (or a tuple of inputs), to count MACs and the order of layers.
        teacher: whose answers retraining learns from, in place of round 0's model: any model that
            takes the same inputs, or a file of one (weights of the model as it is given, or what
            ``prunus.save`` wrote). The recipe's ``teacher`` has its settings.
        metric: what ``evaluate`` returns is called, in reports; by default the task's name for it.
        folder: where journal, snapshots and results go; a killed run started again with the
            same arguments goes on there. Without it nothing is written.
        on_event: called with events (mappings with a key ``event``) as the run goes, on rank 0.
        should_stop: asked between steps; True saves and raises :class:`Interrupted`.
        progress: whether a terminal or a notebook shows bars; with ``on_event`` none does.

    Returns:
        A :class:`Result`; ``result.model`` is the model given, pruned in place. With ``compact``
        it is smaller; only where its own code holds sizes that cannot be changed it is a new one.

    Raises:
        InputError: for what cannot be used, before work starts where it can be known.
        RunError: if the run cannot go on. The weights are then as they were given.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> result = prune(nn.Linear(10, 10), {"target": 0.8})
    >>> result.sparsity, int((result.model.weight == 0).sum())
    (0.8, 80)
    """
    if isinstance(recipe, nn.Module) and not isinstance(subject, nn.Module):
        raise InputError("prune takes the model first, then the recipe: these are the other way")
    recipe = Recipe.load(recipe)
    given_hooks(train=train, evaluate=evaluate, evaluate_train=evaluate_train, test=test, loss=loss,
                on_event=on_event, should_stop=should_stop)  # fmt: skip
    calibration = given_batches(calibration, "calibration")
    with randomness.preserve_rng():
        randomness.seed(recipe.seed)
        if isinstance(subject, str):
            subject = find_task(Spec(name=subject))
        task = subject if isinstance(subject, Task) else None
        metric_name, watched = metric or "metric", True
        if task is not None:
            given_task(task)
            metric_name = metric or task.metric_name
            watched, train = train is not None, train or trainer(task)
            evaluate = evaluate or _metric(task, task.validation)
            evaluate_train = evaluate_train or _metric(task, task.train_sample)
            test = test or _metric(task, task.test)
            calibration = task.calibration if calibration is None else calibration
            loss, example = loss or task.loss, task.example if example is None else example
        model = given_model(
            subject if task is None else task.model(), "prune", values=True, code=True
        )
        example = given_example(model, example)
        taught_by = given_teacher(teacher, model, recipe)
        if taught_by is not None and recipe.teacher is None:
            recipe = recipe.replaced({**recipe.to_dict(), "teacher": "dense"})
        if train is None:
            recipe = _without_training(recipe, evaluate)
        calibrated = calibration is not None and loss is not None
        norms = bool(norms_of(model))
        recipe = prepared(recipe.written_out(batch_norms=norms, calibrated=calibrated))
        engine = PruningEngine(model, recipe, calibration=calibration, loss=loss, example=example)
        _check(recipe, engine, train, evaluate)
        refuse_unclear(recipe.guard, metric_name, None)
        trial = None
        if train is None and task is None and folder is None:
            hooks = (evaluate, evaluate_train, test, on_event, should_stop)
            trial = _trial(engine, final=all(hook is None for hook in hooks))
        if recipe.keep == "front" and folder is None:
            raise InputError("keep: front writes models into the run's folder: pass folder=")
        refuse_unserved(recipe, example, calibration, loss)
        key = dense_key(engine) if _dense is not None else None
        synchronize(model, "given")
        where = on_rank_zero(lambda: None if folder is None else given_path(folder, "folder"))
        with (
            _undone_on_error(engine, trial),
            open_journal(where, engine) as journal,
            shown(on_event, progress) as hook,
        ):
            job = RunContext(
                engine=engine,
                journal=journal,
                train=train,
                evaluate=evaluate,
                evaluate_train=evaluate_train,
                on_event=hook,
                should_stop=shared_stop(should_stop),
                dense=detached_copy(model) if serves(recipe) or recipe.controls else None,
                trial=trial,
                again=None if task is None else functools.partial(_again, task),
                watched=watched,
                loss=loss,
                teacher=own_teacher(recipe, model, taught_by),
                dense_file=functools.partial(_dense, key) if _dense and key else None,
                taught_by=taught_by,
                metric_name=metric_name,
            )
            if (text := direction_warning(recipe.guard, metric_name)) is not None:
                job.note(text)
            for text in engine.space.notes:
                job.note(text)
            if not journal.events:
                given = given_score(recipe.guard, evaluate, model)
                refuse_unclear(recipe.guard, metric_name, given)
                if train is not None and duration.parse(recipe.dense.length).value > 0:
                    job = dataclasses.replace(job, untrained=given)
            at = begin(job)
            calibrate_target(job, "start")
            all_rounds(job, at)
            result = _finish(job, at, test, metric_name)
    del job, engine, journal  # what holds the wrappers of the user's training
    release()
    return result


def _metric(task: Task, batches: Iterable[Any] | None) -> Metric | None:
    return None if batches is None else lambda model: task.metric(model, batches)


def _again(task: Task) -> nn.Module:
    with randomness.preserve_rng():
        return task.model()


def _without_training(recipe: Recipe, evaluate: Metric | None) -> Recipe:
    """The recipe for a model that nothing trains: one cut, or rounds that are only judged.

    Raises:
        InputError: if the guard should decide and nothing evaluates.
    """
    for key, what in (("regrow", "can grow"), ("regularize", "is pulled toward zero")):
        if getattr(recipe, key) is not None:
            raise InputError(f"{key}: nothing trains, so nothing {what}: pass train(model, run)")
    if recipe.teacher is not None:
        raise InputError("teacher: nothing trains, so nothing learns: pass train(model, run)")
    if recipe.until_guard and evaluate is None:
        raise InputError("target: guard needs evaluate(model) -> float to judge with")
    values = {k: v for k, v in recipe.to_dict().items() if k not in ("dense", "learning_rate")}
    if recipe.trait("restore", "CHANGES"):
        raise InputError(
            f"restore: {recipe.restore.name} is about retraining, but no train was given: "
            "pass train(model, run), or use restore: keep"
        )
    if evaluate is None:
        values.pop("guard", None)
        if not recipe.trait("criterion", "ITERATES"):
            values = {**values, "schedule": "one_shot", "rounds": 1}
    return recipe.replaced(values)


def _trial(engine: PruningEngine, *, final: bool) -> Trial | None:
    """Where masks are all that changes a model: no copies of it, no journal."""
    recipe = engine.recipe
    turns = recipe.compact == "every_round" or recipe.trait("structure", "ROTATES")
    if turns or serves(recipe) or recipe.repair is not None:
        return None
    smaller = recipe.compact == "end"
    final = final and not smaller and recipe.rounds == 1
    trial = Trial(engine.model, final=final)
    engine.tries = trial.apply
    return trial


def _check(
    recipe: Recipe, engine: PruningEngine, train: Callable[..., Any] | None, evaluate: Metric | None
) -> None:
    """What can be known before work starts."""
    if recipe.compact != "none":
        refuse_inference(engine.model, "compact")
    refuse_plain_train(engine, train)
    refuse_rotation(engine, train)
    refuse_repair(engine, train)
    refuse_controls(engine, train)
    if recipe.guard is not None and evaluate is None:
        raise InputError("guard: nothing to judge with: pass evaluate(model) -> float, or no guard")
    if train is not None and not recipe.in_rounds and duration.parse(recipe.retrain).value == 0:
        raise InputError(
            "retrain: gradual pruning cuts during retraining, but its length is 0: set, for "
            "example, retrain: 10ep, or rounds: 1 to cut once without retraining"
        )
    trained = train is not None and (
        duration.parse(recipe.dense.length).value > 0 or not recipe.in_rounds
    )
    if train is not None and (reason := scans_too_often(recipe)) is not None:
        raise InputError(reason)
    if engine.selector.reads_training and not trained:
        raise InputError(
            f"criterion {recipe.criterion.name} reads the gradients of the training before a cut, "
            "but there is none before the first: set dense, or use fisher with calibration"
        )


@contextlib.contextmanager
def _undone_on_error(engine: PruningEngine, trial: Trial | None) -> Iterator[None]:
    """If anything goes wrong, the model is as it was given."""
    model = engine.model
    before = copy_of(model) if trial is None else {}
    grads = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with keeping_modes(model):
            try:
                yield
            except BaseException:
                engine.follow([])
                put_back(model, before)
                if trial is not None:
                    trial.undo(model)
                for parameter, needs in grads:
                    if parameter.requires_grad != needs:  # which inference mode's tensors refuse
                        parameter.requires_grad_(needs)
                raise
        if trial is not None:
            trial.done()
    finally:
        if engine.model is not model:
            engine.model.train(trains(model))
        for parameter in model.parameters():
            parameter.grad = None


def _finish(job: RunContext, at: RunState, test: Metric | None, metric_name: str) -> Result:
    masks = shape = final_masks(job, at)
    if "followers" in vars(job):
        own = (job.dense, job.teacher, job.taught_by)
        if text := note_of_copies(job.engine, job.followers, own):
            remember(job, at, text)
    compaction = compacted(job, at)
    deployment = serve(job, compaction)
    if compaction is not None:
        masks = original_masks(job.engine.shrinks, job.engine.masks)
        shape = masks if job.engine.shrinks else shape  # of layers taken out, theirs as well
    kept = on_rank_zero(lambda: latency_verdict(job.engine.recipe, deployment))
    why = "; ".join(x for x in (at.reason, kept) if x)
    good = last_accepted(at.rounds)
    done = [e for e in job.journal.events if e["event"] == "end"]
    if done:
        says = done[-1]["tested"]
        found = None if says is None else MetricEstimate.from_dict(says)
    else:
        found = test_estimate(job, at, test)
        plain = None if found is None else found.to_dict()
        job.journal.write("end", why=why, tested=plain, seconds=round(at.seconds, 3))
    leave_mark(job.model, dict(job.engine.masks))
    controls = controls_of(job, at, shape, test)
    result = Result(
        model=job.model,
        masks=masks,
        kept=original_kept(job.engine.shrinks),
        rounds=tuple(at.rounds),
        metric=good.metric,
        test_metric=found,
        reason=why,
        cost_before=at.rounds[0].cost,
        cost_after=good.cost if compaction is None else job.cost(),
        folder=job.journal.folder,
        compaction=compaction,
        deployment=deployment,
        controls=controls,
        front=kept_front(job, at),
        worth=worth(controls, better(job.engine.recipe.guard)),
        notes=(
            *job.engine.space.notes,
            *job.cost_notes(at.rounds[0].cost),
            *rotation_notes(job),
            *at.notes,
            *(reopening(job.model, job.example) if compaction is not None else ()),
        ),
    )
    if (place := job.journal.folder) is not None:
        first = job.journal.fetch(at.blobs["dense"]) if "dense" in at.blobs else {}
        on_rank_zero(lambda: write_result(place, result, metric_name, dense=first.get("tensors")))
    return result


def resume(folder: str | Path, **hooks: Any) -> Result:
    """Go on with a run of a task from its folder alone.

    Args:
        folder: of the run.
        hooks: ``on_event``, ``should_stop`` and ``progress`` of :func:`prune`.

    Raises:
        InputError: if the folder holds no run, or one without a task.
    """
    recipe = recipe_of(folder)
    return prune(task_of(recipe), recipe, folder=folder, **hooks)
