"""What goes out of a block as a whole, by the analysis of its indices."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.blocks.matrices import Matrix
from prunus.blocks.recipe import EXPERT, HEAD, NEURON
from prunus.blocks.walk import Call
from prunus.graph.analysis import Analysis, analyze
from prunus.graph.experts import find_experts
from prunus.graph.labels import Fixed
from prunus.graph.raw_weights import raw_weight
from prunus.graph.units import Coupled, coupled_units
from prunus.types import Kept


@dataclass(frozen=True)
class Kind:
    """Units of a block that are alike.

    Attributes:
        part: ``neuron``, ``head`` or ``expert``.
        units: how many there are.
        members: dimensions that lose indices with a unit: the tensor's name within the block, the
            dimension, and the unit of each index (−1: of none).
        router: of experts, the weight that chooses them.
        added: of experts, what is added to what they are chosen by.
        least: how many stay.
    """

    part: str
    units: int
    members: tuple[tuple[str, int, Tensor], ...]
    router: str = ""
    added: tuple[str, ...] = ()
    least: int = 1

    def columns(self, matrix: Matrix, own: Mapping[str, Tensor]) -> Tensor | None:
        """The unit of each input of a matrix that reads these units; ``None``: it reads none."""
        for name, dim, unit_of in self.members if self.part != EXPERT else ():
            if name == matrix.name:
                along, across = _indices(matrix, own[name], dim)
                if len(across.unique()) == 1 and (len(along) == 1 or len(along.unique()) > 1):
                    return unit_of[along]
        return None


def _indices(matrix: Matrix, whole: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The index along a dimension of a parameter, of each input of a matrix and of each output."""
    size, step = whole.shape[dim], whole.stride(dim)
    places = (torch.arange(n) * s + matrix.offset for n, s in zip(matrix.shape, matrix.stride,
                                                                  strict=True))  # fmt: skip
    outputs, inputs = (place.div(step, rounding_mode="floor") % size for place in places)
    return inputs, outputs


def kinds_of(
    block: nn.Module,
    x: Tensor,
    call: Call,
    matrices: Collection[Matrix],
    spared: Collection[str] = (),
) -> list[Kind]:
    """The neurons, heads and experts that can go; what a block reads and gives stays as wide.

    A neuron is one input of each matrix that reads it. With grouped queries, a head is a key–value
    head with its queries.

    Args:
        block: with its weights.
        x: what it reads.
        call: its other arguments.
        matrices: those that multiply something in it.
        spared: parameters that stay whole, by their names within the block.

    Raises:
        InputError: if the block cannot be traced.
    """
    analysis = analyze(block, named_arguments(block, x, call))
    own = dict(block.named_parameters())
    found = []
    for units in coupled_units(analysis, list(own)):
        stays = any(name in spared or (name, d) in analysis.spared for name, d in units.places)
        if len(units) < 2 or units.hidden or stays:
            continue
        kind = Kind(HEAD if units.head else NEURON, len(units), _members(analysis, units))
        read = [c for m in matrices if (c := kind.columns(m, own)) is not None]
        single = all(int(torch.bincount(c[c >= 0]).max()) == 1 for c in read)
        if read and (units.head or single):
            found.append(kind)
    return [*found, *_experts(block, analysis, spared)]


def _experts(block: nn.Module, analysis: Analysis, spared: Collection[str]) -> Iterable[Kind]:
    layers = [raw_weight(name, name.rpartition(".")[0], p, block, {})
              for name, p in block.named_parameters() if p.dim() == 3]  # fmt: skip
    for one in find_experts(analysis, layers):
        if not any(name in spared for name, _ in one.places):
            unit_of = torch.arange(one.count) % one.units
            members = tuple((name, d, unit_of) for name, d in one.places)
            yield Kind(EXPERT, one.units, members, one.router, one.added, one.least)


def _members(analysis: Analysis, units: Coupled) -> tuple[tuple[str, int, Tensor], ...]:
    number = np.full(len(analysis.solved.reason), -1, dtype=np.int64)
    number[units.classes] = np.arange(len(units))
    members = []
    for name, d in units.places:
        dim = analysis.tensors[name].dims[d]
        assert not isinstance(dim, Fixed)
        members.append((name, d, torch.from_numpy(number[analysis.solved.of(dim)])))
    return tuple(members)


def named_arguments(block: nn.Module, x: Tensor, call: Call) -> dict[str, Any]:
    """A call as arguments by keyword, as an analysis takes them."""
    takes = inspect.signature(block.forward)
    given = takes.bind(x, *call[0], **call[1]).arguments
    loose = next((n for n, p in takes.parameters.items() if p.kind is p.VAR_KEYWORD), None)
    return {**{n: v for n, v in given.items() if n != loose}, **given.get(loose or "", {})}


Gone = Sequence[tuple[Kind, Tensor]]
"""Kinds, and of each the numbers of the units that go."""


def kept_of(gone: Gone) -> Kept:
    """The indices that stay, by tensor and dimension.

    >>> kind = Kind("neuron", 2, (("weight", 0, torch.tensor([0, 0, 1])),))
    >>> kept_of([(kind, torch.tensor([0]))])
    {'weight': (tensor([2]),)}
    """
    stay: dict[str, dict[int, Tensor]] = {}
    for name, dim, stays in _stays(gone):
        before = stay.setdefault(name, {}).get(dim)
        stay[name][dim] = stays if before is None else stays & before
    return {
        name: tuple(torch.nonzero(dims[d])[:, 0] if d in dims else None
                    for d in range(max(dims) + 1))
        for name, dims in stay.items()
    }  # fmt: skip


def masks_of(gone: Gone, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks of parameters, by name within the block, broadcastable; of experts there are none.

    An expert whose weights are zero would still be chosen.
    """
    masks: dict[str, Tensor] = {}
    for name, dim, stays in _stays([one for one in gone if one[0].part != EXPERT]):
        if name in own:
            shape = [1] * own[name].dim()
            shape[dim] = len(stays)
            mask = stays.view(shape)
            masks[name] = mask & masks[name] if name in masks else mask
    return masks


def _stays(gone: Gone) -> Iterable[tuple[str, int, Tensor]]:
    for kind, units in gone:
        for name, dim, unit_of in kind.members:
            yield name, dim, ~torch.isin(unit_of, units)


@dataclass(frozen=True)
class Cut:
    """What goes of a block, as masks and as indices.

    Attributes:
        masks: of parameters, by name within the block.
        kept: the indices that stay of its tensors.
        gone: the units.
    """

    masks: Mapping[str, Tensor]
    kept: Kept
    gone: Gone


def cut_of(gone: Gone, own: Mapping[str, Tensor]) -> Cut:
    """The cut of a block with these parameters."""
    return Cut(masks_of(gone, own), kept_of(gone), gone)


def taken(tensor: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """A tensor without the indices that go; dimensions that are not named stay whole."""
    for dim, index in enumerate(indices):
        if index is not None:
            tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor
