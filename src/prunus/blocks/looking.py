"""What is seen of a model's blocks before a walk; no block is changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

from torch import nn

from prunus.blocks.job import Job
from prunus.blocks.solving import Heard
from prunus.blocks.streams import Stream, alike
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
