"""Uses of a model, beside the pass that was traced, in which a smaller one must answer alike."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.inputs import Inputs, by_name, defaults_of, positional_names
from prunus._common.nested import tensors_of
from prunus._common.smaller_inputs import LARGE, parts_of, resized


@dataclass(frozen=True)
class Use:
    """A way of calling a model.

    Attributes:
        name: for notes and messages.
        inputs: positional and keyword arguments.
        training: in train mode, its noise made constant.
        gradient: with autograd on.
        fast: with torch's fused paths and the model's own cache, as users call it.
        steps: token by token: each step gets the cache that the one before returned.
        again: twice in a row; the second answers go on from what the model kept of the first.
        flag: an argument that no example gives this value.
        whole: the same use of the example's own sizes, where this one is of a part of them.
    """

    name: str
    inputs: Inputs
    training: bool = False
    gradient: bool = False
    fast: bool = False
    steps: bool = False
    again: bool = False
    flag: tuple[str, bool] | None = None
    whole: Use | None = None


def uses_of(model: nn.Module, examples: Sequence[Inputs]) -> Iterator[tuple[Use, ...]]:
    """Every use that is tried, as alternatives: of each the first one that the model can do counts.

    Args:
        model: whose ``forward`` says what it takes.
        examples: as they were given, their numbers random.
    """
    for number, inputs in enumerate(examples):
        which = f" with example {number + 1}" if number else ""
        if number:
            yield (Use(f"example {number + 1}", inputs),)
        yield smaller(Use(f"autograd{which}", inputs, gradient=True))
        yield smaller(Use(f"train mode{which}", inputs, training=True, gradient=True))
        yield smaller(Use(f"a call under no_grad{which}", inputs, fast=True))
        if _may_cache(model, inputs):
            cached = inputs[0], {**inputs[1], _CACHE: True}
            yield (Use(f"{_CACHE}=True{which}", cached, fast=True),)
        yield from _other_sizes(inputs, which)
        masked = _padded(model, inputs)
        if masked is not None:
            yield (Use(f"an attention mask with padding{which}", masked),)
        if _generates(model, inputs):
            yield (Use(f"token by token{which}", inputs, steps=True),)
    for name, value in _flags(model, examples):
        asked = examples[0][0], {**examples[0][1], name: value}
        yield (Use(f"{name}={value}", asked, flag=(name, value)),)


def _other_sizes(inputs: Inputs, which: str) -> Iterator[tuple[Use, ...]]:
    tensors = [t for t in tensors_of(inputs) if t.dim()]
    if not tensors:
        return
    batch = len(tensors[0])
    if batch > 1:
        yield smaller(Use(f"one item{which}", resized(inputs, {0: {batch: 1}})))
    yield smaller(Use(f"another batch size{which}", resized(inputs, {0: {batch: batch + 1}})))
    lengths = {size for t in tensors for size in t.shape[1:] if size > 2}
    for size in sorted(lengths, reverse=True)[:_MOST_LENGTHS]:
        changes = ({d: {size: new} for d in range(1, 8)} for new in _near(size))
        yield tuple(
            Use(f"inputs of other sizes than {size}{which}", resized(inputs, change))
            for change in changes
        )


_MOST_LENGTHS = 3


def _near(size: int) -> list[int]:
    """Other sizes that a model may take: a little more or less, or a part; the cheap one first."""
    half = size // 2
    if size <= LARGE:
        return [size + 1, size - 1, half]
    return [*([size // 3] if size > 3 * LARGE else []), half - 1, size - 1, half]


def smaller(use: Use) -> tuple[Use, ...]:
    """A use on a part of a large picture, where the model takes that: the pass that was traced ran
    on all of it, and a use has nothing to do with sizes."""
    most = 3 if use.training else 4  # statistics of few pixels divide by small numbers
    fewer = parts_of(use.inputs, (most, 2))
    return *(replace(use, inputs=inputs, whole=use) for inputs in fewer), use


_IDS, _MASK, _CACHE = "input_ids", "attention_mask", "use_cache"


def _may_cache(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a cache is off, and can be asked for."""
    off = getattr(getattr(model, "config", None), _CACHE, None) is not True
    takes = _CACHE in inspect.signature(model.forward).parameters
    return off and takes and _CACHE not in by_name(positional_names(model), inputs)


def _flags(model: nn.Module, examples: Sequence[Inputs]) -> list[tuple[str, bool]]:
    """Arguments that are a yes or a no, which every example leaves as they are."""
    given = [by_name(positional_names(model), inputs) for inputs in examples]
    found = [
        (name, not default)
        for name, default in defaults_of(model).items()
        if isinstance(default, bool) and name != _CACHE and all(name not in g for g in given)
    ]
    return found[:_MOST_FLAGS]


_MOST_FLAGS = 6


def _padded(model: nn.Module, inputs: Inputs) -> Inputs | None:
    """The same token ids with a mask that hides the first ones of the first item."""
    given = by_name(positional_names(model), inputs)
    ids = given.get(_IDS)
    takes = _MASK in inspect.signature(model.forward).parameters
    if not takes or not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[1] < 4:
        return None
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return (), {**given, _MASK: mask}


def _generates(model: nn.Module, inputs: Inputs) -> bool:
    """Whether this is a decoder that goes on from a cache."""
    config = getattr(model, "config", None)
    decoder = getattr(config, _CACHE, None) is True
    decoder = decoder and not getattr(config, "is_encoder_decoder", False)
    parameters = inspect.signature(model.forward).parameters
    given = by_name(positional_names(model), inputs)
    ids = given.get(_IDS)
    alone = {name for name, value in given.items() if isinstance(value, Tensor)} <= {_IDS, _MASK}
    takes = {"past_key_values", _CACHE} <= set(parameters)
    return decoder and takes and alone and isinstance(ids, Tensor) and ids.shape[-1] > 3


def step_by_step(model: Any, inputs: Inputs) -> list[Tensor]:
    """What a decoder answers to the first tokens at once, and then to one more at a time."""
    given = by_name(positional_names(model), inputs)
    ids = given[_IDS]
    prefix = ids.shape[1] - 2
    cache, answers = None, []
    for start, end in ((0, prefix), (prefix, prefix + 1), (prefix + 1, prefix + 2)):
        call = {_IDS: ids[:, start:end], _CACHE: True, "past_key_values": cache}
        if _MASK in given:
            call[_MASK] = given[_MASK][:, :end]
        found = model(**call)
        cache = found.past_key_values
        answers.append(tensors_of(found)[0])
    return answers
