"""What a choice of coupled units costs, exactly: sparsity, parameters, bytes, computation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from prunus.graph.analysis import Analysis
from prunus.graph.counting import macs_terms
from prunus.graph.labels import Array, Dim, Fixed
from prunus.graph.routed import with_rows
from prunus.types import Counts, Group

Linear = tuple[int, tuple[tuple[int, float], ...]]
"""A dimension's size, and (number of a group, indices that each of its units takes from it).

Of tensors that go one with each unit, as those of experts in a list, each counts its part."""


@dataclass(frozen=True)
class CostModel:
    """A cost that is a sum of products of dimensions, as a function of units kept.

    Halving every layer's channels leaves a quarter of the computation: costs of single units do
    not add up, so the whole is computed from the counts.

    Attributes:
        name: sparsity, params, bytes or macs.
        groups: coupled units.
        terms: factors and dimensions.
        baseline: the dense model's value.
    """

    name: str
    groups: tuple[Group, ...]
    terms: tuple[tuple[float, tuple[Linear, ...]], ...]
    baseline: float

    def value(self, counts: Mapping[Group, int | Tensor]) -> float:
        """The cost when each group keeps so many units."""
        gone = [g.units - int(counts[g]) if g in counts else 0 for g in self.groups]
        total = 0.0
        for factor, dims in self.terms:
            product = factor
            for size, parts in dims:
                product *= size - sum(gone[g] * each for g, each in parts)
            total += product
        return total

    def __call__(self, counts: Counts) -> float:
        """The part of the dense model's cost that is gone."""
        return 1.0 - self.value(counts) / self.baseline

    @property
    def whole(self) -> float:
        """The cost with every unit kept."""
        return self.value({g: g.units for g in self.groups})


def cost_model(
    name: str,
    groups: Sequence[Group],
    analysis: Analysis,
    model: nn.Module,
    *,
    baseline: float | None = None,
    scored: Collection[str] | None = None,
) -> CostModel:
    """The cost model of that name.

    Args:
        name: ``sparsity`` (weights in scope), ``params``, ``bytes`` or ``macs``.
        groups: coupled units.
        analysis: that they come from.
        model: for the sizes and types of its tensors.
        baseline: the dense model's value, if this model is smaller already.
        scored: for ``sparsity``, the weights in scope; by default those that the groups score, so
            that a layer of which no unit can go counts on neither side.
    """
    known = np.full(len(analysis.solved.reason), -1, dtype=np.int64)
    for i, group in enumerate(groups):
        known[list(group.classes or ())] = i
    raw: list[tuple[float, list[tuple[Dim, int]]]] = []
    if name == "macs":
        known = with_rows(analysis, known)
        raw = [(t.factor, list(t.dims)) for t in macs_terms(analysis)]
    else:
        raw = _tensor_terms(name, groups, analysis, model, scored)
    terms = tuple(
        (factor, tuple(_linear(dim, size, analysis, known, groups) for dim, size in dims))
        for factor, dims in raw
    )
    made = CostModel(name, tuple(groups), terms, 1.0)
    return CostModel(name, tuple(groups), terms, made.whole if baseline is None else baseline)


def _tensor_terms(
    name: str,
    groups: Sequence[Group],
    analysis: Analysis,
    model: nn.Module,
    given: Collection[str] | None,
) -> list[tuple[float, list[tuple[Dim, int]]]]:
    scored = given if given is not None else {m.name for g in groups for m in g.members if m.scored}
    terms = []
    every: dict[str, Tensor] = dict(model.named_parameters())
    if name == "bytes":
        every |= dict(model.named_buffers())
    for key, tensor in every.items():
        value = analysis.tensors.get(analysis.names.get(key, key))
        if name == "sparsity" and key not in scored:
            continue
        factor = float(tensor.element_size()) if name == "bytes" else 1.0
        dims: list[tuple[Dim, int]] = [(Fixed("not read"), int(n)) for n in tensor.shape]
        if value is not None:
            dims = list(zip(value.dims, value.shape, strict=True))
        terms.append((factor, dims))
    return terms


def _linear(
    dim: Dim, size: int, analysis: Analysis, known: Array, groups: Sequence[Group]
) -> Linear:
    if isinstance(dim, Fixed):
        return size, ()
    owners = known[analysis.solved.of(dim)]
    found = zip(*np.unique(owners[owners >= 0], return_counts=True), strict=True)
    return size, tuple((int(g), _each(int(n), groups[int(g)].units)) for g, n in found)


def _each(indices: int, units: int) -> float:
    return indices / units if indices % units else indices // units
