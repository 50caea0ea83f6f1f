"""What a run's detectors are worth in use: precision, counts and sensitivity of each class.

    python examples/detection/figures.py runs/detection-1a2b3c4d [boxes.png]

compares the run's dense and pruned network on the test images (paired bootstrap over images), and
draws what both find in some of them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import prunus
from prunus.methods.catalog import module_at
from prunus.progressive.folder import recipe_of
from prunus.tasks._files import load_weights
from prunus.tasks.base import Task
from prunus.tasks.find import task_of

detection = module_at(Path(__file__).with_name("detection.py"))
DRAWS = 2000
COLORS = ("#ffd400", "#ff3b30", "#007aff", "#34c759")
Sure = dict[str, float]
"""By class the score from which on a box counts."""


def both(folder: Path) -> tuple[Task, dict[str, nn.Module]]:
    """The task of a run, and its networks."""
    task = task_of(recipe_of(folder))
    file, dense = folder / "dense.safetensors", task.model()
    dense = (
        load_weights("detection", dense, file) if file.is_file() else dense
    )  # else it came trained
    return task, {"dense": dense.eval(), "pruned": prunus.load(folder, model=task.model()).eval()}


def of_images(rows: Tensor, images: Tensor, count: int) -> float:
    """The mean average precision of some images, which may repeat."""
    return float(
        detection.average_precision(rows.unflatten(0, (-1, count))[:, images].flatten(0, 1))
    )


def interval(dense: Tensor, pruned: Tensor, count: int) -> tuple[float, float]:
    """95 % of the changes from dense to pruned, over choices of as many images."""
    source = torch.Generator().manual_seed(0)
    changes = []
    for _ in range(DRAWS):
        images = torch.randint(count, (count,), generator=source)
        changes.append(of_images(pruned, images, count) - of_images(dense, images, count))
    low, high = np.quantile(changes, [0.025, 0.975])
    return float(low), float(high)


def counted(found: list[Any], names: list[str], sure: Sure) -> Tensor:
    """Boxes of each class in each image, ``[images, classes]``."""
    rows = [
        [
            int(((one.classes == c) & (one.scores > sure[name])).sum())
            for c, name in enumerate(names)
        ]
        for one in found
    ]
    return torch.tensor(rows)


def surest(found: list[Any], cells: Any, names: list[str]) -> Sure:
    """The score for each class at which the numbers of boxes fit best, on validation images."""
    best: Sure = {}
    for c, name in enumerate(names):
        right = (cells.classes == c).sum(1)
        off = {
            s: float((counted(found, names, dict.fromkeys(names, s))[:, c] - right).abs().sum())
            for s in np.linspace(0.05, 0.8, 31).tolist()
        }
        best[name] = min(off, key=lambda s: off[s])
    return best


def sensitivity(found: list[Any], cells: Any, names: list[str], sure: Sure) -> list[float]:
    """The share of true boxes of each class that a box overlaps by half or more."""
    limits = torch.tensor([sure[name] for name in names])
    kept = [
        detection.Found(f.boxes[k], f.classes[k], f.scores[k])
        for f in found for k in [f.scores > limits[f.classes]]
    ]  # fmt: skip
    seen = detection.matches(kept, cells, len(names))
    shares = []
    for c in range(len(names)):
        right = [e["gtMatches"][0] > 0 for (kind, _), e in seen.items() if kind == c]
        shares.append(float(np.concatenate(right).mean()) if right else float("nan"))
    return shares


def draw(cells: Any, found: dict[str, list[Any]], names: list[str], sure: dict[str, Sure]) -> Any:
    """Some images, each with the truth, what the dense and what the pruned network finds."""
    from PIL import Image, ImageDraw

    chosen = range(0, len(cells.pixels), -(-len(cells.pixels) // 4))
    wide, high = 2 * detection.WIDTH, 2 * detection.HEIGHT
    page = Image.new("RGB", (3 * wide, high * len(chosen)))
    for row, i in enumerate(chosen):
        there = cells.classes[i] >= 0
        truth = detection.Found(
            cells.boxes[i][there], cells.classes[i][there], there[there].float()
        )
        columns = {"truth": truth, **{name: one[i] for name, one in found.items()}}
        for column, (name, one) in enumerate(columns.items()):
            image = Image.fromarray(cells.pixels[i].numpy()).resize((wide, high))
            pen = ImageDraw.Draw(image)
            for box, c, score in zip(one.boxes, one.classes, one.scores, strict=True):
                if name == "truth" or score > sure[name][names[c]]:
                    pen.rectangle((2 * box).tolist(), outline=COLORS[int(c) % len(COLORS)], width=3)
            pen.rectangle((0, 0, 70, 16), fill="black")
            pen.text((4, 2), name, fill="white")
            page.paste(image, (column * wide, row * high))
    return page


@torch.no_grad()
def main(folder: Path, picture: Path | None) -> None:
    """Print it all, and draw."""
    task, models = both(folder)
    held, test = task.validation, task.test
    names, cells = test.names, test.cells  # type: ignore[union-attr]
    sure = {n: surest(detection.found_in(m, held), held.cells, names) for n, m in models.items()}  # type: ignore[attr-defined]
    found = {name: detection.found_in(model, test) for name, model in models.items()}
    scores = {name: detection.matched(one, cells, names) for name, one in found.items()}
    count = len(cells.pixels)
    low, high = interval(scores["dense"].items, scores["pruned"].items, count)
    change = scores["pruned"].mean - scores["dense"].mean
    print(f"{count} test images, {int((cells.classes >= 0).sum())} boxes")
    for name, one in scores.items():
        each = ", ".join(f"{n} {v:.3f}" for n, v in one.by_group().items())
        print(f"mAP {name} {one.mean:.4f}: {each}")
    print(f"change {change:+.4f} ({low:+.4f} to {high:+.4f}, paired bootstrap over images)")
    truth = torch.stack([(cells.classes == c).sum(1) for c in range(len(names))], 1)
    print(f"cells there are: {dict(zip(names, truth.sum(0).tolist(), strict=True))}")
    for name, one in found.items():
        number = counted(one, names, sure[name])
        off = (number - truth).abs().double().mean(0).tolist()
        share = sensitivity(one, cells, names, sure[name])
        for c, kind in enumerate(names):
            print(
                f"{name:7} {kind:10} counted {int(number[:, c].sum()):5}, off by {off[c]:.2f} an "
                f"image; sensitivity {share[c]:.3f} (scores above {sure[name][kind]:.2f})"
            )
    if picture is not None:
        draw(cells, found, names, sure).save(picture)
        print(f"wrote {picture}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
