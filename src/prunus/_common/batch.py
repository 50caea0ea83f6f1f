"""Items of a pass: along which dimension of its inputs a model treats each by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from prunus._common.inputs import Inputs, map_tensors, tensors_of, with_tensors
from prunus._common.modules import evaluation_copy
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
    """

    size: int
    dims: tuple[int | None, ...]
    why: str = ""


MIXED = "what it answers at each index depends on the others, in every dimension that was tried"


def find_batch(model: nn.Module, inputs: Inputs) -> Batch:
    """The dimension along which a model treats each index by itself, found by trying.

    Every other index is given other values: along a batch, the answers for the rest stay as they
    were. The first dimension is tried, then the second one (recurrent networks and transformers
    that take time first), and tensors of the same size change together. A leading size of 1, or
    inputs on the meta device, say nothing: there the first dimension is taken for the batch.

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
    if len(first) < 2 or any(t.is_meta for t in (*tensors, *model.parameters())):
        return Batch(max(1, len(first)), next(_places(tensors, first)))
    try:
        twin = evaluation_copy(model)
        with PutBack(twin.parameters()), trainable_again(twin):
            return _tried(twin, inputs, tensors, first)
    except Exception as error:  # of the model's code, which may not take these inputs
        return Batch(1, nothing, first_line(error))


def _tried(twin: nn.Module, inputs: Inputs, tensors: Sequence[Tensor], first: Tensor) -> Batch:
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
    return Batch(1, (None,) * len(tensors), MIXED)


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
    with preserve_rng(), torch.no_grad():
        seed(0)
        args, kwargs = map_tensors(Tensor.clone, inputs)
        return [t.detach().clone() for t in tensors_of(model(*args, **kwargs))]


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
        a.shape == b.shape and _confined(_differ(a, b).cpu(), moved, pairs=not square)
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


def _differ(one: Tensor, other: Tensor) -> Tensor:
    if not one.is_floating_point() and not one.is_complex():
        return one != other
    return ~torch.isclose(one, other, rtol=1e-4, atol=1e-4 * _size(one), equal_nan=True)


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
