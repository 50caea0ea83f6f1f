"""One counting of MACs and densities: by item where there are items, the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import costs
from prunus._common.batch import find_batch
from prunus._common.inputs import arguments
from prunus.costs.macs import macs
from prunus.graph.analysis import analyze
from prunus.graph.counting import macs_terms
from prunus.progressive.progress import round_line
from prunus.report.page import write_report


class Graph(nn.Module):
    """Messages along edges: nodes are no items."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(7, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        sent = torch.zeros_like(x).index_add_(0, edges[1], x[edges[0]])
        return self.last(torch.relu(self.first(x + sent)))  # type: ignore[no-any-return]


class Pairs(nn.Module):
    """Every pair of places hears of every other one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, pairs: Tensor) -> Tensor:
        made = torch.einsum("ikc,jkc->ijc", self.a(pairs), self.b(pairs))
        return self.out(made)  # type: ignore[no-any-return]


class Translate(nn.Module):
    """Two sequences of different lengths, time first, of which one's state goes to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.write = nn.GRU(12, 16), nn.GRU(6, 16)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.write(target, self.read(source)[1])[0]  # type: ignore[no-any-return]


class Similar(nn.Module):
    """Each picture beside each text: an answer of two items."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(6, 8)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        both = self.a(x) @ self.b(y).T
        return {"loss": both.mean(), "logits": both}


class Flat(nn.Module):
    """Answers of one item stand below each other."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer(self.table(ids)).reshape(-1, 8)  # type: ignore[no-any-return]


