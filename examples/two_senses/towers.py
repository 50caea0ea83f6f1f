"""Which tower gave more: parameters and multiplications of each part, before and after a run.

python examples/two_senses/towers.py runs/two_senses-1a2b3c4d
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

import prunus
from prunus._common.tables import Table
from prunus.progressive.folder import recipe_of
from prunus.tasks.find import task_of

PARTS = {"image": ("image", "written"), "sound": ("sound", "spoken"), "joint": ("joint", "same")}


def sizes(model: nn.Module, example: object) -> dict[str, tuple[int, int]]:
    """Parameters, and multiplications of one pair, of each part."""
    found = {}
    each = macs_of(model, example)
    for part, names in PARTS.items():
        inside = [m for name, m in model.named_children() if name in names]
        params = sum(p.numel() for m in inside for p in m.parameters())
        found[part] = params, sum(n for name, n in each.items() if name.split(".")[0] in names)
    return found


def macs_of(model: nn.Module, example: object) -> dict[str, int]:
    """Multiplications of every convolution and linear layer for one pair."""
    found: dict[str, int] = {}

    def count(name: str) -> object:
        def hook(module: nn.Module, _: object, output: object) -> None:
            weight = module.weight  # of both: out × what one output reads
            found[name] = weight[0].numel() * output[0].numel()  # type: ignore[index]

        return hook

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [m.register_forward_hook(count(n)) for n, m in layers]  # type: ignore[arg-type]
    model.eval()(**example)  # type: ignore[arg-type]
    for hook in hooks:
        hook.remove()
    return found


def main(folder: Path) -> None:
    """Print the table."""
    task = task_of(recipe_of(folder))
    dense, pruned = task.model(), prunus.load(folder, model=task.model())
    before, after = sizes(dense, task.example), sizes(pruned, task.example)
    rows = [
        (part, f"{was[0]:,}", f"{now[0]:,}", f"{now[0] / was[0]:.0%}",
         f"{was[1]:,}", f"{now[1]:,}", f"{now[1] / was[1]:.0%}")
        for part, was, now in ((p, before[p], after[p]) for p in PARTS)
    ]  # fmt: skip
    head = ("part", "params", "pruned", "left", "macs", "pruned", "left")
    print("\n".join(Table(head, rows).lines()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
