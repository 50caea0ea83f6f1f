"""What loaders of data keep from one epoch to the next: generators of their own, live workers."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import random
from collections.abc import Iterable, Iterator, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from prunus._common.code_objects import codes_in
from prunus._common.rng import words
from prunus._common.torch_internals import drop_workers

Source = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
_SOURCES = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_WHOLE = (str, bytes, int, float, complex, type(None), Tensor, np.ndarray, ModuleType, type)
_LONGEST, _MOST = 256, 20_000
"""Longer lists hold data, not what draws; of more objects the rest is not looked at."""
_STREAM = 11  # apart from the streams of the process's own generators


def begin_epoch(loader: object, seed: int, epoch: int) -> None:
    """Let a loader begin an epoch that depends on seed and number alone.

    Every generator that it holds is seeded, workers of the epoch before end (they have drawn), and
    whatever has a ``set_epoch`` is told.
    """
    restart(loader, seed, 1 + epoch)
    names = ("sampler", "batch_sampler", "dataset")
    for part in (loader, *(getattr(loader, name, None) for name in names)):
        set_epoch = getattr(part, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)


def restart(holder: object, *parts: int) -> None:
    """Seed every generator that an object holds; loaders that it holds begin with new workers."""
    seed_generators(holder, *parts)
    for loader in _held(holder):
        if isinstance(loader, DataLoader):
            drop_workers(loader)


def seed_generators(holder: object, *parts: int) -> None:
    """Seed every generator that an object holds."""
    for number, source in enumerate(generators(holder)):
        _seed(source, words(*parts, 1 + number, _STREAM))


def remarks(loader: object) -> list[str]:
    """What of a training loader another process cannot repeat, as far as that shows."""
    found = []
    if goes_on(loader):
        found.append(
            "the training loader is an iterator, whose position is not saved: a resumed run gets "
            "other batches; pass a loader that begins anew each time it is iterated"
        )
    for part in _held(loader):
        if isinstance(part, DataLoader) and not getattr(part, "in_order", True):
            found.append("the training loader has in_order=False: its order depends on timing")
        if isinstance(part, DataLoader) and getattr(part, "persistent_workers", False):
            found.append(
                "persistent_workers: the workers begin anew with every epoch, so that a resumed "
                "run gets the same random numbers"
            )
        if isinstance(part, random.SystemRandom):
            found.append("the training loader draws from random.SystemRandom, which has no seed")
    return found


def goes_on(loader: object) -> bool:
    """Whether a loader is an iterator, which goes on where it is."""
    return isinstance(loader, Iterator)


@contextlib.contextmanager
def keeping_generators(*holders: object) -> Iterator[None]:
    """Whatever draws inside, the generators that these objects hold go on as if it had not."""
    before = states(*holders)
    try:
        yield
    finally:
        set_states(before, *holders)


def states(*holders: object) -> list[Any]:
    """Of the generators that objects hold, as plain values and tensors."""
    return [_state(source) for source in generators(*holders)]


def set_states(saved: Sequence[Any], *holders: object) -> bool:
    """Return to what :func:`states` gave; whether these objects hold as many generators."""
    found = generators(*holders)
    if len(found) != len(saved):
        return False
    for source, state in zip(found, saved, strict=True):
        _set_state(source, state)
    return True


def generators(*holders: object) -> list[Source]:
    """Generators of random numbers that objects hold, in the order in which they are found.

    Looked through are attributes, short lists and mappings, closures and defaults of functions,
    and what a function or method uses by a global name. Generators of the whole process are left
    out: those are seeded elsewhere.

    >>> source = np.random.default_rng(0)
    >>> class Noisy:
    ...     def __iter__(self):
    ...         return iter([source.random()])
    >>> draws = lambda: source.random()
    >>> generators([1, {"of": draws}]) == generators(Noisy()) == [source]
    True
    """
    return [part for part in _held(*holders) if isinstance(part, _SOURCES)]


def _held(*holders: object) -> Iterator[Any]:
    """Everything that is reached from objects, each once."""
    cuda = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    own: list[Any] = [torch.default_generator, *cuda]
    own += [getattr(np.random.seed, "__self__", None), getattr(random.seed, "__self__", None)]
    seen: dict[int, Any] = {id(part): part for part in own}
    kinds: set[type] = set()
    waiting: list[Any] = [*reversed(holders)]
    while waiting and len(seen) < _MOST:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, _WHOLE):
            continue
        seen[id(value)] = value  # held, so that its id is not used again
        yield value
        if not isinstance(value, _SOURCES):
            parts = list(_parts(value))
            if type(value) not in kinds:
                kinds.add(type(value))
                parts += _named_by_methods(type(value))
            waiting.extend(reversed(parts))


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, FunctionType):
        yield from _of_function(value)
    elif isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, (dict, list, tuple, set, frozenset)) and len(value) <= _LONGEST:
        yield from dict.values(value) if isinstance(value, dict) else value
    for kind in type(value).__mro__:
        names = vars(kind).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            yield getattr(value, name, None)
    own = getattr(value, "__dict__", None)
    if isinstance(own, dict):
        yield from own.values()


def _of_function(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # of a cell that is still empty
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for name in (n for code in codes_in(function.__code__) for n in code.co_names):
        value = function.__globals__.get(name)
        helper = isinstance(value, FunctionType) and value.__globals__ is function.__globals__
        if helper or isinstance(value, _SOURCES) or hasattr(type(value), "__iter__"):
            yield value


_LIBRARIES = ("torch", "numpy", "builtins", "random", "collections", "transformers", "accelerate")


def _named_by_methods(kind: type) -> Iterable[Any]:
    """What the code of a class reaches; of libraries only what instances hold is of interest."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in _LIBRARIES:
            continue
        for member in vars(base).values():
            wrapped = getattr(member, "__func__", getattr(member, "fget", member))
            function = inspect.unwrap(wrapped) if callable(wrapped) else wrapped
            if isinstance(function, FunctionType):
                yield from _of_function(function)
            elif isinstance(function, _SOURCES):
                yield function


