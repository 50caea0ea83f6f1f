"""Experts to which no item of a comparison goes, tried in the places of others.

Which expert of a list answers is seen only where one does: where a router's rows of two experts
change places, so do their items.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from prunus.compaction.verifying.values import Lazy, State
from prunus.graph.experts import Experts
from prunus.types import Kept

Swap = tuple[Experts, int, int]
"""Experts of a router, and two of them."""


def watched(model: nn.Module, names: Iterable[str]) -> set[str]:
    """The names of modules that run from now on, in a model or in copies of it.

    >>> model = nn.ModuleList([nn.Identity(), nn.Identity()])
    >>> seen = watched(model, ["0", "1"])
    >>> model[1](torch.ones(1)), seen
    (tensor([1.]), {'1'})
    """
    seen: set[str] = set()

    def note(name: str, *_: Any) -> None:
        seen.add(name)

    for name in names:
        model.get_submodule(name).register_forward_pre_hook(partial(note, name))
    return seen


def entries_of(experts: Experts, number: int) -> tuple[str, ...]:
    """The names of the entries that one of the experts has in lists."""
    found = []
    for path in experts.lists:
        own = next(n for n in experts.entries[number] if n.startswith(f"{path}."))
        found.append(f"{path}.{own[len(path) + 1 :].partition('.')[0]}")
    return tuple(found)


def left_of(experts: Experts, kept: Kept) -> list[int]:
    """The experts that stay."""
    name, d = experts.places[-1]
    rows = kept[name][d] if name in kept else None
    return list(range(experts.count)) if rows is None else [int(i) for i in rows]


def swaps(every: Iterable[Experts], kept: Kept, seen: set[str]) -> Iterator[Swap]:
    """Each expert that stays and was not seen, with one that was."""
    for experts in every:
        left = left_of(experts, kept) if experts.lists else []
        visited = [i for i in left if any(name in seen for name in entries_of(experts, i))]
        for number in left:
            other = next(iter(visited), left[number == left[0]]) if len(left) > 1 else number
            if number not in visited and other != number:
                yield experts, number, other


def swapped(state: State, swap: Swap) -> State:
    """Values of a model in which a router's rows of two experts have changed places."""
    experts, one, two = swap
    made = dict(state)
    order = torch.arange(experts.count)
    order[[one, two]] = order[[two, one]]
    for name, d in experts.rows:
        tensor = made[name]
        values = tensor.made() if isinstance(tensor, Lazy) else tensor
        made[name] = values.index_select(d, order.to(values.device))
    return made
