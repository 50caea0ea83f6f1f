"""What a run's detectors are worth in use: precision, counts and sensitivity of each class.

    python examples/detection/figures.py runs/detection-1a2b3c4d --picture boxes.png
    python examples/detection/figures.py runs/seed_0 runs/seed_1 runs/seed_2 --aim 0.01

compares the run's dense and pruned network on the test images (paired bootstrap over images), and
draws what both find in some of them. Of several runs, which differ in their seed, the mean change
is bootstrapped over images and runs; the aim is a loss that the interval must reach.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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


def interval(pairs: Sequence[tuple[Tensor, Tensor]], count: int) -> tuple[float, float]:
    """95 % of the mean changes from dense to pruned, over choices of as many images and runs.

    Args:
        pairs: of each run the rows of its dense and of its pruned network.
        count: images.
    """
    source = torch.Generator().manual_seed(0)
    changes = []
    for _ in range(DRAWS):
        images = torch.randint(count, (count,), generator=source)
        runs = torch.randint(len(pairs), (len(pairs),), generator=source).tolist()
        each = {
            run: of_images(pairs[run][1], images, count) - of_images(pairs[run][0], images, count)
            for run in set(runs)
        }
        changes.append(float(np.mean([each[run] for run in runs])))
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


def judged(task: Task, models: dict[str, nn.Module]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The scores of both networks on the test images, and what they find there."""
    test: Any = task.test
    found = {name: detection.found_in(model, test) for name, model in models.items()}
    return {n: detection.matched(one, test.cells, test.names) for n, one in found.items()}, found


def said(scores: dict[str, Any], count: int) -> str:
    """The change of a run, and what it makes of each class."""
    low, high = interval([(scores["dense"].items, scores["pruned"].items)], count)
    change = scores["pruned"].mean - scores["dense"].mean
    lines = []
    for name, one in scores.items():
        each = ", ".join(f"{n} {v:.3f}" for n, v in one.by_group().items())
        lines.append(f"mAP {name} {one.mean:.4f}: {each}")
    return "\n".join(
        [*lines, f"change {change:+.4f} ({low:+.4f} to {high:+.4f}, paired bootstrap over images)"]
    )


def together(every: Sequence[dict[str, Any]], count: int, aim: float | None) -> str:
    """The mean change of several runs, and whether an aim is met: its interval reaches it."""
    pairs = [(s["dense"].items, s["pruned"].items) for s in every]
    low, high = interval(pairs, count)
    change = float(np.mean([s["pruned"].mean - s["dense"].mean for s in every]))
    line = (
        f"{len(every)} runs: change {change:+.4f} ({low:+.4f} to {high:+.4f}, paired bootstrap "
        "over images and runs)"
    )
    if aim is None:
        return line
    met = "met" if high >= -aim else "missed"
    return f"{line}; the aim, a loss of at most {aim:g}, is {met}"


def counts(
    task: Task, models: dict[str, nn.Module], found: dict[str, list[Any]]
) -> dict[str, Sure]:
    """Print cells counted and sensitivity of each class; the scores from which on boxes count."""
    held: Any = task.validation
    test: Any = task.test
    names, cells = test.names, test.cells
    sure = {n: surest(detection.found_in(m, held), held.cells, names) for n, m in models.items()}
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
    return sure


@torch.no_grad()
def main(folders: Sequence[Path], picture: Path | None, aim: float | None) -> None:
    """Print it all, and draw."""
    every = []
    for folder in folders:
        task, models = both(folder)
        test: Any = task.test
        count = len(test.cells.pixels)
        print(f"{folder}: {count} test images, {int((test.cells.classes >= 0).sum())} boxes")
        scores, found = judged(task, models)
        print(said(scores, count))
        every.append(scores)
        if len(folders) == 1 or picture is not None:
            sure = counts(task, models, found)
    if len(every) > 1:
        print(together(every, count, aim))
    if picture is not None:
        draw(test.cells, found, test.names, sure).save(picture)
        print(f"wrote {picture}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--aim", type=float, help="a loss of mAP, 0 to 1")
    chosen = parser.parse_args()
    main(chosen.folders, chosen.picture, chosen.aim)
