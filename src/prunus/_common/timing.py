"""Honest timing: interleaved rounds, medians, and a word when the machine was busy."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from prunus._common.kinds import given_number
from prunus.errors import InputError

SHORTEST = 2e-3
"""Seconds that a sample lasts at least. Its first call finds the caches as the function before left
them, which a model that serves alone does not: a ResNet-20 of 0.1 ms takes 0.13."""

FEW, WARMING = 10, 0.2
"""Calls that warm a function up, and seconds that they may take beyond those asked for."""

BUSY_SPREAD = 0.15
BUSY_DRIFT = 0.10
"""Above either, medians of this run should not be compared with those of another."""


@dataclass(frozen=True)
class Timing:
    """How long one callable takes.

    Attributes:
        median_ms: milliseconds of one call.
        p95_ms: 95 % of the samples took no longer.
        spread: interquartile range ÷ median.
        calls: timed calls.
        busy: the spread is above 0.15, or the last third of the samples differs from the first
            third by more than 0.10 of the median: something else was using the machine.
    """

    median_ms: float
    p95_ms: float
    spread: float
    calls: int
    busy: bool


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 2.0,
    least: int = 9,
    most: int = 400,
    warm: int = 3,
) -> dict[str, Timing]:
    """Time functions in turn, so that whatever slows the machine slows all of them.

    After the warm-up every function is called once a round; the order is rotated by one from
    round to round, so that none is always the first. A function shorter than 2 ms is called
    several times in a row for one sample, which is their mean: percentiles are then over
    samples. Once CUDA is in use, each sample starts and ends with a synchronization. The garbage
    collector rests meanwhile.

    Args:
        functions: by name.
        seconds: for each function; the rounds end when all of them together have had as much.
        least: rounds at least, however long they take.
        most: rounds at most.
        warm: calls of each function before the first round, at least one; ten, if they take less
            than 0.2 seconds.

    Returns:
        A :class:`Timing` for each name.

    Raises:
        InputError: if there is nothing to time, or the limits exclude each other.

    >>> found = interleaved({"sum": lambda: sum(range(100))}, seconds=0.01)
    >>> found["sum"].calls >= 9, found["sum"].p95_ms >= found["sum"].median_ms
    (True, True)
    """
    if not functions:
        raise InputError("there is nothing to time: pass at least one function")
    if not (seconds > 0 and 1 <= least <= most):
        raise InputError(
            f"seconds is {seconds}, least {least}, most {most}: seconds must be above 0, and "
            "1 <= least <= most"
        )
    names = list(functions)
    repeats = {name: _warmed(function, max(1, warm)) for name, function in functions.items()}
    samples: dict[str, list[float]] = {name: [] for name in names}
    with _no_collection():
        end = perf_counter() + seconds * len(names)
        for turn in range(most):
            if turn >= least and perf_counter() >= end:
                break
            first = turn % len(names)
            for name in (*names[first:], *names[:first]):
                samples[name].append(_sample(functions[name], repeats[name]))
    return {name: timing_of(taken, repeats=repeats[name]) for name, taken in samples.items()}


def timing_of(samples: Sequence[float], *, repeats: int = 1) -> Timing:
    """What samples, in the order in which they were taken, say together.

    Args:
        samples: seconds of one call, at least one.
        repeats: calls behind each sample.

    >>> timing_of([0.002, 0.001, 0.003])
    Timing(median_ms=2.0, p95_ms=2.9, spread=0.5, calls=3, busy=True)
    """
    median, p95, low, high = map(float, np.quantile(samples, (0.5, 0.95, 0.25, 0.75)))
    spread = (high - low) / median if median else 0.0
    third = max(1, len(samples) // 3)
    early, late = (float(np.median(part)) for part in (samples[:third], samples[-third:]))
    drift = abs(late - early) / median if median else 0.0
    return Timing(
        median_ms=1e3 * median,
        p95_ms=1e3 * p95,
        spread=spread,
        calls=len(samples) * repeats,
        busy=spread > BUSY_SPREAD or drift > BUSY_DRIFT,
    )


def _warmed(function: Callable[[], object], calls: int) -> int:
    """Warm a function up; how many calls make a sample that the clock can tell.

    The first calls of some compile, and say nothing of those to come: short ones get a few more.
    """
    taken: list[float] = []
    while len(taken) < calls or (len(taken) < FEW and sum(taken) < WARMING):
        taken.append(_sample(function, 1))
    return max(1, math.ceil(SHORTEST / max(min(taken), 1e-7)))


def _sample(function: Callable[[], object], repeats: int) -> float:
    """Seconds of one call."""
    synchronize()
    start = perf_counter()
    for _ in range(repeats):
        function()
    synchronize()
    return (perf_counter() - start) / repeats


def synchronize() -> None:
    """Wait for every CUDA device that this process uses; nothing where it uses none."""
    if torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            if torch.cuda.memory_reserved(device):
                torch.cuda.synchronize(device)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection in the middle of a sample; one before would take longer than many."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Fix the threads that torch uses inside an operator, and put them back.

    Args:
        count: 1 or more; ``None`` leaves them as they are.

    Yields:
        The number in use.

    Raises:
        InputError: for fewer than one.

    >>> before = torch.get_num_threads()
    >>> with threads(1) as count:
    ...     count, torch.get_num_threads()
    (1, 1)
    >>> torch.get_num_threads() == before
    True
    """
    if count is not None:
        given_number(count, "threads", least=1, whole=True)
        if count >= 2**31:
            raise InputError(f"threads is {count:.3g}; no machine has as many")
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextmanager
def no_denormals() -> Iterator[None]:
    """Numbers too small for the normal format count as zero, where the processor can do that.

    Random inputs through pruned random weights shrink toward such numbers, which are a hundred
    times slower to multiply; trained weights hardly meet them. It holds for this thread and those
    that start meanwhile, and ends as it was.
    """
    before = bool(torch.full((1,), 1e-39).eq(0))
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
