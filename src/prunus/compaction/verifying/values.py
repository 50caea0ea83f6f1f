"""The values with which models are compared: float64, and random where the model's are constant.

Of a model of up to ``WHOLE`` bytes all of them are made at once. Of a larger one, a matrix is a
``Lazy`` tensor: it knows its shape alone, and its values are made anew for each operator that
reads them and let go behind it; for a product some rows at a time. The numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.inputs import Inputs
from prunus._common.nested import map_tensors
from prunus._common.parts import parts
from prunus._common.put_back import written_arguments
from prunus._common.torch_internals import no_torch_function, pytree, wrapper
from prunus.compaction.cut import take
from prunus.compaction.verifying.met import SHARE, Met
from prunus.compaction.verifying.sources import Source, wide_type
from prunus.types import Indices, Kept, Masks

WHOLE = 2**27
"""Bytes of parameters and buffers of which a second model is held in float64 as a whole."""

State = Mapping[str, Tensor]
"""A model's values by name; tied tensors are one object."""


def values_for_test(
    model: nn.Module, masks: Masks, seed: int = 0, *, whole: int = WHOLE
) -> tuple[State, State]:
    """Values for a comparison in float64: of the dense model, and with the masks applied.

    Statistics, biases, scales and whatever else is constant are made random: zeros and ones
    would hide mistakes. So is what the masks remove, of the size of what they leave.

    Args:
        model: that is compared.
        masks: by parameter name.
        seed: of the random numbers.
        whole: bytes of parameters and buffers above which matrices stay :class:`Lazy`.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    every = {**parameters, **dict(model.named_buffers(remove_duplicate=False))}
    sizes = {id(t): t.numel() * t.element_size() for t in every.values()}
    draws = _Draws(seed)
    dense: dict[int, Source] = {}
    for name, tensor in every.items():
        if id(tensor) not in dense:
            dense[id(tensor)] = _varied(name, tensor.detach(), name in parameters, draws)
    masked = dict(dense)
    for name, mask in masks.items():  # what is zero already would hide what the masks do
        key = id(every[name])
        masked[key] = replace(dense[key], mask=mask)
        dense[key] = replace(masked[key], fill=draws.apart())
    made: dict[int, Tensor] = {}
    lazily = sum(sizes.values()) > whole

    def state(values: Mapping[int, Source]) -> State:
        for one in values.values():
            if id(one) not in made:
                made[id(one)] = Lazy(one) if lazily and one.large else one.made()
        return {name: made[id(values[id(tensor)])] for name, tensor in every.items()}

    return state(dense), state(masked)


def small_state(state: State, kept: Kept, names: Mapping[str, str]) -> State:
    """The values of a state that a compact model has."""
    small = {}
    for name, tensor in state.items():
        cut = kept.get(names.get(name, name))
        if cut is None:
            small[name] = tensor
        else:
            small[name] = tensor.taken(cut) if isinstance(tensor, Lazy) else take(tensor, cut)
    return small


def random_like(
    inputs: Inputs, seed: int = 0, *, own_type: bool = False, integers: bool = True
) -> Inputs:
    """Random inputs of an example's shapes: normal values, integers that the example has.

    Args:
        inputs: positional and keyword arguments.
        seed: of the random numbers.
        own_type: real numbers in the type that they have there, not in float64.
        integers: whether these are drawn too, and not left where they stand.
    """
    generator = torch.Generator().manual_seed(seed)

    def fresh(value: Tensor) -> Tensor:
        if value.numel() == 0 or value.is_meta:
            return value
        if value.is_floating_point() or value.is_complex():
            made = torch.randn(value.shape, generator=generator, dtype=wide_type(value.dtype))
            own = made.to(value.device, value.dtype)  # the same numbers, whatever type is asked for
            return own if own_type else own.to(made.dtype)
        if not integers or value.dtype is torch.bool or int(value.min()) == int(value.max()):
            return value
        place = torch.randint(value.numel(), value.shape, generator=generator)
        return value.flatten()[place.to(value.device)]

    made: Inputs = map_tensors(fresh, inputs)
    return made


class Lazy(Tensor):
    """A tensor without memory: every operator that reads it makes its values, and lets them go.

    >>> lazy = Lazy(Source(torch.tensor([[1.0, 2.0]]), True))
    >>> lazy.dtype, lazy + 1
    (torch.float64, tensor([[2., 3.]], dtype=torch.float64))
    """

    __torch_function__ = no_torch_function
    _source: Source
    _kept: Indices | None
    _turned: bool
    _met: Met

    @staticmethod
    def __new__(
        cls,
        values: Source,
        kept: Indices | None = None,
        dtype: torch.dtype = torch.float64,
        *,
        turned: bool = False,
        met: Met | None = None,
    ) -> Lazy:
        like = values.own.to("meta")
        like = (like if kept is None else take(like, kept)).to(dtype)
        made: Lazy = wrapper(cls, like.t() if turned else like, values.own.device)
        made._source, made._kept, made._turned = values, kept, turned
        made._met = met or Met(like.numel() // SHARE)
        return made

    def made(self) -> Tensor:
        """The values, to be let go soon."""
        values = self._source.made(self._kept).to(self.dtype)
        return values.t() if self._turned else values

    def taken(self, kept: Indices) -> Lazy:
        """Without the removed indices."""
        assert self._kept is None
        assert not self._turned
        return Lazy(self._source, kept, self.dtype)

    def typed(self, dtype: torch.dtype) -> Lazy:
        """In another type."""
        return Lazy(self._source, self._kept, dtype, turned=self._turned)

    def times(self, func: Any, before: Sequence[Any]) -> Tensor | None:
        """``mm`` or ``addmm`` with this as the last matrix, some of its columns at a time.

        ``None`` where it is no such product, or one that needs all values at once.
        """
        rows = self.shape[-1]
        if func not in _PRODUCTS or not self._turned or not self._source.by_rows(self._kept):
            return None
        *biases, left = before
        if any(bias.shape[-1] != rows for bias in biases):
            return None
        if self.dtype is torch.float64:
            products = self._met(left, self._products)
            return products + biases[0] if biases else products
        parts = []
        for some, values in self._source.blocks(self._kept, self.dtype):
            parts.append(func(*(bias[..., some] for bias in biases), left, values.t()))
        return torch.cat(parts, 1)

    def _products(self, rows: Tensor) -> Tensor:
        blocks = self._source.blocks(self._kept, self.dtype)
        return torch.cat([rows @ values.t() for _, values in blocks], 1)

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        return f"Lazy({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        written = written_arguments(func)
        if any(isinstance(a, Lazy) for i, a in enumerate(args) if i in written):
            raise RuntimeError(f"{func} writes to a parameter, whose values are not held")
        if func is torch.ops.aten.t.default and args[0].dim() == 2:
            one: Lazy = args[0]
            return Lazy(one._source, one._kept, one.dtype, turned=not one._turned, met=one._met)
        *before, last = args
        if isinstance(last, Lazy) and before and not kwargs:
            found = last.times(func, pytree.tree_map_only(Lazy, Lazy.made, before))
            if found is not None:
                return found
        plain = pytree.tree_map_only(Lazy, Lazy.made, (args, kwargs or {}))
        return func(*plain[0], **plain[1])


_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def held(states: tuple[State, State]) -> tuple[State, State] | None:
    """The same with all values in memory; ``None`` if they are already."""
    lazy = {id(t): t for state in states for t in state.values() if isinstance(t, Lazy)}
    made = {key: t.made() for key, t in lazy.items()}
    first, second = ({n: made.get(id(t), t) for n, t in state.items()} for state in states)
    return (first, second) if lazy else None


def _varied(name: str, tensor: Tensor, parameter: bool, draws: _Draws) -> Source:
    """A tensor's own values, or random ones around them where they tell nothing."""
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return Source(tensor, parameter)
    last = name.rpartition(".")[2]
    if last == "running_var":
        later = draws.later(tensor.shape)
        return Source(tensor, parameter, lambda v: 0.5 + later().to(v.device).abs())
    if last == "running_mean":
        later = draws.later(tensor.shape)
        return Source(tensor, parameter, lambda v: 0.3 * later().to(v.device))
    if parameter and (tensor.dim() < 2 or _is_constant(tensor)):
        later = draws.later(tensor.shape)
        return Source(tensor, parameter, lambda v: v + 0.2 * later().to(v.device))
    return Source(tensor, parameter)


