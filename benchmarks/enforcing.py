"""What enforcing masks costs of a training step: ten 1024×1024 layers, batch 256, SGD momentum.

python benchmarks/enforcing.py            # makes benchmarks/enforcing.md
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

import prunus
from prunus._common.environment import describe
from prunus.pruning.masks import apply

HERE = Path(__file__).parent
PAIRS, STEPS = 40, 3


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> float:
    """Median milliseconds of a few steps."""
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    inputs = torch.randn(256, 1024)
    masks = {n: torch.rand(p.shape) > 0.9 for n, p in model.named_parameters() if p.dim() > 1}
    apply(model, masks)
    steps(model, optimizer, inputs)
    free, held = [], []
    for pair in range(PAIRS):  # interleaved, in both orders
        for masked in (False, True) if pair % 2 else (True, False):
            stop = prunus.enforce(model, masks, optimizer) if masked else None
            (held if masked else free).append(steps(model, optimizer, inputs))
            if stop is not None:
                stop()
    ratios = [b / a for a, b in zip(free, held, strict=True)]
    share = 100 * (statistics.median(ratios) - 1)
    low, high = (100 * (q - 1) for q in (statistics.quantiles(ratios, n=4)[i] for i in (0, 2)))
    machine = ", ".join(f"{k} {v}" for k, v in {**describe(), "threads": "1"}.items())
    text = f"""# Enforcing masks

Ten 1024×1024 linear layers, batch 256, SGD with momentum, one thread, sparsity 0.9: weights after
every step and gradients as they accumulate. {PAIRS} interleaved pairs of {STEPS} steps.

| | |
|---|---|
| a step without masks | {statistics.median(free):.1f} ms |
| a step with masks | {statistics.median(held):.1f} ms |
| share, median of paired ratios | {share:.2f} % (quartiles {low:.2f} to {high:.2f} %) |

`python benchmarks/enforcing.py` · {machine}
"""
    (HERE / "enforcing.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
