"""Experts that are entries of lists of modules, and the router that has a row for each of them.

What a router is and whose is seen by what it does. An index of it is never chosen (its logit is
−∞) or, where the gates of the experts are no choice, has a gate of zero; then the answers are
numbers, and changing the entry of that index does not change them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunus._common.modules import joined, shared_copy
from prunus._common.narrow_list import NarrowList
from prunus._common.nested import map_tensors, own_containers, tensors_of
from prunus._common.put_back import PutBack
from prunus._common.rng import preserve_rng, seed
from prunus.graph.analysis import Analysis
from prunus.graph.labels import Fixed
from prunus.graph.never_chosen import WAYS, Forgotten
from prunus.graph.trace import analysis_mode
from prunus.graph.units import Place

_NEAR = 1e-5
"""Largest difference of answers that are the same, relative to the largest of them."""


@dataclass(frozen=True)
class Listed:
    """Lists of modules whose entries a router chooses from.

    Attributes:
        where: the module that holds lists and router.
        lists: their names.
        entries: of each expert the tensors that go with it.
        rows: dimensions that have an index for each expert: weights first.
        way: in which the router forgets an expert.
    """

    where: str
    lists: tuple[str, ...]
    entries: tuple[tuple[str, ...], ...]
    rows: tuple[Place, ...]
    way: Forgotten

    @property
    def count(self) -> int:
        """How many experts there are."""
        return len(self.entries)


def find_listed(analysis: Analysis, model: nn.Module, scope: set[str]) -> list[Listed]:
    """Lists of alike modules that a router chooses from.

    Args:
        analysis: of the model.
        model: whose values are read; on the meta device nothing is found.
        scope: names of weights, of which a list must hold one.
    """
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        return []
    lists = {p: e for p, e in _alike(model) if any(n in scope for own in e for n in own)}
    seen = set(analysis.read.values())
    lists = {p: e for p, e in lists.items() if any(n in seen for own in e for n in own)}
    found: list[Listed] = []
    trial = _Trial(analysis, model)
    for path, entries in lists.items():
        if any(path in other.lists for other in found):
            continue
        same = {p: e for p, e in lists.items() if len(e) == len(entries)}
        for where in _around(path):
            near = {p: e for p, e in same.items() if _inside(p, where)}
            rows = [r for r in _rows(analysis, where, len(entries)) if not _of(r[0], near)]
            listed = trial.settled(where, near, rows) if rows else None
            if listed is not None and path in listed.lists:
                found.append(listed)
                break
    return found


def _alike(model: nn.Module) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Lists of two or more modules with the same tensors, which nothing else holds."""
    owners: dict[int, int] = {}
    every = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    for _, tensor in every:
        owners[id(tensor)] = owners.get(id(tensor), 0) + 1
    for path, module in model.named_modules():
        if type(module) not in (nn.ModuleList, NarrowList) or len(module._modules) < 2:
            continue
        shapes, names = [], []
        for key, entry in module._modules.items():
            assert entry is not None
            own = [*entry.named_parameters(), *entry.named_buffers()]
            if any(owners[id(t)] > 1 for _, t in own):
                own = []
            shapes.append([(name, tuple(t.shape)) for name, t in own])
            names.append(tuple(joined(joined(path, key), name) for name, _ in own))
        if shapes[0] and all(s == shapes[0] for s in shapes):
            yield path, names


def _around(path: str) -> Iterator[str]:
    """The modules that a module lies in, from the inside out."""
    while path:
        path = path.rpartition(".")[0]
        yield path


def _inside(name: str, where: str) -> bool:
    return not where or name.startswith(f"{where}.")


def _of(name: str, lists: Mapping[str, object]) -> bool:
    return any(name.startswith(f"{path}.") for path in lists)


def _rows(analysis: Analysis, where: str, count: int) -> list[Place]:
    """Dimensions of so many indices, none of which can go, that are not the model's outputs."""
    found = []
    for name, value in analysis.tensors.items():
        own = name in analysis.names and _inside(name, where)  # no constant of the code
        for d, dim in enumerate(value.dims if own else ()):
            if value.shape[d] != count or isinstance(dim, Fixed):
                continue
            if not analysis.solved.free(dim).any() and not _is_output(analysis.solved.why(dim)):
                found.append((name, d))
    return found


def _is_output(why: str | None) -> bool:
    return why == "the model's output"


