"""Blocks that lose different numbers of units: by rules of rates, and where a guard puts back."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import helpers
import prunus
from prunus.blocks.folder import SCRATCH, Folder
from prunus.blocks.plan import plan_of
from prunus.blocks.recipe import block_recipe
from prunus.blocks.shards import write_shard
from prunus.cli.main import cli
from prunus.errors import InputError
from test_block_structure import FAMILIES, batches, model_of

pytestmark = pytest.mark.usefixtures("no_costs")

RATES = {"structure": {"neuron": 0.3, "head": 0.5}, "rates": {"name": "progression", "slope": 0.8}}


@pytest.fixture(autouse=True)
def _deep(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (config, sizes) in list(FAMILIES.items()):
        more = (
            {"layer_types": ["sliding_attention", "full_attention"] * 2} if name == "Gemma3" else {}
        )
        if "num_hidden_layers" in sizes:
            monkeypatch.setitem(FAMILIES, name, (config, {**sizes, **more, "num_hidden_layers": 4}))


def pruned(model: Any, recipe: dict[str, Any], **more: Any) -> Any:
    """Without the word of warning that :func:`test_what_may_be_left_is_said_before` asks for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return prunus.prune_blocks(model, recipe, batches(2, 0), held=batches(1, 1), **more)


def widths(model: Any) -> list[int]:
    return [layer.mlp.down_proj.weight.shape[1] for layer in model.model.layers]


def dense_folder(place: Path, family: str = "Llama") -> Path:
    model_of(family).save_pretrained(place)
    return place


