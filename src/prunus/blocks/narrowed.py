"""Which channels go: those of the lowest scores, or the last ones of a turned stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prunus._common.modules import evaluating
from prunus._common.rng import preserve_rng
from prunus.blocks.ends import behind
from prunus.blocks.hidden import Narrow
from prunus.blocks.job import Job
from prunus.blocks.judge import Judge
from prunus.blocks.narrowing import chosen
from prunus.blocks.powers import narrow_of
from prunus.blocks.recipe import BlockRecipe
from prunus.blocks.source import Source
from prunus.blocks.turning import Turned, see, turn
from prunus.blocks.walk import passed_stacks


def narrow_for(source: Source, how: BlockRecipe, calibration: Sequence[Any]) -> Narrow:
    """The narrower model, before its channels are chosen.

    Raises:
        InputError: if no configuration says it, or it does not turn where it should.
    """
    found = narrow_of(source, how, calibration)
    if how.rotate:
        see(source, how, found, calibration)
    return found


def narrowed(
    source: Source, how: BlockRecipe, narrow: Narrow, calibration: Sequence[Any]
) -> Source:
    """Choose channels; what is to be walked through then.

    Args:
        source: has the dense model; what is found is kept in its folder, where it has one.
        how: the recipe.
        narrow: gets the channels that stay.
        calibration: batches.

    Raises:
        InputError: for a stream that does not turn, where it should.
        RunError: if what stands behind the blocks would answer otherwise.
    """
    place = source.scratch
    job = Job(source, how, calibration, [], Judge(), lambda *_: None)
    if not how.rotate:
        saved = None if place is None else place / "hidden.json"
        narrow.kept = chosen(job, narrow, calibration, saved)
        return source
    turn(job, narrow, None if place is None else place / "turn.safetensors")
    with preserve_rng(), evaluating(source.model), torch.no_grad():
        passages = passed_stacks(source.model, job.stacks, calibration[:1], source.hold)[0]
        behind(source.model, narrow, passages, calibration[0])
    return Turned(source, narrow)
