"""Size and speed of packed files: eight 2048×2048 layers in float32, one thread.

python benchmarks/sparse_file.py          # makes benchmarks/sparse_file.md
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import safetensors.torch
import torch
from torch import nn

import prunus
from prunus._common import kernels as native
from prunus._common.environment import describe
from prunus.compaction.files.checked_read import read
from prunus.compaction.files.unpack import unpack, whole

HERE = Path(__file__).parent
WIDTH, LAYERS, ROUNDS = 2048, 8, 9
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)
VALUES = (None, "float16", "bfloat16", "int8")
DENSE = "dense file"


def model_of(sparsity: float) -> nn.Module:
    """A model with exactly this share of zeros in every weight."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    with torch.no_grad():
        for layer in model:
            removed = torch.randperm(WIDTH * WIDTH, generator=generator)
            layer.weight.view(-1)[removed[: int(sparsity * WIDTH * WIDTH)]] = 0
    return model


def write(folder: Path) -> dict[Any, Path]:
    """The dense file and one for each sparsity and type of values."""
    paths: dict[Any, Path] = {DENSE: prunus.save(model_of(0.9), folder / "dense")}
    for sparsity in SPARSITIES:
        model = model_of(sparsity)
        for values in VALUES:
            path = folder / f"{sparsity}-{values}"
            paths[sparsity, values] = prunus.save(model, path, sparse=True, values=values)
    return paths


def touched(model: nn.Module) -> None:
    """Read a number of every page: what is only mapped is not there yet."""
    for parameter in model.parameters():
        parameter.detach().view(-1)[::1024].sum()


def without_extension(path: Path, model: nn.Module) -> None:
    """The same with numpy alone."""
    kernels, native.kernels = native.kernels, None  # type: ignore[assignment]
    try:
        prunus.load(path, model)
    finally:
        native.kernels = kernels


def into_new_memory(path: Path) -> list[torch.Tensor]:
    """What a model costs that has no memory yet: a graph, or one whose sizes change."""
    manifest, stored = read(path)
    return [whole(tensor) for tensor in unpack(stored, manifest["sparse"]).values()]


def measure(paths: dict[Any, Path]) -> dict[Any, float]:
    """Median seconds of every way to open a file; all in turn, so that all meet the same noise."""
    model = model_of(0)
    ways: dict[Any, Callable[[], object]] = {
        key: lambda path=path: prunus.load(path, model) for key, path in paths.items()
    }
    ways[DENSE] = lambda: touched(prunus.load(paths[DENSE], model))
    ways["own memory"] = lambda: safetensors.torch.load(paths[DENSE].read_bytes())
    ways["new memory"] = lambda: into_new_memory(paths[0.9, None])
    ways["numpy"] = lambda: without_extension(paths[0.9, None], model)
    times: dict[Any, list[float]] = {key: [] for key in ways}
    for _ in range(ROUNDS):
        for key, way in ways.items():
            began = time.perf_counter()
            way()
            times[key].append(time.perf_counter() - began)
    return {key: statistics.median(values) for key, values in times.items()}


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder))
        size = {key: path.stat().st_size for key, path in paths.items()}
        seconds = measure(paths)
    speed = {key: f"{size[DENSE] / 1e9 / value:.1f}" for key, value in seconds.items()}
    rows = []
    for sparsity in SPARSITIES:
        cells = [f"{size[sparsity, v] / size[DENSE]:.3f} · {speed[sparsity, v]}" for v in VALUES]
        rows.append(f"| {sparsity} | " + " | ".join(cells) + " |")
    table = "\n".join(rows)
    machine = ", ".join(f"{k} {v}" for k, v in {**describe(), "threads": "1"}.items())
    text = f"""# Packed files

{LAYERS} linear layers of {WIDTH}×{WIDTH} in float32, {size[DENSE] / 1e6:.0f} MB as a dense file.
Each cell: bytes of the file ÷ bytes of the dense one · GB of dense weights opened in a second.
Measured: `prunus.load` into a model, whose memory is written over, from a file that the system
has in memory; one thread, medians of {ROUNDS} rounds in which all files are opened in turn.

| sparsity | exact | float16 | bfloat16 | int8 |
|---|---|---|---|---|
{table}

In the same rounds:

| | GB/s |
|---|---|
| the dense file, `prunus.load`: mapped, not copied, a number of every page read | {speed[DENSE]} |
| the dense file into memory of its own, `safetensors.torch.load` | {speed["own memory"]} |
| packed, sparsity 0.9, exact, into new memory (a graph, other sizes) | {speed["new memory"]} |
| packed, sparsity 0.9, exact, without the compiled kernel (numpy) | {speed["numpy"]} |

A mapped file costs no copy as long as the system still has it in memory. From a disk or a network
the bytes count, and they are in the first number of each cell.

`python benchmarks/sparse_file.py` · {machine}
"""
    (HERE / "sparse_file.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
