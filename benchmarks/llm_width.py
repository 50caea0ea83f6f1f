"""What structure by block costs a small decoder: channels by score and by rotation, neurons, heads.

    PRUNUS_DATA=~/data python benchmarks/llm_width.py          (ten minutes of one core)
    PRUNUS_DATA=~/data python benchmarks/llm_width.py fitted   (rows whose names contain this)

A Qwen2-shaped decoder of characters (width 128, four blocks, an untied head) is trained on the
Shakespeare text and saved; every row is a folder made of it by :func:`prunus.prune_blocks`. Loss in
nats per character on windows of text that was neither trained on nor chosen by.
"""

from __future__ import annotations

import gzip
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import prunus

LENGTH, STEPS = 128, int(os.environ.get("STEPS", "1500"))
ROWS: dict[str, dict[str, Any]] = {
    "20 % of the width, by score": {"structure": {"hidden": 0.2}},
    "20 % of the width, by rotation": {"structure": {"hidden": 0.2}, "rotate": True},
    "the first with repair": {"structure": {"hidden": 0.2}, "repair": {"steps": 100}},
    "the second with repair": {
        "structure": {"hidden": 0.2}, "rotate": True, "repair": {"steps": 100},
    },
    "the first, fitted": {"structure": {"hidden": 0.2}, "repair": {"fit": True, "steps": 0}},
    "the second, fitted": {
        "structure": {"hidden": 0.2}, "rotate": True, "repair": {"fit": True, "steps": 0},
    },
    "the first, fitted, with repair": {
        "structure": {"hidden": 0.2}, "repair": {"fit": True, "steps": 100},
    },
    "the second, fitted, with repair": {
        "structure": {"hidden": 0.2}, "rotate": True, "repair": {"fit": True, "steps": 100},
    },
    "25 % of the neurons": {"structure": {"neuron": 0.25}},
    "25 % of neurons and heads": {"structure": {"neuron": 0.25, "head": 0.25}},
    "50 % of the neurons": {"structure": {"neuron": 0.5}},
    "the last, 100 steps of recovery": {
        "structure": {"neuron": 0.5}, "recover": {"steps": 100, "rate": 1e-3, "batch": 16},
    },
    "the last, a low rank": {
        "structure": {"neuron": 0.5},
        "recover": {"steps": 100, "rate": 3e-3, "batch": 16, "lora": 8},
    },
    "one of four blocks": {"structure": {"block": 0.25}},
}  # fmt: skip


def trained(text: Tensor, characters: int) -> Any:
    """A dense decoder."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    model: Any = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=characters, hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None,
    ))  # fmt: skip
    source = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, STEPS)
    for _ in range(STEPS):
        starts = torch.randint(0, len(text) - LENGTH, (16,), generator=source)
        ids = torch.stack([text[i : i + LENGTH] for i in starts])
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        rate.step()
    return model.eval()


def main() -> None:
    """Train, cut, print."""
    path = Path(os.environ["PRUNUS_DATA"]) / "shakespeare" / "input.txt.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    number = {c: i for i, c in enumerate(sorted(set(text)))}
    data = torch.tensor([number[c] for c in text])
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        model = trained(data[: int(len(data) * 0.9)], len(number))
        model.save_pretrained(place / "dense")
        for part, ids in (("chosen", data[: int(len(data) * 0.9)]),
                          ("held", data[int(len(data) * 0.9) :])):  # fmt: skip
            (place / f"{part}.jsonl").write_text(str(ids.tolist()), encoding="utf-8")
        wanted = {n: how for n, how in ROWS.items() if all(part in n for part in sys.argv[1:])}
        for i, (row, recipe) in enumerate(wanted.items()):
            how = {**recipe, "text": {"windows": 64, "length": LENGTH, "held": 64}}
            began = time.process_time()
            found = prunus.prune_blocks(place / "dense", how, place / "chosen.jsonl",
                                        held=place / "held.jsonl", out=place / str(i))  # fmt: skip
            assert found.comparison is not None
            one, other = found.comparison.dense, found.comparison.small
            part = found.costs["small"]["params"] / found.costs["dense"]["params"]
            apart, took = found.comparison.apart.within, time.process_time() - began
            print(f"{row}: {one.mean:.3f} -> {other.mean:.3f} ± {apart:.3f}, {part:.3f} of the "
                  f"parameters, {took:.0f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
