"""What a walk's report says: macs, bytes, tokens a second, and why zeros gain nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import helpers
import prunus
from prunus.blocks import speed
from prunus.blocks.costs import costs_of
from prunus.blocks.serving import OneToken, writing
from prunus.blocks.speed import speed_of
from prunus.cli.main import cli
from prunus.runtimes import missing

SIZE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
LENGTH = 10


def folder_of(place: Path, family: str = "Llama", **more: Any) -> Path:
    """A tiny model in a folder."""
    library = helpers.transformers()
    torch.manual_seed(0)
    config = getattr(library, f"{family}Config")(**SIZE, **more)
    getattr(library, f"{family}ForCausalLM")(config).save_pretrained(place)
    return place


def texts(count: int, seed: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(3, 64, (2, LENGTH), generator=generator)}
            for _ in range(count)]  # fmt: skip


def macs(inner: int, heads: int, read: int, seen: int, *, experts: int = 1) -> int:
    """Of so many tokens of a model with the sizes above, by hand; keys and values are half."""
    attention = 32 * 8 * heads * 2 + 32 * 8 * heads // 2 * 2 + 2 * 8 * heads * seen
    return 2 * read * (attention + experts * 3 * 32 * inner) + 32 * 64  # and one token's logits


def test_macs_of_a_text_and_of_a_token_are_those_by_hand(tmp_path: Path) -> None:
    dense = folder_of(tmp_path / "dense")
    recipe = {"structure": {"neuron": 0.25, "head": 0.5}}
    found = prunus.prune_blocks(dense, recipe, texts(1, 0), held=texts(1, 1), out=tmp_path / "s")
    for name, inner, heads in (("dense", 48, 4), ("small", 36, 2)):
        costs = found.costs[name]
        assert costs["macs_prefill"] == macs(inner, heads, LENGTH, LENGTH)
        assert costs["macs_token"] == macs(inner, heads, 1, LENGTH + 1)
        assert costs["length"] == LENGTH
    small: Any = helpers.transformers().LlamaForCausalLM.from_pretrained(tmp_path / "s")
    assert found.costs["small"]["params"] == sum(p.numel() for p in small.parameters())
    assert found.costs["small"]["bytes"] == 4 * found.costs["small"]["params"]
    said = json.loads((tmp_path / "s" / "pruned.json").read_text(encoding="utf-8"))
    assert said["costs"] == found.costs
    assert said["no_gain"] is None
    again = prunus.prune_blocks(dense, recipe, texts(1, 0), held=texts(1, 1), out=tmp_path / "s")
    assert again.costs == found.costs


def test_a_token_goes_through_as_many_experts_as_its_configuration_says(tmp_path: Path) -> None:
    dense = folder_of(tmp_path / "dense", "Mixtral", num_local_experts=4, num_experts_per_tok=2)
    costs = costs_of(dense, texts(1, 0)[0])
    if costs.macs_prefill is None:
        pytest.skip("this transformers computes experts in a way that reads values")
    router = 2 * LENGTH * 32 * 4
    assert costs.macs_prefill == macs(48, 4, LENGTH, LENGTH, experts=2) + router


def test_a_token_is_written_behind_the_same_text_each_time(tmp_path: Path) -> None:
    library = helpers.transformers()
    model = library.LlamaForCausalLM.from_pretrained(folder_of(tmp_path / "dense")).eval()
    text = texts(1, 0)[0]
    work = writing(model, text)
    assert work is not None
    assert isinstance(work.model, OneToken)
    with torch.no_grad():
        first, second = (work.model(**work.example)[0] for _ in range(2))
        row = text["input_ids"][:1]
        whole = model(input_ids=torch.cat([row, row[:, -1:]], 1)).logits[:, -1:]
    assert torch.equal(first, second)
    assert torch.allclose(first, whole, atol=1e-5)


def test_both_models_are_timed_in_each_runtime_and_int8_and_int4_are_judged(tmp_path: Path) -> None:
    dense = folder_of(tmp_path / "dense")
    chosen, held = texts(1, 0), texts(2, 1)
    found = prunus.prune_blocks(dense, {"structure": {"neuron": 0.25, "head": 0.5}}, chosen,
                                held=held, out=tmp_path / "s")  # fmt: skip
    names = ["eager", *(n for n in ("onnxruntime_int8", "onnxruntime_int4") if not missing(n))]
    made = speed_of(dense, tmp_path / "s", (chosen, held), runtimes=names, seconds=0.01)
    rows = {(p.work, p.runtime, p.model): p for p in made.paces}
    assert len(rows) == 4 * len(names)
    for pace in rows.values():
        assert pace.refused is None
        assert pace.per_second is not None
        assert pace.per_second > 0
    assert made.peak_bytes["pruned"] < made.peak_bytes["dense"]
    said = json.loads((tmp_path / "s" / "pruned.json").read_text(encoding="utf-8"))
    assert len(said["speed"]["paces"]) == len(rows)
    assert found.comparison is not None
    for runtime in names[1:]:  # rounding moves the loss a little, and is told for both models
        for model, exact in (("dense", found.comparison.dense), ("pruned", found.comparison.small)):
            loss = rows["read", runtime, model].loss
            assert loss == pytest.approx(exact.mean, abs=0.05)
            assert loss != pytest.approx(exact.mean, abs=1e-6)


def test_the_command_prints_costs_and_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = folder_of(tmp_path / "dense")
    (tmp_path / "ids.jsonl").write_text(
        json.dumps(texts(10, 0)[0]["input_ids"].flatten().tolist() * 20)
    )
    call = ["llm", str(dense), "--text", str(tmp_path / "ids.jsonl"), "--out",
            str(tmp_path / "small"), "text.windows=2", "text.length=10", "text.held=1",
            "solver=wanda", "--speed", "eager"]  # fmt: skip
    monkeypatch.setattr(speed, "free_memory", lambda: 1000)
    refused = CliRunner().invoke(cli, call)
    assert refused.exit_code == 2
    assert "GB are free" in refused.output
    assert not (tmp_path / "small").exists()
    monkeypatch.undo()
    ran = CliRunner().invoke(cli, call)
    assert ran.exit_code == 0, ran.output
    for part in ("macs, one token after them", "tokens/s", "writes one", "peak memory", "no gain"):
        assert part in ran.output
    unknown = CliRunner().invoke(cli, [*call[:-1], "eagre"])
    assert unknown.exit_code == 2
    assert "there is no runtime 'eagre'" in unknown.output