class Fixed(nn.Linear):
    """Takes a batch of four and no other."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(4, 3))


ITEMS = {
    "rows": (nn.Linear(3, 4), torch.zeros(5, 3), 5),
    "a batch that is fixed": (Fixed(3, 4), torch.randn(4, 3), 4),
    "time first": (nn.LSTM(8, 16), torch.zeros(7, 5, 8), 5),
    "time first, one item": (nn.LSTM(8, 16), torch.randn(7, 1, 8), 1),
    "time first, both ways": (nn.GRU(8, 16, bidirectional=True), torch.randn(24, 2, 8), 2),
    "batch first": (nn.LSTM(8, 16, batch_first=True), torch.randn(5, 7, 8), 5),
    "one sequence": (nn.LSTM(8, 16), torch.randn(7, 8), 1),
    "attention, time first": (nn.TransformerEncoderLayer(8, 2, 16), torch.randn(7, 5, 8), 5),
    "two sequences": (Translate(), (torch.randn(7, 2, 12), torch.randn(5, 2, 6)), 2),
    "nodes": (Graph(), (torch.randn(9, 7), torch.randint(0, 9, (2, 20))), 1),
    "pairs": (Pairs(), torch.randn(6, 6, 4), 1),
    "similarities beside a loss": (Similar(), (torch.randn(5, 4), torch.randn(5, 6)), 5),
    "answers of an item in rows": (Flat(), torch.randint(0, 9, (3, 6)), 3),
    "pictures": (nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8), 2),
    "one picture": (nn.Conv2d(3, 4, 3), torch.randn(3, 8, 8), 1),
}


@pytest.mark.parametrize("name", ITEMS)
def test_items_are_found_wherever_they_stand(name: str) -> None:
    torch.manual_seed(0)
    model, example, items = ITEMS[name]
    state = torch.get_rng_state()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    found = find_batch(model, arguments(example))
    assert found.size == items
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert model.training


def test_macs_do_not_hang_on_how_many_items_the_example_has() -> None:
    for model, shapes in (
        (nn.LSTM(8, 16), [(7, 1, 8), (7, 5, 8), (7, 8)]),
        (nn.LSTM(8, 16, batch_first=True), [(1, 7, 8), (5, 7, 8)]),
        (nn.Conv1d(3, 4, 2), [(1, 3, 6), (4, 3, 6), (3, 6)]),
    ):
        found = {costs.measure(model, torch.randn(shape))["macs"] for shape in shapes}
        assert len(found) == 1, (model, found)


@pytest.mark.parametrize("name", ["time first", "nodes", "pairs", "two sequences"])
def test_a_cut_and_a_measurement_count_the_same(name: str) -> None:
    torch.manual_seed(0)
    model, example, _ = ITEMS[name]
    counted = costs.measure(model, example)["macs"]
    assert counted
    measured = prunus.measure(model, example, seconds=0.01, threads=1)
    assert measured.model.macs == counted
    result = prunus.prune(model, {"target": 0.5}, example=example)
    assert result.cost_before["macs"] == counted
    whole = [n for n in (*result.notes, *measured.warnings) if "MACs are of the whole pass" in n]
    assert len(whole) == (2 if name in ("nodes", "pairs") else 0)
    assert [p.batch for p in measured.model.passes] == ([1] if whole else [1, 16])


def test_batches_of_a_model_that_takes_time_first_are_of_sequences() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.seen = nn.LSTM(8, 16), SEEN

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add(tuple(x.shape))
            return self.inner(x)[0]  # type: ignore[no-any-return]

        def __deepcopy__(self, memo: Any) -> Any:
            made = Last()
            made.load_state_dict(self.state_dict())
            return made

    SEEN: set[tuple[int, ...]] = set()  # noqa: N806 (of all copies)
    prunus.measure(Last(), torch.randn(7, 5, 8), batch_sizes=[3], seconds=0.01)
    assert (7, 3, 8) in SEEN
    assert (3, 5, 8) not in SEEN


def test_an_absolute_bound_is_of_an_item_wherever_items_stand() -> None:
    torch.manual_seed(0)

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.GRU(8, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.inner(x)[0])  # type: ignore[no-any-return]

    example, model = torch.randn(7, 5, 8), Tagger()
    dense = costs.measure(model, example)["macs"]
    assert dense == 7 * (3 * 16 * (8 + 16) + 16 * 4)
    recipe = {"structure": "channel", "compact": "end", "target": {"max_macs": dense // 2}}
    result = prunus.prune(model, recipe, example=example)
    assert result.cost_before["macs"] == dense
    after = result.cost_after["macs"]
    assert after is not None
    assert 0.3 * dense < after <= dense // 2
    assert 1 - after / dense == pytest.approx(result.rounds[-1].achieved)


def test_a_figure_that_cannot_be_had_says_why_and_stops_nothing() -> None:
    class Grumpy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
                raise ValueError("not while somebody counts")
            return super().forward(x)

    example = torch.randn(4, 6)
    result = prunus.prune(Grumpy(6, 5), {"target": 0.5}, example=example)
    assert result.cost_before["macs"] is None
    assert any("MACs are unknown" in n and "not while somebody counts" in n for n in result.notes)
    measured = prunus.measure(Grumpy(6, 5), example, seconds=0.01)
    assert any("not while somebody counts" in w for w in measured.warnings)


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


@pytest.mark.parametrize("compact", ["none", "end"])
def test_the_density_of_a_layer_is_that_of_its_tensor(compact: str) -> None:
    recipe = {"structure": "channel", "allocation": "uniform", "target": 0.4, "compact": compact}
    dense, model = convolutions(), convolutions()
    result = prunus.prune(model, recipe, example=torch.randn(2, 3, 8, 8), folder="run")
    density = result.rounds[-1].densities
    names = [n for n, p in dense.named_parameters() if p.dim() > 1]
    assert sorted(density) == names
    for name in names:
        shape = dense.get_parameter(name).shape
        kept = result.masks[name].expand(shape).float().mean()
        assert density[name] == pytest.approx(float(kept))
    assert density["2.weight"] < 0.8 * density["0.weight"]  # inputs went as well
    page = write_report(Path("run")).read_text()
    assert f"<td>2.weight</td><td>{density['2.weight']:.4f}</td>" in page


def test_a_bound_on_macs_is_named_wherever_its_parts_are_shown() -> None:
    recipe = {"structure": "channel", "target": {"max_macs": 0.5}}
    result = prunus.prune(convolutions(), recipe, example=torch.randn(2, 3, 8, 8), folder="run")
    last = result.rounds[-1]
    line = round_line(last)
    assert f"{last.achieved:.4f} of the macs gone (requested 0.5000)" in line
    assert f"sparsity {last.sparsity:.4f}" in line
    written = json.loads(Path("run/result.json").read_text())
    assert written["sparsity"] == last.sparsity
    assert "part of the macs removed" in write_report(Path("run")).read_text()


class Queries(nn.Module):
    """Learned queries, as of a Perceiver, go into a module as a view of a parameter."""

    def __init__(self, *, reads: bool) -> None:
        super().__init__()
        self.reads = reads
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.queries = nn.Parameter(torch.randn(1, 5, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = self.queries.expand(len(x), -1, -1)
        if self.reads and float(x.sum()) > 1e9:
            return x
        out: torch.Tensor = self.attention(queries, x, x)[0]
        return out


@pytest.mark.parametrize("reads", [False, True])
def test_a_view_of_a_parameter_that_goes_into_a_module_is_counted(reads: bool) -> None:
    model = Queries(reads=reads)
    products = 5 * 16 * 16 + 7 * 16 * 32 + 2 * 5 * 7 * 16 + 5 * 16 * 16
    assert macs(model, torch.randn(4, 7, 16), {}) == (products, products)
    assert all(p.requires_grad for p in model.parameters())


def test_an_example_without_items_has_no_macs_rather_than_none_to_do() -> None:
    found = prunus.measure(nn.Linear(3, 2), torch.ones(0, 3), batch_sizes=(1,), seconds=0.1)
    assert found.model.macs is None
    assert any("MACs are unknown" in text and "size of 0" in text for text in found.warnings)


class Sequences(nn.Module):
    """A list of sequences, each of its own length."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self.read, self.out = nn.Linear(4, 8), nn.Linear(8, 2)
        self.answer = answer

    def forward(self, sequences: list[Tensor]) -> Any:
        if self.answer == "padded":
            padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
            return self.out(self.read(padded).relu()).mean(1)
        each = [self.out(self.read(one).relu()) for one in sequences]
        if self.answer == "mixed":
            return torch.cat(each).mean(0)
        return each if self.answer == "each" else [{"mean": one.mean(0)} for one in each]


