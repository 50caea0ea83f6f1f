"""What is seen of a model's blocks before a walk; no block is changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

from torch import nn

from prunus.blocks.fewer import PassedOver
from prunus.blocks.job import Job
from prunus.blocks.solving import Heard
from prunus.blocks.streams import Stream, alike, gap
from prunus.blocks.walk import Passage


def missed(job: Job, span: int = 1) -> dict[str, float]:
    """The loss on the calibration data without each block in turn; no block is changed.

    Where the model gives none: one minus the cosine between what a block reads and gives.

    Args:
        job: a walk through the model.
        span: blocks that are left out together; they are named by the first one.
    """
    job.probe()
    stream, losses, turned = Stream("without", job.calibration), {}, {}
    for blocks in job.stacks:
        job.enter(stream, blocks)
        for i, name in enumerate(blocks[: len(blocks) - span + 1]):
            losses[name] = job.judged(stream, i + span - 1)
            with job.source.hold(name) as block:
                given = job.passed(block, stream, i)
            turned[name] = 1 - alike(stream.flow, given)
            stream.move(given)
        stream.passage.last = stream.flow
    single = span == 1 and any(map(math.isnan, losses.values()))
    return turned if single else losses


def lost(job: Job) -> tuple[float, float]:
    """The loss on held-out data of a model some of whose blocks are passed over, and their error.

    Args:
        job: a walk through that model.

    Returns:
        The loss, and the largest ‖f(x) − x‖² ÷ ‖f(x)‖² of a block that is passed over.
    """
    job.probe()
    stream, worst = Stream("lost", job.held), 0.0
    for blocks in job.stacks:
        job.enter(stream, blocks)
        for i, name in enumerate(blocks):
            with job.source.hold(name) as block:
                if isinstance(block, PassedOver):
                    given = job.passed(block.block, stream, i)
                    worst = max(worst, gap(given, stream.flow))
                    given.drop()
                else:
                    stream.move(job.passed(block, stream, i))
        stream.passage.last = stream.flow
    loss = job.judge(job.model, stream.batches, stream.passages)
    stream.flow.drop()
    return loss, worst


def heard(
    job: Job, around: Callable[[str, nn.Module], Any] | None = None
) -> Iterator[tuple[str, nn.Module, Heard, Passage]]:
    """Each dense block on the calibration data, and the squares of what it multiplies.

    Args:
        job: a walk through the model.
        around: a context for the passes of a block, by its name.
    """
    job.probe()
    stream = Stream("survey", job.calibration)
    for blocks in job.stacks:
        job.enter(stream, blocks)
        for i, name in enumerate(blocks):
            with job.source.hold(name) as block:
                watching = nullcontext() if around is None else around(name, block)
                with watching, job.solving.hearing(block, "squares") as heard:
                    given = job.passed(block, stream, i, heard.batch_ends)
                stream.move(given)
                stream.passage.last = given
                yield name, block, heard, stream.passage
