"""The blocks of a model, and batches on the way through them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.activations import FarEnough
from prunus._common.given import not_taken
from prunus._common.inputs import arguments
from prunus._common.modules import evaluating
from prunus._common.names import each_meant, module_paths
from prunus.errors import InputError, PrunusError, first_line

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a block but the first, which is what the block before it gives."""
Hold = Callable[[str], Any]
"""A context in which the weights of a block are in memory, by the block's name."""

WORTH_WALKING = 0.1
"""The parameters of a second stack of blocks, in parts of those of the largest one."""


def stacks_of(model: nn.Module, name: str | None = None) -> list[list[str]]:
    """Repeated modules of one class that a model passes one after the other.

    Args:
        model: that has them.
        name: of the list that holds them. By default the one with most parameters, and others that
            have a tenth of those: an encoder and a decoder.

    Raises:
        InputError: if there are none.

    >>> stacks_of(nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.ReLU(), nn.ReLU()])))
    [['1.0', '1.1']]
    """
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential))
        and len(module) > 1
        and len({type(child) for child in module}) == 1
    }
    if not lists:
        raise InputError(
            f"{type(model).__name__} has no blocks: a list of modules of one class was looked for "
            "(ModuleList or Sequential); prunus.prune takes any model"
        )
    if name is not None:
        names = {path: plain for plain, path in module_paths(model).items()}
        names = {path: names.get(path, path) for path in lists}  # of a wrapped one, what is inside
        said = "blocks: a list of modules of one class was looked for, one called …"
        own = each_meant([name], names, said, around=False)[name]
        lists = {path: lists[path] for path in own}
    sizes = {path: sum(p.numel() for p in m.parameters()) for path, m in lists.items()}
    most = max(sizes, key=lambda path: (sizes[path], -len(path)))
    chosen = [most]
    for path in lists:
        apart = not any(_within(path, other) or _within(other, path) for other in chosen)
        if apart and sizes[path] >= WORTH_WALKING * sizes[most] and sizes[path]:
            chosen.append(path)
    order = [path for path in lists if path in chosen]
    return [[f"{path}.{i}".lstrip(".") for i in range(len(lists[path]))] for path in order]


def _within(path: str, other: str) -> bool:
    return not other or path.startswith(f"{other}.")


@dataclass
class Passage:
    """How passes of batches call each block of a stack.

    Attributes:
        blocks: their names.
        calls: of each block, of each batch.
        first: what the first block reads, of each batch.
        rest: what a block gives beside what it hands on, of each batch; ``None``: no tuple.
        last: what the stack gives, of each batch, when the walk is through.
    """

    blocks: list[str]
    calls: list[list[Call]] = field(default_factory=list)
    first: list[Tensor] = field(default_factory=list)
    rest: list[tuple[Any, ...] | None] = field(default_factory=list)
    last: Sequence[Tensor] = ()

    def given(self, x: Tensor, batch: int) -> Any:
        """A block's output that hands on ``x``."""
        rest = self.rest[batch]
        return x if rest is None else (x, *rest)


def passage_of(
    model: nn.Module,
    blocks: list[str],
    batches: Iterable[Any],
    *,
    before: Sequence[Passage] = (),
    hold: Hold | None = None,
) -> Passage:
    """With what each block of a stack is called in a pass of each batch.

    No block computes here but the first one, which shows what a block gives; what stands before and
    between the blocks does.

    Args:
        model: that has the blocks.
        blocks: of one stack, by name.
        batches: what the model is called with.
        before: stacks through which these batches have gone already.
        hold: puts a block's weights into memory.

    Raises:
        InputError: for batches that the model does not take, and blocks that it does not call once
            each, in their order.
    """
    found = Passage(blocks, [[] for _ in blocks])
    hold = hold or (lambda name: nullcontext())
    modules = {name: model.get_submodule(name) for name in blocks}

    def relay(number: int, compute: Callable[..., Any]) -> Callable[..., Any]:
        key = next(iter(inspect.signature(compute).parameters), "")

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not args and key in kwargs:
                args = (kwargs.pop(key),)
            args, kwargs = _without_caches(args, kwargs)
            if not args or not isinstance(args[0], Tensor):
                raise InputError(f"'{blocks[0]}' is not called with a tensor as its first argument")
            batch = len(found.calls[0]) if number == 0 else len(found.calls[0]) - 1
            if number == 0:
                found.first.append(args[0].clone())  # the model's code may write to what it has
                given = None
                if not found.rest or found.rest[0] is not None:  # every batch has a rest of its own
                    with hold(blocks[0]):
                        given = compute(*args, **kwargs)
                    passed_on(given)
                found.rest.append(tuple(given[1:]) if isinstance(given, (tuple, list)) else None)
            found.calls[number].append((args[1:], dict(kwargs)))
            if number == len(blocks) - 1:
                raise FarEnough
            return found.given(args[0], batch)

        return forward

    relays = {name: relay(i, modules[name].forward) for i, name in enumerate(blocks)}
    count = 0
    with relayed(model, relays), evaluating(model), torch.no_grad():
        for count, batch in enumerate(batches, 1):
            with relayed(model, through(before, count - 1)), suppress(FarEnough):
                called(model, batch)
    if not count:
        raise InputError("calibration contains no batch (an exhausted iterator? pass a list)")
    if any(len(calls) != count for calls in found.calls):
        raise InputError(
            f"'{blocks[0]}' and its like are not passed once each, in their order, in a pass: name "
            "the list of blocks that is"
        )
    return found


