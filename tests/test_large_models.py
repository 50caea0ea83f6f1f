"""Models too large for a copy in float64: compared matrix by matrix, with the same answers."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import cut_units, transformers
from prunus._common.gathering import along
from prunus._common.inputs import arguments
from prunus.compaction.compact import perform
from prunus.compaction.cut import IndexCut, masks_of
from prunus.compaction.rewriting import rewrite as rewriting
from prunus.compaction.search import NOT_COMPARED, CompactionPlan, find_plan
from prunus.compaction.verifying import everywhere, sources, values
from prunus.compaction.verifying.stepping import first_difference
from prunus.compaction.verifying.uses import Use, uses_of
from prunus.compaction.verifying.values import (
    WHOLE,
    Lazy,
    random_like,
    small_state,
    values_for_test,
)
from prunus.compaction.verifying.verify import Double, compare, outputs
from prunus.errors import RunError
from prunus.graph.analysis import analyze
from prunus.graph.units import coupled_units

EXPORTING = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
"""torch 2.6 has one name for both."""


@pytest.fixture(autouse=True)
def _a_few_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """How values are held is the same in all uses of a model; test_every_use has them all."""
    every = everywhere.uses_of
    monkeypatch.setattr(everywhere, "uses_of", lambda *given: list(every(*given))[:4])


class Network(nn.Module):
    """Convolutions with batch norm; a number in the code, if asked for, makes it become a graph."""

    def __init__(self, *, hard_coded: bool = False) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depth, self.second = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 3)
        self.out = nn.Linear(6 * 4 * 4, 3)
        self.hard_coded = hard_coded

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.depth(F.relu(self.norm(self.first(x))))))
        return self.out(x.reshape(len(x), 96) if self.hard_coded else x.flatten(1))


class Reader(nn.Module):
    """An embedding, tied to the output, and an LSTM between."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(13, 6)
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.back, self.out = nn.Linear(10, 6), nn.Linear(6, 13, bias=False)
        self.out.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.back(self.lstm(self.words(ids))[0]))


IMAGES, IDS = torch.ones(2, 2, 8, 8), torch.tensor([[5, 7, 9], [11, 3, 2]])


def bert() -> tuple[nn.Module, Any]:
    config = transformers().BertConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    return transformers().BertModel(config), {"input_ids": IDS}


def llama() -> tuple[nn.Module, Any]:
    config = transformers().LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=31, use_cache=False,
    )  # fmt: skip
    return transformers().LlamaForCausalLM(config), {"input_ids": IDS}


def encoder() -> tuple[nn.Module, Any]:
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    inner = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(inner, nn.Linear(16, 3)), torch.ones(2, 5, 16)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "convolutions": lambda: (Network(), IMAGES),
    "convolutions, channels last": lambda: (
        Network().to(memory_format=torch.channels_last),
        IMAGES,
    ),
    "convolutions that become a graph": lambda: (Network(hard_coded=True), IMAGES),
    "lstm and a tied embedding": lambda: (Reader(), IDS),
    "encoder whose attention becomes graphs": encoder,
    "bert": bert,
    "llama, grouped queries": llama,
}


