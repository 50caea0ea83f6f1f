"""Folders of transformers pruned block by block: the same bits as in memory, killed or not."""

from __future__ import annotations

import contextlib
import copy
import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import helpers
import prunus
from prunus.blocks.folder import SCRATCH, Folder
from prunus.blocks.shards import Shards, write_shard
from prunus.cli.main import cli
from prunus.errors import InputError, RunError

pytestmark = pytest.mark.usefixtures("no_costs")

SIZE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {**SIZE, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "GPT2": {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4},
    "Mixtral": {**SIZE, "num_key_value_heads": 2, "num_local_experts": 4},
    "Phi3": {**SIZE, "num_key_value_heads": 2, "pad_token_id": 0},
    "DeepseekV3": {**SIZE, "num_key_value_heads": 4, "moe_intermediate_size": 16,
                   "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
                   "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8,
                   "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
    "Mamba2": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8,
               "num_heads": 8, "head_dim": 8, "n_groups": 1},
    "T5": {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
           "decoder_start_token_id": 0},
}  # fmt: skip


def model_of(family: str) -> nn.Module:
    """A tiny model of transformers."""
    library = helpers.transformers()
    torch.manual_seed(0)
    suffix = {"GPT2": "LMHeadModel", "T5": "ForConditionalGeneration"}.get(family, "ForCausalLM")
    config = getattr(library, f"{family}Config")(**FAMILIES[family])
    return getattr(library, family + suffix)(config).eval()  # type: ignore[no-any-return]


def batches_of(family: str, count: int, seed: int) -> list[dict[str, Tensor]]:
    """What it is called with."""
    generator = torch.Generator().manual_seed(seed)
    keys = ("input_ids", "decoder_input_ids") if family == "T5" else ("input_ids",)
    return [{k: torch.randint(0, 64, (2, 10), generator=generator) for k in keys}
            for _ in range(count)]  # fmt: skip


RECIPES: list[dict[str, Any]] = [
    {"solver": "wanda"},
    {"structure": "2:4", "repair": {"steps": 3}},
    {
        "solver": "wanda",
        "target": 0.6,
        "rates": "owl",
        "guard": {"max_error": 1e-3, "max_loss": 0.1, "every": 2},
    },
]


@pytest.mark.parametrize(("family", "recipe"), [
    *((family, RECIPES[0]) for family in FAMILIES), ("Llama", RECIPES[1]), ("Llama", RECIPES[2]),
    ("T5", RECIPES[2]),
])  # fmt: skip
def test_a_folder_ends_with_the_bits_of_a_model_in_memory(
    family: str, recipe: dict[str, Any], tmp_path: Path
) -> None:
    model: Any = model_of(family)
    model.save_pretrained(tmp_path / "dense")
    data, held = batches_of(family, 2, 0), batches_of(family, 1, 1)
    inside = prunus.prune_blocks(model, recipe, data, held=held)
    found = prunus.prune_blocks(
        tmp_path / "dense", recipe, iter(data), held=iter(held), out=tmp_path / "small"
    )
    assert found.sparsity == inside.sparsity
    assert found.errors == inside.errors
    assert found.loss == inside.loss
    if found.loss is not None:
        assert found.comparison is not None
        measured = (found.comparison.dense.mean, found.comparison.small.mean)
        assert measured == pytest.approx(found.loss, rel=1e-5)
    opened, said = type(model).from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not any(said.values())
    for name, tensor in opened.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert not (tmp_path / "small" / SCRATCH).exists()
    again = prunus.prune_blocks(
        tmp_path / "dense", recipe, data, held=held, out=tmp_path / "small",
        on_block=lambda *_: pytest.fail("it was through"),
    )  # fmt: skip
    assert again.errors == found.errors