def _without_caches(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """A call that keeps nothing: what a cache holds would grow from pass to pass.

    A model that was asked for none gives none; one within another may give some all the same.
    """

    def plain(value: Any) -> Any:
        return None if "Cache" in type(value).__name__ else value

    given = {key: False if key == "use_cache" else plain(value) for key, value in kwargs.items()}
    return tuple(plain(value) for value in args), given


def passed_stacks(
    model: nn.Module, stacks: Sequence[list[str]], batches: Sequence[Any], hold: Hold | None = None
) -> tuple[list[Passage], list[str]]:
    """Passages through all stacks that batches come to, and the blocks of those they do not.

    Nothing is computed but what :func:`passage_of` does: a stack gives what it reads.

    Raises:
        InputError: if the batches do not come to the largest stack.
    """
    sizes = [sum(p.numel() for n in b for p in model.get_submodule(n).parameters()) for b in stacks]
    passages: list[Passage] = []
    stayed: list[str] = []
    for blocks, size in zip(stacks, sizes, strict=True):
        try:
            passage = passage_of(model, blocks, batches, before=passages, hold=hold)
        except InputError:
            if size == max(sizes):
                raise
            stayed += blocks
            continue
        passage.last = passage.first
        passages.append(passage)
    return passages, stayed


def called(model: nn.Module, batch: Any) -> Any:
    """The answer to a batch, without caches, which would grow from pass to pass.

    Raises:
        InputError: if the model does not take the batch.
    """
    takes = inspect.signature(model.forward).parameters
    args, kwargs = arguments(batch)
    try:
        return model(*args, **{**({"use_cache": False} if "use_cache" in takes else {}), **kwargs})
    except InputError:
        raise
    except Exception as error:  # of the model's code, which does not take this
        raise not_taken(model, batch, error) from error


def through(passages: Sequence[Passage], batch: int) -> dict[str, Callable[..., Any]]:
    """Forward functions with which stacks that are done give what they gave, without computing."""

    def silent(passage: Passage, number: int) -> Callable[..., Any]:
        def forward(x: Any = None, *args: Any, **kwargs: Any) -> Any:
            last = number == len(passage.blocks) - 1
            given = passage.last[batch] if last else passage.first[batch]
            return passage.given(given.clone(), batch)  # which the model's code may write to

        return forward

    return {name: silent(p, i) for p in passages for i, name in enumerate(p.blocks)}


@contextmanager
def relayed(model: nn.Module, forwards: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Modules that compute something else for a while: no hook can leave a computation out.

    What a module's class says of it, its attributes and hooks stay as they are.
    """
    before: list[tuple[nn.Module, Any]] = []
    try:
        for name, forward in forwards.items():
            module = model.get_submodule(name)
            before.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in reversed(before):
            if own is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = own


def given_by(block: nn.Module, x: Tensor, call: Call) -> Tensor:
    """What a block hands on of what comes to it, which stays as it is: a block may write to it.

    Raises:
        InputError: if the block does not take it.
    """
    args, kwargs = call
    try:
        return passed_on(block(x.clone(), *args, **kwargs))
    except PrunusError:
        raise
    except Exception as error:  # of the model's code, which does not take this batch
        raise InputError(
            f"a {type(block).__name__} does not take what a batch is when it comes to it "
            f"({x.dtype}, {list(x.shape)}): {first_line(error)}"
        ) from error


def passed_on(output: Any) -> Tensor:
    """What a block hands to the next one.

    Raises:
        InputError: if it is no tensor.
    """
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(first, Tensor):
        raise InputError(f"a block gives {type(first).__name__}, not a tensor for the next one")
    return first
