"""The kinds of layers that the runtime ``sparse`` takes over, behind one set of functions each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import fx

from prunus.kernels.choosing import blocks_of
from prunus.runtimes import _sparse_choice as linear
from prunus.runtimes import _sparse_convs as convs
from prunus.runtimes import _sparse_recurrent as recurrent
from prunus.runtimes import _sparse_sites as linear_sites

Shape = tuple[int, ...]


class AnySite(Protocol):
    """A layer in a program."""

    @property
    def node(self) -> fx.Node:
        """The operator, whose first argument is the layer's input."""

    @property
    def sparsity(self) -> float:
        """Zeros ÷ weights."""


class AnyChoice(Protocol):
    """How a layer is computed for inputs of a size."""

    @property
    def ms(self) -> float:
        """That it takes."""

    @property
    def dense_ms(self) -> float:
        """That torch's dense operator takes."""

    @property
    def wins(self) -> bool:
        """Whether it is sparse."""


@dataclass(frozen=True)
class Kind:
    """One kind of layer.

    Attributes:
        name: in the artifact's table.
        find: the layers of a program that hold enough zeros.
        key: layers and input shapes with the same key are measured once.
        choose: the fastest way for an input shape; whether weights come from memory.
        put: takes a layer over, by its choices.
        read: choices from what ``dataclasses.asdict`` made of them.
        said: a layer and a choice, in words.
    """

    name: str
    find: Callable[[fx.GraphModule], Sequence[Any]]
    key: Callable[[Any, Shape], tuple[Any, ...]]
    choose: Callable[[Any, Shape, bool], Any]
    put: Callable[[fx.GraphModule, Any, Sequence[Any]], None]
    read: Callable[[Any], Sequence[Any]]
    said: tuple[Callable[[Any], str], Callable[[Any], str]]


def _tokens(shape: Shape) -> int:
    return math.prod(shape[:-1])


def _linear_key(site: linear_sites.Site, shape: Shape) -> tuple[Any, ...]:
    extra = site.activation, site.residual is None, blocks_of(site.weight)
    return (*site.weight.shape, round(site.sparsity, 2), *extra, _tokens(shape))


def _recurrent_key(site: recurrent.RecurrentSite, shape: Shape) -> tuple[Any, ...]:
    shapes = tuple(tuple(w.shape) for w in site.weights)
    return site.form, shapes, round(site.sparsity, 2), shape


CONVS = Kind(
    name="convolutions",
    find=convs.conv_sites,
    key=lambda site, shape: (site.node.name, shape),
    choose=lambda site, shape, large: convs.choose_convs(site, shape[0]),
    put=convs.put_convs,
    read=convs.conv_choices,
    said=(
        lambda site: f"{sum(s.kind == 'conv' for s in site.program.steps)} convolutions at once",
        lambda choice: f"batch {choice.batch}",
    ),
)
LINEAR = Kind(
    name="linear",
    find=linear_sites.sites,
    key=_linear_key,
    choose=lambda site, shape, large: linear.choose(
        site, _tokens(shape), cold=large and _tokens(shape) <= linear.FEW
    ),
    put=lambda module, site, choices: linear_sites.put(
        module, site, linear.kernels_of(site, choices)
    ),
    read=linear.from_json,
    said=(
        lambda site: "{}×{}".format(*site.weight.shape),
        lambda choice: f"{choice.tokens} tokens",
    ),
)
RECURRENT = Kind(
    name="recurrent",
    find=recurrent.recurrent_sites,
    key=_recurrent_key,
    choose=lambda site, shape, large: recurrent.choose_recurrent(site, shape, seconds=0.1),
    put=recurrent.put_recurrent,
    read=recurrent.recurrent_choices,
    said=(
        lambda site: f"{site.form} of {site.layers}×{site.weights[1].shape[1]}",
        lambda choice: f"batch {choice.batch}, {choice.steps} steps",
    ),
)
KINDS = (CONVS, LINEAR, RECURRENT)
"""Convolutions are put first: what depends on them may have to move behind them."""


def to_json(choices: Sequence[Any]) -> list[dict[str, Any]]:
    """As the artifact keeps them."""
    return [asdict(c) for c in choices]
