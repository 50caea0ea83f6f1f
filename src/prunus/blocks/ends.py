"""Both ends of a narrower model: what comes to its first block, and what it answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from prunus._common.activations import FarEnough
from prunus._common.nested import map_tensors
from prunus.blocks.hidden import Narrow, Power, difference, last, shift_of
from prunus.blocks.judge import SLICE
from prunus.blocks.units import taken
from prunus.blocks.walk import Passage, called, relayed, through
from prunus.compaction.slicing.norms import width_of
from prunus.compaction.verifying.verify import TOLERANCE, Double, wide
from prunus.errors import InputError, RunError

CONSTANTS = 1e-6
"""What comes to the first block may differ by so much: a factor that code keeps in float32."""


def powers_before(model: Any, found: Narrow, passages: Sequence[Passage], batch: Any) -> None:
    """The powers of the embeddings: what comes to the first block must be s times as large."""
    tables = [n for n in _outside(model, found) if _of_embedding(model, n)]
    masked, narrow = _both(found, passages)
    before = [_arriving(model, model, masked[:i], p, batch, found) for i, p in enumerate(masked)]
    for power in (1, 0):
        found.powers |= dict.fromkeys(tables, Power(power))
        after = [
            _arriving(model, found.fresh, narrow[:i], p, batch, found)
            for i, p in enumerate(narrow)
        ]  # fmt: skip
        if all(
            a is not None and b is not None
            and difference(taken(a, last(a, found.kept)), b / found.s) <= CONSTANTS
            for a, b in zip(before, after, strict=True)
        ):  # fmt: skip
            return
    raise InputError(
        "structure: hidden: what comes to the first block is no sum of embeddings: something "
        "between them counts the width"
    )


def powers_behind(model: Any, found: Narrow, passages: Sequence[Passage], batch: Any) -> None:
    """The powers of norms behind the blocks: the answer must be the masked model's."""
    norms = [n for n in _outside(model, found) if _named(model)[n].dim() == 1]
    owners = {n: model.get_submodule(n.rpartition(".")[0]) for n in norms}
    if any(width_of(owner) != found.width for owner in owners.values()):
        raise InputError("structure: hidden: a vector outside of the blocks is no norm's scale")
    shifts = {n: shift_of(owners[n], n.rpartition(".")[2]) for n in norms}
    masked, narrow = _both(found, passages)
    right = _answering(model, model, masked, batch, found)
    for own in itertools.product((-1, -2, 0), repeat=len(norms)):
        found.powers |= {n: Power(p, shifts[n]) for n, p in zip(norms, own, strict=True)}
        after = _answering(model, found.fresh, narrow, batch, found)
        if right is not None and after is not None and difference(right, after) <= TOLERANCE:
            return
    raise InputError(
        "structure: hidden: behind the blocks the narrower model does not answer as the masked one"
    )


def behind(model: Any, found: Narrow, passages: Sequence[Passage], batch: Any) -> float:
    """How far the turned and narrower model's answer is from the masked one's, if blocks are not.

    Raises:
        RunError: if they differ.
    """
    masked, narrow = _both(found, passages)
    if found.turn is not None:
        masked = [replace(p, last=[p.last[0] @ found.turn.T]) for p in masked]
    right = _answering(model, model, masked, batch, found)
    after = _answering(model, found.fresh, narrow, batch, found)
    error = math.inf if right is None or after is None else difference(right, after)
    if not error <= TOLERANCE:
        raise RunError(
            f"behind the blocks the narrower model does not answer as the masked one (they differ "
            f"by {error:.2g}), so none was written"
        )
    return error


def _both(found: Narrow, passages: Sequence[Passage]) -> tuple[list[Passage], list[Passage]]:
    """What stacks give that give what they read: of the masked and of the narrower model."""
    mask = found.mask()
    masked = [replace(p, last=[wide(p.first[0][:1]) * mask.to(p.first[0])]) for p in passages]
    narrow = [
        replace(p, last=[found.s * taken(p.last[0], last(p.last[0], found.kept))],
                first=[taken(p.first[0][:1], last(p.first[0], found.kept))])
        for p in masked
    ]  # fmt: skip
    return masked, narrow


