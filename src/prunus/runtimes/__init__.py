"""Ways to run a pruned model: one file each, imported only when it is used.

A runtime is a file of this folder with the attributes of :class:`Runtime`. It writes an artifact
and opens it again; what is timed and compared is always the opened artifact.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from prunus._common import packages
from prunus._common.inputs import Inputs, arguments
from prunus._common.nested import own_containers, tensors_of
from prunus._common.packages import pip_line
from prunus.errors import InputError, did_you_mean
from prunus.methods import catalog
from prunus.runtimes._sizes import Sizes

Answers = list[Tensor]
T = TypeVar("T")
Compute = Callable[[Sequence[Tensor]], Answers]
"""Input tensors, in the order of the flattened example, to output tensors, flattened as well."""


@dataclass(frozen=True)
class BuildRequest:
    """What is to be built.

    Attributes:
        model: in eval mode.
        example: an input, a tuple of inputs, or a mapping of keyword arguments.
        folder: exists; the artifact goes into it.
        threads: of the processor that it may use.
        calibration: inputs like the example, for runtimes that quantize.
        batch: the batch sizes that it should answer well; the largest is what runtimes with
            fixed shapes are built for.
        others: more inputs like the example; sizes in which they differ should stay open.
        made: what runtimes made of this model, for others that need the same.
    """

    model: nn.Module
    example: Any
    folder: Path
    threads: int = 1
    calibration: Sequence[Any] = ()
    batch: tuple[int, ...] = (1,)
    others: Sequence[Any] = ()
    made: dict[tuple[str, int], Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example as positional and keyword arguments, in containers of their own."""
        call: Inputs = own_containers(arguments(self.example))
        return call

    @property
    def tensors(self) -> list[Tensor]:
        """The example's tensors, flattened."""
        return tensors_of(self.call)

    def once(self, what: str, make: Callable[[], T]) -> T:
        """What is made of this model at the first call, and found again by orders that share
        ``made``: an export takes seconds, and six runtimes begin with one.

        Raises:
            InputError: what ``make`` raised, at every call.
        """
        key = (what, id(self.model))
        if key not in self.made:
            try:
                found: Any = make()
            except InputError as problem:
                found = problem
            self.made[key] = (self.model, found)  # the model too, so that no other gets its id
        found = self.made[key][1]
        if isinstance(found, InputError):
            raise InputError(str(found)) from found
        return found  # type: ignore[no-any-return]


class Made(Protocol):
    """What a runtime builds from: a program, or a file of one."""

    @property
    def dynamic(self) -> bool:
        """Whether it takes any batch size."""

    @property
    def sizes(self) -> Sizes:
        """Which other sizes it takes."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know beside."""


@dataclass(frozen=True)
class Session:
    """An opened artifact.

    Attributes:
        compute: flattened input tensors to flattened output tensors.
        path: of the artifact, a file or a folder; ``None`` where there is none to keep.
        dynamic: whether it takes any batch size.
        notes: what to know beside.
        any_shape: whether its inputs' other sizes, of images or texts, may all change as well.
        sizes: which of them may, where not all.
    """

    compute: Compute
    path: Path | None
    dynamic: bool = True
    notes: tuple[str, ...] = field(default=())
    any_shape: bool = False
    sizes: Sizes = field(default_factory=Sizes)

    def as_made(self, made: Made, *notes: str) -> Session:
        """As open as the program that it was built from, with its notes and more."""
        said = (*made.notes, *notes)
        return replace(self, dynamic=made.dynamic, sizes=made.sizes, notes=said)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a runtime without running it.

    Attributes:
        needs: distributions that must be installed, as pip names them.
        devices: kinds of device that it runs on.
        exact: whether it computes in the model's own precision; otherwise it quantizes.
        tolerance: the largest error that is accepted, relative to eager's answers: of exact
            runtimes max |a − b| ÷ max |b|, of others ‖a − b‖ ÷ ‖b‖ on the calibration inputs.
        skips_zeros: whether single zeros make it faster.
        slow: whether building takes so long that a run leaves it to its end.
        safe: whether a file of anyone's may be opened; otherwise opening it can run code in it.
        multiple_of: widths that it computes well are multiples of this; what lies between costs
            as much as the next one, or more.
    """

    needs: tuple[str, ...]
    devices: tuple[str, ...]
    exact: bool = True
    tolerance: float = 1e-4
    skips_zeros: bool = False
    slow: bool = False
    safe: bool = False
    multiple_of: int = 8


class Runtime(Protocol):
    """What a file of this folder provides; ``FACTS`` in literals, as they are read unimported."""

    FACTS: Facts

    def refuses(self, order: BuildRequest) -> str | None:
        """Why it cannot run this, in words for a user; ``None`` if it may."""

    def build(self, order: BuildRequest) -> Session:
        """Write the artifact and open it."""

    def open_(self, path: Path, *, threads: int) -> Session:
        """Open an artifact that :meth:`build` wrote."""


def find(name: str) -> Any:
    """A runtime by name.

    Raises:
        InputError: if there is none of this name, or what it needs is not installed.

    >>> find("eager").FACTS.exact
    True
    """
    known = catalog.names("runtimes")
    if name not in known:
        raise InputError(f"there is no runtime '{name}'; {did_you_mean(name, known)}")
    lacking = missing(name)
    if lacking:
        raise InputError(f"runtime {name} is not installed: {pip_line(lacking)}")
    return importlib.import_module(f"prunus.runtimes.{catalog.function_of(name)}")


def missing(name: str) -> list[str]:
    """Distributions that a runtime needs and that are not installed; nothing is imported."""
    return packages.missing(catalog.constant("runtimes", name, "FACTS")["needs"])


def error(
    found: Sequence[Tensor], right: Sequence[Tensor], *, how: Literal["max", "norm"]
) -> float:
    """How far answers are from eager's: the largest of the outputs.

    ``max``: max |a − b| ÷ max |b|; ``norm``: ‖a − b‖ ÷ ‖b‖. Infinite where shapes differ, a
    value is not finite that should be, or there is nothing to compare.

    >>> round(error([torch.tensor([1.0, 2.2])], [torch.tensor([1.0, 2.0])], how="max"), 6)
    0.1
    """
    if not right or len(found) != len(right):
        return float("inf")
    worst = 0.0
    for a, b in zip(found, right, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if not b.numel():
            continue
        a64, b64 = a.detach().cpu().double(), b.detach().cpu().double()
        far = a64 - b64
        far[a64 == b64] = 0  # equal infinities
        off, size = (
            (far.norm(), b64.norm()) if how == "norm" else (far.abs().max(), b64.abs().max())
        )
        value = float(off / size.clamp_min(torch.finfo(torch.float32).tiny))
        worst = max(worst, float("inf") if value != value else value)
    return worst
