"""Channels taken out of the stream of a model, block by block: what is left computes the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import prunus
from prunus.blocks.folder import SCRATCH, Folder
from prunus.blocks.hidden import Power
from prunus.blocks.plan import plan_of
from prunus.blocks.recipe import block_recipe
from prunus.cli.main import cli
from prunus.errors import InputError, RunError
from test_block_structure import FAMILIES, GROUPED, batches, model_of
from test_llm_folders import batches_of
from test_llm_folders import model_of as coder_of

pytestmark = pytest.mark.usefixtures("no_costs")

MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3": ("Qwen3Config", GROUPED),
    "Mistral": ("MistralConfig", {**GROUPED, "sliding_window": 4}),
    "Olmo2": ("Olmo2Config", GROUPED),
    "Qwen3Moe": ("Qwen3MoeConfig", {**GROUPED, "moe_intermediate_size": 16, "num_experts": 4,
                                    "num_experts_per_tok": 2}),
}  # fmt: skip
NARROW = {"structure": {"hidden": 0.25}}
WIDTH = 24


@pytest.fixture(autouse=True)
def _more(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, one in MORE.items():
        monkeypatch.setitem(FAMILIES, name, one)


def model_and_text(family: str, count: int = 2) -> tuple[Any, list[Any], list[Any]]:
    if family != "T5":
        return model_of(family), batches(count, 0), batches(1, 1)
    model = coder_of(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, batches_of(family, count, 0), batches_of(family, 1, 1)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Gemma3", "Phi3", "Mixtral", "DeepseekV3",
                                    "T5", *MORE])  # fmt: skip
def test_what_is_left_computes_as_the_masked_model_and_opens_by_its_configuration(
    family: str, tmp_path: Path
) -> None:
    model, data, held = model_and_text(family)
    model.save_pretrained(tmp_path / "dense")
    inside = prunus.prune_blocks(model, NARROW, data, held=held)
    small: Any = inside.model
    assert type(small) is type(model)
    assert small.get_input_embeddings().weight.shape[1] == WIDTH
    text = small.config.get_text_config()
    assert getattr(text, "d_model" if family == "T5" else "hidden_size") == WIDTH
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (small.get_input_embeddings().weight is small.get_output_embeddings().weight)
    with torch.no_grad():
        masked, left = model(**held[0]).logits, small(**held[0]).logits
        assert torch.allclose(masked, left, rtol=1e-4, atol=1e-4)
    assert inside.gate is not None
    assert inside.gate < 1e-9
    assert inside.loss is not None
    found = prunus.prune_blocks(tmp_path / "dense", NARROW, iter(data), held=held,
                                out=tmp_path / "small")  # fmt: skip
    assert found.errors == inside.errors
    assert found.loss == inside.loss
    opened, said = type(model).from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not any(said.values())
    for name, tensor in opened.state_dict().items():
        assert torch.equal(tensor, small.state_dict()[name]), name
    assert found.comparison is not None
    assert found.comparison.small.mean == pytest.approx(found.loss[1], rel=1e-4)


def test_channels_that_stay_are_those_that_readers_would_miss_most() -> None:
    model, data, _ = model_and_text("Qwen2")
    dense = copy.deepcopy(model)
    squares: dict[str, Tensor] = {}

    def hear(name: str) -> Any:
        def hook(module: Any, args: Any) -> None:
            x = args[0].double().flatten(0, -2).square().sum(0)
            squares[name] = squares.get(name, 0) + x

        return hook

    readers = {
        name: module for name, module in dense.named_modules()
        if name.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj",
                                       "lm_head")
    }  # fmt: skip
    for name, module in readers.items():
        module.register_forward_pre_hook(hear(name))
    with torch.no_grad():
        for batch in data:
            dense(**batch)
    scores = torch.zeros(32, dtype=torch.float64)
    for name, module in readers.items():
        cost = module.weight.double().square().sum(0) * squares[name]
        scores += cost / cost.sum()
    kept = scores.argsort(descending=True)[:WIDTH].sort().values
    small: Any = prunus.prune_blocks(model, NARROW, data).model
    assert torch.equal(small.lm_head.weight, dense.lm_head.weight[:, kept])
    block, before = small.model.layers[0], dense.model.layers[0]
    assert torch.equal(block.mlp.up_proj.weight, before.mlp.up_proj.weight[:, kept])
    s = (WIDTH / 32) ** 0.5
    assert torch.allclose(block.mlp.down_proj.weight, before.mlp.down_proj.weight[kept] * s)
    scale = before.input_layernorm.weight[kept] / s
    assert torch.allclose(block.input_layernorm.weight, scale)
    assert bool((model.model.layers[0].mlp.down_proj.weight[~torch.isin(torch.arange(32), kept)]
                 == 0).all())  # fmt: skip
    assert model.model.embed_tokens.weight.count_nonzero() == 64 * WIDTH


def test_repair_brings_the_narrower_model_nearer_to_the_dense_one() -> None:
    far = []
    for recipe in (NARROW, {**NARROW, "repair": {"steps": 60, "rate": 3e-3}}):
        model, data, held = model_and_text("Llama", 4)
        with torch.no_grad():
            dense = model(**held[0]).logits
        found: Any = prunus.prune_blocks(model, recipe, data, held=held)
        with torch.no_grad():
            left = found.model(**held[0]).logits
            assert torch.allclose(left, model(**held[0]).logits, atol=1e-4)
        far.append(float((left - dense).square().mean()))
    assert far[1] < far[0]


@pytest.mark.parametrize("place", ["keep", "behind", "finish", "choosing"])
def test_killed_anywhere_it_ends_with_the_same_bits(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, held = model_and_text("Gemma3")
    model.save_pretrained(tmp_path / "dense")
    recipe = {**NARROW, "repair": {"steps": 2}}
    whole = prunus.prune_blocks(tmp_path / "dense", recipe, data, held=held, out=tmp_path / "whole")

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    more: dict[str, Any] = {"on_block": stop} if place == "behind" else {}
    if place == "choosing":
        monkeypatch.setattr("prunus.blocks.narrowed._of_head", stop)
    elif place != "behind":
        monkeypatch.setattr(Folder, place, stop)
    with pytest.raises(KeyboardInterrupt):
        prunus.prune_blocks(tmp_path / "dense", recipe, data, held=held, out=tmp_path / "killed",
                            **more)  # fmt: skip
    monkeypatch.undo()
    found = prunus.prune_blocks(
        tmp_path / "dense", recipe, data, held=held, out=tmp_path / "killed"
    )
    assert (found.errors, found.loss, found.gate) == (whole.errors, whole.loss, whole.gate)
    for path in sorted((tmp_path / "whole").iterdir()):
        if path.name != "pruned.json":
            assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes(), path.name


TURNED = {"structure": {"hidden": 0.25}, "rotate": True}


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Mistral", "Phi3", "Mixtral", "Qwen3Moe"])
def test_a_turned_stream_computes_as_before_and_as_the_masked_model(
    family: str, tmp_path: Path
) -> None:
    model, data, held = model_and_text(family)
    model.save_pretrained(tmp_path / "dense")
    inside: Any = prunus.prune_blocks(model, TURNED, data, held=held)
    with torch.no_grad():
        left = inside.model(**held[0]).logits
        assert torch.allclose(left, model(**held[0]).logits, rtol=1e-3, atol=1e-3)
    assert inside.gate < 1e-9
    assert inside.model.config.hidden_size == WIDTH
    found: Any = prunus.prune_blocks(tmp_path / "dense", TURNED, data, held=held,
                                     out=tmp_path / "small")  # fmt: skip
    assert found.errors == pytest.approx(inside.errors)
    opened = type(model).from_pretrained(tmp_path / "small")
    for name, tensor in opened.state_dict().items():
        assert torch.allclose(tensor, inside.model.state_dict()[name], atol=1e-6), name
    assert found.comparison.small.mean == pytest.approx(found.loss[1], rel=1e-4)


def test_a_stream_that_lies_in_fewer_directions_is_turned_without_loss(tmp_path: Path) -> None:
    model, data, held = model_and_text("Qwen2")
    drawn = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(1))
    within = drawn @ torch.linalg.pinv(drawn)  # projects to as many directions as will stay
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ within)
        for layer in model.model.layers:
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight.copy_(within @ writer.weight)
        before = model(**held[0]).logits
    model.save_pretrained(tmp_path / "dense")
    small: Any = prunus.prune_blocks(model, TURNED, data).model
    with torch.no_grad():
        assert torch.allclose(small(**held[0]).logits, before, rtol=1e-3, atol=1e-3)
    by_score = type(model).from_pretrained(tmp_path / "dense")
    other: Any = prunus.prune_blocks(by_score, NARROW, data).model
    with torch.no_grad():
        assert not torch.allclose(other(**held[0]).logits, before, rtol=1e-2, atol=1e-2)


def test_a_turned_walk_that_was_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    model, data, held = model_and_text("Qwen2")
    model.save_pretrained(tmp_path / "dense")
    recipe = {**TURNED, "repair": {"steps": 2}}
    prunus.prune_blocks(tmp_path / "dense", recipe, data, held=held, out=tmp_path / "whole")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prunus.prune_blocks(tmp_path / "dense", recipe, data, held=held, out=tmp_path / "killed",
                            on_block=stop)  # fmt: skip
    prunus.prune_blocks(tmp_path / "dense", recipe, data, held=held, out=tmp_path / "killed")
    for path in sorted((tmp_path / "whole").glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes(), path.name


def test_a_guard_walks_again_with_more_channels_until_the_whole_costs_little(
    tmp_path: Path,
) -> None:
    model, data, held = model_and_text("Llama")
    model.save_pretrained(tmp_path / "dense")
    recipe = {"structure": {"hidden": 0.5}, "multiple_of": 2}
    costs = {}
    for part in (0.5, 0.25, 0.125):
        again = type(model).from_pretrained(tmp_path / "dense")
        found = prunus.prune_blocks(again, {**recipe, "structure": {"hidden": part}}, data,
                                    held=held)  # fmt: skip
        assert found.loss is not None
        costs[part] = max(found.errors.values())
    assert costs[0.5] > costs[0.25] > costs[0.125]
    guarded = {**recipe, "guard": {"max_error": (costs[0.25] + costs[0.125]) / 2}}
    before = copy.deepcopy(model.state_dict())
    kept: Any = prunus.prune_blocks(model, guarded, data, held=held)
    assert kept.model.config.hidden_size == 28
    assert max(kept.errors.values()) == pytest.approx(costs[0.125])
    model.load_state_dict(before)

    stops = iter(range(7))  # 4 blocks of the second width are through, then in the third

    def stop(*_: Any) -> None:
        if next(stops, None) == 5:
            raise KeyboardInterrupt

    folder, out = tmp_path / "dense", tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prunus.prune_blocks(folder, guarded, data, held=held, out=out, on_block=stop)
    assert len(json.loads((out / SCRATCH / "widths.json").read_text())) >= 1
    walked: list[str] = []
    prunus.prune_blocks(folder, guarded, data, held=held, out=out,
                        on_block=lambda name, _: walked.append(name))  # fmt: skip
    assert len(walked) < 2 * model.config.num_hidden_layers
    opened = type(model).from_pretrained(out)
    for name, tensor in opened.state_dict().items():
        assert torch.equal(tensor, kept.model.state_dict()[name]), name

    none = {**guarded, "guard": {"max_error": 1e-9}}
    with pytest.raises(RunError, match=r"guard: with .* channels a block's error is .* allow more"):
        prunus.prune_blocks(model, none, data, held=held)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_half_precision_is_written_as_it_was(tmp_path: Path) -> None:
    model, data, _ = model_and_text("Llama")
    model.bfloat16().save_pretrained(tmp_path / "dense")
    prunus.prune_blocks(tmp_path / "dense", NARROW, data, out=tmp_path / "small")
    opened = type(model).from_pretrained(tmp_path / "small")
    assert {t.dtype for t in opened.state_dict().values()} == {torch.bfloat16}
    assert opened.config.hidden_size == WIDTH


@pytest.mark.parametrize(("family", "recipe", "says"), [
    ("Mamba2", NARROW, "no config.json says so many channels"),
    ("Llama", {"structure": {"hidden": 0.25, "neuron": 0.25}}, "in a walk of their own"),
    ("Llama", {**NARROW, "rates": "owl"}, "rates: it changes how much"),
    ("Llama", TURNED, "the head is tied"), ("Gemma3", TURNED, "the head is tied"),
    ("Olmo2", TURNED, "reads it without a norm"),
    ("Llama", {"structure": "neuron", "rotate": True}, "rotate: it is for structure: hidden"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    family: str, recipe: dict[str, Any], says: str, tmp_path: Path
) -> None:
    model = model_of(family)
    before = copy.deepcopy(model.state_dict())
    model.save_pretrained(tmp_path / "dense")
    for given, more in ((model, {}), (tmp_path / "dense", {"out": tmp_path / "small"})):
        with pytest.raises(InputError, match=says):
            prunus.prune_blocks(given, recipe, batches(1, 0), held=batches(1, 1), **more)
    assert not (tmp_path / "small").exists()
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


@pytest.mark.parametrize(("family", "says"), [
    ("GPT2", "which is tied to the width"),
    ("OPT", "is a LayerNorm, whose mean and variance count all 32"),
])  # fmt: skip
def test_a_folder_whose_norms_would_count_is_refused(
    family: str, says: str, tmp_path: Path
) -> None:
    model_of(family).save_pretrained(tmp_path / "dense")
    with pytest.raises(InputError, match=says):
        prunus.prune_blocks(tmp_path / "dense", NARROW, batches(1, 0), out=tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_a_block_that_answers_otherwise_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, data, _ = model_and_text("Llama")
    before = copy.deepcopy(model.state_dict())
    real = prunus.blocks.narrowing.checked  # type: ignore[attr-defined]

    def wrong(found: Any, name: str, *given: Any) -> float:
        norm = f"{name}.input_layernorm.weight"
        found.powers[norm] = Power(-2)
        return float(real(found, name, *given))

    monkeypatch.setattr("prunus.blocks.narrowing.checked", wrong)
    with pytest.raises(RunError, match="does not answer as the masked one"):
        prunus.prune_blocks(model, NARROW, data)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_plan_says_what_goes_and_the_command_does_it(tmp_path: Path) -> None:
    model, data, held = model_and_text("Llama")
    model.save_pretrained(tmp_path / "dense")
    plan = plan_of(tmp_path / "dense", block_recipe(NARROW))
    found = prunus.prune_blocks(tmp_path / "dense", NARROW, data, held=held, out=tmp_path / "small")
    sizes = {name: sum(p.numel() for p in model.get_submodule(name).parameters())
             for name in found.rates}  # fmt: skip
    assert {b.name: b.goes for b in plan.blocks} == {
        name: round(rate * sizes[name]) for name, rate in found.rates.items()
    }
    ran = CliRunner().invoke(cli, ["llm", str(tmp_path / "dense"), "structure={hidden: 0.25}",
                                   "--plan"])  # fmt: skip
    assert ran.exit_code == 0, ran.output
