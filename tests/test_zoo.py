"""Models with known answers: counted, cut in half, compacted, compared, trained, and used."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from helpers import cut_units
from prunus._common.inputs import arguments
from prunus._common.nested import tensors_of
from prunus.compaction.compact import perform
from prunus.compaction.cut import IndexCut, cut_of, masks_of
from prunus.compaction.search import CompactionPlan, find_plan
from prunus.compaction.verifying.verify import Double, difference
from prunus.errors import InputError
from prunus.graph.analysis import Analysis, analyze
from prunus.graph.labels import Fixed
from prunus.graph.listing import table
from prunus.graph.units import coupled_units
from prunus.pruning.masks import apply
from prunus.types import Masks
from zoo import CORE, ENTRIES, Entry, by_name
from zoo.uses import Small, chosen, model_of, multiplied, tried, uses_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of the models' own code

MODELS = [pytest.param(e, id=e.name, marks=() if e.core else pytest.mark.zoo) for e in ENTRIES]
SECONDS: dict[str, float] = {}


@pytest.fixture(scope="module", autouse=True)
def _slowest() -> Iterator[None]:
    """Print which analyses took longest; times are not asserted."""
    yield
    slow = sorted(SECONDS, key=lambda name: -SECONDS[name])[:5]
    print("\nslowest analyses:", ", ".join(f"{n} {SECONDS[n]:.1f} s" for n in slow))


@dataclass(frozen=True)
class Halved:
    """An entry's model with half of its units masked, and what became of it."""

    analysis: Analysis
    cut: IndexCut
    masks: Masks
    masked: nn.Module
    plan: CompactionPlan
    small: nn.Module


def build(entry: Entry) -> nn.Module:
    if entry.needs and importlib.util.find_spec(entry.needs) is None:
        pytest.skip(f"{entry.needs} is not installed")
    return model_of(entry)


def analyzed(entry: Entry, model: nn.Module) -> Analysis:
    start = time.perf_counter()
    analysis = analyze(model, entry.example())
    SECONDS[entry.name] = time.perf_counter() - start
    return analysis


