"""What the literal rule |w| ≤ θ·Σ|w| removes, and θ·mean|w|, on SimpleCNN and 10-20-10.

    PRUNUS_DATA=folder python benchmarks/literal_rule.py     # makes literal_rule.md and .png

Without PRUNUS_DATA it does 10-20-10 alone.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from matplotlib.figure import Figure
from torch import nn

import prunus
from prunus._common.environment import describe
from prunus.tasks.base import Task
from prunus.tasks.mlp import mlp

HERE = Path(__file__).parent
LITERAL = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
MEAN = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)


def trained(task: Task, steps: int) -> nn.Module:
    """A model after some training; no pruning."""
    recipe = prunus.Recipe(dense=f"{steps}it", rounds=1, target=0.0, schedule="one_shot")
    return prunus.prune(task, recipe, test=lambda model: 0.0).model


def removed(model: nn.Module, theta: float, *, mean: bool, over: str) -> dict[str, float]:
    """The share of each weight matrix, and of all, that the rule removes."""
    weights = {n: p.detach().abs() for n, p in model.named_parameters() if p.dim() > 1}
    whole = sum(float(w.sum(dtype=torch.float64)) for w in weights.values())
    count = sum(w.numel() for w in weights.values())
    shares, gone = {}, 0
    for name, w in weights.items():
        total, n = (whole, count) if over == "network" else (float(w.sum()), w.numel())
        below = int((w <= theta * (total / n if mean else total)).sum())
        shares[name], gone = below / w.numel(), gone + below
    return {**shares, "all": gone / count}


def table(model: nn.Module, *, mean: bool, over: str) -> str:
    rows = {t: removed(model, t, mean=mean, over=over) for t in (MEAN if mean else LITERAL)}
    names = list(next(iter(rows.values())))
    lines = ["| θ | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    lines += [f"| {t:g} | " + " | ".join(f"{100 * r[n]:.1f} %" for n in names) + " |"
              for t, r in rows.items()]  # fmt: skip
    return "\n".join(lines)


def plot(models: dict[str, nn.Module]) -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, mean in zip(figure.subplots(1, 2, sharey=True), (False, True), strict=True):
        for name, model in models.items():
            thetas = MEAN if mean else LITERAL
            shares = [100 * removed(model, t, mean=mean, over="layer")["all"] for t in thetas]
            axes.plot(thetas, shares, "o-", label=name, markersize=4)
        axes.set_xscale("log")
        axes.set_xlabel("θ")
        axes.set_title("|w| ≤ θ·mean|w|" if mean else "|w| ≤ θ·Σ|w|, as written", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, alpha=0.2)
        axes.legend(frameon=False, fontsize=9)
    figure.axes[0].set_ylabel("weights removed, %")
    return figure


def main() -> None:
    torch.set_num_threads(1)
    models = {"10-20-10": trained(mlp(), 2000)}
    if "PRUNUS_DATA" in os.environ:
        from prunus.tasks.mnist import mnist

        models["SimpleCNN"] = trained(mnist(), 300)
    parts = []
    for name, model in models.items():
        for mean in (False, True):
            for over in ("layer", "network"):
                rule = "θ·mean\\|w\\|" if mean else "θ·Σ\\|w\\|"
                parts.append(f"## {name}: \\|w\\| ≤ {rule}, over the {over}\n\n"
                             + table(model, mean=mean, over=over))  # fmt: skip
    machine = ", ".join(f"{k} {v}" for k, v in {**describe(), "threads": "1"}.items())
    text = f"""# The literal rule

Share of weights that the rule P(W) removes in one cut from trained networks (10-20-10: 2,000
steps; SimpleCNN: 300). As written, with C(W) = Σ|w|, the useful θ depends on the number of
weights, and θ = 0.1 removes everything; divided by that number it is the same for both networks.

![what θ removes](literal_rule.png)

{(chr(10) * 2).join(parts)}

`python benchmarks/literal_rule.py` · {machine}
"""
    (HERE / "literal_rule.md").write_text(text, encoding="utf-8")
    plot(models).savefig(HERE / "literal_rule.png", dpi=110)
    print(text)


if __name__ == "__main__":
    main()
