"""Where a walk is: batches on their way, and what is noted of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from prunus.blocks.flow import Flow
from prunus.blocks.solving import Solving
from prunus.blocks.walk import Passage
from prunus.errors import InputError


@dataclass
class Stream:
    """Batches on their way: what each of them is to the block that is next.

    Attributes:
        name: of its files.
        batches: what the model is called with.
        passages: of the stacks that it has been through, and is in.
        flow: what the next block reads.
        pinned: an earlier flow that is kept, to begin from it again.
    """

    name: str
    batches: Sequence[Any]
    passages: list[Passage] = field(default_factory=list)
    flow: Flow = field(default_factory=lambda: Flow([]))
    pinned: Flow | None = None

    def move(self, flow: Flow) -> None:
        """Take what a block gave; what it read is let go."""
        if self.flow is not self.pinned:
            self.flow.drop()
        self.flow = flow

    def pin(self) -> None:
        """Keep the present flow, instead of the one that was kept before."""
        if self.pinned is not None and self.pinned is not self.flow:
            self.pinned.drop()
        self.pinned = self.flow

    def back(self) -> None:
        """Begin from the flow that was kept."""
        assert self.pinned is not None
        self.move(self.pinned)

    @property
    def passage(self) -> Passage:
        """Of the stack that it is in."""
        return self.passages[-1]


@dataclass
class Progress:
    """Where a walk is, in plain values.

    Attributes:
        stack, block: what is next.
        spent: the part of the weights that have been looked at.
        debt: what each block to come has to give beside its plan, for those that could not.
        planned: how much of each block is to go.
        errors, rates: of the blocks that are done.
        zeros, weights, stayed, gate: as :class:`Solving` has them.
        loss: of the dense model on the held-out data, and the last one.
        files: how many have been made.
        flows: the files of what each stream is, of every stack that it has been in.
    """

    stack: int = 0
    block: int = 0
    spent: float = 0.0
    debt: float = 0.0
    planned: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    zeros: dict[str, int] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    stayed: dict[str, str] = field(default_factory=dict)
    gate: float = 0.0
    loss: tuple[float, float] | None = None
    files: int = 0
    flows: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Progress:
        """What an earlier walk noted.

        Raises:
            InputError: if it is damaged.
        """
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
            found.loss = None if found.loss is None else (found.loss[0], found.loss[1])
        except (OSError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"'{path}' is damaged: {error}: remove its folder and begin anew"
            ) from error
        return found

    def take(self, solving: Solving) -> None:
        """Note what has been solved."""
        self.zeros, self.weights = solving.zeros, solving.weights
        self.stayed, self.gate = solving.stayed, solving.gate


def file_of(flow: Sequence[Tensor]) -> str:
    """The name of the file that holds a flow, for a later process."""
    assert isinstance(flow, Flow)
    return flow.seal()


def gap(dense: Sequence[Tensor], now: Sequence[Tensor]) -> float:
    """‖f(x) − g(x)‖² ÷ ‖f(x)‖² over all batches."""
    apart = whole = 0.0
    for a, b in zip(dense, now, strict=True):
        apart += float((a.double() - b.double()).square().sum())
        whole += float(a.double().square().sum())
    return apart / max(whole, 1e-300)


def alike(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The mean cosine between vectors of all batches.

    >>> import torch
    >>> round(alike([torch.ones(1, 2)], [torch.tensor([[1.0, 0.0]])]), 3)
    0.707
    """
    total, count = 0.0, 0
    for a, b in zip(one, other, strict=True):
        found = functional.cosine_similarity(a.double(), b.double(), dim=-1)
        total, count = total + float(found.sum()), count + found.numel()
    return total / max(1, count)
