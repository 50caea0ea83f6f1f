"""What a run's networks are worth behind the wheel, and where they differ most.

    python examples/driving/figures.py runs/driving-1a2b3c4d [moments.png] [--passes 10000]

compares the run's dense and pruned network with simple rules on the test moments, says how long
the slowest passes of both artifacts take, and draws the moments in which they differ most.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus.methods.catalog import module_at
from prunus.progressive.folder import recipe_of
from prunus.tasks._files import find_folder, load_weights
from prunus.tasks.base import Task
from prunus.tasks.find import task_of

driving = module_at(Path(__file__).with_name("driving.py"))
SHOWN = 6


def both(folder: Path) -> tuple[Task, dict[str, nn.Module]]:
    """The task of a run, and its networks."""
    task = task_of(recipe_of(folder))
    file, dense = folder / "dense.safetensors", task.model()
    dense = (
        load_weights("driving", dense, file) if file.is_file() else dense
    )  # else it came trained
    return task, {"dense": dense.eval(), "pruned": prunus.load(folder, model=task.model()).eval()}


def gathered(batches: Any) -> tuple[Tensor, Tensor]:
    """All images and what is wanted of them."""
    parts = list(batches)
    return torch.cat([images for images, _ in parts]), torch.cat([wanted for _, wanted in parts])


def errors(found: Tensor, wanted: Tensor) -> str:
    """Mean absolute error, that of the worst tenth, and by camera."""
    off = (found - wanted[:, 0]).abs()
    worst = off.sort(descending=True).values[: max(1, len(off) // 10)].mean()
    by_camera = [
        f"{name} {off[wanted[:, 2] == c].mean():.3f}" for c, name in enumerate(driving.CAMERAS)
        if bool((wanted[:, 2] == c).any())
    ]  # fmt: skip
    return f"{off.mean():.4f}, worst tenth {worst:.3f}; {', '.join(by_camera)}"


def rules(train: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """What needs no look at the road: straight on, the mean, and the camera's own correction."""
    turned = torch.tensor(list(driving.CAMERAS.values()))[wanted[:, 2].long()]
    return {
        "straight": torch.zeros(len(wanted)),
        "the mean": train[:, 0].mean().expand(len(wanted)),
        "the camera": turned,
    }


def compare(models: dict[str, nn.Module], task: Task, parts: dict[str, Any]) -> dict[str, Tensor]:
    """Print the errors on each part; the answers on the first."""
    train = gathered(task.train_sample)[1].flatten(0, -2)
    first: dict[str, Tensor] = {}
    for title, batches in parts.items():
        images, wanted = gathered(batches)
        wanted = wanted.flatten(0, -2)
        found = {name: model(images)[0].flatten() for name, model in models.items()}
        first = first or found
        print(f"{title}: {len(wanted)} images; mean absolute error of the steering")
        for name, answer in (found | rules(train, wanted)).items():
            print(f"  {name:10} {errors(answer, wanted)}")
    return first


def last_fifth(folder: Path | None, steps: int) -> tuple[list[tuple[Tensor, Tensor]], float]:
    """The set's usual test, the middle camera; and the error of the best answer to each picture.

    Pictures count as the same where they differ by less than 0.06 of 2 (root mean square).
    """
    drive = driving.read(find_folder("driving", folder, "driving", "driving.zip") / "driving.zip")
    begin = int(0.8 * len(drive.steering))
    begin += (len(drive.steering) - begin) % steps
    rows = torch.arange(begin, len(drive.steering))
    images, wanted = (
        driving.scaled(drive.pixels[rows, 1]),
        drive.wanted(rows, torch.ones_like(rows)),
    )
    small = images[:, :, ::3, ::4].flatten(1)
    same = torch.cdist(small, small) / small.shape[1] ** 0.5 < 0.06  # root mean square
    best = torch.stack([wanted[row, 0].median() for row in same])
    least = float((best - wanted[:, 0]).abs().mean())
    if steps > 1:
        images, wanted = (t.unflatten(0, (-1, steps)) for t in (images, wanted))
    return [(images, wanted)], least


def timed(works: dict[str, Callable[[], Any]], passes: int) -> None:
    """The median, the 99th percentile and the slowest of single passes, in turn."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(passes):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            times[name].append(1000 * (time.perf_counter() - began))
    for name, each in times.items():
        found = torch.tensor(each).sort().values
        median, high, slowest = (float(found[int(q * (passes - 1))]) for q in (0.5, 0.99, 1))
        print(
            f"{name:7} median {median:.3f} ms, p99 {high:.3f} ms, slowest {slowest:.2f} ms of "
            f"{passes:,} passes"
        )


def draw(images: Tensor, wanted: Tensor, found: dict[str, Tensor], rows: list[int]) -> Any:
    """Moments with arrows: what a person did (white), the dense (blue), the pruned (orange)."""
    from PIL import Image, ImageDraw

    high, wide = 2 * driving.HEIGHT, 2 * driving.WIDTH
    page = Image.new("RGB", (2 * wide, high * -(-len(rows) // 2)))
    for place, i in enumerate(rows):
        pixels = ((images[i] + 1) * 127.5).byte().movedim(0, -1).numpy()
        image = Image.fromarray(pixels).resize((wide, high))
        pen = ImageDraw.Draw(image)
        arrows = {"white": wanted[i, 0], "#4da3ff": found["dense"][i], "orange": found["pruned"][i]}
        for color, angle in arrows.items():
            tip = (wide / 2 * (1 + float(angle)), high * 0.35)
            pen.line([(wide / 2, high - 4), tip], fill=color, width=4)
        page.paste(image, ((place % 2) * wide, (place // 2) * high))
    return page


@torch.no_grad()
def main() -> None:
    """Print it all, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path, nargs="?")
    parser.add_argument("--passes", type=int, default=10_000)
    chosen = parser.parse_args()
    task, models = both(chosen.folder)
    steps = driving.STEPS if task.example.dim() == 5 else 1
    usual, least = last_fifth(None, steps)
    found = compare(models, task, {"test": task.test, "the set's last fifth": usual})
    print(f"  {'one answer':10} {least:.4f} is the least for one answer to each picture there")
    images, wanted = gathered(task.test)
    images, wanted = images.flatten(0, -4), wanted.flatten(0, -2)
    apart = (found["dense"] - found["pruned"]).abs()
    rows = apart.argsort(descending=True)[:SHOWN].tolist()
    print("where dense and pruned differ most (image of the test part, camera: person, both):")
    for i in rows:
        camera = list(driving.CAMERAS)[int(wanted[i, 2])]
        turned = [float(angles[i]) for angles in (wanted[:, 0], found["dense"], found["pruned"])]
        print(f"  {i:4} {camera:6} " + " ".join(f"{angle:+.2f}" for angle in turned))
    if chosen.picture is not None:
        draw(images, wanted, found, rows).save(chosen.picture)
        print(f"wrote {chosen.picture}")
    runtimes = [p.name for p in (chosen.folder / "deployed").iterdir() if p.is_dir()]
    one = task.example[:1]
    with tempfile.TemporaryDirectory() as place:
        dense = prunus.deploy(models["dense"], example=one, runtime=runtimes[0], seconds=0.1,
                              folder=place)  # fmt: skip
        served = prunus.load(chosen.folder / "deployed" / runtimes[0], trusted=True)
        print(f"in {runtimes[0]}, one input at a time, one thread:")
        timed({"dense": lambda: dense.model(one), "pruned": lambda: served(one)}, chosen.passes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
