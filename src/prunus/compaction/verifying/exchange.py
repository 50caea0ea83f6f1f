"""Entries that no example visits, tried in the places of those that examples do visit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prunus.compaction.verifying.values import State

Exchange = Mapping[str, str]
"""Entries that are visited, and those whose values they get."""


def exchanges(like: Mapping[str, Sequence[str]]) -> Iterator[Exchange]:
    """So that each entry is visited once, in as few passes as that takes.

    Args:
        like: entries that no pass visits, and those that stand for them.

    >>> list(exchanges({"e.2": ("e.0", "e.1"), "e.3": ("e.0", "e.1"), "e.4": ("e.0", "e.1")}))
    [{'e.0': 'e.2', 'e.1': 'e.3'}, {'e.0': 'e.4'}]
    """
    waiting = dict(like)
    while waiting:
        now: dict[str, str] = {}
        for entry, visited in waiting.items():
            free = next((v for v in visited if v not in now), None)
            if free is not None:
                now[free] = entry
        waiting = {e: v for e, v in waiting.items() if e not in now.values()}
        yield now


def exchanged(state: State, exchange: Exchange) -> State:
    """Values with which visited entries compute what others would.

    >>> import torch
    >>> state = {"e.0.w": torch.ones(1), "e.1.w": torch.zeros(1)}
    >>> exchanged(state, {"e.0": "e.1"})["e.0.w"]
    tensor([0.])
    """
    made = dict(state)
    for visited, other in exchange.items():
        for name in state:
            if name == visited or name.startswith(f"{visited}."):
                made[name] = state.get(other + name[len(visited) :], state[name])
    return made
