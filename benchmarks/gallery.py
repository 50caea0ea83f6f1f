"""The gallery: every field of use as one command, its figures, pictures and page.

    python benchmarks/gallery.py --data $PRUNUS_DATA --out runs/gallery      (two hours)
    python benchmarks/gallery.py --data $PRUNUS_DATA --out runs/gallery --only spoken_digits
    python benchmarks/gallery.py --page                                      (docs/gallery.md again)

Each row is ``prunus run`` in a process of its own, in a folder of its own: rows that are finished
are not run again. What the page shows is kept in ``gallery.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROWS_FILE, PAGE = HERE / "gallery.jsonl", HERE.parent / "docs" / "gallery.md"
PICTURES = PAGE.parent / "gallery"
FIXED = ("guard=null", "deploy=null", "compact=none")


@dataclass(frozen=True)
class Row:
    """A command of the gallery: what it is, the recipe and its changes."""

    name: str
    title: str
    words: tuple[str, ...]
    part: str = "field"


def _retrained(share: float) -> Row:
    words = ("cifar10_channels", f"task.part={share:g}", "dense=0", "target={max_macs: 0.5}",
             "rounds=1", "schedule=one_shot", "retrain=315it", *FIXED[:2])  # fmt: skip
    return Row(f"part_{share:g}", f"{share:.0%} of the training images", words, "data")


def _language(name: str, title: str, *changes: str) -> Row:
    words = ("shakespeare", "task.weights=runs/gallery/shakespeare/dense.safetensors", "dense=0",
             "criterion=magnitude", "retrain=400it", *FIXED, *changes)  # fmt: skip
    return Row(name, title, words, "language")


ROWS = (
    Row("cifar10_weights", "Images: CIFAR-10, ResNet-20, single weights", ("cifar10_weights",)),
    Row("cifar10_channels", "Images: CIFAR-10, ResNet-20, channels", ("cifar10_channels",)),
    Row("reviews_lstm", "Text: movie reviews, bidirectional LSTM, units", ("reviews_lstm",)),
    Row("reviews_transformer", "Text: movie reviews, transformer, heads and neurons",
        ("reviews_transformer",)),
    Row("reviews_width", "Text: movie reviews, transformer, its hidden width too",
        ("reviews_transformer", "structure.hidden=true")),
    Row("spoken_digits", "Speech: spoken digits, convolutions and GRU", ("spoken_digits",)),
    Row("shakespeare", "Language: Shakespeare, transformer, heads and neurons", ("shakespeare",)),
    Row("detection", "Medicine: blood cells, a detector of three scales, 30 % of the macs",
        ("detection",)),
    Row("detection_half", "Medicine: the same, half of the macs",
        ("detection_half", "task.weights=runs/gallery/detection/dense.safetensors", "dense=0")),
    Row("driving", "Driving: steering by PilotNet, half of its latency", ("driving",)),
    Row("driving_gru", "Driving: with a GRU over time, channels and units", ("driving_gru",)),
    Row("translation", "Translation: a transformer, heads, neurons and hidden width, half the macs",
        ("translation",)),
    Row("translation_zeros", "Translation: a transformer, 80 % of its weights zero",
        ("translation_zeros",)),
    Row("translation_gru", "Translation: a GRU with attention, states and hidden width",
        ("translation_gru",)),
    Row("two_senses", "Two senses: a written and a spoken digit, two towers under one budget",
        ("two_senses",)),
    Row("spoken_sequences", "Speech: spoken sequences, a recurrent stream",
        ("spoken_sequences",)),
    Row("sequences_conformer", "Speech: spoken sequences, a Conformer-like stream",
        ("sequences_conformer",)),
    Row("edge_keywords", "The edge: spoken digits, depthwise-separable, int8", ("edge_keywords",)),
    Row("edge_images", "The edge: CIFAR-10, ResNet-8, int8", ("edge_images",)),
    Row("edge_anomalies", "The edge: strange sounds, an autoencoder, int8", ("edge_anomalies",)),
    _language("shakespeare_dense", "next to nothing removed (0.1 %)", "structure=weight",
              "target=0.001", "rounds=1", "schedule=one_shot"),
    _language("shakespeare_one_shot", "one cut, half of the weights", "structure=weight",
              "target=0.5", "rounds=1", "schedule=one_shot"),
    _language("shakespeare_gradual", "gradual, half of the weights", "structure=weight",
              "target=0.5", "schedule=cubic", "rounds=null"),
    _language("shakespeare_two_four", "2:4 in one cut", "structure=2:4", "allocation=uniform",
              "target=null", "rounds=1", "schedule=one_shot"),
    *(_retrained(share) for share in (0.03, 0.1, 0.3, 1.0)),
)  # fmt: skip


def run(row: Row, data: Path, out: Path) -> dict[str, Any]:
    """Run a row, or open what an earlier call left, and gather its figures."""
    folder, spent = out / row.name, out / f"{row.name}.seconds"
    before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    began = time.perf_counter()
    if not (folder / "result.json").is_file():
        prunus = Path(sys.executable).with_name("prunus")
        words = [w.replace("runs/gallery", str(out)) for w in row.words]
        command = [prunus, "run", *words, "--folder", folder, "--data", data]
        with (out / f"{row.name}.log").open("a") as log:
            subprocess.run(list(map(str, command)), check=True, stdout=log, stderr=log)
        after = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        spent.write_text(f"{after - before} {time.perf_counter() - began}")
    print(f"{row.name}: {time.perf_counter() - began:.0f} s", flush=True)
    result = json.loads((folder / "result.json").read_text())
    about = json.loads((folder / "run.json").read_text())
    rounds = result["rounds"]
    processor, wall = map(float, spent.read_text().split())
    return {
        "name": row.name, "words": list(row.words), "metric_name": result["metric_name"],
        "dense": rounds[0]["metric"], "metric": result["metric"], "tested": result["tested"],
        "sparsity": [r for r in rounds if r["verdict"] != "rejected"][-1]["sparsity"],
        "before": result["cost_before"], "after": result["cost_after"],
        "compaction": result["compaction"], "deployment": _served(result["deployment"]),
        "rounds": [{k: r[k] for k in ("sparsity", "metric", "train_metric", "verdict")}
                   for r in rounds],
        "dense_s": rounds[0]["seconds"], "seconds": sum(r["seconds"] for r in rounds),
        "processor_s": processor, "wall_s": wall, "why": result["why"],
        "environment": about["environment"],
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count(),
    }  # fmt: skip


def _served(made: dict[str, Any] | None) -> dict[str, Any] | None:
    """The artifact, and the dense model in its own fastest runtime."""
    if made is None:
        return None
    taken = (made["runtime"], "pruned")
    own = next(r for r in made["rows"] if (r["runtime"], r["model"]) == taken)
    dense = [r for r in made["rows"] if r["model"] == "dense" and r["exact"] and r["latency"]]
    ms = {b: t["median_ms"] for b, t in own["latency"].items()}
    best = {b: min(r["latency"][b]["median_ms"] for r in dense) for b in ms}
    there = next((r["bytes"] for r in dense if r["runtime"] == made["runtime"]), None)
    return {"runtime": made["runtime"], "ms": ms, "dense_ms": best, "gains": made["gains"],
            "bytes": own["bytes"], "dense_bytes": there, "metric": own["metric"],
            "error": own["error"]}  # fmt: skip


def write_page() -> None:
    """``docs/gallery.md`` and its pictures from the rows that are kept."""
    import gallery_page

    known = {r.name: r for r in ROWS}
    lines = ROWS_FILE.read_text().splitlines()
    found = [json.loads(line) for line in lines]
    rows = [(known[r["name"]], r) for r in found if r["name"] in known]
    rows.sort(key=lambda pair: list(known).index(pair[0].name))
    gallery_page.write(rows, PAGE, PICTURES)
    print(f"wrote {PAGE}")


def keep(found: dict[str, Any]) -> None:
    """Put a row into the file, in the place of an older one of its name."""
    lines = ROWS_FILE.read_text().splitlines() if ROWS_FILE.exists() else []
    others = [line for line in lines if json.loads(line)["name"] != found["name"]]
    ROWS_FILE.write_text("\n".join([*others, json.dumps(found)]) + "\n")


def main() -> None:
    """Run what is asked for, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/gallery"))
    parser.add_argument("--only", nargs="*", choices=[r.name for r in ROWS])
    parser.add_argument("--page", action="store_true", help="only write the page again")
    chosen = parser.parse_args()
    if not chosen.page:
        if chosen.data is None:
            parser.error("--data: the folder that holds cifar10, movie-reviews and so on")
        chosen.out.mkdir(parents=True, exist_ok=True)
        for row in ROWS:
            if chosen.only is None or row.name in chosen.only:
                keep(run(row, chosen.data, chosen.out))
    write_page()


if __name__ == "__main__":
    main()
