"""Artifacts in the runtimes that serve them: latency and bytes of four networks, seven ways.

    python benchmarks/artifact.py --data $PRUNUS_DATA --out artifact.jsonl   (an hour, one thread)
    python benchmarks/artifact.py --table artifact.jsonl

A network's variants in one engine (dense, fewer macs, zeros, int8) are timed in turn in one
process, so that ratios are of one run. Fewer macs are by uniform widths without training, as only
time and bytes are measured here; the accuracy of trained ones is in structure.md and headline.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
import structure_common as common
from prunus._common.environment import describe
from prunus._common.nested import tensors_of
from prunus._common.random_inputs import random_inputs
from prunus._common.timing import interleaved, no_denormals
from prunus.deployment.build import size
from prunus.runtimes import BuildRequest, error, find, missing
from prunus.runtimes.eager import computing

NETWORKS = ("resnet20", "resnet50", "bert_base", "lstm")
ENGINES = {
    "onnxruntime": ("onnxruntime", "onnxruntime_int8"),
    "openvino": ("openvino", "openvino_int8"),
    "eager": ("eager",),
    "torch_export": ("torch_export",),
    "torch_compile": ("torch_compile",),
    "torchao_int8": ("eager", "torchao_int8"),
}
PARTS = {"dense": None, "50% fewer macs": 0.5, "75% fewer macs": 0.25}
SHORTER = "75% fewer macs, two blocks out"
ZEROS = "90% zeros"


class Tagger(nn.Module):
    """A bidirectional LSTM of two layers over embedded tokens, a class for the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10_000, 256)
        self.lstm = nn.LSTM(256, 512, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(1024, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens ``[b, 128]`` to scores ``[b, 2]``."""
        return self.head(self.lstm(self.embed(tokens))[0].mean(1))


def network(name: str, data: Path) -> tuple[nn.Module, Any, Any]:
    """A dense network, an example, and inputs to calibrate with."""
    torch.manual_seed(0)
    if name == "resnet20":
        images = common.normalized(common.load_cifar(data, "train")[0][::47][:256])
        return common.resnet20(data), images[:2].contiguous(), list(images.contiguous().split(64))
    if name == "lstm":
        tokens = torch.randint(10_000, (32, 128))
        return Tagger().eval(), tokens[:2], list(tokens.split(8))
    import transformers

    if name == "resnet50":
        made = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))
        images = torch.randn(16, 3, 224, 224)
        return _settled(made, images), images[:2], list(images.split(4))
    made = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=2))
    tokens = torch.randint(30_000, (16, 128))
    example = {"input_ids": tokens[:2], "attention_mask": torch.ones(2, 128, dtype=torch.long)}
    calibration = [{"input_ids": t, "attention_mask": torch.ones_like(t)} for t in tokens.split(4)]
    return made.eval(), example, calibration


def _settled(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """With batch-norm statistics of its inputs, so that activations keep their size."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(images)
    return model.eval()


def variants(name: str, model: nn.Module, example: Any) -> dict[str, nn.Module]:
    """The network four ways, ResNet-20 five; int8 is a matter of the runtime."""
    multiple = 8 if name == "resnet20" else 16

    def thinner(model: nn.Module, part: float) -> nn.Module:
        recipe = {"structure": {"name": "channel", "multiple_of": multiple}, "compact": "end",
                  "allocation": "uniform", "target": {"max_macs": part}}  # fmt: skip
        return prunus.prune(copy.deepcopy(model), recipe, example=example).model

    made = {label: thinner(model, part) if part else model for label, part in PARTS.items()}
    if name == "resnet20":
        fewer = {"structure": {"name": "layer", "modules": ["layer1.[12]"]}, "target": 1,
                 "compact": "end"}  # fmt: skip
        short = prunus.prune(copy.deepcopy(model), fewer, example=example).model
        made[SHORTER] = thinner(short, PARTS["75% fewer macs"] * _macs(model) / _macs(short))
    zeros = copy.deepcopy(model)
    prunus.prune(zeros, {"target": 0.9, "allocation": "uniform"})
    made[ZEROS] = zeros
    return made


def _macs(model: nn.Module) -> int:
    return common.macs(model, common.CIFAR_SHAPE)


def measure(name: str, engine: str, data: Path, batches: list[int]) -> list[dict[str, Any]]:
    """Rows of one network in one engine."""
    model, example, calibration = network(name, data)
    made = variants(name, model, example)
    rows, calls = [], {}
    folder = tempfile.TemporaryDirectory()
    for runtime in ENGINES[engine]:
        for label, variant in made.items():
            if find(runtime).FACTS.exact is False and label == ZEROS:
                continue
            place = Path(folder.name) / runtime / str(len(rows))
            place.mkdir(parents=True)
            order = BuildRequest(variant.eval(), example, place, threads=1, calibration=calibration,
                          batch=tuple(batches))  # fmt: skip
            row: dict[str, Any] = {"network": name, "engine": engine, "runtime": runtime,
                                   "variant": label}  # fmt: skip
            began = time.perf_counter()
            try:
                refusal = find(runtime).refuses(order)
                if refusal:
                    raise prunus.InputError(refusal)
                session = find(runtime).build(order)
                found = session.compute(order.tensors)
                right = computing(order.model, order.call)(order.tensors)
                row |= {"error": error(found, right, how="norm"), "bytes": size(session.path),
                        "build_s": round(time.perf_counter() - began, 1),
                        "notes": list(session.notes)}  # fmt: skip
                if row["error"] > find(runtime).FACTS.tolerance:
                    raise prunus.InputError(f"answers off by {row['error']:.0%}")
                calls[len(rows)] = session.compute
            except Exception as problem:
                row["refused"] = f"{type(problem).__name__}: {str(problem).splitlines()[0][:200]}"
            rows.append(row)
            print(name, runtime, label, row.get("refused", ""), flush=True, file=sys.stderr)
    for batch in batches:
        inputs = tensors_of(random_inputs(example, batch=batch))
        for row in rows:
            row.setdefault("ms", {})
        functions: dict[str, Callable[[], Any]] = {
            str(i): partial(c, inputs) for i, c in calls.items()
        }
        timings = interleaved(functions, seconds=1.5, least=7, warm=1) if functions else {}
        for i, timing in timings.items():
            rows[int(i)]["ms"][str(batch)] = round(timing.median_ms, 4)
            rows[int(i)].setdefault("spread", {})[str(batch)] = round(timing.spread, 3)
    return rows


HEAD = (
    "| runtime | model | ms, batch 1 | times faster | ms, batch 16 | times faster | MB | "
    "times smaller |"
)


def table(path: Path) -> str:
    """Per machine and network: latency, times faster than dense float32 there, and bytes."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    out = []
    for machine, name in dict.fromkeys((r["machine"], r["network"]) for r in rows):
        own = [r for r in rows if (r["machine"], r["network"]) == (machine, name)]
        out += [f"\n## {name}, {machine}\n", HEAD, "|---|---|---|---|---|---|---|---|"]
        for r in own:
            dense = next(d for d in own if d["engine"] == r["engine"] and d["variant"] == "dense"
                         and d["runtime"] == ENGINES[r["engine"]][0])  # fmt: skip
            if r["engine"] == "torchao_int8" and r["runtime"] == "eager":
                continue
            if "refused" in r:
                out.append(f"| {r['runtime']} | {r['variant']} | {r['refused']} | | | | | |")
                continue
            cells = []
            for b in ("1", "16"):
                ms, whole = r["ms"].get(b), dense["ms"].get(b)
                cells += [f"{ms:.3g}" if ms else "–", f"{whole / ms:.2f}" if ms and whole else "–"]
            out.append(f"| {r['runtime']} | {r['variant']} | {' | '.join(cells)} | "
                       f"{r['bytes'] / 1e6:.2f} | {dense['bytes'] / r['bytes']:.2f} |")  # fmt: skip
        out.append(best(own))
    return "\n".join(out)


def best(rows: list[dict[str, Any]]) -> str:
    """The lines below a table: against dense float32, its fastest engine and its smallest file."""
    good = [r for r in rows if "refused" not in r and r["ms"].get("1")]
    exact = [r for r in good if not r["runtime"].endswith("int8")]
    least = min(r["bytes"] for r in exact if r["variant"] == "dense")
    text = "\n"
    for b in ("1", "16"):
        dense = _fastest([r for r in exact if r["variant"] == "dense"], b)
        text += f"Batch {b}: dense is fastest in {dense['runtime']} ({dense['ms'][b]:.3g} ms)"
        for variant in dict.fromkeys(r["variant"] for r in exact if r["variant"].startswith("75")):
            own = [r for r in good if r["variant"] == variant]
            small = _fastest([r for r in own if r in exact], b)
            text += f"; {variant} in {small['runtime']} {_times(dense, small, b)} times as fast"
            ints = [r for r in own if r not in exact]
            if ints:
                r = _fastest(ints, b)
                text += (f", with int8 in {r['runtime']} {_times(dense, r, b)} times as fast and "
                         f"{least / r['bytes']:.1f} times smaller")  # fmt: skip
        text += ".\n"
    return text


def _times(dense: dict[str, Any], small: dict[str, Any], batch: str) -> str:
    return f"{dense['ms'][batch] / small['ms'][batch]:.2f}"


def _fastest(rows: list[dict[str, Any]], batch: str) -> dict[str, Any]:
    return min(rows, key=lambda r: r["ms"][batch])


def main() -> None:
    """A process for each network and engine, so that none inherits another's memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--engine", choices=ENGINES, action="append")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.table:
        print(table(chosen.table))
        return
    if chosen.data is None or chosen.out is None:
        parser.error("give --data and --out, or --table")
    batches = chosen.batch or [1, 16]
    if chosen.one:
        torch.set_num_threads(1)
        with no_denormals():
            rows = measure(chosen.network[0], chosen.engine[0], chosen.data, batches)
        with chosen.out.open("a") as file:
            file.write("".join(json.dumps(r | {"machine": describe()["processor"]}) + "\n"
                               for r in rows))  # fmt: skip
        return
    done = set()
    if chosen.out.exists():
        known = [json.loads(line) for line in chosen.out.read_text().splitlines()]
        here = describe()["processor"]
        done = {(r["network"], r["engine"]) for r in known if r["machine"] == here}
    for name in chosen.network or NETWORKS:
        for engine in chosen.engine or ENGINES:
            if (name, engine) in done or missing(ENGINES[engine][-1]):
                continue
            command = [sys.executable, "-W", "ignore", __file__, "--one", "--data", chosen.data,
                       "--out", chosen.out, "--network", name, "--engine", engine]  # fmt: skip
            command += [part for b in batches for part in ("--batch", str(b))]
            subprocess.run([str(c) for c in command], check=False)


if __name__ == "__main__":
    main()
