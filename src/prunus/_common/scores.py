"""What a model scores on each item of its data, so that two models can be compared item by item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsFloat

import torch
from torch import Tensor

from prunus._common.kinds import kind_of
from prunus.errors import InputError


@dataclass(frozen=True, eq=False)
class Scores:
    """A number for each item, in an order that is the same in every evaluation.

    ``evaluate`` may return it in place of a number; the metric is the mean of the items. Then a
    guard can ask for more than an average: ``worst_class`` and ``confidence``.

    Args:
        items: ``[n]``: 0 or 1 for wrong and right, an error, a BLEU, …
        groups: the class or slice that each item belongs to: ``n`` names or numbers.
        better: whether more of it is better or less; must be the guard's own ``better``.
        figure: of a metric that is no mean over items (BLEU, a word error rate): rows ``[m, k]``
            of ``items``, which then are ``[n, k]``, to the number of these items together. It is
            called with chosen and repeated rows, for intervals. By default the mean.

    Raises:
        InputError: if there is no item, one is no number, or there is not one group for each.

    >>> scores = Scores([1.0, 0.0, 1.0, 1.0], groups=["cat", "cat", "dog", "dog"])
    >>> scores.mean, dict(scores.by_group())
    (0.75, {'cat': 0.5, 'dog': 1.0})
    >>> wrong_of_words = torch.tensor([[1, 2], [0, 6]])
    >>> Scores(wrong_of_words, figure=lambda rows: rows[:, 0].sum() / rows[:, 1].sum()).mean
    0.125
    """

    items: Tensor
    groups: tuple[str, ...] | None = None
    better: Literal["higher", "lower"] | None = None
    figure: Callable[[Tensor], SupportsFloat] | None = None

    def __init__(
        self,
        items: Tensor | Sequence[float],
        groups: Tensor | Sequence[object] | None = None,
        better: Literal["higher", "lower"] | None = None,
        figure: Callable[[Tensor], SupportsFloat] | None = None,
    ) -> None:
        if figure is not None and not callable(figure):
            raise InputError(f"Scores: figure is {kind_of(figure)}; give a function of rows [m, k]")
        found = _numbers(items, rows=figure is not None)
        names = None if groups is None else _names(groups)
        if names is not None and len(names) != len(found):
            raise InputError(f"Scores: {len(found)} items, but {len(names)} groups: one for each")
        if better not in (None, "higher", "lower"):
            raise InputError(f"Scores: better is {better!r}; it is 'higher' or 'lower'")
        object.__setattr__(self, "items", found)
        object.__setattr__(self, "groups", names)
        object.__setattr__(self, "better", better)
        object.__setattr__(self, "figure", figure)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def mean(self) -> float:
        """The metric."""
        return self.of_rows(torch.arange(len(self)))

    @property
    def each(self) -> Tensor:
        """``[n]``: the metric of each item alone."""
        if self.figure is None:
            return self.items
        single = [self.of_rows(row) for row in torch.arange(len(self)).split(1)]
        return torch.tensor(single, dtype=torch.float64)

    def of_rows(self, chosen: Tensor) -> float:
        """The metric of some items, which may repeat.

        >>> Scores([1.0, 0.0]).of_rows(torch.tensor([0, 0, 1, 0]))
        0.75
        """
        rows = self.items[chosen]
        return float(rows.mean() if self.figure is None else self.figure(rows))

    def again(self, kept: Mapping[str, Any]) -> Scores:
        """What :meth:`to_dict` gave of other scores of this metric, as scores."""
        return Scores(**kept, figure=self.figure)

    def by_group(self) -> Mapping[str, float]:
        """The mean of each group, in the order of their names; empty without groups."""
        found = {}
        for name in sorted(set(self.groups or ()), key=_order):
            member = torch.tensor([g == name for g in self.groups or ()])
            found[name] = self.of_rows(member)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values and a tensor, for a run's folder; :meth:`again` reads them."""
        groups = None if self.groups is None else list(self.groups)
        return {"items": self.items, "groups": groups, "better": self.better}

    @classmethod
    def of(cls, value: object) -> Scores | None:
        """What ``evaluate`` returned, if it says something of each item.

        >>> Scores.of(0.9) is None, len(Scores.of(torch.ones(3)))
        (True, 3)
        """
        if isinstance(value, Scores):
            return value
        return cls(value) if isinstance(value, Tensor) and value.dim() == 1 and len(value) else None

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """Of several processes: their items one after the other; the same ones count once.

        >>> len(Scores.joined([Scores([1.0]), Scores([0.0])]))
        2
        """
        first = parts[0]
        same = (len(p) == len(first) and torch.equal(p.items, first.items) for p in parts)
        if all(same):
            return first
        groups = [p.groups for p in parts if p.groups is not None]
        if groups and len(groups) < len(parts):
            raise InputError("evaluate returned groups on some ranks and none on others")
        names = [name for group in groups for name in group] if groups else None
        return cls(torch.cat([p.items for p in parts]), names, first.better, first.figure)


def _numbers(items: Tensor | Sequence[float], *, rows: bool) -> Tensor:
    try:
        found = torch.as_tensor(items).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"Scores: the items are no numbers: {error}") from None
    if found.dim() not in ((1, 2) if rows else (1,)) or not len(found):
        wanted = "one number for each item" + (", or a row" if rows else "")
        raise InputError(f"Scores: items of shape {tuple(found.shape)}; {wanted}")
    return found


def _names(groups: Tensor | Sequence[object]) -> tuple[str, ...]:
    plain = groups.tolist() if isinstance(groups, Tensor) else groups
    if not isinstance(plain, Iterable) or isinstance(plain, (str, bytes)):
        raise InputError(f"Scores: groups is {kind_of(plain)}; give a name for each item")
    return tuple(str(group) for group in plain)


def _order(name: str) -> tuple[float, str]:
    """Numbers by their value, then names."""
    try:
        return float(name), name
    except ValueError:
        return float("inf"), name