def _outside(model: nn.Module, found: Narrow) -> list[str]:
    inside = tuple(f"{name}." for name in found.names)
    return [n for n in _named(model) if n in found.places and not n.startswith(inside)]


def _named(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False))


def _of_embedding(model: nn.Module, name: str) -> bool:
    """Whether a tensor is looked up, or shares its memory with one that is."""
    named = _named(model)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return id(named[name]) in tables


class _Standing(TorchFunctionMode):
    """Lookups and the head of a model without weights, by those of the dense one.

    Args:
        model: the dense one.
        fresh: the narrower one, or the dense one itself.
        found: what stays; ``None`` of the dense one.
    """

    def __init__(self, model: nn.Module, fresh: nn.Module, found: Narrow | None) -> None:
        super().__init__()
        dense = _named(model)
        self.found = found
        self.names = {id(p): n for n, p in _named(fresh).items() if n in dense}
        self.dense = {n: dense[n] for n in self.names.values()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
        name = self.names.get(id(weight))
        if name is None or func not in (functional.embedding, functional.linear):
            return func(*args, **kwargs)
        table = self.dense[name].detach()
        if func is functional.embedding:
            rows = wide(functional.embedding(args[0], table))
            if self.found is None:
                return rows
            rows = rows if self.found.turn is None else rows @ self.found.turn
            narrow = taken(rows, last(rows, self.found.kept))
            return self.found.powers.get(name, Power()).of(narrow, self.found.s)
        own = self._of(name, table[:SLICE])
        bias = kwargs.get("bias", args[2] if len(args) > 2 else None)
        bias = None if bias is None else self.dense[f"{name[:-6]}bias"].detach()[:SLICE]
        return functional.linear(args[0], own, bias)

    def _of(self, name: str, rows: Tensor) -> Tensor:
        exact: Tensor = wide(rows)
        if self.found is None:
            return exact
        return self.found.of(name, self.found.turned(name, exact, self.dense))


def _arriving(
    model: Any,
    fresh: Any,
    before: Sequence[Passage],
    passage: Passage,
    batch: Any,
    found: Narrow,
) -> Tensor | None:
    """What comes to the first block of a stack, in float64."""
    seen: list[Tensor] = []

    def here(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(x)
        raise FarEnough

    _standing(model, fresh, {**through(before, 0), passage.blocks[0]: here}, batch, found)
    return wide(seen[0]) if seen else None


def _answering(
    model: Any, fresh: Any, passages: Sequence[Passage], batch: Any, found: Narrow
) -> Tensor | None:
    """A model's answer if its stacks gave these, in float64; of many words the first ones."""
    answer = _standing(model, fresh, through(passages, 0), batch, found)
    found_ = getattr(answer, "logits", None)
    if found_ is None:
        found_ = getattr(answer, "last_hidden_state", None)
    return found_ if isinstance(found_, Tensor) else None


def _standing(
    model: Any,
    fresh: Any,
    forwards: Mapping[str, Callable[..., Any]],
    batch: Any,
    found: Narrow,
) -> Any:
    answer = None
    own = None if fresh is model else found
    twin = fresh if own is None else _with_norms(model, fresh, found)
    first = map_tensors(lambda t: t[:1], batch)
    with relayed(twin, forwards), suppress(FarEnough), _Standing(model, twin, own), Double():
        answer = called(twin, first)
    return answer


def _with_norms(model: Any, fresh: Any, found: Narrow) -> Any:
    """The narrower model with its vectors outside of the blocks."""
    named = _named(model)
    for name in _outside(model, found):
        if named[name].dim() == 1:
            path, _, key = name.rpartition(".")
            value = found.of(name, found.turned(name, wide(named[name].detach()), named))
            fresh.get_submodule(path)._parameters[key] = nn.Parameter(value, requires_grad=False)
    return fresh