def halved(entry: Entry) -> Halved:
    model = build(entry)
    analysis = analyzed(entry, model)
    names = list(dict.fromkeys(analysis.names[n] for n, _ in model.named_parameters()))
    chance = np.random.default_rng(0)
    kinds = coupled_units(analysis, names)
    cut = cut_units(
        analysis, np.concatenate([chance.permutation(k.classes)[: len(k) // 2] for k in kinds])
    )
    masks = masks_of(cut, dict(model.named_parameters()))
    apply(model, masks)
    plan = find_plan(model, cut, entry.example())
    small = perform(copy.deepcopy(model), plan)
    return Halved(analysis, cut, masks, model, plan, small)


def run(model: nn.Module, example: Any, *, wide: bool = True) -> list[Tensor]:
    """A model's real outputs, in float64 where its operators know that type."""

    def fresh(tensor: Tensor) -> Tensor:
        return tensor.double() if wide and tensor.is_floating_point() else tensor.clone()

    model = copy.deepcopy(model).double() if wide else model
    args, kwargs = arguments(_pytree.tree_map_only(Tensor, fresh, example))
    with torch.no_grad(), Double() if wide else contextlib.nullcontext():
        found = tensors_of(model(*args, **kwargs))
    return [t for t in found if t.is_floating_point()] or found


def doubled(example: Any) -> Any:
    """Twice the batch: entries have a batch of two, wherever it stands, or none."""

    def twice(tensor: Tensor) -> Tensor:
        if 2 not in tensor.shape:
            return tensor
        batch = list(tensor.shape).index(2)
        return torch.cat([tensor, tensor.flip(batch)], dim=batch)

    return _pytree.tree_map_only(Tensor, twice, example)


def by_dimension(model: nn.Module, analysis: Analysis) -> dict[str, bool]:
    """``parameter:dimension`` -> whether every index can go; dimensions of size 1 left out."""
    found = {}
    for name in dict.fromkeys(analysis.names[n] for n, _ in model.named_parameters()):
        value = analysis.tensors.get(name)
        for d, dim in enumerate(() if value is None else value.dims):  # None: no pass reads it
            if value is not None and value.shape[d] > 1:
                free = not isinstance(dim, Fixed) and bool(analysis.solved.free(dim).all())
                found[f"{name}:{d}"] = free
    return found


@pytest.mark.parametrize("entry", MODELS)
def test_half_of_the_units_go_and_the_answer_stays(entry: Entry, tmp_path: Path) -> None:
    if entry.refused:
        with pytest.raises(InputError, match=entry.refused):
            halved(entry)
        return
    done = halved(entry)
    found = table(done.masked, done.analysis)
    assert found.total == sum(entry.units().values()), f"{entry.units()}\n{found}"
    assert set(found.unknown) == set(entry.unruled)
    for place, free in by_dimension(done.masked, done.analysis).items():
        if entry.pinned is None:
            break
        listed = any(fnmatch(place, pattern) for pattern in entry.pinned)
        assert free is not listed, f"{place} {'is free' if free else 'stays'}\n{found}"
    assert cut_of(done.analysis, done.masks).units() == done.cut.units()
    check_sizes(done)
    check_answers(entry, done)
    check_training(entry, done)
    if not entry.core:
        check_uses(entry, done, tmp_path)


def check_sizes(done: Halved) -> None:
    """Parameters are as many as the kept indices say."""
    expected = 0
    for name, parameter in done.masked.named_parameters():
        kept = done.plan.surgery.kept.get(done.analysis.names[name], (None,) * parameter.dim())
        sizes = zip(kept, parameter.shape, strict=True)
        expected += math.prod(size if k is None else len(k) for k, size in sizes)
    assert sum(p.numel() for p in done.small.parameters()) == expected
    assert expected < sum(p.numel() for p in done.masked.parameters())


def check_answers(entry: Entry, done: Halved) -> None:
    """Masked and compact model agree: by the plan's random values, and on the entry's own."""
    assert done.plan.comparison.equal
    assert done.plan.comparison.effect > 1e-3
    wide = not any("float64" in note for note in done.plan.notes)
    tolerance = 1e-10 if wide else 1e-4
    assert done.plan.comparison.error <= tolerance
    expected = run(done.masked, entry.example(), wide=wide)
    assert expected
    assert difference(expected, run(done.small, entry.example(), wide=wide))[0] <= tolerance
    if any("shape only" in note for note in done.plan.notes):
        return
    try:
        expected = run(done.masked, doubled(entry.example()), wide=wide)
    except RuntimeError:
        return  # the model itself knows one batch size
    again = run(done.small, doubled(entry.example()), wide=wide)
    assert difference(expected, again)[0] <= tolerance


def check_training(entry: Entry, done: Halved) -> None:
    """A step of SGD: gradients are finite, and parameters move."""
    model = copy.deepcopy(done.small).train()
    args, kwargs = arguments(entry.example())
    before = [p.detach().clone() for p in model.parameters()]
    outputs = [t for t in tensors_of(model(*args, **kwargs)) if t.requires_grad]
    if not outputs:
        return  # integers come out
    sum(t.double().square().mean() for t in outputs).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads
    assert all(bool(g.isfinite().all()) for g in grads)
    largest = max(float(g.abs().max()) for g in grads)
    torch.optim.SGD(model.parameters(), lr=0.1 / largest).step()
    assert any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_shared_configuration_says_the_new_sizes_where_all_layers_agree() -> None:
    model: Any = build(by_name("llama, grouped queries"))
    example = by_name("llama, grouped queries").example()
    analysis = analyze(model, example)
    kinds = coupled_units(analysis, list(analysis.tensors))
    heads = [k for k in kinds if k.head]
    neurons = [k for k in kinds if not k.head]
    gone = [k.classes[:1] for k in heads] + [k.classes[: 10 + i] for i, k in enumerate(neurons)]
    small: Any = perform(
        copy.deepcopy(model), find_plan(model, cut_units(analysis, np.concatenate(gone)), example)
    )
    assert (small.config.num_attention_heads, small.config.num_key_value_heads) == (4, 2)
    assert [la.mlp.up_proj.out_features for la in small.model.layers] == [40, 39]
    assert small.config.intermediate_size == model.config.intermediate_size == 50
    assert model.config.num_attention_heads == 6


@pytest.mark.zoo
@pytest.mark.parametrize("entry", [pytest.param(e, id=e.name) for e in CORE])
def test_the_core_answers_alike_in_other_uses(entry: Entry, tmp_path: Path) -> None:
    check_uses(entry, halved(entry), tmp_path)


def check_uses(entry: Entry, done: Halved, folder: Path) -> None:
    """A fixed third of the uses, and every use that is known to go wrong: it must still do so."""
    masked = multiplied(model_of(entry), done.masks)
    small = Small(entry, masked, done.small, done.plan.route, done.plan.surgery.attributes)
    every = uses_of(entry, masked)
    assert entry.faults.keys() <= {use.name for use in every}
    picked = [u for u in every if u.name in entry.faults or u in chosen(entry, every)]
    found = {use.name: tried(small, use, folder) for use in picked}
    wrong = {n: o for n, o in found.items() if not o.fine and n not in entry.faults}
    assert wrong == {}, "\n".join(f"{n}: {o.kind}, {o.detail}" for n, o in wrong.items())
    mended = [n for n in entry.faults if found[n].fine]
    assert mended == [], "no longer wrong: take the mark in `faults` away"
    assert any(o.kind == "equal" for o in found.values())
