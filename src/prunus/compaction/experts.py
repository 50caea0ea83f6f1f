"""Whole experts taken out, and shown equal to a model whose router never chooses them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from prunus._common.modules import detached_copy
from prunus.compaction.case import answers_of
from prunus.compaction.cut import IndexCut, masks_of
from prunus.compaction.slicing.attributes import Attribute, standard
from prunus.compaction.slicing.parameters import slices
from prunus.compaction.slicing.surgery import Surgery, narrowed, refresh
from prunus.compaction.verifying.everywhere import Everywhere
from prunus.compaction.verifying.uses import Use
from prunus.compaction.verifying.values import (
    Lazy,
    State,
    small_state,
    values_for_test,
)
from prunus.compaction.verifying.verify import META, Comparison, compare, difference, outputs
from prunus.compaction.verifying.visits import entries_of, left_of, swapped, swaps, watched
from prunus.errors import RunError
from prunus.graph.experts import Experts, counts_after
from prunus.types import Kept

_NUMBERS = re.compile("experts?")
"""In the names of attributes that say how many experts there are."""


def without_experts(
    model: nn.Module, cut: IndexCut, example: Any, *, whole: int
) -> tuple[Surgery, Comparison, tuple[str, ...]]:
    """How to take experts out of a model: slices, and the numbers of experts that modules keep.

    Args:
        model: that the cut is of; it is not changed.
        cut: of experts.
        example: an input, a tuple of inputs, a mapping of keyword arguments, or a list of these.
        whole: bytes of parameters and buffers above which float64 is never held.

    Raises:
        RunError: if the smaller model does not equal one that never chooses these experts.
    """
    experts, names = cut.analysis.experts, cut.analysis.names
    kept = {n: k for n, k in cut.kept().items() if n in names}
    masks = {n: m for n, m in masks_of(cut, dict(model.named_parameters())).items() if m.any()}
    for name in (n for e in experts for n in e.added if e.way.vectors is None):
        masks.pop(name, None)
    states = values_for_test(model, masks, whole=whole)
    states = (states[0], _never(states[1], experts, kept))
    within = partial(_forgetting, experts)
    with within():
        (states, inputs, gate, expected), examples = answers_of(model, cut, example, states)
    effect = float("nan")
    if gate is not META:
        effect = difference(outputs(model, states[0], inputs, gate), expected)[0]
    sliced = partial(small_state, kept=kept, names=names)
    everywhere = Everywhere(model, states[1], examples, gate, sliced, within)
    gone = gone_entries(experts, kept)
    found = Comparison(float("inf"))
    for numbers in _numbers(model, experts, kept):
        twin, changes = _smaller(model, kept, gone, numbers)
        seen = watched(twin, _staying(experts, kept))
        found = compare((expected, {}), twin, sliced(states[1]), Use("", inputs), gate)
        found = everywhere.check(twin, sliced(states[1]), found)
        for swap in swaps(experts, kept, seen) if found.equal and gate is not META else ():
            other = swapped(states[1], swap)
            with within():
                answered = outputs(model, other, inputs, gate)
            again = compare((answered, {}), twin, sliced(other), Use("", inputs), gate)
            found = found if again.equal else again
        if found.equal:
            note = (gate.note,) if gate.note else ()
            surgery = Surgery(kept, tuple(changes), gone=gone)
            return surgery, replace(found, effect=effect), (*cut.analysis.notes, *note)
    what = found.problem or f"they differ by {found.error:.2g}"
    where = ", ".join(e.where or "the model" for e in experts)
    raise RunError(
        f"the model without these experts does not equal one that never chooses them ({what}): "
        f"{where} may look at the number of experts in another way, for example in groups of a "
        "fixed size. Nothing was changed; structure: channel makes every expert narrower instead"
    )


def _smaller(
    model: nn.Module, kept: Kept, gone: Sequence[str], numbers: Sequence[Attribute]
) -> tuple[nn.Module, list[Attribute]]:
    """A copy without these experts, and the numbers that changed in it."""
    inside = tuple(f"{name}." for name in gone)
    rest = {n: k for n, k in kept.items() if not n.startswith(inside)}
    own = {id(t): t for t in (*model.parameters(), *model.buffers())}
    twin = detached_copy(model, own | slices(model, rest))
    changes = [*standard(twin, ()), *numbers]
    for change in changes:
        change.set(twin)
    narrowed(twin, gone)
    refresh(twin)
    return twin, changes


@contextlib.contextmanager
def _forgetting(experts: Sequence[Experts]) -> Iterator[None]:
    """In what a model answers whose routers forget experts."""
    with contextlib.ExitStack() as stack:
        for way in dict.fromkeys(e.way for e in experts):
            stack.enter_context(way.within())
        yield


def _never(state: State, experts: Sequence[Experts], kept: Kept) -> State:
    """The values of a model whose routers forget the experts that are removed."""
    made = dict(state)
    for some in experts:
        for name, d in some.rows:
            rows = kept.get(name, (None,) * (d + 1))[d]
            if rows is None:
                continue
            gone = torch.ones(some.count, dtype=torch.bool)
            gone[rows] = False
            tensor = made[name]
            values = tensor.made() if isinstance(tensor, Lazy) else tensor
            made[name] = some.way.filled(values, d, gone.nonzero().flatten())
    return made


def gone_entries(experts: Sequence[Experts], kept: Kept) -> tuple[str, ...]:
    """The names of lists' entries that go with experts.

    Args:
        experts: of a model.
        kept: the indices that stay, by tensor and dimension.
    """
    stay = set(_staying(experts, kept))
    every = [n for e in experts for i in range(e.count if e.lists else 0) for n in entries_of(e, i)]
    return tuple(name for name in every if name not in stay)


def _staying(experts: Sequence[Experts], kept: Kept) -> list[str]:
    """The names of lists' entries that stay."""
    return [n for e in experts if e.lists for i in left_of(e, kept) for n in entries_of(e, i)]