def _seed(source: Source, given: tuple[int, int]) -> None:
    value = given[0] << 32 | given[1]
    if isinstance(source, torch.Generator):
        source.manual_seed(value % 2**63)
    elif isinstance(source, np.random.Generator):
        kind: Any = type(source.bit_generator)
        source.bit_generator.state = kind(value).state
    elif isinstance(source, np.random.RandomState):
        source.seed(given[0])
    else:
        source.seed(value)


def _state(source: Source) -> Any:
    if isinstance(source, torch.Generator):
        return source.get_state()
    if isinstance(source, np.random.Generator):
        return _as_tensors(copy.deepcopy(source.bit_generator.state))
    if isinstance(source, np.random.RandomState):
        return _as_tensors(source.get_state())
    return None if isinstance(source, random.SystemRandom) else source.getstate()


def _set_state(source: Source, state: Any) -> None:
    if isinstance(source, torch.Generator):
        source.set_state(state)
    elif isinstance(source, np.random.Generator):
        source.bit_generator.state = _as_arrays(state)
    elif isinstance(source, np.random.RandomState):
        source.set_state(_as_arrays(state))
    elif state is not None:
        version, inner, gauss = state
        source.setstate((version, tuple(inner), gauss))


def _as_tensors(state: Any) -> Any:
    """Arrays of unsigned numbers as tensors, which files hold."""
    if isinstance(state, np.ndarray):
        signed = torch.from_numpy(state.astype(np.uint64).view(np.int64))
        return {"array": str(state.dtype), "values": signed}
    if isinstance(state, dict):
        return {key: _as_tensors(value) for key, value in state.items()}
    if isinstance(state, tuple):
        return tuple(map(_as_tensors, state))
    return int(state) if isinstance(state, np.integer) else state


def _as_arrays(state: Any) -> Any:
    if isinstance(state, dict) and "array" in state:
        return state["values"].numpy().view(np.uint64).astype(state["array"])
    if isinstance(state, dict):
        return {key: _as_arrays(value) for key, value in state.items()}
    return tuple(map(_as_arrays, state)) if isinstance(state, tuple) else state