@pytest.mark.parametrize("family", ["Llama", "T5"])
@pytest.mark.parametrize("recipe", [RECIPES[1], RECIPES[2]])
def test_a_killed_walk_goes_on_to_the_same_bits(
    family: str, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = model_of(family)
    model.save_pretrained(tmp_path / "dense")
    data, held = batches_of(family, 2, 0), batches_of(family, 1, 1)
    whole = prunus.prune_blocks(tmp_path / "dense", recipe, data, held=held, out=tmp_path / "whole")
    kept: Any = Folder.keep
    for stop in range(1, 7):
        calls = [0]

        def killed(*given: Any, calls: list[int] = calls, stop: int = stop) -> None:
            calls[0] += 1
            if calls[0] == 3 and stop % 2:  # within a part of the walk
                raise KeyboardInterrupt
            if isinstance(given[0], Folder):
                kept(*given)
            elif not stop % 2:  # behind a block
                raise KeyboardInterrupt

        monkeypatch.setattr(Folder, "keep", killed)
        with contextlib.suppress(KeyboardInterrupt):
            found = prunus.prune_blocks(tmp_path / "dense", recipe, data, held=held,
                                        out=tmp_path / "killed", on_block=killed)  # fmt: skip
            break
    monkeypatch.undo()
    second = {}  # another name of every file, through which nothing may be written
    for number, path in enumerate(p for p in (tmp_path / "killed").rglob("*") if p.is_file()):
        os.link(path, other := tmp_path / f"second-{number}")
        second[other] = path.read_bytes()
    found = prunus.prune_blocks(
        tmp_path / "dense", recipe, data, held=held, out=tmp_path / "killed"
    )
    assert all(other.read_bytes() == before for other, before in second.items())
    assert stop > 2
    assert found.errors == whole.errors
    assert found.loss == whole.loss
    assert found.rates == whole.rates
    for path in sorted((tmp_path / "whole").glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes(), path.name
    with pytest.raises(InputError, match="another recipe"):
        prunus.prune_blocks(tmp_path / "dense", {}, data, held=held, out=tmp_path / "killed")


def test_half_precision_is_computed_in_float32_and_written_as_it_was(tmp_path: Path) -> None:
    exact: Any = model_of("Llama")
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_(parameter.bfloat16())
    model: Any = copy.deepcopy(exact).bfloat16()
    model.save_pretrained(tmp_path / "dense")
    data = batches_of("Llama", 2, 0)
    inside = prunus.prune_blocks(exact, RECIPES[0], data)
    found = prunus.prune_blocks(tmp_path / "dense", RECIPES[0], data, out=tmp_path / "small")
    assert found.errors == inside.errors
    opened = type(model).from_pretrained(tmp_path / "small")
    for name, tensor in opened.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, exact.state_dict()[name].bfloat16()), name


LIMITED = """
import resource, sys, torch, prunus, transformers
from pathlib import Path
torch.set_num_threads(1)
torch.ones(64, 64) @ torch.ones(64, 64)
data = [{"input_ids": torch.randint(0, 64, (1, 16))} for _ in range(2)]
prunus.prune_blocks(sys.argv[1] + "/warm", {"solver": "wanda"}, data, out=sys.argv[1] + "/warmed")
lines = Path("/proc/self/status").read_text().splitlines()
used = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
block = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (used + int(2.1 * block), used + int(2.1 * block)))
found = prunus.prune_blocks(sys.argv[1] + "/dense", {"solver": "wanda"}, data,
                            held=data[:1], out=sys.argv[1] + "/small")
print(found.sparsity)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_a_model_larger_than_the_memory_that_is_left_is_pruned(tmp_path: Path) -> None:
    library = helpers.transformers()
    made = {**SIZE, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4}
    model: Any = library.LlamaForCausalLM(library.LlamaConfig(**made))
    blocks = [sum(p.numel() for p in b.parameters()) * 4 for b in model.model.layers]
    assert sum(blocks) > 0.9 * sum(p.numel() * 4 for p in model.parameters())
    model.save_pretrained(tmp_path / "dense", max_shard_size="50MB")
    model_of("Llama").save_pretrained(tmp_path / "warm")
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path), str(blocks[0])],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) == pytest.approx(0.5, abs=0.01)


def words(tmp_path: Path) -> Path:
    """A folder with a tokenizer of words, and a text."""
    helpers.language_model(tmp_path, "dense")
    numbers = torch.randint(2, 64, (900,), generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "text.txt").write_text(" ".join(f"w{n}" for n in numbers), encoding="utf-8")
    with gzip.open(tmp_path / "lines.jsonl.gz", "wt", encoding="utf-8") as file:
        for start in range(0, 900, 100):
            row = {"input_ids": numbers[start : start + 100]} if start % 200 else {
                "text": " ".join(f"w{n}" for n in numbers[start : start + 100])
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
    return tmp_path / "dense"


@pytest.mark.usefixtures("costs")
def test_the_command_goes_from_folder_and_text_to_a_folder(tmp_path: Path) -> None:
    dense = words(tmp_path)
    keys = ["text.windows=4", "text.length=16", "text.held=2", "solver=wanda"]
    (tmp_path / "quiz.jsonl").write_text(
        '{"question": "w2 w3", "choices": ["w4", "w5 w6"], "answer": 1}\n' * 3, encoding="utf-8"
    )
    keys += ["--questions", str(tmp_path / "quiz.jsonl")]
    results = []
    for text, out in (("text.txt", "one"), ("lines.jsonl.gz", "two")):
        call = ["llm", str(dense), *keys, "--text", str(tmp_path / text), "--out",
                str(tmp_path / out)]  # fmt: skip
        ran = CliRunner().invoke(cli, call)
        assert ran.exit_code == 0, ran.output
        assert "perplexity" in ran.output
        assert "from_pretrained" in ran.output
        assert "agreement" in ran.output
        assert "questions" in ran.output
        results.append(json.loads((tmp_path / out / "pruned.json").read_text(encoding="utf-8")))
    assert results[0]["comparison"]["tokens"] == 30
    assert (tmp_path / "one" / "pruned.png").read_bytes().startswith(b"\x89PNG")
    assert results[0]["questions"][0]["mean"] in (0.0, 1.0)
    assert results[0]["errors"] == results[1]["errors"]  # the same tokens, however they came
    (tmp_path / "recipe.yaml").write_text(
        "solver: wanda\ntext: {source: text.txt, windows: 4, length: 16, held: 2}\n",
        encoding="utf-8",
    )
    call = ["llm", str(dense), "--recipe", str(tmp_path / "recipe.yaml"), "--json", "--out",
            str(tmp_path / "three")]  # fmt: skip
    ran = CliRunner().invoke(cli, call)
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.output.splitlines()[-1])["errors"] == results[0]["errors"]
    plan = CliRunner().invoke(cli, ["llm", str(dense), "--plan", "--json"])
    assert len(json.loads(plan.output)["blocks"]) == 3


def coder(tmp_path: Path) -> Path:
    """A tiny encoder with a decoder, and its tokenizer of words."""
    dense = words(tmp_path)
    for name in ("model.safetensors", "config.json"):
        (dense / name).unlink()
    model_of("T5").save_pretrained(dense)
    return dense


@pytest.mark.parametrize("kind", ["pairs", "ids", "text"])
def test_an_encoder_with_a_decoder_reads_pairs_or_halves_of_windows(
    kind: str, tmp_path: Path
) -> None:
    dense, text = coder(tmp_path), tmp_path / "pairs.jsonl"
    rows: list[dict[str, Any]] = [
        {"source": f"w{n % 60 + 2} w3 w4", "target": f"w5 w{n % 50 + 2} w6 w7"} for n in range(40)
    ]
    if kind == "ids":
        rows = [{"input_ids": [5, 6, n % 60 + 2], "labels": [7, 8, n % 50 + 2]} for n in range(40)]
    text.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    text = tmp_path / "text.txt" if kind == "text" else text
    call = ["llm", str(dense), "--text", str(text), "--out", str(tmp_path / "small"),
            "structure={neuron: 0.25}", "text.windows=8", "text.length=12", "text.held=3",
            *(["recover={steps: 2}"] if kind == "text" else [])]  # fmt: skip
    ran = CliRunner().invoke(cli, call)
    assert ran.exit_code == 0, ran.output
    said = json.loads((tmp_path / "small" / "pruned.json").read_text(encoding="utf-8"))
    assert said["comparison"]["tokens"] == 3 * {"pairs": 4, "ids": 3, "text": 6}[kind]
    assert len(said["errors"]) == 4
    assert ("recovered" in said) == (kind == "text")
    opened: Any = helpers.transformers().T5ForConditionalGeneration.from_pretrained(
        tmp_path / "small"
    )
    assert opened.config.d_ff == 36
    if kind == "ids":  # the last tenth judges: its loss by the model's own code
        held = rows[36:39]
        with torch.no_grad():
            losses = [
                float(opened(input_ids=torch.tensor([row["input_ids"]]),
                             labels=torch.tensor([row["labels"]])).loss)
                for row in held
            ]  # fmt: skip
        assert said["comparison"]["small"]["mean"] == pytest.approx(sum(losses) / 3, rel=1e-4)


def test_what_a_text_cannot_be_for_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    dense, out = coder(tmp_path), tmp_path / "small"
    (tmp_path / "quiz.jsonl").write_text(
        '{"question": "w2 w3", "choices": ["w4", "w5 w6"], "answer": 1}\n', encoding="utf-8"
    )
    call = ["llm", str(dense), "--text", str(tmp_path / "text.txt"), "--out", str(out)]
    asked = CliRunner().invoke(cli, [*call, "--questions", str(tmp_path / "quiz.jsonl")])
    assert asked.exit_code == 2
    assert "does not continue a text" in asked.output
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"source": "w2", "target": "w3 w4"}\n{"text": "w5"}\n', encoding="utf-8")
    recipe = {"text": {"windows": 2, "length": 8, "held": 1}}
    with pytest.raises(InputError, match="1 lines are pairs and 1 are not"):
        prunus.prune_blocks(dense, recipe, pairs, out=out)
    pairs.write_text('{"source": "w2", "target": "w3 w4"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="1 pairs judge, and there are 0"):
        prunus.prune_blocks(dense, recipe, pairs, out=out)
    library = helpers.transformers()
    config = library.WhisperConfig(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8,
        max_source_positions=10, max_target_positions=32, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    library.WhisperForConditionalGeneration(config).save_pretrained(tmp_path / "whisper")
    with pytest.raises(InputError, match="reads input_features, which no text is"):
        prunus.prune_blocks(tmp_path / "whisper", recipe, tmp_path / "text.txt", out=out)
    assert not out.exists()


def damaged(tmp_path: Path, how: str) -> dict[str, Any]:
    """A call that cannot be."""
    dense = words(tmp_path)
    given: dict[str, Any] = {"recipe": {"text": {"windows": 4, "length": 16, "held": 2}}}
    text = tmp_path / "text.txt"
    if how == "little":
        text.write_text("w1 w2 w3", encoding="utf-8")
    elif how == "vocabulary":
        text = tmp_path / "ids.jsonl"
        text.write_text(json.dumps([70] * 900), encoding="utf-8")
    elif how == "binary":
        text.write_bytes(b"\xff\xfe" * 100)
    elif how == "chat":
        text = tmp_path / "chat.jsonl"
        text.write_text(json.dumps({"messages": [{"role": "user", "content": "w2"}]}))
    elif how == "kind":
        text = tmp_path / "text.pdf"
        text.write_text("w1")
    elif how == "shard":
        path = dense / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
    elif how == "index":
        (dense / "model.safetensors").rename(dense / "other.safetensors")
        where = {"weight_map": {"model.norm.weight": "model-1.safetensors"}}
        (dense / "model.safetensors.index.json").write_text(json.dumps(where))
    elif how == "missing":
        shards = Shards(dense)
        kept = {n: shards[n].clone() for n in shards.tensors if "layers.1.mlp" not in n}
        write_shard(dense / "model.safetensors", kept)
    elif how == "shape":
        config = json.loads((dense / "config.json").read_text())
        (dense / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    elif how == "class":
        config = json.loads((dense / "config.json").read_text())
        (dense / "config.json").write_text(json.dumps({**config, "architectures": ["Mine"]}))
    elif how == "guard":
        given["recipe"] = {
            "guard": {"max_loss": 0.1},
            "text": {**given["recipe"]["text"], "held": 0},
        }
    elif how == "there":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").write_text("")
    elif how == "same":
        given["out"] = dense
    elif how == "pickle":
        (dense / "model.safetensors").rename(dense / "pytorch_model.bin")
    return {"model": dense, "calibration": text, "out": tmp_path / "out", **given}


@pytest.mark.parametrize(("how", "says"), [
    ("little", "tokens of text"), ("vocabulary", "different vocabularies"), ("binary", "UTF-8"),
    ("chat", "no template"), ("kind", "no .txt"), ("shard", "is damaged"),
    ("index", "lacks 1 of 1 shards"), ("missing", "lack 'model.layers.1.mlp"),
    ("shape", r"in the shards"), ("class", "names the class 'Mine'"), ("guard", "give held"),
    ("there", "holds no walk"), ("same", "own folder"), ("pickle", "is a pickle"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    how: str, says: str, tmp_path: Path
) -> None:
    given = damaged(tmp_path, how)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=says) as raised:
        prunus.prune_blocks(**given)
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_too_little_room_for_the_result_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_of("Llama").save_pretrained(tmp_path / "dense")  # type: ignore[operator]
    size = (tmp_path / "dense" / "model.safetensors").stat().st_size
    free = type("Usage", (), {"free": size - 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(InputError, match=r"needs .* GB .* are free"):
        prunus.prune_blocks(tmp_path / "dense", RECIPES[0], batches_of("Llama", 1, 0),
                            out=tmp_path / "small")  # fmt: skip
    assert not (tmp_path / "small").exists()


def test_a_full_disk_at_any_write_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = model_of("Llama")
    model.save_pretrained(tmp_path / "dense")
    data = batches_of("Llama", 1, 0)
    whole = prunus.prune_blocks(tmp_path / "dense", RECIPES[0], data, out=tmp_path / "whole")
    places = [(os, "fsync"), (os, "replace"), (shutil, "copyfile"), (Path, "mkdir")]
    for number, (holder, name) in enumerate(places):
        real, calls = getattr(holder, name), [0]

        def full(*given: Any, real: Any = real, calls: list[int] = calls, **more: Any) -> Any:
            calls[0] += 1
            if calls[0] == 3 or real.__name__ in ("copyfile", "mkdir"):
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*given, **more)

        out = tmp_path / f"out{number}"
        with monkeypatch.context() as patch:
            patch.setattr(holder, name, full)
            with pytest.raises(RunError, match="disk is full"):
                prunus.prune_blocks(tmp_path / "dense", RECIPES[0], data, out=out)
        found = prunus.prune_blocks(tmp_path / "dense", RECIPES[0], data, out=out)
        assert found.errors == whole.errors
        for path in (tmp_path / "whole").glob("*.safetensors"):
            assert path.read_bytes() == (out / path.name).read_bytes()


def test_links_and_batches_that_are_none_are_refused_and_a_result_is_pruned_again(
    tmp_path: Path,
) -> None:
    model: Any = model_of("Llama")
    model.save_pretrained(tmp_path / "dense")
    data = batches_of("Llama", 1, 0)
    (tmp_path / "out" / SCRATCH).mkdir(parents=True)
    (tmp_path / "out" / SCRATCH / "asked.json").symlink_to(tmp_path / "dense" / "config.json")
    with pytest.raises(InputError, match="is a link"):
        prunus.prune_blocks(tmp_path / "dense", RECIPES[0], data, out=tmp_path / "out")
    for wrong in (5, None, torch.ones(2), {"a": 1}):
        with pytest.raises(InputError):
            prunus.prune_blocks(tmp_path / "dense", {}, wrong, out=tmp_path / "new")  # type: ignore[arg-type]
    prunus.prune_blocks(tmp_path / "dense", RECIPES[0], data, out=tmp_path / "once")
    (tmp_path / "once" / "pruned.png").write_bytes(b"an older picture")
    more = {**RECIPES[0], "target": 0.7}
    twice = prunus.prune_blocks(tmp_path / "once", more, data, out=tmp_path / "twice")
    assert twice.sparsity == pytest.approx(0.7, abs=0.02)
    picture = tmp_path / "twice" / "pruned.png"
    assert not picture.exists() or picture.read_bytes() != b"an older picture"
