"""A model's metric: one number, or a value for each item, whose mean it is, with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, SupportsFloat, TypeAlias

import torch
from torch import Tensor, nn

from prunus._common.scores import Scores
from prunus.errors import InputError

Metric: TypeAlias = Callable[[nn.Module], float | Tensor | Scores]
"""``metric(model)``: a number, or a value for each item ``[n]``, with their classes or without."""

Value: TypeAlias = float | Tensor | Scores

LEVEL, DRAWS = 0.95, 2000


@dataclass(frozen=True)
class MetricEstimate:
    """What the test data say, once a run is over.

    Attributes:
        metric: of the pruned model.
        interval: in which the metric lies with 95 % confidence over the choice of test items;
            ``None`` where the metric is one number.
        dense: the same metric of round 0, where it could be had.
        change: metric minus that of round 0, item by item: mean, low, high.
    """

    metric: float
    interval: tuple[float, float] | None = None
    dense: float | None = None
    change: tuple[float, float, float] | None = None

    @classmethod
    def of(cls, pruned: Value, dense: Value | None = None) -> MetricEstimate:
        """From what ``test`` returned.

        >>> MetricEstimate.of(0.5).interval, MetricEstimate.of(torch.tensor([1.0, 1.0])).interval
        (None, (1.0, 1.0))
        """
        metric, items = number(pruned, "test"), Scores.of(pruned)
        interval = None if items is None else interval_of(items)
        if dense is None:
            return cls(metric, interval)
        first, before = number(dense, "test"), Scores.of(dense)
        change = None
        if items is not None and before is not None:
            if items.items.shape != before.items.shape:
                raise InputError(
                    f"test returned {len(items)} values for the pruned model and {len(before)} for "
                    "the dense one: it must judge the same items each time"
                )
            change = (metric - first, *interval_of(items, before))
        return cls(metric, interval, first, change)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> MetricEstimate:
        """From what :meth:`plain` gave."""
        pairs = {k: None if plain[k] is None else tuple(plain[k]) for k in ("interval", "change")}
        return cls(**{**plain, **pairs})

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        text = f"{self.metric:.4f}"
        if self.interval is not None:
            text += " ({:.4f} to {:.4f} with 95 % confidence)".format(*self.interval)
        if self.dense is not None:
            text += f"; dense {self.dense:.4f}"
        if self.change is not None:
            text += ", change {:+.4f} ({:+.4f} to {:+.4f})".format(*self.change)
        return text


def number(value: object, name: str) -> float:
    """A metric as one number: itself, or the mean of the items'.

    Raises:
        InputError: if it is none; a number that is not finite is for the caller to judge.

    >>> number(torch.tensor([1.0, 0.0]), "evaluate")
    0.5
    """
    if isinstance(value, Scores):
        return value.mean
    if isinstance(value, Tensor) and value.dim() == 1 and len(value):
        return float(value.double().mean())
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise InputError(
            f"{name} returned {type(value).__name__}, not a number: return the metric as a float, "
            "or a tensor with one value per item"
        )
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} returned no number: {error}") from None


def bootstrap(items: Tensor, *, draws: int = DRAWS, level: float = LEVEL) -> tuple[float, float]:
    """The interval of a mean over items ``[n]``, by resampling them with replacement.

    The quantiles (1 ∓ level)/2 of the means of ``draws`` samples of n items each, with a fixed
    seed.

    Source: Efron 1979, Annals of Statistics 7(1), the percentile method.

    >>> low, high = bootstrap(torch.arange(100) < 90)
    >>> round(low, 2), round(high, 2)
    (0.84, 0.96)
    """
    return interval_of(Scores(items), draws=draws, level=level)


def interval_of(
    scores: Scores, before: Scores | None = None, *, draws: int = DRAWS, level: float = LEVEL
) -> tuple[float, float]:
    """The interval of a metric of items, or of its change, by resampling the items.

    Args:
        scores: whatever their figure is.
        before: of the same items; then the interval is that of the change since.
        draws: how often the items are drawn, with a fixed seed.
        level: of the interval.

    Source: Koehn 2004, EMNLP, for pairs under a figure that is no mean.

    >>> half = Scores([[1, 2], [1, 2]], figure=lambda rows: rows[:, 0].sum() / rows[:, 1].sum())
    >>> interval_of(half), interval_of(half, half)
    ((0.5, 0.5), (0.0, 0.0))
    """
    every = [scores.items, *([] if before is None else [before.items])]
    if not all(bool(torch.isfinite(items).all()) for items in every):
        return math.nan, math.nan
    source = torch.Generator().manual_seed(0)
    count, found = len(scores), []
    for _ in range(draws):
        chosen = torch.randint(count, (count,), generator=source)
        other = 0.0 if before is None else before.of_rows(chosen)
        found.append(scores.of_rows(chosen) - other)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(torch.tensor(found, dtype=torch.float64), ends)
    return float(low), float(high)
