"""What the networks of the example edge weigh on small machines: a table for each run.

    prunus run edge_keywords --data $PRUNUS_DATA --folder runs/edge_keywords     (and the others)
    python benchmarks/edge.py runs/edge_keywords runs/edge_anomalies             (minutes)

Dense and pruned in every runtime that is installed: bytes on disk, milliseconds of one input, the
error of the answers, the metric in the runtime; beside them the memory at the peak of a pass, the
arena that ExecuTorch plans, and the energy, estimated from operations and bytes. Then the same
file as ONNX Runtime's reduced builds read it, and the operators that such a build needs.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus._common.metrics import number
from prunus._common.tables import Table
from prunus.deployment.table import Deployment, RuntimeResult
from prunus.progressive.folder import recipe_of
from prunus.runtimes import missing
from prunus.tasks._files import load_weights
from prunus.tasks.base import Task
from prunus.tasks.find import task_of

RUNTIMES = ("onnxruntime", "onnxruntime_int8", "openvino", "openvino_int8", "mnn", "executorch",
            "executorch_int8")  # fmt: skip
HEAD = ("runtime", "model", "kB", "ms", "error", "metric", "planned arena, kB")


def both(folder: Path) -> tuple[Task, nn.Module, nn.Module]:
    """The task of a run, its dense and its pruned network."""
    task = task_of(recipe_of(folder))
    dense = load_weights("edge", task.model(), folder / "dense.safetensors")
    return task, dense.eval(), prunus.load(folder, model=task.model()).eval()


def calibration(task: Task) -> list[Tensor]:
    """Inputs alone."""
    batches = list(task.calibration or ())[:8]
    return [b if isinstance(b, Tensor) else b[0] for b in batches]


def deployed(task: Task, dense: nn.Module, pruned: nn.Module, place: Path) -> Deployment:
    """Both in every runtime that is installed."""
    return prunus.deploy(
        pruned, example=task.example[:1], baseline=dense, folder=place, batch_sizes=(1,),
        runtime=[r for r in RUNTIMES if not missing(r)], quantize="auto", seconds=3.0,
        evaluate=lambda model: number(task.metric(model, task.validation), "metric"),
        calibration=calibration(task),
    )  # fmt: skip


def row(one: RuntimeResult) -> tuple[str, ...]:
    """Of the table."""
    if one.refused is not None and not one.latency:
        return (one.runtime, one.model, "–", "–", "–", "–", one.refused[:60])
    arena = [m[1] for n in one.notes if (m := re.match(r"([\d,]+) bytes of memory", n))]
    ms = "–" if 1 not in one.latency else f"{one.latency[1].median_ms:.3f}"
    planned = f"{int(arena[0].replace(',', '')) / 1000:.1f}" if arena else "–"
    metric = "–" if one.metric is None else f"{one.metric:.4f}"
    return (one.runtime, one.model, f"{(one.bytes or 0) / 1000:.1f}", ms, f"{one.error:.0e}",
            metric, planned)  # fmt: skip


def costs(task: Task, dense: nn.Module, pruned: nn.Module) -> list[str]:
    """Macs, memory at the peak and energy of one input."""
    found = prunus.measure(pruned, task.example[:1], baseline=dense, batch_sizes=(1,), seconds=0.5)
    lines = []
    for name, one in (("dense", found.baseline), ("pruned", found.model)):
        assert one is not None
        cost = one.passes[0]
        mj = "unknown" if cost.energy is None else f"{cost.energy.mj:.4f}"
        lines.append(
            f"{name}: {one.macs or 0:,.0f} macs, {one.params:,} parameters; {mj} mJ (estimated), "
            f"{cost.peak_bytes:,} bytes at the peak of a pass in float32 (weights, input and "
            "activations alive together)"
        )
    return lines


def reduced(model: Path, inputs: Tensor) -> list[str]:
    """The file for a build of ONNX Runtime that has nothing else, and what that must have."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "model.onnx"
        copy.write_bytes(model.read_bytes())
        command = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort",
                   str(copy), "--optimization_style", "Fixed"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return [f"reduced build: not converted: {done.stderr.strip().splitlines()[-1]}"]
        small = next(Path(place).glob("*.ort"))
        config = next(Path(place).glob("*.config")).read_text()
        answers = []
        for path in (copy, small):
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            answers.append(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])
        apart = float(abs(answers[0] - answers[1]).max())
        lines = [line for line in config.splitlines() if line and not line.startswith("#")]
        return [f"reduced build: {small.stat().st_size / 1000:.1f} kB, answers within {apart:.0e}",
                *(f"    {line}" for line in lines)]  # fmt: skip


def main() -> None:
    """A table for each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    torch.set_num_threads(1)
    for folder in parser.parse_args().folders:
        task, dense, pruned = both(folder)
        with tempfile.TemporaryDirectory() as scratch:
            made = deployed(task, dense, pruned, Path(scratch))
            rows: list[Any] = [row(one) for one in made.rows]
            print(f"\n{folder.name}\n\n{chr(10).join(Table(HEAD, rows, (0, 1)).lines())}\n")
        print("\n".join(costs(task, dense, pruned)))
        kept = [p for n in ("onnxruntime_int8", "onnxruntime")
                for p in folder.glob(f"deployed/{n}/model.onnx")]  # fmt: skip
        if kept:
            print("\n".join(reduced(kept[0], task.example[:1])))


if __name__ == "__main__":
    main()
