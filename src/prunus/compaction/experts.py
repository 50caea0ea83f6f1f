"""Whole experts taken out, and shown equal to a model whose router never chooses them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from prunus._common.modules import detached_copy
from prunus._common.torch_internals import TorchDispatchMode
from prunus.compaction.case import answers_of
from prunus.compaction.cut import IndexCut, masks_of
from prunus.compaction.slicing.attributes import Attribute, standard
from prunus.compaction.slicing.parameters import slices
from prunus.compaction.slicing.surgery import Surgery, refresh
from prunus.compaction.verifying.everywhere import Everywhere
from prunus.compaction.verifying.uses import Use
from prunus.compaction.verifying.values import (
    Lazy,
    State,
    small_state,
    values_for_test,
)
from prunus.compaction.verifying.verify import META, Comparison, compare, difference, outputs
from prunus.errors import RunError
from prunus.graph.call import operator_name
from prunus.graph.experts import Experts, counts_after
from prunus.types import Kept

_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "matmul"})


_NUMBERS = re.compile("experts?")
"""In the names of attributes that say how many experts there are."""


class NeverChosen(TorchDispatchMode):
    """Logits of routers' rows that are NaN become −∞, as if their experts were not there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if operator_name(func) in _PRODUCTS and not result.is_meta:
            return torch.where(result.isnan(), -torch.inf, result)
        return result


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
    states = values_for_test(model, masks_of(cut, dict(model.named_parameters())), whole=whole)
    states = (states[0], _never(states[1], experts, kept))
    with NeverChosen():
        (states, inputs, gate, expected), examples = answers_of(model, cut, example, states)
    effect = float("nan")
    if gate is not META:
        effect = difference(outputs(model, states[0], inputs, gate), expected)[0]
    small = small_state(states[1], kept, names)
    sliced = partial(small_state, kept=kept, names=names)
    everywhere = Everywhere(model, states[1], examples, gate, sliced, NeverChosen)
    own = {id(t): t for t in (*model.parameters(), *model.buffers())}
    found = Comparison(float("inf"))
    for numbers in _numbers(model, experts, kept):
        twin = detached_copy(model, own | slices(model, kept))
        changes = [*standard(twin, ()), *numbers]
        for change in changes:
            change.set(twin)
        refresh(twin)
        found = compare((expected, {}), twin, small, Use("", inputs), gate)
        found = everywhere.check(twin, small, found)
        if found.equal:
            note = (gate.note,) if gate.note else ()
            equal = replace(found, effect=effect)
            return Surgery(kept, tuple(changes)), equal, (*cut.analysis.notes, *note)
    what = found.problem or f"they differ by {found.error:.2g}"
    where = ", ".join(e.where or "the model" for e in experts)
    raise RunError(
        f"the model without these experts does not equal one that never chooses them ({what}): "
        f"{where} may look at the number of experts in another way, for example in groups of a "
        "fixed size. Nothing was changed; structure: channel makes every expert narrower instead"
    )


def _never(state: State, experts: Sequence[Experts], kept: Kept) -> State:
    """With router rows of removed experts marked NaN, and −∞ in what is added to its choice."""
    made = dict(state)
    for some in experts:
        rows = kept.get(some.router, (None,))[0]
        if rows is None:
            continue
        gone = torch.ones(some.count, dtype=torch.bool)
        gone[rows] = False
        for name, fill in ((some.router, torch.nan), *((n, -torch.inf) for n in some.added)):
            tensor = state[name]
            values = tensor.made() if isinstance(tensor, Lazy) else tensor.clone()
            values[gone.to(values.device)] = fill
            made[name] = values
    return made


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
