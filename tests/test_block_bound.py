"""Whole blocks and experts under a guard: what costs too much stays, others are asked."""

from __future__ import annotations

import copy
import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import helpers
import prunus
from prunus.blocks.depth import TRIES
from prunus.errors import InputError
from test_block_structure import FAMILIES, GROUPED, batches, loss_without, model_of, passed_over

pytestmark = pytest.mark.usefixtures("no_costs")

DATA, HELD = batches(3, 0), batches(2, 1)
DEEP = 6


@pytest.fixture(autouse=True)
def _deep(monkeypatch: pytest.MonkeyPatch) -> None:
    types = ["sliding_attention", "full_attention"] * (DEEP // 2)
    experts = {"moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2}
    made = {
        "Qwen2": ("Qwen2Config", GROUPED),
        "Gemma3": ("Gemma3TextConfig", {**FAMILIES["Gemma3"][1], "layer_types": types}),
        "Mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 8}),
        "Qwen3Moe": ("Qwen3MoeConfig", {**GROUPED, **experts}),
        "DeepseekV3": ("DeepseekV3Config", {**FAMILIES["DeepseekV3"][1], "n_routed_experts": 8}),
    }
    for name, (config, sizes) in made.items():
        count = DEEP if name in ("Qwen2", "Gemma3") else 4
        monkeypatch.setitem(FAMILIES, name, (config, {**sizes, "num_hidden_layers": count}))


def pruned(model: Any, recipe: dict[str, Any], **more: Any) -> Any:
    """Without the word of warning that sizes may differ."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return prunus.prune_blocks(model, recipe, DATA, held=HELD, **more)


def gone_of(found: Any) -> list[int]:
    return [i for i, rate in enumerate(found.rates.values()) if rate == 1]


def rhymes(count: int, seed: int) -> list[dict[str, Tensor]]:
    """Windows in which three tokens come again and again."""
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(3, 19, (8, 3), generator=generator).repeat(1, 4)}
            for _ in range(count)]  # fmt: skip


@functools.cache
def _trained() -> Any:
    model = model_of("Qwen2").train()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for batch in rhymes(120, 5):
        optimizer.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model whose blocks have learned something, and text that shows it."""
    monkeypatch.setitem(globals(), "DATA", rhymes(3, 0))
    monkeypatch.setitem(globals(), "HELD", rhymes(2, 1))
    return copy.deepcopy(_trained())


def greedy(dense: Any, most: int, bound: float) -> list[int]:
    """Blocks by hand: the least missed of the calibration text, if the held-out text allows it."""
    gone: list[int] = []
    before = loss_without(dense, HELD, ())
    while len(gone) < most:
        left = [i for i in range(DEEP) if i not in gone]
        left.sort(key=lambda i: loss_without(dense, DATA, (*gone, i)))
        fits = [i for i in left[:TRIES]
                if loss_without(dense, HELD, (*gone, i)) - before <= bound]  # fmt: skip
        if not fits:
            break
        gone.append(fits[0])
    return sorted(gone)


def test_blocks_go_one_by_one_while_the_held_out_loss_allows_it(taught: Any) -> None:
    dense = taught
    plain = gone_of(pruned(copy.deepcopy(dense), {"structure": {"block": 0.67}}))
    found: dict[float, list[int]] = {}
    for bound in (0.02, 0.06, 0.2, 1.0):
        recipe = {"structure": {"block": 0.67}, "guard": {"max_loss": bound}}
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # one configuration says what is left
            made = prunus.prune_blocks(copy.deepcopy(dense), recipe, DATA, held=HELD)
        found[bound] = gone_of(made)
        assert found[bound] == greedy(dense, 4, bound)
        assert made.loss is not None
        assert made.loss[1] - made.loss[0] <= bound
        assert made.model is not None
        assert made.model.config.num_hidden_layers == DEEP - len(found[bound])  # type: ignore[union-attr]
    assert found[1.0] == plain
    assert len({len(gone) for gone in found.values()}) > 2, found


def test_a_span_that_costs_too_much_is_halved(taught: Any) -> None:
    dense = taught
    spans = {n: {i: loss_without(dense, DATA, tuple(range(i, i + n))) for i in range(DEEP - n + 1)}
             for n in (4, 2, 1)}  # fmt: skip
    best = {n: min(of, key=of.__getitem__) for n, of in spans.items()}
    before = loss_without(dense, HELD, ())
    costs = {n: loss_without(dense, HELD, tuple(range(best[n], best[n] + n))) - before
             for n in best}  # fmt: skip
    assert costs[4] > costs[2]
    for bound, count in ((costs[4] + 1e-4, 4), (max(costs[2], 0) + 1e-4, 2)):
        recipe = {"structure": {"block": 0.67}, "depth": "span", "guard": {"max_loss": bound}}
        found = pruned(copy.deepcopy(dense), recipe)
        assert gone_of(found) == list(range(best[count], best[count] + count))


def test_a_block_that_goes_changes_its_answer_by_no_more_than_allowed(taught: Any) -> None:
    dense = taught
    free = pruned(copy.deepcopy(dense), {"structure": {"block": 0.5}})
    worst = max(free.errors[f"model.layers.{i}"] for i in gone_of(free))
    bound = 0.9 * worst
    found = pruned(dense, {"structure": {"block": 0.5}, "guard": {"max_error": bound}})
    gone = gone_of(found)
    assert gone
    assert all(found.errors[f"model.layers.{i}"] <= bound for i in gone)
    assert gone != gone_of(free)


@pytest.mark.parametrize("more", [
    {"guard": {"max_loss": 0.05, "every": 1}}, {"rates": "measured"},
])  # fmt: skip
def test_blocks_that_stay_lose_different_numbers_of_neurons(
    more: dict[str, Any], tmp_path: Path
) -> None:
    model = model_of("Gemma3")
    model.save_pretrained(tmp_path / "dense")
    recipe = {"structure": {"block": 0.34, "neuron": 0.5}, **more}
    inside = pruned(model, recipe)
    found = pruned(tmp_path / "dense", recipe, out=tmp_path / "small")
    assert (found.errors, found.loss) == (inside.errors, inside.loss)
    gone, left = gone_of(found), [i for i, rate in enumerate(found.rates.values()) if rate < 1]
    assert gone
    opened: Any = prunus.load(tmp_path / "small")
    widths = [layer.mlp.down_proj.weight.shape[1] for layer in opened.model.layers]
    assert len(widths) == len(left)
    assert len(set(widths)) > 1
    types = FAMILIES["Gemma3"][1]["layer_types"]
    assert opened.config.layer_types == [types[i] for i in left]
    masked = model  # which has zeros in place of neurons
    for i in gone:
        masked = passed_over(masked, i)
    with torch.no_grad():
        logits = opened(**HELD[0]).logits
        assert torch.equal(logits, inside.model(**HELD[0]).logits)
        assert torch.allclose(logits, masked(**HELD[0]).logits, atol=1e-5)
    assert found.comparison.small.mean == pytest.approx(found.loss[1], rel=1e-5)
    if "guard" in more:
        assert found.loss[1] - found.loss[0] <= 0.05


def test_killed_while_blocks_are_chosen_or_behind_one_it_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_of("Gemma3").save_pretrained(tmp_path / "dense")
    recipe = {"structure": {"block": 0.34, "neuron": 0.5}, "guard": {"max_loss": 0.03}}
    whole = pruned(tmp_path / "dense", recipe, out=tmp_path / "whole")

    def stop(*_: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    for place in ("bound.lost", "folder.write_uneven", "folder.Folder.finish"):
        with monkeypatch.context() as patch:
            patch.setattr(f"prunus.blocks.{place}", stop)
            with pytest.raises(KeyboardInterrupt):
                pruned(tmp_path / "dense", recipe, out=tmp_path / "killed")
    found = pruned(tmp_path / "dense", recipe, out=tmp_path / "killed")
    assert (found.errors, found.loss, found.gate) == (whole.errors, whole.loss, whole.gate)
    for path in sorted((tmp_path / "whole").glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


@pytest.mark.parametrize(("family", "more"), [
    ("Mixtral", {"rates": {"name": "measured", "spread": 0.3}}),
    ("Qwen3Moe", {"rates": {"name": "progression", "slope": 0.9}}),
    ("DeepseekV3", {"rates": {"name": "progression", "slope": 0.9}}),
    ("DeepseekV3", {"guard": {"max_loss": 0.004, "every": 1}}),
])  # fmt: skip
def test_experts_of_blocks_go_as_far_as_they_may_and_prunus_opens_the_folder(
    family: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = model_of(family)
    dense.save_pretrained(tmp_path / "dense")
    recipe = {"structure": {"expert": 0.5}, **more}
    inside = pruned(copy.deepcopy(dense), recipe)
    found = pruned(tmp_path / "dense", recipe, out=tmp_path / "small")
    assert (found.errors, found.loss) == (inside.errors, inside.loss)
    assert found.gate < 1e-10
    opened: Any = prunus.load(tmp_path / "small")
    routers = {}  # of the dense model: the rows that went
    counts = []
    for old, new in zip(dense.model.layers, opened.model.layers, strict=True):
        if hasattr(old.mlp, "gate"):
            same = (old.mlp.gate.weight[:, None] == new.mlp.gate.weight[None]).all(-1).any(-1)
            counts.append(int(same.sum()))
            routers[old.mlp.gate.weight.data_ptr()] = ~same
            if hasattr(old.mlp.gate, "e_score_correction_bias"):
                old.mlp.gate.e_score_correction_bias.data.masked_fill_(~same, -torch.inf)
    assert len(set(counts)) > 1, counts
    assert min(counts) >= 2
    linear = nn.functional.linear

    def never(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        made = linear(x, weight, bias)
        rows = routers.get(weight.data_ptr())
        return made if rows is None else made.masked_fill(rows, -torch.inf)

    monkeypatch.setattr(nn.functional, "linear", never)
    with torch.no_grad():
        assert torch.allclose(dense(**HELD[0]).logits, opened(**HELD[0]).logits, atol=1e-5)
        assert torch.equal(inside.model(**HELD[0]).logits, opened(**HELD[0]).logits)
    if "guard" in more:
        assert found.loss[1] - found.loss[0] <= 0.004


def test_a_bound_of_a_loss_that_no_model_gives_is_refused() -> None:
    library = helpers.transformers()
    config = library.BertConfig(vocab_size=64, hidden_size=32, intermediate_size=48,
                                num_hidden_layers=4, num_attention_heads=4)  # fmt: skip
    model = library.BertModel(config).eval()
    recipe: dict[str, Any] = {"structure": {"block": 0.5}, "guard": {"max_loss": 0.1}}
    with pytest.raises(InputError, match="give loss, or max_error"):
        pruned(model, recipe)
    found = pruned(model, {**recipe, "guard": {"max_error": 1e9}})
    assert found.model.config.num_hidden_layers == 2