def _is_constant(tensor: Tensor) -> bool:
    first = tensor.flatten()[0]
    return all(bool((part == first).all()) for (part,) in parts(tensor))


class _Draws:
    """Normal numbers of one seed in a fixed sequence, in whatever order they are asked for.

    They are drawn on the CPU, so that a seed means the same everywhere.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._shapes: list[tuple[int, ...]] = []
        self._seed, self._others = seed, 0
        self._states = [self._generator.get_state()]  # before each that was reached so far

    def later(self, shape: Sequence[int]) -> Callable[[], Tensor]:
        """The next place in the sequence, as a function that draws its numbers."""
        self._shapes.append(tuple(shape))
        return partial(self._draw, len(self._shapes) - 1)

    def apart(self) -> Callable[[], torch.Generator]:
        """A sequence of its own, as a function that begins it anew."""
        self._others += 1
        number = self._seed * 2**20 + self._others
        return lambda: torch.Generator().manual_seed(number)

    def _draw(self, place: int) -> Tensor:
        while len(self._states) <= place:
            self._at(len(self._states) - 1)
        return self._at(place)

    def _at(self, place: int) -> Tensor:
        self._generator.set_state(self._states[place])
        shape = self._shapes[place]
        numbers = torch.randn(shape, generator=self._generator, dtype=torch.float64)
        if len(self._states) == place + 1:
            self._states.append(self._generator.get_state())
        return numbers
