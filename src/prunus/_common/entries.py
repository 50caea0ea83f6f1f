"""Items that are the entries of a list: pictures or sequences of different sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from prunus._common.inputs import Inputs
from prunus._common.nested import map_tensors, tensors_of
from prunus._common.random_inputs import is_mask

Place: TypeAlias = int | str
"""Of an argument: by position, or its name."""

Run: TypeAlias = Callable[[Inputs], Any]
"""Gives what a model answers."""


def lists_in(inputs: Inputs) -> Iterator[Place]:
    """The arguments that are lists of things alike, each with tensors.

    >>> pictures = [torch.ones(3, 5, 4), torch.ones(3, 2, 6)]
    >>> list(lists_in(((pictures, torch.ones(1)), {"levels": [torch.ones(4, 8), torch.ones(2)]})))
    [0]
    """
    arguments: list[tuple[Place, Any]] = [*enumerate(inputs[0]), *inputs[1].items()]
    for place, value in arguments:
        if type(value) in (list, tuple) and value and _alike([tensors_of(v) for v in value]):
            yield place


def uneven(inputs: Inputs, place: Place) -> bool:
    """Whether the entries of a list differ in length, so that no index can be an item of all."""
    return len({len(t) for t in tensors_of(argument(inputs, place)) if t.dim()}) > 1


def argument(inputs: Inputs, place: Place) -> Any:
    """An argument."""
    return inputs[0][place] if isinstance(place, int) else inputs[1][place]


def with_entries(inputs: Inputs, place: Place, count: int) -> Inputs:
    """The same call with so many entries in a list: cut, or repeated from the start.

    >>> with_entries((([1, 2],), {}), 0, 3)
    (([1, 2, 1],), {})
    """
    held = argument(inputs, place)
    return _put(inputs, place, [held[i % len(held)] for i in range(count)])


def apart(run: Run, inputs: Inputs, place: Place, odd: int) -> bool:
    """Whether other values in every other entry leave the answers for the rest as they were."""
    held = list(argument(inputs, place))
    moved = [i % 2 == odd for i in range(len(held))]
    other = [map_tensors(_other, v) if move else v for v, move in zip(held, moved, strict=True)]
    before, after = run(inputs), run(_put(inputs, place, other))
    pairs = list(zip(tensors_of(before), tensors_of(after), strict=False))
    lengths = [sum(len(t) for t in tensors_of(v) if t.dim()) for v in held]
    own, other_own = _by_entry(before, len(held)), _by_entry(after, len(held))
    if own is not None and other_own is not None:
        both = zip(own, other_own, moved, strict=True)
        return all(move or _same(one, two) for one, two, move in both)
    return bool(pairs) and all(_confined(a, b, moved, lengths) for a, b in pairs)


def grows(run: Run, inputs: Inputs, place: Place) -> bool:
    """Whether a list of one entry can have two, for twice the answers."""
    before = tensors_of(run(inputs))
    try:
        after = tensors_of(run(with_entries(inputs, place, 2)))
    except Exception:  # of the model's code: so many it does not take
        return False
    return sum(t.numel() for t in after) == 2 * sum(t.numel() for t in before) > 0


def _put(inputs: Inputs, place: Place, entries: Sequence[Any]) -> Inputs:
    made = type(argument(inputs, place))(entries)
    args, kwargs = inputs
    if isinstance(place, int):
        return (*args[:place], made, *args[place + 1 :]), kwargs
    return args, {**kwargs, place: made}


def _alike(entries: Sequence[Sequence[Tensor]]) -> bool:
    """The same number of tensors in each, of as many dimensions, one of which is as long in all."""
    if len({tuple((t.dtype, t.dim()) for t in entry) for entry in entries}) != 1 or not entries[0]:
        return False
    for tensors in zip(*entries, strict=True):
        shapes = list(zip(*(t.shape for t in tensors), strict=True))
        if not shapes or (len(shapes) > 1 and all(len(set(sizes)) > 1 for sizes in shapes)):
            return False
    return True


def _other(tensor: Tensor) -> Tensor:
    """Other values that the model takes as well: its own, elsewhere, and noise on real numbers."""
    if not tensor.numel():
        return tensor
    taken = tensor.flatten().roll(1).view(tensor.shape)
    if is_mask(tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
        return taken
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
    return taken - noise * (tensor.abs().nan_to_num(0, 0, 0).max() or 1)


def _by_entry(answer: Any, count: int) -> list[list[Tensor]] | None:
    """The tensors of each entry's answer, where the answer is a list of as many."""
    if (
        isinstance(answer, (list, tuple))
        and len(answer) == count
        and not hasattr(answer, "_fields")
    ):
        return [tensors_of(part) for part in answer]
    return None


def _same(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    return len(one) == len(two) and not any(_differ(a, b) for a, b in zip(one, two, strict=True))


def _differ(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or bool(changed(a, b).any())


def changed(one: Tensor, other: Tensor) -> Tensor:
    """Where two answers of the same shape differ by more than rounding."""
    if not one.is_floating_point() and not one.is_complex():
        return one != other
    size = float(one.abs().nan_to_num(0, 0, 0).max()) if one.numel() else 0.0
    return ~torch.isclose(one, other, rtol=1e-4, atol=1e-4 * size, equal_nan=True)


def _confined(a: Tensor, b: Tensor, moved: Sequence[bool], lengths: Sequence[int]) -> bool:
    """Whether all that changed stands at entries that were moved: stacked, or in a row."""
    if a.shape != b.shape:
        return False
    differs = changed(a, b)
    if not bool(differs.any()):
        return True
    by_length = torch.tensor(moved).repeat_interleave(torch.tensor(lengths))
    for whose in (torch.tensor(moved), by_length):
        for d in (d for d in range(a.dim()) if a.shape[d] == len(whose)):
            along = differs.movedim(d, 0).reshape(len(whose), -1).any(1).cpu()
            if not bool((along & ~whose).any()):
                return True
    return False
