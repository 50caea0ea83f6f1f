"""What the zoo knows about a model: how to build it, and what the analysis must find in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """One model, with the answer derived by hand from its configuration.

    Attributes:
        name: unique in the zoo.
        build: the model, in eval mode; the same weights at every call.
        example: a tensor, a tuple of tensors, or keyword tensors.
        units: a readable label -> how many units of that kind can go.
        pinned: a pattern (fnmatch) of ``parameter:dimension`` -> why an index of it must stay.
            Together the patterns match every dimension of more than one index in which some
            index stays, and no dimension in which all can go. A tied parameter has the first
            of its names. ``None``: not listed.
        core: one of those that span the rule families.
        export: whether ``torch.export.export(strict=False)`` accepts it.
        needs: the optional package without which it cannot be built.
        note: what is peculiar about it.
        calls: further calls as users make them, by name: optional arguments, masks, other sizes.
        faults: uses (``uses.py``) that go wrong today -> how.
        unruled: operators without a rule.
        refused: part of the message by which the model is refused as a whole today.
    """

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    units: Callable[[], dict[str, int]]
    pinned: dict[str, str] | None = field(default_factory=dict)
    core: bool = False
    export: bool = True
    needs: str = ""
    note: str = ""
    calls: Callable[[], dict[str, Any]] = dict
    faults: dict[str, str] = field(default_factory=dict)
    unruled: tuple[str, ...] = ()
    refused: str = ""


STREAM = "the stream: a norm runs over it"
OUTPUT = "is the model's output"
KERNEL = {"*:[2-4]": "a position in a kernel"}


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A builder that gives the same weights each time and leaves the global generator alone."""

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make().eval()

    return build


def normal(*shape: int) -> Callable[[], Tensor]:
    """Standard normal numbers, the same at every call."""
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(1))


def tokens(vocabulary: int, *shape: int) -> Tensor:
    """Token numbers from 3 on (the first ones often mean padding, begin and end)."""
    return torch.randint(3, vocabulary, shape, generator=torch.Generator().manual_seed(1))


def reads(*names: str) -> dict[str, str]:
    """These layers read the model's input."""
    return {f"{name}.weight:1": "reads the model's input" for name in names}


def writes(*names: str) -> dict[str, str]:
    """These layers, weight and bias, write the model's output."""
    return {f"{name}.{part}:0": OUTPUT for name in names for part in ("weight", "bias")}
