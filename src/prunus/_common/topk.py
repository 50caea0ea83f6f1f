"""Exactly the k largest of many scores, ties by position, without sorting them.

A full sort of 10 million scores costs a second. Here a sample brackets the k-th largest score,
one pass counts what lies above the bracket and collects what lies in it, and only that little
is partitioned. The result is exact: a bracket that misses is widened, never trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunus._common.memory import lasting

Part = Callable[[], Tensor]
"""Makes a flat tensor of scores; called once a pass, so that they need not all be in memory."""


@dataclass(frozen=True)
class Cutoff:
    """Where the largest scores end.

    Attributes:
        value: the smallest score that stays.
        at_least: how many scores of each part are that large or larger.
        equal: how many of each part are just that large.
    """

    value: float
    at_least: list[int]
    equal: list[int]


_CHUNK = 1 << 17  # scores looked at together: they stay in the cache between two comparisons
_SHORT = 16  # up to this length all pairs of a run are compared
_SMALL = 1 << 16
_SAMPLE = 1 << 16


def keep_largest(scores: Tensor, keep: int, *, guess: float | None = None) -> tuple[Tensor, float]:
    """Bool mask of the ``keep`` largest scores, and where they end; of equal ones the first stay.

    Args:
        scores: ``[units]``, float32 or float64, no NaN; −inf allowed.
        keep: 0 to units.
        guess: where they may end (the cutoff of another group): one pass if it is right,
            the same answer if it is not.

    >>> keep_largest(torch.tensor([1.0, 2.0, 1.0, 0.0]), 2)
    (tensor([ True,  True, False, False]), 1.0)
    """
    if guess is not None:
        mask = at_least(scores, guess)
        if _drop_ties(mask, scores, guess, keep):
            return mask, guess
    value = cutoff([lambda: scores], [len(scores)], keep).value
    mask = at_least(scores, value)
    found = _drop_ties(mask, scores, value, keep)
    assert found
    return mask, value


def _drop_ties(mask: Tensor, scores: Tensor, value: float, keep: int) -> bool:
    """Take the last scores equal to ``value`` out of the mask until ``keep`` are left."""
    excess = count(mask) - keep
    if excess <= 0:
        return excess == 0
    equal = (scores == value).nonzero().flatten()
    if len(equal) < excess:
        return False
    mask[equal[-excess:]] = False
    return True


def keep_largest_by_run(scores: Tensor, keep: Tensor) -> Tensor:
    """The same in each row: the ``keep[i]`` largest of row i.

    Args:
        scores: ``[runs, run]``.
        keep: ``[runs]``, int64.

    >>> rows = torch.tensor([[1.0, 3.0, 2.0], [1.0, 1.0, 0.0]])
    >>> keep_largest_by_run(rows, torch.tensor([1, 1]))
    tensor([[False,  True, False],
            [ True, False, False]])
    """
    if scores.device.type == "cpu":
        kept = lasting(scores.shape, torch.bool)
    else:
        kept = torch.empty_like(scores, dtype=torch.bool)
    length = scores.shape[1]
    together = _CHUNK >> 2 if scores.device.type == "cpu" else _CHUNK << 6
    rows = max(1, together // max(1, length))
    best = _best_of_short if length <= _SHORT else _best_of_long
    numbers = keep.to(scores.device)
    for some, number, out in zip(*(x.split(rows) for x in (scores, numbers, kept)), strict=True):
        out.copy_(best(some, number))
    return kept


def _best_of_short(scores: Tensor, keep: Tensor) -> Tensor:
    """By rank: how many of its run come before each score, every pair compared once."""
    columns = scores.t().contiguous()
    rank = torch.zeros(columns.shape, dtype=torch.int8, device=scores.device)
    for j in range(len(columns)):
        for i in range(j):
            beaten = columns[j] > columns[i]  # of equal scores the first stays
            rank[i] += beaten
            rank[j] += ~beaten
    return (rank < keep).t()


def _best_of_long(scores: Tensor, keep: Tensor) -> Tensor:
    """By the smallest score of each run that stays, of equal ones the first."""
    last = torch.from_numpy(np.sort(scores.numpy())) if _numpy_reads(scores) else scores.sort()[0]
    place = (scores.shape[1] - keep).clamp(0, scores.shape[1] - 1)
    value = last.gather(1, place[:, None])
    value[keep <= 0] = torch.inf
    kept = scores >= value
    excess = kept.sum(1) - keep
    tied = ((excess > 0) & (keep > 0)).nonzero().flatten()
    if len(tied):
        above, equal = scores[tied] > value[tied], scores[tied] == value[tied]
        missing = keep[tied] - above.sum(1)
        kept[tied] = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= missing[:, None]))
    return kept


def cutoff(parts: Sequence[Part], sizes: Sequence[int], keep: int) -> Cutoff:
    """The ``keep``-th largest score of all parts together, and what reaches it in each.

    Its value is infinite if nothing is to be kept, minus infinite if everything.

    Args:
        parts: make flat scores.
        sizes: how many each part makes.
        keep: how many of all stay.

    >>> cutoff([lambda: torch.tensor([1.0, 2.0]), lambda: torch.tensor([3.0])], [2, 1], 2)
    Cutoff(value=2.0, at_least=[1, 1], equal=[1, 0])
    """
    total = sum(sizes)
    if keep >= total:
        return Cutoff(float("-inf"), list(sizes), [0] * len(sizes))
    if keep <= 0:
        return Cutoff(float("inf"), [0] * len(sizes), [0] * len(sizes))
    low, high = _bracket(parts, total, keep) if total > _SMALL else (-torch.inf, torch.inf)
    while True:
        above, inside, ends = _pass(parts, low, high)
        rank, number = keep - sum(above), sum(map(len, inside))
        if 0 < rank <= number:
            break
        if 0 < rank - number <= sum(ends):  # ties at the end, which may be half of all
            reach = [n + len(x) + e for n, x, e in zip(above, inside, ends, strict=True)]
            return Cutoff(low, reach, ends)
        # The bracket misses the rank: look on the other side of the end that it misses.
        low, high = (high, float("inf")) if rank <= 0 else (float("-inf"), low)
    value = _kth_largest(torch.cat(inside), rank)
    reach = [n + count(at_least(x, value)) for n, x in zip(above, inside, strict=True)]
    return Cutoff(value, reach, [int((x == value).sum()) for x in inside])


def at_least(scores: Tensor, value: float) -> Tensor:
    """``scores >= value``; numpy compares five times as fast as torch on a CPU."""
    if not _numpy_reads(scores):
        return scores >= value
    mask = lasting(scores.shape, torch.bool)
    array = scores.numpy()
    np.greater_equal(array, array.dtype.type(value), out=mask.numpy())
    return mask


def equal_to(scores: Tensor, value: float) -> Tensor:
    """``scores == value``, likewise."""
    if not _numpy_reads(scores):
        return scores == value
    array = scores.numpy()
    return torch.from_numpy(np.equal(array, array.dtype.type(value)))


def count(mask: Tensor) -> int:
    """How many are True."""
    if mask.device.type == "cpu":
        return int(np.count_nonzero(mask.numpy()))
    return int(torch.count_nonzero(mask))


def _bracket(parts: Sequence[Part], total: int, keep: int) -> tuple[float, float]:
    stride = max(1, total // _SAMPLE) | 1  # odd: does not fall in step with even row lengths
    some = [part()[::stride].clone() for part in parts]  # a view would hold all scores
    sample = torch.cat(some).sort(descending=True).values
    middle = keep / total * len(sample)
    # Eight standard deviations of a binomial rank: a miss costs one more pass, not the answer.
    margin = 8 * (middle * (1 - keep / total)) ** 0.5 + 8
    first, last = int(middle - margin), int(middle + margin)
    high = sample[first] if first >= 0 else sample.new_tensor(torch.inf)
    low = sample[last] if last < len(sample) else sample.new_tensor(-torch.inf)
    if low == high:  # ties: a bracket of this one value
        high = torch.nextafter(high, sample.new_tensor(torch.inf))
    return float(low), float(high)


def _pass(
    parts: Sequence[Part], low: float, high: float
) -> tuple[list[int], list[Tensor], list[int]]:
    """By part: how many scores are ``high`` or more, copies of those between ``low`` and
    ``high``, and how many are ``low``."""
    above, inside, ends = [], [], []
    for part in parts:  # the scores of one are let go before the next are made
        number, between, end = _within(part(), low, high)
        above.append(number)
        inside.append(between)
        ends.append(end)
    return above, inside, ends


def _within(scores: Tensor, low: float, high: float) -> tuple[int, Tensor, int]:
    assert scores.dim() == 1
    number, kept, end = 0, [], 0
    for chunk in scores.split(_CHUNK):
        between, equal = at_least(chunk, low), equal_to(chunk, low)
        end += count(equal)
        between.logical_xor_(equal)
        if high != float("inf"):
            over = at_least(chunk, high)
            number += count(over)
            between.logical_xor_(over)
        kept.append(_choose(chunk, between))
    made = lasting((sum(map(len, kept)),), scores.dtype)  # it outlives the scores
    every = torch.cat(kept, out=made) if scores.device.type == "cpu" else torch.cat(kept)
    return number, every, end


def _choose(scores: Tensor, mask: Tensor) -> Tensor:
    if _numpy_reads(scores):
        return torch.from_numpy(scores.numpy()[mask.numpy()])
    return scores[mask]


def _kth_largest(values: Tensor, rank: int) -> float:
    if _numpy_reads(values):
        array = values.numpy()
        array.partition(len(array) - rank)
        return float(array[len(array) - rank])
    return float(torch.kthvalue(values, len(values) - rank + 1).values)


def _numpy_reads(scores: Tensor) -> bool:
    return scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64)
