"""The first half of a round: prune and restore."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from prunus._common import rng as randomness
from prunus.compaction.shrink import shrink, slice_saved
from prunus.errors import InputError
from prunus.methods.restores._memory import Memory
from prunus.progressive.engine import Pruner
from prunus.progressive.latency_target import calibrate_target
from prunus.progressive.state import RunContext, RunState, blob, unblob
from prunus.pruning.masks import apply
from prunus.types import State


def cut(job: RunContext, at: RunState) -> bool:
    """Cut and restore; whether the masks are enforced while retraining."""
    pruner, recipe = job.pruner, job.pruner.recipe
    gradual = not pruner.recipe.in_rounds and job.train is not None
    if gradual:
        held = pruner.recipe.trait("restore", "RELEASES") is None
        pruner.enforce(held)
        return held
    last = at.step > 0 and pruner.scheduled(at.progress) >= pruner.target - 1e-9
    if last and calibrate_target(job, "last"):  # widths have moved since the start
        at.requested = pruner.scheduled(at.progress)
    before = pruner.state(at.optimizer)
    asked = pruner.cut(at.progress, at.requested)
    at.requested = asked
    hard = at.progress >= 1 and not pruner.recipe.until_guard
    if revives(pruner, "before") and hard:  # the last cut is hard
        pruner.enforce(True)
        return True
    if pruner.recipe.trait("restore", "RECALLS") == "cut":
        at.blobs["cut"] = job.journal.store("cut", blob(before))
    if not revives(pruner, "after"):
        restore(job, at)
    held = not revives(pruner, "before")
    pruner.enforce(held)
    if held:
        apply(pruner.model, pruner.masks)
    if recipe.compact == "every_round":
        take_out(job, at)
    return held


def take_out(job: RunContext, at: RunState) -> None:
    """Make the model smaller by what the masks remove; its optimizer goes on."""
    pruner = job.pruner
    shapes = {n: tuple(p.shape) for n, p in pruner.model.named_parameters()}
    done = shrink(pruner, pruner.optimizer)
    if done is None:
        return
    kept = done.plan.surgery.kept
    at.optimizer = slice_saved(at.optimizer, at.names, kept, shapes)
    compacted = done.plan.comparison
    job.journal.write(
        "compacted", route=done.plan.route, units=done.units, error=compacted.error,
        effect=compacted.effect,
    )  # fmt: skip
    job.on_event({"event": "compacted", "route": done.plan.route, "units": done.units})


def restore(job: RunContext, at: RunState) -> None:
    pruner = job.pruner

    def remembered(name: str) -> Callable[[], State]:
        return lambda: unblob(job.journal.fetch(at.blobs[name]))

    memory = Memory(
        start=remembered("start"),
        rewind=remembered("rewind"),
        cut=remembered("cut"),
        fresh=lambda: State(_fresh(pruner.model, pruner.recipe.seed, at.index), {}),
    )
    state = pruner.methods.restore(pruner.state(at.optimizer), pruner.masks, memory)
    pruner.load(state)
    at.optimizer = state.optimizer


def revives(pruner: Pruner, when: str) -> bool:
    return bool(pruner.recipe.trait("restore", "RELEASES") == when)


def _fresh(model: nn.Module, seed: int, round: int) -> dict[str, torch.Tensor]:
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
                    f"restore: reinitialize: '{name}' ({type(module).__name__}) has parameters of "
                    "its own and no reset_parameters(): add that method"
                )
    return dict(twin.state_dict())
