"""Which indices of every tensor go: from masks to classes to kept indices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from prunus._common.gathering import along
from prunus.graph.analysis import Analysis
from prunus.graph.labels import Dim, Fixed, Value
from prunus.graph.reading import values_of
from prunus.types import Indices, Kept, Masks


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
        tensors = self.analysis.tensors.items()
        return {n: self.left(v) for n, v in tensors if self.changes(v)}

    def left(self, value: Value) -> Indices:
        """The indices that stay of a tensor."""
        return tuple(map(self.indices, value.dims))

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


def way_out(cut: IndexCut, node: fx.Node | None) -> str:
    """What to do where an operator cannot be smaller: the parameters that would keep it whole.

    Args:
        cut: what goes.
        node: the operator; ``None`` if it is not known.
    """
    analysis = cut.analysis
    wanted = np.zeros(len(cut.removed), dtype=bool)
    for one in () if node is None else (node, *node.all_input_nodes):
        for value in values_of(analysis.known.get(one)):
            for dim in value.dims:
                if not isinstance(dim, Fixed):
                    wanted[analysis.solved.of(dim)] = True
    wanted &= cut.removed
    names = []
    for name, value in analysis.tensors.items():
        dims = [d for d in value.dims if not isinstance(d, Fixed)] if _is_parameter(value) else []
        classes = np.concatenate([analysis.solved.of(d) for d in dims] or [np.arange(0)])
        if len(dims) == len(value.dims) > 1 and wanted[classes].any():
            names.append(name)
            wanted[classes] = False
    whole = "leave layers out by name (scope.exclude) to find the one that it hangs on"
    if names:
        these = ", ".join(names[:4])
        whole = f"keep what meets there whole: scope.exclude: [{these}], or all True in your masks"
    return f"Use the masked model without compact, or {whole}"


def take(tensor: Tensor, indices: Indices) -> Tensor:
    """A tensor without the removed indices, its dimensions in memory in the same order.

    >>> take(torch.arange(6).reshape(2, 3), (None, torch.tensor([0, 2])))
    tensor([[0, 2],
            [3, 5]])
    """
    strides = tensor.stride()
    order = list(range(tensor.dim()))
    if 0 not in strides:  # what is broadcast lies in no order
        order.sort(key=strides.__getitem__, reverse=True)
    for dim, index in enumerate(indices):
        if index is not None:
            tensor = along(tensor, dim, index)
    part = tensor.permute(order).contiguous()
    return part.permute([order.index(d) for d in range(tensor.dim())])


def put(whole: Tensor, indices: Indices, part: Tensor) -> None:
    """Write what :func:`take` gave to where it was, in place.

    >>> whole = torch.zeros(2, 3)
    >>> put(whole, (None, torch.tensor([0, 2])), torch.ones(2, 2))
    >>> whole
    tensor([[1., 0., 1.],
            [1., 0., 1.]])
    """
    places = [
        torch.arange(n) if i is None else i for n, i in zip(whole.shape, indices, strict=True)
    ]
    shaped = [
        p.to(whole.device).view(-1, *[1] * (whole.dim() - 1 - d)) for d, p in enumerate(places)
    ]
    whole[tuple(shaped)] = part


def left_of_mask(mask: Tensor, indices: Indices) -> Tensor:
    """What is left of a mask, as broadcastable as it was.

    >>> left_of_mask(torch.tensor([[True], [False]]), (torch.tensor([1]), torch.tensor([0, 2])))
    tensor([[False]])
    """
    whole = mask.view(*[1] * (len(indices) - mask.dim()), *mask.shape)
    pairs = zip(whole.shape, indices, strict=True)
    return take(whole, tuple(None if size == 1 else index for size, index in pairs))


def nothing_left(indices: Indices) -> bool:
    """Whether a tensor goes as a whole.

    >>> nothing_left((torch.arange(0), None)), nothing_left((torch.arange(1),))
    (True, False)
    """
    return any(index is not None and not len(index) for index in indices)


def same_indices(one: Indices, other: Indices) -> bool:
    """Whether the same indices stay in every dimension."""
    plain = [[None if i is None else i.tolist() for i in indices] for indices in (one, other)]
    return plain[0] == plain[1]


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


def leaves_zeros(analysis: Analysis, masks: Masks) -> bool:
    """Whether masks remove all of an index that stays in this analysis."""
    for name, mask in masks.items():
        value = analysis.tensors.get(analysis.names.get(name, name))
        for d, dim in enumerate(value.dims if value is not None else ()):
            assert value is not None
            if not isinstance(dim, Fixed) and value.shape[d] > 1:
                pinned = analysis.solved.reason[analysis.solved.of(dim)] >= 0
                if (pinned & ~_alive(mask, value.shape, d)).any():
                    return True
    return False


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
        for name, value in cut.analysis.tensors.items():
            for dim in () if name in cut.analysis.whole else value.dims:
                if isinstance(dim, Fixed):
                    continue
                classes = cut.analysis.solved.of(dim)
                if len(classes) and removed[classes].all():
                    removed[classes[0]] = False
                    again = True
    return IndexCut(cut.analysis, removed)