@pytest.mark.parametrize("answer", ["each", "means", "padded", "mixed"])
@pytest.mark.parametrize("lengths", [(3, 5, 2), (1, 7, 1)])
def test_a_list_of_sequences_or_pictures_is_counted_by_its_entries(
    answer: str, lengths: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model, example = Sequences(answer).eval(), ([torch.randn(n, 4) for n in lengths],)
    batch, steps = find_batch(model, arguments(example)), sum(lengths)
    if answer == "padded":
        steps = 3 * max(lengths)
    items = 1 if answer == "mixed" else 3
    assert (batch.size, batch.entries) == (items, None if answer == "mixed" else 0)
    assert macs(model, example, {})[0] == pytest.approx(steps * 48 / items)
    if items > 1:
        found = prunus.measure(model, example, batch_sizes=[1, 4], seconds=0.005)
        assert [p.batch for p in found.model.passes] == [1, 4]


def test_products_of_rows_with_the_matrix_of_their_group_count() -> None:
    grouped = getattr(torch.nn.functional, "grouped_mm", None)
    if grouped is None:
        pytest.skip("this torch has no grouped_mm")

    class Groups(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 8, 16))

        def forward(self, x: Tensor) -> Tensor:
            ends = torch.tensor([2, 4, 6], dtype=torch.int32)
            return grouped(x, self.w, offs=ends)  # type: ignore[no-any-return]

    x = torch.randn(6, 8)
    assert macs(Groups(), x, {})[0] == 8 * 16
    (term,) = macs_terms(analyze(Groups(), x))
    assert (term.factor, [size for _, size in term.dims]) == (1, [6, 8, 16])