def halved(name: str) -> tuple[nn.Module, Any, IndexCut]:
    """A model and a cut of half of its units."""
    torch.manual_seed(0)
    model, example = MODELS[name]()
    model.eval()
    analysis = analyze(model, example)
    kinds = coupled_units(analysis, [analysis.names[n] for n, _ in model.named_parameters()])
    gone = [kind.classes[: len(kind) // 2] for kind in kinds]
    return model, example, cut_units(analysis, np.concatenate(gone))


def facts(plan: CompactionPlan) -> tuple[object, ...]:
    found = plan.comparison
    attributes = [(a.module, a.name, a.before, a.after) for a in plan.surgery.attributes]
    notes = [note for note in plan.notes if note != NOT_COMPARED]
    return plan.route, found.error, found.effect, found.problem, notes, attributes


@pytest.mark.parametrize("name", MODELS)
def test_matrix_by_matrix_gives_the_very_comparison_of_the_whole(name: str) -> None:
    model, example, cut = halved(name)
    plan = find_plan(model, cut, example, whole=0)
    at_once = find_plan(model, cut, example)
    assert facts(plan) == facts(at_once)
    assert (NOT_COMPARED in plan.notes) == (plan.route == "graph"), "what was left out is said"
    assert NOT_COMPARED not in at_once.notes
    assert plan.comparison.equal
    assert plan.comparison.effect > 1e-3
    before = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in perform(model, plan).parameters()) < before


@pytest.mark.parametrize("name", ["convolutions", "lstm and a tied embedding", "bert"])
def test_values_made_late_and_in_any_order_are_those_made_at_once(name: str) -> None:
    model, _, cut = halved(name)
    masks = masks_of(cut, dict(model.named_parameters()))
    with torch.no_grad():  # a constant matrix gets random numbers of its own
        next(p for p in model.parameters() if p.dim() > 1).fill_(0.5)
    late, once = (values_for_test(model, masks, whole=w) for w in (0, WHOLE))
    kept, names = cut.kept(), cut.analysis.names
    for lazy, held in (
        *zip(late, once, strict=True),
        (small_state(late[1], kept, names), small_state(once[1], kept, names)),
    ):
        assert any(isinstance(t, Lazy) for t in lazy.values())
        for key in reversed(list(held)):
            tensor = lazy[key]
            assert (tensor.shape, tensor.stride()) == (held[key].shape, held[key].stride())
            made = tensor.made() if isinstance(tensor, Lazy) else tensor
            assert torch.equal(made, held[key]), key


def test_few_matrices_are_held_in_float64_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [layer for _ in range(20) for layer in (nn.Linear(16, 16), nn.ReLU())]
    model, example = nn.Sequential(*layers), torch.ones(2, 16)
    analysis = analyze(model, example)
    kinds = coupled_units(analysis, list(analysis.names))
    cut = cut_units(analysis, np.concatenate([k.classes[:8] for k in kinds]))
    seen: list[weakref.ref[Tensor]] = []
    most = []
    right = sources.Source.made

    def made(self: Any, kept: Any = None) -> Tensor:
        tensor = right(self, kept)
        if tensor.dim() > 1:
            seen.append(weakref.ref(tensor))
            most.append(sum(ref() is not None for ref in seen))
        return tensor

    monkeypatch.setattr(sources.Source, "made", made)
    find_plan(model, cut, example, whole=0)
    assert max(most) <= 2
    assert len(most) >= 20 * 4  # dense, masked, the graph, the modules; then every other use


def _reversed_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    right = rewriting.take

    def wrong(tensor: Tensor, kept: tuple[Tensor | None, ...]) -> Tensor:
        return right(tensor, tuple(None if k is None else k.flip(0) for k in kept[:1]) + kept[1:])

    used = ("rewriting.rewrite", "verifying.values", "verifying.sources", "verifying.stepping")
    for module in used:
        monkeypatch.setattr(f"prunus.compaction.{module}.take", wrong)


@pytest.mark.parametrize("name", ["convolutions", "bert", "llama, grouped queries"])
def test_a_fault_is_found_and_named_as_in_a_small_model(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, example, cut = halved(name)
    _reversed_indices(monkeypatch)
    texts = []
    for whole in (0, WHOLE):
        with pytest.raises(RunError, match=r"first operator that differs is \S+") as caught:
            find_plan(model, cut, example, whole=whole)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def wide() -> tuple[nn.Module, Tensor, IndexCut]:
    """A model whose matrices are read some rows at a time, and a cut of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 512), nn.ReLU(), nn.Linear(512, 300)).eval()
    example = torch.ones(2, 300)
    analysis = analyze(model, example)
    kinds = coupled_units(analysis, list(analysis.names))
    return model, example, cut_units(analysis, np.concatenate([k.classes[::2] for k in kinds]))


def test_matrices_read_by_rows_give_the_comparison_of_the_whole() -> None:
    model, example, cut = wide()
    late, once = find_plan(model, cut, example, whole=0), find_plan(model, cut, example)
    assert late.comparison.equal
    assert late.comparison.effect == pytest.approx(once.comparison.effect, rel=1e-9)
    assert late.comparison.effect > 1e-3


def test_a_row_that_met_a_matrix_before_is_not_multiplied_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, example, cut = wide()
    right, read = sources.Source.blocks, []

    def blocks(self: Any, kept: Any, dtype: Any) -> Any:
        read.append((id(self), kept is None, dtype))
        return right(self, kept, dtype)

    monkeypatch.setattr(sources.Source, "blocks", blocks)
    monkeypatch.setattr(values, "SHARE", 16)  # room for two rows of a small matrix
    monkeypatch.setattr(everywhere, "uses_of", lambda *given: list(uses_of(*given))[:2])
    find_plan(model, cut, example, whole=0)
    assert len(read) == len(set(read)) == 2 * 3, "dense, masked and small, each matrix once"


@pytest.mark.parametrize("dim", [0, 1])
def test_a_wrong_index_of_a_matrix_read_by_rows_is_found(dim: int) -> None:
    model, example, cut = wide()
    _, masked = values_for_test(model, masks_of(cut, dict(model.named_parameters())), whole=0)
    kept = cut.kept()
    small = dict(small_state(masked, kept, cut.analysis.names))
    name = ("0.weight", "2.weight")[dim]
    wrong = [*kept[name]]
    assert wrong[dim] is not None
    wrong[dim] = torch.cat([wrong[dim][:-1], wrong[dim][-1:] - 1])
    assert isinstance(masked[name], Lazy)
    small[name] = masked[name].taken(tuple(wrong))
    inputs = random_like(arguments(example))
    rewritten = rewriting.rewrite(cut)
    expected = outputs(model, masked, inputs)
    right = small_state(masked, kept, cut.analysis.names)
    assert compare((expected, {}), rewritten.module, right, Use("", inputs)).equal
    assert not compare((expected, {}), rewritten.module, small, Use("", inputs)).equal


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.bool, torch.float64])
@pytest.mark.parametrize("dim", [0, 1])
def test_picking_indices_is_the_same_however_they_are_picked(dtype: torch.dtype, dim: int) -> None:
    values = torch.randn(5, 7).to(dtype)
    index = torch.tensor([0, 2, 3, 4])
    wanted = values.index_select(dim, index)
    assert torch.equal(along(values, dim, index), wanted)
    assert torch.equal(along(values.t().contiguous().t(), dim, index), wanted)
    assert torch.equal(along(values, dim, index, out=torch.empty_like(wanted)), wanted)
    with Double():
        assert torch.equal(along(values, dim, index).to(dtype), wanted)
    with pytest.raises((IndexError, RuntimeError)):
        along(values, dim, torch.tensor([9]))


def test_a_wrong_slice_of_one_matrix_is_named() -> None:
    model, example, cut = halved("lstm and a tied embedding")
    masks = masks_of(cut, dict(model.named_parameters()))
    _, masked = values_for_test(model, masks, whole=0)
    small = dict(small_state(masked, cut.kept(), cut.analysis.names))
    wrong = small["back.weight"]
    assert isinstance(wrong, Lazy)
    small["back.weight"] = wrong.made().flip(1)
    inputs = random_like(arguments(example))
    rewritten = rewriting.rewrite(cut)
    expected = outputs(model, masked, inputs)
    assert not compare((expected, {}), rewritten.module, small, Use("", inputs)).equal
    assert first_difference(cut, rewritten, (masked, small), inputs) == "back.weight"


class Peeks(nn.Module):
    """Asks a parameter for what only one in memory has, or writes to it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.out, self.how = nn.Linear(5, 6), nn.Linear(6, 2), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "address" and not EXPORTING():
            assert self.out.weight.data_ptr()
        if self.how == "write" and not EXPORTING():
            self.out.weight.clamp_(min=-1)
        return self.out(torch.relu(self.first(x)))


@pytest.mark.parametrize("how", ["address", "write"])
def test_code_that_needs_parameters_in_memory_gets_them(how: str) -> None:
    model, example = Peeks(how).eval(), torch.ones(2, 5)
    analysis = analyze(model, example)
    (kind,) = coupled_units(analysis, list(analysis.names))
    cut = cut_units(analysis, kind.classes[:2])
    assert facts(find_plan(model, cut, example, whole=0)) == facts(find_plan(model, cut, example))