class _Trial:
    """A model's answers on the example, with other values of some of its tensors."""

    def __init__(self, analysis: Analysis, model: nn.Module) -> None:
        self._analysis, self._model = analysis, model
        self._tensors: dict[str, Tensor] = {
            n: t.detach() for n, t in (*model.named_parameters(), *model.named_buffers())
        }
        self._dense: list[Tensor] | None = None

    def settled(
        self, where: str, lists: Mapping[str, Sequence[tuple[str, ...]]], rows: list[Place]
    ) -> Listed | None:
        """Those of some lists and dimensions that are experts and their router; ``None``: none."""
        if self._dense is None:
            self._dense = self._answers({}, contextlib.nullcontext()) or []
        if not self._dense:  # whole numbers alone, such as classes, do not show what matters
            return None
        number = self._visited(lists)
        for way in WAYS:
            groups = self._together(rows)
            chosen = [r for group in groups if self._holds(group, way, number) for r in group]
            weights = [r for r in chosen if len(self._analysis.tensors[r[0]].shape) > 1]
            if not weights:
                continue
            own = {p: e for p, e in lists.items() if self._apart(e[number], chosen, way, number)}
            if own:
                every = zip(*own.values(), strict=True)
                entries = tuple(tuple(name for one in expert for name in one) for expert in every)
                rest = [r for r in chosen if r not in weights]
                return Listed(where, tuple(own), entries, (*weights, *rest), way)
        return None

    def _visited(self, lists: Mapping[str, Sequence[tuple[str, ...]]]) -> int:
        """An expert that the first example goes to."""
        seen = {
            self._analysis.read[n] for n in self._analysis.read
            if n.graph is self._analysis.traced.module.graph
        }  # fmt: skip
        for entries in lists.values():
            for i, own in enumerate(entries):
                if any(n in seen for n in own):
                    return i
        return 0

    def _together(self, rows: list[Place]) -> list[list[Place]]:
        """Dimensions whose indices fall together."""
        groups: dict[bytes, list[Place]] = {}
        for name, d in rows:
            dim = self._analysis.tensors[name].dims[d]
            assert not isinstance(dim, Fixed)
            groups.setdefault(self._analysis.solved.of(dim).tobytes(), []).append((name, d))
        return list(groups.values())

    def _holds(self, rows: list[Place], way: Forgotten, number: int) -> bool:
        """Whether the answers are still numbers without an index of a router."""
        found, dense = self._without(rows, way, number, {}), self._dense
        if found is None or dense is None or len(found) != len(dense):
            return False
        return all(
            f.shape == d.shape and bool(f[d.isfinite()].isfinite().all())
            for f, d in zip(found, dense, strict=True)
        )

    def _apart(self, own: tuple[str, ...], rows: list[Place], way: Forgotten, number: int) -> bool:
        """Whether an entry's values do not matter without its index of the router."""
        generator = torch.Generator().manual_seed(0)
        real = {n: self._tensors[n] for n in own if self._tensors[n].is_floating_point()}
        other = {
            n: t + torch.randn(t.shape, generator=generator).abs().to(t) for n, t in real.items()
        }
        one, two = (self._without(rows, way, number, more) for more in ({}, other))
        if not real or one is None or two is None or len(one) != len(two):
            return False
        return all(_same(a, b) for a, b in zip(one, two, strict=True))

    def _without(
        self, rows: list[Place], way: Forgotten, number: int, more: Mapping[str, Tensor]
    ) -> list[Tensor] | None:
        made: dict[str, Tensor] = {}
        for name, d in rows:
            made[name] = way.filled(made.get(name, self._tensors[name]), d, torch.tensor([number]))
        return self._answers({**made, **more}, way.within())

    def _answers(
        self, values: Mapping[str, Tensor], within: AbstractContextManager[Any]
    ) -> list[Tensor] | None:
        """``None`` where the model's code does not take them."""
        twin = shared_copy(self._model)
        args, kwargs = own_containers(map_tensors(Tensor.clone, self._analysis.traced.inputs))
        with contextlib.ExitStack() as stack:
            stack.enter_context(preserve_rng())
            stack.enter_context(analysis_mode(twin))
            stack.enter_context(torch.no_grad())
            stack.enter_context(PutBack(self._tensors.values()))
            stack.enter_context(within)
            seed(0)
            try:
                found = tensors_of(functional_call(twin, dict(values), args, kwargs))
            except Exception:  # of the model's code, on numbers that it did not expect
                return None
        return [t for t in found if t.is_floating_point()]


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    scale = float(one[one.isfinite()].abs().max()) if bool(one.isfinite().any()) else 1.0
    return torch.allclose(one, other, rtol=0, atol=_NEAR * max(scale, 1e-30), equal_nan=True)
