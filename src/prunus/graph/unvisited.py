"""Modules that no pass visits, such as experts to which no item of the example is sent.

What they read and write cannot be seen, only inferred: of the entries of a list or dictionary of
modules (or parameters) those that a pass visits show what the others do. Where they agree, the
others are cut as they are; where they do not, or where that is not sure, what they share with the
rest of the model stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from prunus._common.modules import joined
from prunus.graph.call import some
from prunus.graph.labels import Array, Dim, Fixed, Value
from prunus.graph.solve import Solved
from prunus.types import Kept

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
Tensors = Mapping[str, Value]


@dataclass(frozen=True)
class Entries:
    """Of one container: what a pass visits, and what none does.

    Attributes:
        visited: names of entries, each with its tensors' names behind that.
        others: the same of entries that no pass visits.
    """

    visited: Mapping[str, Sequence[str]]
    others: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Inferred:
    """What is known of tensors that no pass reads.

    Attributes:
        tensors: their labels, by name.
        solved: with the classes of these labels.
        like: entries that no pass visits, and those that they are cut like.
        copies: tensors that no pass reads, and those whose labels they have.
        notes: for the user.
    """

    tensors: dict[str, Value]
    solved: Solved
    like: Mapping[str, tuple[str, ...]]
    copies: Mapping[str, str]
    notes: tuple[str, ...] = ()


def unvisited(model: nn.Module, names: Mapping[str, str], read: set[str]) -> Iterator[Entries]:
    """Every container of which a pass visits some numbered entries, and no pass others.

    Args:
        model: the model.
        names: every name of a tensor to its first one.
        read: the first names of the tensors that some pass reads.
    """
    below: dict[str, list[str]] = {}
    for name in dict.fromkeys(names.values()):
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            below.setdefault(".".join(parts[:i]), []).append(".".join(parts[i:]))
    done: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, CONTAINERS) or any(path.startswith(f"{d}.") for d in done):
            continue
        keys = [*module._modules, *module._parameters]
        paths = [joined(path, k) for k in keys if re.search(r"\d", k)]
        own = {p: below[p] for p in paths if p in below}
        seen = {e: t for e, t in own.items() if any(_at(e, n) in read for n in t)}
        others = {e: t for e, t in own.items() if e not in seen}
        if seen and others:
            done += others
            yield Entries(seen, others)


def infer(
    model: nn.Module,
    names: Mapping[str, str],
    tensors: Tensors,
    solved: Solved,
    kept: Kept | None = None,
) -> Inferred:
    """What falls together with tensors that no pass reads.

    Args:
        model: the model.
        names: every name of a tensor to its first one.
        tensors: the labels of those that were read.
        solved: their classes.
        kept: a cut that is known, as for :func:`analyze`: it says all then.
    """
    entries = list(unvisited(model, names, set(tensors)))
    if not entries:
        return Inferred(dict(tensors), solved, {}, {})
    every = (*model.named_parameters(), *model.named_buffers())
    shapes = {name: tuple(t.shape) for name, t in every}
    grown = _Grown(tensors, solved)
    like: dict[str, tuple[str, ...]] = {}
    unsure: list[str] = []
    for each in entries:
        for entry, inside in each.others.items():
            if kept is not None:
                for name in inside:
                    grown.decided(_at(entry, name), shapes[_at(entry, name)], kept)
                continue
            alike = [
                v
                for v, own in each.visited.items()
                if list(own) == list(inside)
                and all(shapes[_at(v, n)] == shapes[_at(entry, n)] for n in inside)
            ]
            if not alike or not grown.agree(alike, inside):
                unsure.append(entry)
                for visited, own in each.visited.items():
                    grown.pin(visited, own, entry)
            if alike:
                grown.copy(entry, alike[0], inside)
                like[entry] = tuple(alike)
    notes = _notes({e: v for e, v in like.items() if e not in unsure}, unsure)
    return Inferred(grown.tensors, grown.solved(), like, grown.copies, notes)


def _notes(like: Mapping[str, tuple[str, ...]], unsure: Sequence[str]) -> tuple[str, ...]:
    found = []
    if like:
        visited = ", ".join(dict.fromkeys(v for alike in like.values() for v in alike))
        found.append(
            f"no example visits {some(list(like))}: taken to read and write what {visited} do; "
            "examples that visit them (example=[a, b]) would show it"
        )
    if unsure:
        found.append(
            f"no example visits {some(unsure)}: what they may read stays; give examples that "
            "visit them (example=[a, b])"
        )
    return tuple(found)


def _at(entry: str, name: str) -> str:
    """A tensor of an entry; of a list of parameters the entry itself."""
    return joined(entry, name) if name else entry


class _Grown:
    """Tensors and classes, with those that are inferred added."""

    def __init__(self, tensors: Tensors, solved: Solved) -> None:
        self.tensors = dict(tensors)
        self.copies: dict[str, str] = {}
        self._solved = solved
        self._labels: list[Array] = [solved.classes]
        self._count = len(solved.classes)
        self._reason, self._head = solved.reason.tolist(), solved.head.tolist()
        self._gone, self._hidden = solved.gone.tolist(), solved.hidden.tolist()
        self._texts = list(solved.reasons)
        self._touched: dict[int, set[str]] = {}
        for name, value in tensors.items():
            for dim in value.dims:
                for found in () if isinstance(dim, Fixed) else np.unique(solved.of(dim)):
                    self._touched.setdefault(int(found), set()).add(name)

    def agree(self, alike: Sequence[str], names: Sequence[str]) -> bool:
        """Whether these entries share the same indices with the rest of the model.

        A single one may be a link of a chain, whose next reads what this one writes: it must not
        read and write different dimensions of one size.
        """
        shared = [self._shared(entry, names) for entry in alike]
        first = shared[0]
        if any(other != first for other in shared):
            return False
        ends = {classes for classes in first.values() if any(c >= 0 for c in classes)}
        sizes = [len(classes) for classes in ends]
        return len(alike) > 1 or len(set(sizes)) == len(sizes)

    def _shared(self, entry: str, names: Sequence[str]) -> dict[tuple[str, int], tuple[int, ...]]:
        """By tensor and dimension: the class of each index that others touch too, else −1."""
        own = {_at(entry, n) for n in names}
        found: dict[tuple[str, int], tuple[int, ...]] = {}
        for name in names:
            value = self.tensors.get(_at(entry, name))
            for d, dim in enumerate(() if value is None else value.dims):
                classes = () if isinstance(dim, Fixed) else self._solved.of(dim)
                free = [int(c) if self._reason[c] < 0 else -1 for c in classes]
                found[name, d] = tuple(-1 if self._touched[c] <= own else c for c in free if c >= 0)
        return found

    def copy(self, entry: str, visited: str, names: Sequence[str]) -> None:
        """An entry that shares what another does, and has as many of its own as that."""
        own = {_at(visited, n) for n in names}
        made: dict[int, int] = {}
        for name in names:
            value = self.tensors.get(_at(visited, name))
            dims: list[Dim] = []
            for dim in () if value is None else value.dims:
                if isinstance(dim, Fixed):
                    dims.append(dim)
                    continue
                classes = [int(c) for c in self._solved.of(dim)]
                for c in classes:
                    if self._reason[c] < 0 and self._touched[c] <= own and c not in made:
                        made[c] = self._class(head=self._head[c], hidden=self._hidden[c])
                dims.append(self._label([made.get(c, c) for c in classes]))
            if value is not None:
                self.tensors[_at(entry, name)] = replace(value, dims=tuple(dims))
                self.copies[_at(entry, name)] = _at(visited, name)

    def pin(self, visited: str, names: Sequence[str], entry: str) -> None:
        """What a visited entry shares with the rest stays: another may read it."""
        why = f"{entry}, which no example visits, may read it"
        own = {_at(visited, n) for n in names}
        for name in own & self.tensors.keys():
            for dim in self.tensors[name].dims:
                for c in () if isinstance(dim, Fixed) else np.unique(self._solved.of(dim)):
                    if self._reason[c] < 0 and not self._touched[int(c)] <= own:
                        self._texts += [] if why in self._texts else [why]
                        self._reason[c] = self._texts.index(why)

    def decided(self, name: str, shape: tuple[int, ...], kept: Kept) -> None:
        """A tensor of a cut that is known."""
        indices = kept.get(name, (None,) * len(shape))
        dims: list[Dim] = []
        for size, stays in zip(shape, indices, strict=True):
            left = set(range(size)) if stays is None else set(stays.tolist())
            gone = [i not in left for i in range(size)]
            dims.append(self._label([self._class(gone=g) for g in gone]))
        self.tensors[name] = Value(tuple(dims), (True,) * len(shape), shape)

    def _class(self, *, head: bool = False, hidden: bool = False, gone: bool | None = None) -> int:
        why = "it stays in this cut"
        if gone is False and why not in self._texts:
            self._texts.append(why)
        self._reason.append(self._texts.index(why) if gone is False else -1)
        self._head.append(head)
        self._hidden.append(hidden)
        self._gone.append(bool(gone))
        return len(self._reason) - 1

    def _label(self, classes: Sequence[int]) -> Array:
        self._labels.append(np.asarray(classes, dtype=np.int64))
        self._count += len(classes)
        return np.arange(self._count - len(classes), self._count, dtype=np.int64)

    def solved(self) -> Solved:
        """The classes, with those that were added."""
        return Solved(
            np.concatenate(self._labels),
            np.asarray(self._reason, dtype=np.int64),
            tuple(self._texts),
            np.asarray(self._head, dtype=bool),
            np.asarray(self._gone, dtype=bool),
            np.asarray(self._hidden, dtype=bool),
        )
