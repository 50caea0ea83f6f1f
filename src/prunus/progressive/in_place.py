"""Whether a model can become smaller while others hold it."""

from __future__ import annotations

import dataclasses

import torch

from prunus.compaction.cut import cut_of
from prunus.compaction.search import find_plan
from prunus.compaction.shrink import refuse_replacing
from prunus.errors import InputError
from prunus.progressive.engine import PruningEngine
from prunus.progressive.selector import Sparsity
from prunus.recipe.resolve import bind
from prunus.recipe.specs import Spec


def stay_in_place(engine: PruningEngine) -> None:
    """Refuse a model that cannot become smaller while others hold it.

    Raises:
        InputError: with the way out.
    """
    _refuse_several_processes()
    engine.in_place = True
    if engine.shrinks:
        return
    assert engine.space.analysis is not None
    # The widths are what counts here, so any criterion does.
    magnitude = bind("criteria", Spec(name="magnitude"))
    methods = dataclasses.replace(engine.selector.methods, criterion=magnitude)
    goal = Sparsity(1.0, min(engine.target, 0.3), engine.target)
    trial = dataclasses.replace(engine.selector, methods=methods)
    masks = trial.choose(engine.model, engine.space, engine.masks, goal, {}).masks
    cut = cut_of(engine.space.analysis, masks)
    if cut.units():
        refuse_replacing(find_plan(engine.model, cut, engine.example))


def _refuse_several_processes() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise InputError(
            "compact: every_round: the wrapper of a model in several processes keeps buckets of "
            "the old sizes: leave compact out, and call prunus.compact after training"
        )
