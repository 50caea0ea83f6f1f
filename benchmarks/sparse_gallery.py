"""Whole models of the gallery with single weights taken out: zeros against dense int8.

    make bench-sparse-gallery PRUNUS_DATA=…      (an hour of a core: three trainings, and timing)
    python benchmarks/sparse_gallery.py --data $PRUNUS_DATA --out runs/sparse --only recurrent
    python benchmarks/sparse_gallery.py --run encoder=runs/mine     (a run that there is)
    python benchmarks/sparse_gallery.py --table benchmarks/sparse_gallery.jsonl

Each row is trained by ``prunus run`` to the sparsity that its guard allows, in a folder of its own;
a finished run is not trained again. Then the pruned model runs sparse, and the dense one in every
engine at its best settings, in float32 and in int8, in turn in one process on one input.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.environment import describe
from prunus._common.timing import no_denormals
from prunus.deployment.build import Builder
from prunus.deployment.calibration import inputs_of
from prunus.deployment.judge import metric_of
from prunus.kernels import library
from prunus.progressive.finished import Finished, open_run
from prunus.runtimes import missing
from sparse import clock_of, timed
from sparse_opponents import DENSE, INT8, engines

WEIGHTS = ("structure=weight", "criterion=magnitude", "compact=none", "deploy=null")
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "encoder": ("encoder: movie reviews, transformer", ("reviews_transformer", *WEIGHTS)),
    "language": ("language model: Shakespeare, transformer",
                 ("shakespeare", "rounds=null", "target={step: 0.5, smallest: 0.1}", *WEIGHTS)),
    "recurrent": ("recurrent: movie reviews, bidirectional LSTM", ("reviews_lstm", *WEIGHTS)),
}  # fmt: skip
"""Titles, and what ``prunus run`` is told."""
BATCHES = 8
"""Of calibration, for int8."""


def trained(name: str, out: Path, data: Path) -> Path:
    """The folder of a row's run, which is finished here if it is not."""
    folder = out / name
    if (folder / "result.json").is_file():
        return folder
    prunus = Path(sys.executable).with_name("prunus")
    action = ["resume", folder] if folder.exists() else ["run", *ROWS[name][1], "--folder", folder]
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{name}.log").open("a") as log:
        command = [prunus, *action, "--data", data]
        subprocess.run(list(map(str, command)), check=True, stdout=log, stderr=log)
    return folder


def first(example: Any) -> Any:
    """One input of an example."""
    if isinstance(example, Mapping):
        return {name: first(value) for name, value in example.items()}
    if isinstance(example, Tensor):
        return example[:1]
    return tuple(map(first, example))


def measured(folder: Path, threads: int, seconds: float) -> dict[str, Any]:
    """What a run's model costs in every engine, and how good each is."""
    run = open_run(folder)
    batches = run.task.train if run.task.calibration is None else run.task.calibration
    held = inputs_of(run.pruned, run.task.loss, batches, limit=BATCHES)
    example = first(run.task.example)
    given = example if isinstance(example, (dict, tuple)) else (example,)
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = engines(run.pruned, given, Path(place) / "pruned", threads=threads, rounded=1.0,
                      calibration=held)  # fmt: skip
        others = engines(run.dense, given, Path(place) / "dense", threads=threads, rounded=1.0,
                         calibration=held)  # fmt: skip
        calls = {name: call for name, call in others.items() if name != "sparse"}
        if "sparse" in own:
            calls["sparse"] = own["sparse"]
        ms = timed(calls, cold=False, seconds=seconds, clock=clock_of(threads))
        quality = _quality(run, held, threads, Path(place) / "int8")
    kinds = (nn.Linear, nn.RNNBase, nn.Conv2d, nn.MultiheadAttention)  # an embedding is looked up
    weights = [p for m in run.pruned.modules() if isinstance(m, kinds)
               for p in m.parameters(recurse=False) if p.dim() > 1]  # fmt: skip
    zeros = sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)
    shapes = [tuple(t.shape) for t in (example.values() if isinstance(example, dict) else given)]
    return {"sparsity": zeros, "input": shapes, "ms": ms, "quality": quality,
            "metric_name": run.task.metric_name}  # fmt: skip


