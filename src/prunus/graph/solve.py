"""From relations between labels to classes that fall together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from prunus.graph.labels import Array, Dim, Fixed, Labels, Site

Heads = Literal["whole", "dims"]


@dataclass(frozen=True)
class Solved:
    """Classes of labels.

    Attributes:
        classes: the class of each label, ``[labels]``.
        reason: why a class stays, an index into ``reasons``; −1: it can go. ``[classes]``.
        reasons: texts.
        head: classes that are attention heads, ``[classes]``.
        gone: classes that a known cut takes, ``[classes]``.
        hidden: classes that a norm counts, ``[classes]``.
    """

    classes: Array
    reason: Array
    reasons: tuple[str, ...]
    head: NDArray[np.bool_]
    gone: NDArray[np.bool_]
    hidden: NDArray[np.bool_]

    def of(self, dim: Array) -> Array:
        """The class of each index of a dimension."""
        return self.classes[dim]

    def free(self, dim: Array) -> NDArray[np.bool_]:
        """Which indices of a dimension can go."""
        return self.reason[self.classes[dim]] < 0

    def why(self, dim: Dim) -> str | None:
        """The reason of the first index that stays, if one does."""
        if isinstance(dim, Fixed):
            return dim.why
        found = self.reason[self.classes[dim]]
        found = found[found >= 0]
        return self.reasons[int(found[0])] if len(found) else None


def solve(labels: Labels, heads: Heads = "whole") -> Solved:
    """Join what falls together, choose one partner at every site, and spread the pins.

    Args:
        labels: with the relations of every operator.
        heads: at attention sites remove ``whole`` heads, or the same ``dims`` of every head.
            At other sites the partner with more indices is taken, the outer one of equals.
    """
    classes = _Classes(labels)
    waiting = list(labels.sites)
    while waiting:
        rest, chosen = [], []
        for site in waiting:
            alive = [
                p
                for p in site.pairs
                if not classes.stays(site.sources[p[0]])
                and not classes.stays(site.sinks[p[1]])
                and not classes.torn(p[2])
            ]
            if len(alive) <= 1:
                chosen.append((site, alive))
            else:
                rest.append((site, alive))
        if not chosen:
            decided = [i for i, (_, a) in enumerate(rest) if classes.decided(a)]
            headed = [i for i, (s, _) in enumerate(rest) if classes.touches_head(s)]
            site, alive = rest.pop((decided or headed or [0])[0])
            alive = classes.decided(alive) or alive
            chosen.append((site, [_choice(site, alive, classes, heads)]))
        for site, partners in chosen:
            classes.settle(site, partners)
        classes.merge()
        waiting = [site for site, _ in rest]
    return classes.solved()


Pair = tuple[int, int, Array]


class _Classes:
    """Classes while they grow."""

    def __init__(self, labels: Labels) -> None:
        self._of = _components(labels.ties, labels.count)
        number = int(self._of.max()) + 1 if labels.count else 0
        self._reason = np.full(number, -1, dtype=np.int64)
        self._texts: dict[str, int] = {}
        self._ties: list[Array] = []
        self._head = np.zeros(number, dtype=bool)
        for dim, why in labels.pins:
            self._pin(dim, why)
        for dim in labels.heads:
            self._head[self._of[dim]] = True
        self._gone = np.zeros(number, dtype=bool)
        for dim in labels.gone:
            self._gone[self._of[dim]] = True
        self._hidden = np.zeros(number, dtype=bool)
        for dim in labels.counted:
            self._hidden[self._of[dim]] = True

    def stays(self, dim: Array) -> bool:
        """Whether every index stays."""
        return bool((self._reason[self._of[dim]] >= 0).all())

    def touches_head(self, site: Site) -> bool:
        """Whether one of a site's dimensions numbers heads: these decide what others may do."""
        return any(self.is_head(d) for d in (*site.sources, *site.sinks))

    def torn(self, tied: Array) -> bool:
        """Whether a known cut takes one of two tied labels and leaves the other."""
        a, b = self._of[tied]
        stays = self._reason >= 0
        return bool((self._gone[a] & stays[b] | self._gone[b] & stays[a]).any())

    def decided(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Those pairs of which a known cut takes something."""
        return [p for p in pairs if self._gone[self._of[p[2]]].any()] if self._gone.any() else []

    def is_head(self, dim: Array) -> bool:
        return bool(self._head[self._of[dim]].any())

    def settle(self, site: Site, partners: Sequence[Pair]) -> None:
        """Tie partners; dimensions without one stay."""
        sources, sinks = {p[0] for p in partners}, {p[1] for p in partners}
        for _, _, tied in partners:
            self._ties.append(self._of[tied])
        why = f"{site.where}: its indices go by another factor"
        lost = [d for i, d in enumerate(site.sources) if i not in sources]
        lost += [d for i, d in enumerate(site.sinks) if i not in sinks]
        for dim in lost:
            known = self._reason[self._of[dim]]
            self._pin(dim[known < 0], why)

    def merge(self) -> None:
        """Join what was tied since the last time."""
        joined = _components(self._ties, len(self._reason))
        number = int(joined.max()) + 1 if len(joined) else 0
        large = np.iinfo(np.int64).max
        reason = np.full(number, large, dtype=np.int64)
        np.minimum.at(reason, joined, np.where(self._reason < 0, large, self._reason))

        def any_of(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
            found = np.zeros(number, dtype=bool)
            found[joined[marked]] = True
            return found

        self._head, self._gone, self._hidden = map(any_of, (self._head, self._gone, self._hidden))
        self._reason = np.where(reason == large, -1, reason)
        self._of, self._ties = joined[self._of], []

    def solved(self) -> Solved:
        return Solved(
            self._of, self._reason, tuple(self._texts), self._head, self._gone, self._hidden
        )

    def _pin(self, dim: Array, why: str) -> None:
        number = self._texts.setdefault(why, len(self._texts))
        found = self._of[dim]
        self._reason[found[self._reason[found] < 0]] = number


def _choice(site: Site, alive: Sequence[Pair], classes: _Classes, heads: Heads) -> Pair:
    """One partner of several."""
    whole = [
        p for p in alive if classes.is_head(site.sources[p[0]]) or classes.is_head(site.sinks[p[1]])
    ]
    if whole:
        others = [p for p in alive if p not in whole]
        return whole[0] if heads == "whole" or not others else others[-1]
    return max(alive, key=lambda p: _finer(site, p))  # of equals the first: the outer one


def _finer(site: Site, pair: Pair) -> int:
    return min(len(site.sources[pair[0]]), len(site.sinks[pair[1]]))


def _components(ties: Sequence[Array], count: int) -> Array:
    """The class of each of ``count`` labels."""
    if not ties:
        return np.arange(count, dtype=np.int64)
    a, b = np.concatenate([t.reshape(2, -1) for t in ties], axis=1)
    graph = coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count))
    found: Array = connected_components(graph, directed=False)[1].astype(np.int64)
    return found
