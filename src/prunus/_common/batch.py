"""Items of a pass: along which dimension of its inputs a model treats each by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.entries import Place, apart, argument, changed, grows, lists_in, uneven
from prunus._common.inputs import Inputs, called
from prunus._common.modules import evaluation_copy
from prunus._common.nested import map_tensors, tensors_of, with_tensors
from prunus._common.put_back import PutBack
from prunus._common.random_inputs import is_mask
from prunus._common.rng import preserve_rng, seed
from prunus._common.traces import trainable_again
from prunus.errors import first_line


@dataclass(frozen=True)
class Batch:
    """How many items the inputs of a pass hold.

    Attributes:
        size: items; 1 where none were found: the pass is the item.
        dims: of each tensor among the inputs, the dimension that counts items.
        why: why none were found; empty where they were.
        entries: the argument that is a list of the items, where one is.
    """

    size: int
    dims: tuple[int | None, ...]
    why: str = ""
    entries: Place | None = None


MIXED = "what it answers at each index depends on the others, in every dimension that was tried"


def find_batch(model: nn.Module, inputs: Inputs) -> Batch:
    """The dimension along which a model treats each index by itself, found by trying.

    Every other index is given other values: along a batch, the answers for the rest stay as they
    were. The first dimension is tried, then the second one (recurrent networks and transformers
    that take time first), and tensors of the same size change together. Where an argument is a list
    of pictures or sequences, its entries are tried. A leading size of 1, or inputs on the meta
    device, say nothing: there the first dimension is taken for the batch.

    Args:
        model: any; it runs in eval mode, as a copy that shares its parameters.
        inputs: positional and keyword arguments.

    >>> x = torch.randn(5, 2, 3)
    >>> find_batch(nn.Linear(3, 4), ((x,), {})).size, find_batch(nn.LSTM(3, 4), ((x,), {})).size
    (5, 2)
    >>> find_batch(nn.Conv1d(5, 4, 2), ((x[:, :, 0],), {})).size  # channels and length: one item
    1
    """
    tensors = tensors_of(inputs)
    first = next((t for t in tensors if t.dim()), None)
    nothing: tuple[int | None, ...] = (None,) * len(tensors)
    if first is None:
        return Batch(1, nothing, "no tensor among its inputs has a dimension")
    lists = list(lists_in(inputs))
    if (len(first) < 2 and not lists) or any(t.is_meta for t in (*tensors, *model.parameters())):
        return Batch(max(1, len(first)), next(_places(tensors, first)))
    try:
        twin = evaluation_copy(model)
        with PutBack(twin.parameters()), trainable_again(twin):
            return _tried(twin, inputs, lists, first)
    except Exception as error:  # of the model's code, which may not take these inputs
        return Batch(1, nothing, first_line(error))


def _tried(twin: nn.Module, inputs: Inputs, lists: Sequence[Place], first: Tensor) -> Batch:
    tensors = tensors_of(inputs)
    found = _entries(twin, inputs, [place for place in lists if uneven(inputs, place)])
    if found is None and len(first) < 2:
        found = _entries(twin, inputs, lists) or Batch(1, next(_places(tensors, first)))
    if found is not None:
        return found
    before = _answers(twin, inputs)
    for dims in _places(tensors, first):
        d = dims[next(i for i, t in enumerate(tensors) if t is first)]
        size = first.shape[d or 0]
        if size < 2:
            if _grows(twin, inputs, dims, before):
                return Batch(1, dims)
            continue
        if all(_apart(twin, inputs, dims, size, before, odd) for odd in (0, 1)):
            return Batch(size, dims)
    found = _entries(twin, inputs, lists)
    return found or Batch(1, (None,) * len(tensors), MIXED)


def _entries(model: nn.Module, inputs: Inputs, lists: Sequence[Place]) -> Batch | None:
    """The entries of the first list that a model treats each by itself."""
    none: tuple[int | None, ...] = (None,) * len(tensors_of(inputs))

    def run(given: Inputs) -> Any:
        return _answer(model, given)

    for place in lists:
        size = len(argument(inputs, place))
        if size < 2:
            if grows(run, inputs, place):
                return Batch(1, none, entries=place)
        elif all(apart(run, inputs, place, odd) for odd in (0, 1)):
            return Batch(size, none, entries=place)
    return None


def _places(tensors: Sequence[Tensor], first: Tensor) -> Iterator[tuple[int | None, ...]]:
    """The dimensions that may count items: of the first tensor, and of those as long there."""
    tried = set()
    for d in range(min(2, first.dim())):
        for order in ((0, 1), (1, 0)):
            dims = tuple(
                d
                if t is first
                else next((o for o in order if t.dim() > o and t.shape[o] == first.shape[d]), None)
                for t in tensors
            )
            if dims not in tried:
                tried.add(dims)
                yield dims


def _answers(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    return tensors_of(_answer(model, inputs))


def _answer(model: nn.Module, inputs: Inputs) -> Any:
    with preserve_rng(), torch.no_grad():
        seed(0)
        answers = called(model, map_tensors(Tensor.clone, inputs))
        return map_tensors(lambda t: t.detach().clone(), answers)


def _apart(
    model: nn.Module,
    inputs: Inputs,
    dims: Sequence[int | None],
    size: int,
    before: Sequence[Tensor],
    odd: int,
) -> bool:
    """Whether other values at every other index leave the answers for the rest as they were."""
    moved = torch.arange(size) % 2 == odd
    tensors = tensors_of(inputs)
    after = _answers(model, with_tensors(inputs, map(_others, tensors, dims, [moved] * len(dims))))
    square = any(list(t.shape).count(size) > 1 for t in tensors)
    if len(before) != len(after):
        return False
    pairs = list(zip(before, after, strict=True))
    pairs = [(a, b) for a, b in pairs if a.dim()] or pairs  # a loss beside answers says nothing
    return all(
        a.shape == b.shape and _confined(changed(a, b).cpu(), moved, pairs=not square)
        for a, b in pairs
    )


def _others(tensor: Tensor, d: int | None, moved: Tensor) -> Tensor:
    """Some indices with the values of their neighbors, and noise where they are no mask."""
    if d is None or not tensor.numel():
        return tensor
    taken = tensor.roll(1, d)
    if (tensor.is_floating_point() or tensor.is_complex()) and not is_mask(tensor):
        generator = torch.Generator().manual_seed(1)
        noise = torch.rand(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
        taken = taken - noise * (_size(tensor) or 1)
    shape = [1] * tensor.dim()
    shape[d] = -1
    return torch.where(moved.to(tensor.device).view(shape), taken, tensor)


def _size(tensor: Tensor) -> float:
    """The largest finite number in it."""
    return float(tensor.abs().nan_to_num(0, 0, 0).max()) if tensor.numel() else 0.0


def _confined(changed: Tensor, moved: Tensor, *, pairs: bool) -> bool:
    """Whether all that changed belongs to the indices that were moved.

    Args:
        changed: which entries of an answer.
        moved: by index.
        pairs: whether an entry may belong to two indices, as a similarity does.
    """
    if not bool(changed.any()):
        return True
    size = len(moved)
    for d in range(changed.dim()):
        if changed.shape[d] and changed.shape[d] % size == 0:
            along = changed.movedim(d, 0).reshape(changed.shape[d], -1).any(1)
            many = len(along) // size  # answers of one item, next to each other or size apart
            whose = (moved.repeat_interleave(many), moved.repeat(many))
            if any(not bool((along & ~own).any()) for own in whose):
                return True
    of_size = [d for d in range(changed.dim()) if changed.shape[d] == size]
    for one, other in combinations(of_size, 2) if pairs else ():
        rest = changed.movedim((one, other), (0, 1)).reshape(size, size, -1).any(2)
        if not bool((rest & ~moved & ~moved[:, None]).any()):
            return True
    return False


def _grows(
    model: nn.Module, inputs: Inputs, dims: Sequence[int | None], before: Sequence[Tensor]
) -> bool:
    """Whether the model takes its one index twice, and answers as many times more."""
    tensors = tensors_of(inputs)
    twice = [t if d is None else torch.cat([t, t], d) for t, d in zip(tensors, dims, strict=True)]
    try:
        after = _answers(model, with_tensors(inputs, twice))
    except Exception:  # of the model's code: this size is not free
        return False
    return [t.numel() for t in after] == [2 * t.numel() for t in before]
