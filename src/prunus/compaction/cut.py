"""Which indices of every tensor go: from masks to classes to kept indices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunus.graph.analysis import Analysis
from prunus.graph.labels import Dim, Fixed, Value
from prunus.types import Masks

Kept = dict[str, tuple[Tensor | None, ...]]
"""By tensor name and dimension: the indices that stay, ascending; ``None``: all of them."""


@dataclass(frozen=True)
class IndexCut:
    """Classes of labels that are removed.

    Attributes:
        analysis: of the model.
        removed: bool, ``[classes]``.
    """

    analysis: Analysis
    removed: NDArray[np.bool_]

    def stays(self, dim: Dim) -> NDArray[np.bool_] | None:
        """Which indices of a dimension stay; ``None``: all."""
        if isinstance(dim, Fixed):
            return None
        stays = ~self.removed[self.analysis.solved.of(dim)]
        return None if stays.all() else stays

    def changes(self, value: Value | None) -> bool:
        """Whether a tensor becomes smaller."""
        return value is not None and any(self.stays(d) is not None for d in value.dims)

    def shape(self, value: Value) -> tuple[int, ...]:
        """Its new sizes."""
        return tuple(
            size if (stays := self.stays(dim)) is None else int(stays.sum())
            for dim, size in zip(value.dims, value.shape, strict=True)
        )

    def kept(self) -> Kept:
        """Kept indices of every parameter and buffer that becomes smaller."""
        kept: Kept = {}
        for name, value in self.analysis.tensors.items():
            if self.changes(value):
                kept[name] = tuple(self.indices(d) for d in value.dims)
        return kept

    def indices(self, dim: Dim) -> Tensor | None:
        """The indices of a dimension that stay; ``None``: all."""
        stays = self.stays(dim)
        return None if stays is None else torch.from_numpy(np.flatnonzero(stays))

    def value(self, node: Any) -> Value:
        """The labels of a node that is a tensor."""
        known = self.analysis.known[node]
        assert isinstance(known, Value), node
        return known

    def size(self, dim: Dim, size: int) -> int:
        """How many of a dimension's indices stay."""
        stays = self.stays(dim)
        return size if stays is None else int(stays.sum())

    def units(self) -> int:
        """Classes removed."""
        return int(self.removed.sum())


def take(tensor: Tensor, kept: tuple[Tensor | None, ...]) -> Tensor:
    """A tensor without the removed indices, in the same memory format.

    >>> take(torch.arange(6).reshape(2, 3), (None, torch.tensor([0, 2])))
    tensor([[0, 2],
            [3, 5]])
    """
    channels_last = (
        tensor.dim() == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    for dim, indices in enumerate(kept):
        if indices is not None:
            tensor = tensor.index_select(dim, indices.to(tensor.device))
    return tensor.contiguous(memory_format=torch.channels_last) if channels_last else tensor


def cut_of(analysis: Analysis, masks: Masks) -> IndexCut:
    """The classes whose every parameter slice is masked; of each dimension one index stays.

    Args:
        analysis: of the model.
        masks: by parameter name, True = kept.
    """
    solved = analysis.solved
    removed = solved.reason < 0
    touched = np.zeros(len(removed), dtype=bool)
    known = {analysis.names.get(n, n): m for n, m in masks.items()}
    for name, value in analysis.tensors.items():
        mask = known.get(name)
        if mask is None and not _is_parameter(value):
            continue
        for d, dim in enumerate(value.dims):
            if isinstance(dim, Fixed) or (name, d) in analysis.spared:
                continue
            classes = solved.of(dim)
            touched[classes] = True
            removed[classes[_alive(mask, value.shape, d)]] = False
    cut = IndexCut(analysis, removed & touched)
    return _never_empty(cut)


def cut_units(analysis: Analysis, classes: NDArray[np.int64]) -> IndexCut:
    """A cut of these classes."""
    removed = np.zeros(len(analysis.solved.reason), dtype=bool)
    removed[classes] = True
    return IndexCut(analysis, removed & (analysis.solved.reason < 0))


def masks_of(cut: IndexCut, parameters: Mapping[str, Tensor]) -> Masks:
    """The masks of a cut: every slice of every parameter that it removes, broadcastable."""
    masks: Masks = {}
    for name, parameter in parameters.items():
        first = cut.analysis.names.get(name, name)
        value = cut.analysis.tensors.get(first)
        if value is None or not cut.changes(value):
            continue
        mask = torch.ones((1,) * parameter.dim(), dtype=torch.bool)
        for d, dim in enumerate(value.dims):
            stays = cut.stays(dim)
            if stays is not None and (first, d) not in cut.analysis.spared:
                shape = [1] * parameter.dim()
                shape[d] = len(stays)
                mask = mask & torch.from_numpy(stays).view(shape)
        masks[name] = mask
    return masks


def _is_parameter(value: Value) -> bool:
    return all(value.zero) and bool(value.zero)


def _alive(mask: Tensor | None, shape: tuple[int, ...], d: int) -> NDArray[np.bool_]:
    """Indices of a dimension at which anything is kept."""
    if mask is None:
        return np.ones(shape[d], dtype=bool)
    others = [i for i in range(len(shape)) if i != d]
    alive = mask.any(dim=others) if others else mask
    return alive.expand(shape[d]).cpu().numpy()


def _never_empty(cut: IndexCut) -> IndexCut:
    removed = cut.removed.copy()
    again = True
    while again:
        again = False
        for value in cut.analysis.tensors.values():
            for dim in value.dims:
                if isinstance(dim, Fixed):
                    continue
                classes = cut.analysis.solved.of(dim)
                if removed[classes].all():
                    removed[classes[0]] = False
                    again = True
    return IndexCut(cut.analysis, removed)
