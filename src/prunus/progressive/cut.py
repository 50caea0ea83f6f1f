"""The first half of a round: prune and restore."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from prunus._common import rng as randomness
from prunus.compaction.cut import IndexCut, cut_of, nothing_left
from prunus.compaction.shrink import slice_saved
from prunus.errors import InputError, RunError
from prunus.methods.restores._memory import Memory
from prunus.progressive.engine import PruningEngine
from prunus.progressive.latency_target import calibrate_target
from prunus.progressive.repair import before_cut, repaired
from prunus.progressive.rotation import turned
from prunus.progressive.scan import scanned
from prunus.progressive.state import RunContext, RunState, blob, unblob
from prunus.pruning.decide import kept_units
from prunus.pruning.masks import apply
from prunus.pruning.optimizers import sole
from prunus.types import Group, Masks, State


def cut(job: RunContext, at: RunState) -> bool:
    """Cut and restore; whether the masks are enforced while retraining."""
    engine, recipe = job.engine, job.engine.recipe
    gradual = not engine.recipe.in_rounds and job.train is not None
    if gradual:
        held = engine.recipe.trait("restore", "RELEASES") is None
        engine.enforce(held)
        return held
    last = at.step > 0 and engine.scheduled(at.progress) >= engine.target - 1e-9
    if last and calibrate_target(job, "last"):  # widths have moved since the start
        at.requested = engine.scheduled(at.progress)
    recalls = engine.recipe.trait("restore", "RECALLS") == "cut"
    before = engine.state(at.optimizer) if recalls else None
    turns = turned(job, at)
    engine.damage = scanned(job, at) if engine.selector.measures else None
    whole = before_cut(engine)
    asked = engine.cut(at.progress, at.requested, turns)
    at.requested = asked
    hard = at.progress >= 1 and not engine.recipe.until_guard
    if revives(engine, "before") and hard:  # the last cut is hard
        engine.enforce(True)
        return True
    if before is not None:
        at.blobs["cut"] = job.journal.store("cut", blob(before))
    if job.trial is None and not revives(engine, "after"):
        restore(job, at)
    held = not revives(engine, "before")
    engine.enforce(held)
    if held:
        if job.trial is None:  # else the cut has done so
            apply(engine.model, engine.masks)
        repaired(job, at, whole)
    if recipe.compact == "every_round":
        take_out(job, at)
    return held


def take_out(job: RunContext, at: RunState) -> None:
    """Make the model smaller by what the masks remove; its optimizer goes on."""
    engine = job.engine
    shapes = {n: tuple(p.shape) for n, p in engine.model.named_parameters()}
    assert engine.space.analysis is not None
    if engine.space.analysis.experts:
        all_forgotten(
            engine.space.groups, cut_of(engine.space.analysis, engine.masks), engine.masks
        )
    done = engine.shrink(sole(engine.optimizer), trains=True)
    if done is None:
        return
    at.optimizer = slice_saved(at.optimizer, at.names, done.kept, shapes)
    at.names = [n for n in at.names if not nothing_left(done.kept.get(n, ()))]
    compacted = done.plan.comparison
    job.journal.write(
        "compacted", route=done.plan.route, units=done.units, error=compacted.error,
        effect=compacted.effect,
    )  # fmt: skip
    job.on_event({"event": "compacted", "route": done.plan.route, "units": done.units})


def all_forgotten(groups: Sequence[Group], found: IndexCut, masks: Masks) -> None:
    """Every expert that masks remove can be taken out: zeros alone do not make a router forget it.

    Raises:
        RunError: if one cannot.
    """
    shapes = {n: v.shape for n, v in found.analysis.tensors.items()}
    alive = [a for a in kept_units(groups, masks, shapes).values() if a is not None]
    wanted = sum(int((~a).sum()) for a in alive)
    if wanted > found.units():
        raise RunError(
            f"{wanted} experts were chosen to go and {found.units()} of them can: parameters of "
            "the others are shared with what stays. Leave them out with scope.exclude, or use "
            "structure: channel"
        )


def restore(job: RunContext, at: RunState) -> None:
    engine = job.engine

    def remembered(name: str, declared: str) -> Callable[[], State]:
        def state() -> State:
            if name not in at.blobs:
                raise InputError(
                    f"restore {engine.recipe.restore.name}: memory.{name}() is kept only for a "
                    f"file that declares it: write {declared} beside the function "
                    "(docs/own_methods.md)"
                )
            return unblob(job.journal.fetch(at.blobs[name]))

        return state

    memory = Memory(
        start=remembered("start", "RECALLS = 'start'"),
        rewind=remembered("rewind", "REWINDS_TO = '1ep'"),
        cut=remembered("cut", "RECALLS = 'cut'"),
        fresh=lambda: State(fresh_values(engine.model, engine.recipe.seed, at.index), {}),
    )
    state = engine.selector.methods.restore(engine.state(at.optimizer), engine.masks, memory)
    engine.load(state)
    at.optimizer = state.optimizer


def revives(engine: PruningEngine, when: str) -> bool:
    return bool(engine.recipe.trait("restore", "RELEASES") == when)


def fresh_values(
    model: nn.Module, seed: int, round: int, *, why: str = "restore: reinitialize"
) -> dict[str, torch.Tensor]:
    """Newly initialized parameters and buffers.

    Raises:
        InputError: for a module that cannot initialize itself, by name.
    """
    twin = copy.deepcopy(model)
    with randomness.preserve_rng():
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
                    f"{why}: '{name}' ({type(module).__name__}) has parameters of "
                    "its own but no reset_parameters(): add that method"
                )
    return dict(twin.state_dict())