def _numbers(model: nn.Module, experts: Sequence[Experts], kept: Kept) -> Iterator[list[Attribute]]:
    """Numbers of experts that modules and configurations keep: by their names, then by values."""
    after = counts_after(experts, kept)
    same = {(e.count, n) for e, n in zip(experts, after, strict=True)}
    shared = list(same) if len(same) == 1 else []
    by_block = [(e.where, e.count, n) for e, n in zip(experts, after, strict=True)]
    for named in (True, False):
        found: dict[tuple[str, str], Attribute] = {}
        for where, before, now in by_block:
            for path, module in model.named_modules():
                if not where or path == where or path.startswith(f"{where}."):
                    for key in _keys(vars(module), before, named=named):
                        found[path, key] = Attribute(path, key, before, now)
        for before, now in shared:
            for change in _elsewhere(model, before, now):
                found.setdefault((change.module, change.name), change)
        yield list(found.values())
    yield []  # code may count the list itself, and mean something else by a number


def _elsewhere(model: nn.Module, before: int, now: int) -> Iterator[Attribute]:
    """In modules around the experts, and in configurations, each once."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        for key in _keys(vars(module), before, named=True):
            yield Attribute(path, key, before, now)
        config = getattr(module, "config", None)
        if hasattr(config, "__dict__") and id(config) not in seen:
            seen.add(id(config))
            for key in _keys(vars(config), before, named=True):
                yield Attribute(path, f"config.{key}", before, now)


def _keys(values: dict[str, Any], count: int, *, named: bool) -> Iterable[str]:
    """Attributes that are the number of experts: how many of them are chosen is none."""
    for key, value in values.items():
        chosen = any(word in key for word in ("per_tok", "top_k", "topk", "shared"))
        right = not named or _NUMBERS.search(key) is not None
        if type(value) is int and value == count and right and not chosen:
            yield key