@pytest.mark.usefixtures("costs")
@pytest.mark.parametrize("family", ["Llama", "Gemma3", "Phi3", "Qwen2"])
def test_blocks_lose_by_a_rule_and_prunus_opens_the_folder(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    model.save_pretrained(tmp_path / "dense")
    inside = pruned(model, RATES)
    wide = widths(inside.model)
    assert wide == sorted(wide, reverse=True)
    assert wide[0] > wide[-1]
    found = pruned(tmp_path / "dense", RATES, out=tmp_path / "small")
    assert found.errors == inside.errors
    assert found.gate is not None
    assert found.gate < 1e-9
    opened: Any = prunus.load(tmp_path / "small")
    assert widths(opened) == wide
    held = batches(1, 1)[0]
    with torch.no_grad():
        logits = opened(**held).logits
        assert torch.allclose(logits, inside.model(**held).logits, atol=1e-6)
        assert torch.allclose(logits, model(**held).logits, atol=1e-5)  # which has zeros there
    assert found.comparison is not None
    assert found.comparison.small.mean == pytest.approx(found.loss[1], rel=1e-5)
    assert found.costs["small"]["params"] == sum(p.numel() for p in opened.parameters())
    assert found.costs["small"]["macs_token"] < found.costs["dense"]["macs_token"]
    assert "prunus.load" in repr(found)
    prunus.hf.save(inside.model, tmp_path / "ours")
    again = prunus.load(tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(again(**held).logits, inside.model(**held).logits)


def test_a_block_that_would_err_too_much_is_put_back_and_the_others_give_more() -> None:
    def model() -> Any:
        made = model_of("Llama")
        with torch.no_grad():
            made.model.layers[0].mlp.down_proj.weight.mul_(4)  # neurons matter more here
        return made

    recipe: dict[str, Any] = {"structure": {"neuron": 0.5}}
    free = pruned(model(), recipe)
    bound = 0.9 * free.errors["model.layers.0"]
    assert bound > max(list(free.errors.values())[1:])
    masked = model()
    found = pruned(masked, {**recipe, "guard": {"max_error": bound, "every": 1}})
    assert all(error <= bound for error in found.errors.values())
    assert widths(found.model) == [36, 20, 20, 20]  # of 48: half as many, and as many from others
    assert sum(widths(found.model)) == sum(widths(free.model))
    with torch.no_grad():
        held = batches(1, 1)[0]
        assert torch.allclose(found.model(**held).logits, masked(**held).logits, atol=1e-5)


def test_the_loss_stays_within_its_bound() -> None:
    for bound in (0.003, 0.03):
        recipe = {"structure": {"neuron": 0.5}, "guard": {"max_loss": bound, "every": 2}}
        found = pruned(model_of("Llama"), recipe)
        assert found.loss is not None
        assert found.loss[1] - found.loss[0] <= bound
    assert found.sparsity > 0


def test_a_guard_that_nothing_hurts_ends_in_an_ordinary_folder_with_the_same_bits(
    tmp_path: Path,
) -> None:
    dense = dense_folder(tmp_path / "dense")
    plain = {"structure": {"neuron": 0.25, "head": 0.5}}
    pruned(dense, plain, out=tmp_path / "plain")
    found = pruned(dense, {**plain, "guard": {"max_error": 1e9}}, out=tmp_path / "guarded")
    assert found.rates
    for path in sorted((tmp_path / "plain").iterdir()):
        if path.name != "pruned.json" and path.suffix != ".png":
            assert path.read_bytes() == (tmp_path / "guarded" / path.name).read_bytes(), path.name
    assert not (tmp_path / "guarded" / SCRATCH).exists()
    helpers.transformers().LlamaForCausalLM.from_pretrained(tmp_path / "guarded")


@pytest.mark.parametrize("place", ["keep", "behind", "finish", "write"])
def test_killed_anywhere_it_ends_with_the_same_bits(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = dense_folder(tmp_path / "dense")
    recipe = {**RATES, "guard": {"max_error": 0.02, "every": 2}}
    whole = pruned(dense, recipe, out=tmp_path / "whole")
    calls, kept = [0], Folder.keep

    def killed(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return kept(*given) if place == "keep" else write_shard(*given)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    more: dict[str, Any] = {}
    if place == "keep":
        monkeypatch.setattr(Folder, "keep", killed)
    elif place == "behind":
        more["on_block"] = stop
    elif place == "finish":
        monkeypatch.setattr(Folder, "finish", stop)
    else:
        monkeypatch.setattr("prunus.blocks.uneven.write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        pruned(dense, recipe, out=tmp_path / "killed", **more)
    monkeypatch.undo()
    for name, sizes in list(FAMILIES.items()):
        monkeypatch.setitem(FAMILIES, name, sizes)
    found = pruned(dense, recipe, out=tmp_path / "killed")
    assert (found.errors, found.loss, found.gate) == (whole.errors, whole.loss, whole.gate)
    files = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "killed").iterdir())
    for name in files:
        if name not in ("pruned.json", "pruned.png"):
            first, second = (tmp_path / one / name for one in ("whole", "killed"))
            assert first.read_bytes() == second.read_bytes(), name


def test_what_may_be_left_is_said_before(tmp_path: Path) -> None:
    model = model_of("Llama")
    with pytest.warns(UserWarning, match="guard and rates may leave blocks of different sizes"):
        prunus.prune_blocks(model, RATES, batches(1, 0))
    dense = dense_folder(tmp_path / "dense")
    ids = torch.randint(3, 64, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "ids.jsonl").write_text(json.dumps({"input_ids": ids}), encoding="utf-8")
    call = ["llm", str(dense), "--text", str(tmp_path / "ids.jsonl"), "--out", str(tmp_path / "s"),
            "structure={neuron: 0.25}", "rates={name: progression, slope: 0.8}", "text.windows=4",
            "text.length=16", "text.held=2", "--speed", "eager"]  # fmt: skip
    ran = CliRunner().invoke(cli, call)
    assert ran.exit_code == 0, ran.output
    assert "prunus.load opens the result alone" in ran.output
    assert f"open it: prunus.load('{tmp_path / 's'}')" in ran.output
    with pytest.raises(InputError, match="differ in size"):
        prunus.prune_blocks(tmp_path / "s", {}, batches(1, 0), out=tmp_path / "again")


def test_the_model_is_as_it_was_if_a_guarded_walk_ends_badly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("Llama")
    before = copy.deepcopy(model.state_dict())

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pruned(model, {**RATES, "guard": {"max_error": 0.02}}, on_block=stop)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


@pytest.mark.usefixtures("costs")
@pytest.mark.parametrize(("family", "recipe"), [
    ("Llama", {"structure": {"neuron": 0.25, "head": 0.5}}), ("Llama", RATES),
    ("Mixtral", {"structure": {"expert": 0.5}}), ("GPT2", {"structure": "neuron"}),
])  # fmt: skip
def test_a_plan_says_what_goes_of_each_block(
    family: str, recipe: dict[str, Any], tmp_path: Path
) -> None:
    dense = dense_folder(tmp_path / "dense", family)
    plan = plan_of(dense, block_recipe(recipe))
    found = pruned(dense, recipe, out=tmp_path / "small")
    sizes = {name: sum(p.numel() for p in model_of(family).get_submodule(name).parameters())
             for name in found.rates}  # fmt: skip
    assert {b.name: b.goes for b in plan.blocks} == {
        name: round(rate * sizes[name]) for name, rate in found.rates.items()
    }
    went = found.costs["dense"]["params"] - found.costs["small"]["params"]
    assert went == sum(b.goes for b in plan.blocks)


def test_a_plan_counts_blocks_that_go_and_refuses_what_a_walk_would(tmp_path: Path) -> None:
    dense = dense_folder(tmp_path / "dense")
    ran = CliRunner().invoke(cli, ["llm", str(dense), "structure={block: 0.5}", "--plan"])
    assert ran.exit_code == 0, ran.output
    assert "2 of 4 blocks as a whole" in ran.output
    said = CliRunner().invoke(cli, ["llm", str(dense), "structure=expert", "--plan"])
    assert said.exit_code == 2
    assert "have none that can go" in said.output


def test_a_plan_of_a_large_shape_takes_no_memory_for_its_weights(tmp_path: Path) -> None:
    library = helpers.transformers()
    config = library.LlamaConfig(
        vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
        num_attention_heads=64, num_key_value_heads=8, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    plan = plan_of(tmp_path, block_recipe({"structure": {"neuron": 0.25, "head": 0.5}}))
    assert plan.parameters > 70e9
    gone = 3 * 8192 * 28672 // 4 + 8192 * 128 * (2 * 64 + 2 * 8) // 2
    assert {b.goes for b in plan.blocks} == {gone}