def _quality(run: Finished, held: Sequence[Any], threads: int, place: Path) -> dict[str, float]:
    """The metric of the dense model, the pruned one, and the dense one in int8."""

    def metric(model: nn.Module) -> Any:
        return run.task.metric(model, run.task.validation)

    found = {"dense": metric_of(metric, run.dense), "pruned": metric_of(metric, run.pruned)}
    builder = Builder(run.task.example, held, threads, (1,), place, lambda text: None)
    for name in INT8:
        if missing(name):
            continue
        served = builder.build(name, "dense", run.dense).served
        if served is not None:
            found[name] = metric_of(metric, served)
    return found


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a table for each machine, instruction set and number of threads."""
    groups: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for line in lines:
        groups[line["processor"], line["instructions"], str(line["threads"])][line["row"]] = line
    return "\n\n".join(_table(key, own) for key, own in groups.items())


def _table(key: tuple[str, ...], lines: Mapping[str, Mapping[str, Any]]) -> str:
    out = [f"## {key[0]}, kernels for {key[1]}, threads: {key[2]}", ""]
    head = ("model, one input", "zeros", "metric: dense → pruned, int8", "dense fp32, ms",
            "dense int8, ms", "sparse, ms", "over fp32", "over int8", "the fastest")  # fmt: skip
    out += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, line in sorted(lines.items(), key=lambda pair: list(ROWS).index(pair[0])):
        out.append("| " + " | ".join([ROWS[name][0], *_cells(line)]) + " |")
    return "\n".join(out)


def _cells(line: Mapping[str, Any]) -> list[str]:
    ms, quality = line["ms"], line["quality"]
    best = {
        kind: min((n for n in names if n in ms), key=ms.__getitem__, default=None)
        for kind, names in (("fp32", DENSE), ("int8", INT8), ("sparse", ("sparse",)))
    }
    there = {kind: (ms[name], name) for kind, name in best.items() if name is not None}
    # where no layer is faster by zeros, deploy keeps the dense engine
    own = there.get("sparse", there["fp32"])[0]
    said = {kind: f"{time:.3g} ({name})" for kind, (time, name) in there.items()}
    short = quality.get(best["int8"])
    change = f"{quality['dense']:.4g} → {quality['pruned']:.4g}"
    change += "" if short is None else f", {short:.4g}"
    over = f"{there['int8'][0] / own:.2f}" if "int8" in there else "–"
    winner = min(there, key=there.__getitem__)
    names = {"fp32": "dense fp32", "int8": "dense int8", "sparse": "zeros"}
    return [
        f"{line['sparsity']:.0%}", f"{line['metric_name']} {change}", said["fp32"],
        said.get("int8", "–"), f"{own:.3g}" if "sparse" in there else "– (no layer wins)",
        f"{there['fp32'][0] / own:.2f}", over, names[winner],
    ]  # fmt: skip


HEAD = """# What zeros pay in whole models

`make bench-sparse-gallery`. Single weights, taken out by magnitude as far as the example's own
guard allows; the pruned model by the runtime `sparse`, the dense model by the fastest engine in
float32 and in int8, one input, medians in turn in one run. Metrics are of the validation data;
int8 is the dense model's. With one thread it is the processor's time that counts, else the wall's.

"""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="the folder with movie-reviews and shakespeare")
    parser.add_argument("--out", type=Path, default=Path("runs/sparse"), help="of the runs")
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--run", nargs="*", default=[], metavar="ROW=FOLDER")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each engine")
    parser.add_argument("--keep", type=Path, help="a file of lines that the table is made from")
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    if given.table:
        print(HEAD + table([json.loads(text) for text in given.table.read_text().splitlines()]))
        return
    folders = {name: Path(folder) for name, _, folder in (r.partition("=") for r in given.run)}
    if unknown := set(folders) - set(ROWS):
        parser.error(
            f"--run: there is no row {', '.join(sorted(unknown))}; rows: {', '.join(ROWS)}"
        )
    if not folders and given.data is None:
        parser.error("--data, to train on, or --run ROW=FOLDER")
    torch.set_num_threads(given.threads)
    machine = {"processor": describe()["processor"], "instructions": library().name,
               "threads": given.threads, "torch": torch.__version__}  # fmt: skip
    for name in folders or given.only:
        folder = folders.get(name) or trained(name, given.out, given.data)
        with no_denormals():
            found = measured(folder, given.threads, given.seconds)
        line = {"row": name, **found, **machine, "date": time.strftime("%Y-%m-%d")}
        print(json.dumps(line), flush=True)
        if given.keep:
            with given.keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
