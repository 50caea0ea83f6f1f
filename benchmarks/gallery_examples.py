"""What the dense and the pruned network of a run say to the same examples, for people to judge.

    python benchmarks/gallery_examples.py runs/gallery/two_senses examples.png

Where the two differ, up to half of what is shown are such items; the others lie evenly among those
in which they agree. A picture for what is seen or heard, text for what is read.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import prunus
from prunus._common.pictures import SERIES, WARM, as_png, figure_of
from prunus.methods.catalog import module_at
from prunus.progressive.folder import recipe_of
from prunus.tasks._files import find_folder, load_weights, read_text
from prunus.tasks.base import Task
from prunus.tasks.find import task_of

EXAMPLES = Path(__file__).parents[1] / "examples"
SHOWN = 8


@dataclass(frozen=True)
class Shown:
    """Text, or a picture: its bytes and how its file's name ends."""

    text: str = ""
    picture: bytes = b""
    ending: str = "png"


@dataclass(frozen=True)
class Pair:
    """A run's task and both of its networks, in eval mode."""

    task: Task
    dense: Any
    pruned: Any

    def each(self, answer: Callable[[Any], Tensor]) -> tuple[Tensor, Tensor]:
        """What both answer."""
        return answer(self.dense), answer(self.pruned)


def both(folder: Path) -> Pair:
    """Of a run folder."""
    task = task_of(recipe_of(folder))
    dense, file = task.model(), folder / "dense.safetensors"
    if file.is_file():  # else it came trained
        dense = load_weights("gallery", dense, file)
    return Pair(task, dense.eval(), prunus.load(folder, model=task.model()).eval())


def module(task: str, file: str = "") -> Any:
    """A file of an example."""
    return module_at(EXAMPLES / task / f"{file or task}.py")


def pick(differ: Tensor, count: int = SHOWN) -> list[int]:
    """Which items are shown.

    >>> pick(torch.tensor([False] * 9 + [True]), 4)
    [9, 0, 3, 6]
    """
    odd, alike = differ.nonzero()[:, 0].tolist(), (~differ).nonzero()[:, 0].tolist()
    odd = odd[: max(count // 2, count - len(alike))]
    left = count - len(odd)
    return [*odd, *alike[:: max(1, len(alike) // max(1, left))][:left]]


def drawn(panels: Sequence[tuple[list[Tensor], str]]) -> Shown:
    """Panels, four in a row: what is to be judged (a picture or two) above what is said of it."""
    across = 4
    deep = -(-len(panels) // across)
    figure, first = figure_of(10, 2.6 * deep)
    first.remove()
    high = max(len(seen) for seen, _ in panels)
    grid = figure.add_gridspec(deep * high, across)
    for place, (seen, said) in enumerate(panels):
        for below, view in enumerate(seen):
            axes = figure.add_subplot(grid[place // across * high + below, place % across])
            axes.imshow(view.numpy(), cmap="gray_r", aspect="auto" if len(seen) < 3 else "equal")
            axes.set_axis_off()
            if below == 0:
                axes.set_title(said, fontsize=8, loc="left")
    return Shown(picture=as_png(figure))


def paged(page: Any) -> Shown:
    """A page of photographs."""
    out = io.BytesIO()
    page.save(out, "JPEG", quality=80)
    return Shown(picture=out.getvalue(), ending="jpg")


# --- one function for each field


def cells(run: Pair) -> Shown:
    """Boxes: the truth, the dense network's, the pruned one's."""
    figures = module("detection", "figures")
    held, test = run.task.validation, run.task.test
    models = {"dense": run.dense, "pruned": run.pruned}
    found = {n: figures.detection.found_in(m, test) for n, m in models.items()}
    names = test.names  # type: ignore[union-attr]
    sure = {
        n: figures.surest(figures.detection.found_in(m, held), held.cells, names)  # type: ignore[attr-defined]
        for n, m in models.items()
    }
    return paged(figures.draw(test.cells, found, names, sure))  # type: ignore[union-attr]


def steering(run: Pair) -> Shown:
    """Arrows: a person's, the dense network's, the pruned one's, where both differ most."""
    figures = module("driving", "figures")
    images, wanted = figures.gathered(run.task.test)
    found = [a.flatten() for a in run.each(lambda m: m(images)[0])]
    images, wanted = images.flatten(0, -4), wanted.flatten(0, -2)
    rows = (found[0] - found[1]).abs().argsort(descending=True)[:6].tolist()
    return paged(
        figures.draw(images, wanted, dict(zip(("dense", "pruned"), found, strict=True)), rows)
    )


def sentences(run: Pair) -> Shown:
    """Translations beside people's."""
    decoding, test = module("translation", "decoding"), run.task.test
    count = len(test.sources)  # type: ignore[union-attr]
    batch = test.batch(range(0, count, max(1, count // SHOWN)))  # type: ignore[union-attr]
    said = [
        decoding.texts(test.tokenizer, decoding.greedy(m, batch["source"]))  # type: ignore[union-attr]
        for m in (run.dense, run.pruned)
    ]
    rows = zip(batch["english"], batch["german"], *said, strict=True)
    names = ("", "  people  ", "  dense   ", "  pruned  ")
    lines = [
        line for row in rows
        for line in (*(n + text for n, text in zip(names, row, strict=True)), "")
    ]  # fmt: skip
    return Shown("\n".join(lines))


def reviews(run: Pair) -> Shown:
    """Sentences, what their writers meant, and what both make of them."""
    reviews = module("movie_reviews")
    place = find_folder("movie_reviews", None, "movie-reviews", "rt-polarity.pos and .neg")
    texts, classes = reviews.read(place)
    test = reviews.split(len(texts))[2]
    tokens = torch.cat([batch[0] for batch in run.task.test or ()])
    dense, pruned = run.each(lambda m: m(tokens).softmax(1)[:, 1])
    kinds = ("negative", "positive")
    lines = []
    for i in pick((dense > 0.5) != (pruned > 0.5)):
        row = int(test[i])
        lines += [f"{texts[row]}", f"  meant {kinds[int(classes[row])]}; positive for dense "
                  f"{dense[i]:.0%}, pruned {pruned[i]:.0%}", ""]  # fmt: skip
    return Shown("\n".join(lines))


def continued(run: Pair) -> Shown:
    """The first line of the test text, continued by both from the same draws."""
    place = find_folder("shakespeare", None, "shakespeare", "input.txt")
    letters = sorted(set(read_text("shakespeare", place / "input.txt")))
    begun = next(iter(run.task.test or ()))[0][:1, :64]
    lines = ["".join(letters[c] for c in begun[0].tolist()) + " …"]
    for name, model in (("dense", run.dense), ("pruned", run.pruned)):
        source, codes = torch.Generator().manual_seed(0), begun
        for _ in range(160):
            chances = (model(codes[:, -64:])[0, -1] / 0.7).softmax(0)
            codes = torch.cat([codes, torch.multinomial(chances, 1, generator=source)[None]], 1)
        lines += [f"\n{name}:", "".join(letters[c] for c in codes[0, 64:].tolist())]
    return Shown("\n".join(lines))


def images(run: Pair) -> Shown:
    """Small photographs and what they are, by both."""
    cifar = module("cifar10")
    place = find_folder("cifar10", None, "cifar10", "test.zip")
    names = cifar.read(place / "test.zip")[2]
    parts = list(run.task.test or ())
    seen, truth = (torch.cat([p[k] for p in parts]) for k in (0, 1))
    dense, pruned = run.each(lambda m: torch.cat([m(p[0]).argmax(1) for p in parts]))
    panels = []
    for i in pick(dense != pruned):
        mean, std = (torch.tensor(v)[:, None, None] for v in (cifar.MEAN, cifar.STD))
        view = (seen[i] * std + mean).clamp(0, 1).permute(1, 2, 0)
        panels.append(
            ([view], f"{names[truth[i]]}\ndense {names[dense[i]]}\npruned {names[pruned[i]]}")
        )
    return drawn(panels)


def digits(run: Pair) -> Shown:
    """Spectra of spoken digits and which they are, by both."""
    parts = list(run.task.test or ())
    heard, truth = (torch.cat([p[k] for p in parts]) for k in (0, 1))
    dense, pruned = run.each(lambda m: torch.cat([m(p[0]).argmax(1) for p in parts]))
    return drawn([
        ([heard[i, 0].flip(0)], f"said {truth[i]}\ndense {dense[i]}, pruned {pruned[i]}")
        for i in pick(dense != pruned)
    ])  # fmt: skip


def pairs(run: Pair) -> Shown:
    """An image and a sound each: the same digit?"""
    words = ("another", "the same")
    rows: list[tuple[list[Tensor], str]] = []
    differ: list[Tensor] = []
    for batch in run.task.test or ():
        given = {k: batch[k] for k in ("image", "sound", "present")}
        dense, pruned = run.each(lambda m, g=given: m(**g)[0] > 0)  # type: ignore[misc]
        both = batch["present"].all(1)
        differ.append((dense != pruned)[both])
        for i in both.nonzero()[:, 0].tolist():
            a, b = batch["digits"][i].tolist()
            said = (f"written {a}, spoken {b}\ndense: {words[int(dense[i])]}\n"
                    f"pruned: {words[int(pruned[i])]}")  # fmt: skip
            rows.append(([batch["image"][i, 0], batch["sound"][i, 0].flip(0)], said))
    return drawn([rows[i] for i in pick(torch.cat(differ))])


def sequences(run: Pair) -> Shown:
    """Spectra of several digits and what both hear."""
    spoken = module("spoken_sequences")
    rows, differ = [], []
    for batch in run.task.test or ():
        ends = (-(-batch["lengths"] // spoken.STREAMS.EVERY)).tolist()
        dense, pruned = run.each(lambda m, b=batch: m(b["features"]).argmax(2))  # type: ignore[misc]
        for i, end in enumerate(ends):
            said = batch["labels"][i, : int(batch["label_lengths"][i])].tolist()
            heard = [spoken.collapsed(a[i, :end].tolist()) for a in (dense, pruned)]
            texts = [" ".join(str(d - 1) for d in one) for one in (said, *heard)]
            view = batch["features"][i, : int(batch["lengths"][i])].T.flip(0)
            rows.append(([view], "said {}\ndense {}\npruned {}".format(*texts)))
            differ.append(heard[0] != heard[1])
    return drawn([rows[i] for i in pick(torch.tensor(differ))])


def anomalies(run: Pair) -> Shown:
    """A damaged recording of each kind, and how strange its moments are to both."""
    edge = module("edge")
    seen, kinds = list(run.task.test or ())[1]
    figure, first = figure_of(10, 5.2)
    first.remove()
    grid = figure.add_gridspec(2, 4)
    for column, kind in enumerate(kinds.unique().tolist()):
        i = int((kinds == kind).nonzero()[0])
        windows = seen[i]
        above = figure.add_subplot(grid[0, column])
        above.imshow(windows[:, : edge.SOUNDS.BANDS].T.flip(0).numpy(), cmap="gray_r",
                     aspect="auto")  # fmt: skip
        above.set_axis_off()
        above.set_title(edge.DAMAGES[kind], fontsize=9, loc="left")
        below = figure.add_subplot(grid[1, column])
        off = run.each(lambda m, w=windows: (m(w) - w).square().mean(1))  # type: ignore[misc]
        for name, line, color in zip(("dense", "pruned"), off, (SERIES, WARM), strict=True):
            below.plot(line.numpy(), label=name, color=color, linewidth=1)
        below.set_ylim(bottom=0)
        below.set_xlabel("frame")
    below.legend(frameon=False, fontsize=8)
    return Shown(picture=as_png(figure))


OF_TASK: dict[str, Callable[[Pair], Shown]] = {
    "detection": cells, "driving": steering, "translation": sentences, "movie_reviews": reviews,
    "shakespeare": continued, "cifar10": images, "spoken_digits": digits, "two_senses": pairs,
    "spoken_sequences": sequences,
}  # fmt: skip
OF_EDGE = {"keywords": digits, "images": images, "anomalies": anomalies}


@torch.no_grad()
def shown(folder: Path) -> Shown:
    """Of the run in a folder."""
    spec = recipe_of(folder).task
    assert spec is not None
    how = OF_EDGE[spec.settings["network"]] if spec.name == "edge" else OF_TASK[spec.name]
    return how(both(folder))


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = shown(Path(sys.argv[1]))
    if found.picture:
        Path(sys.argv[2]).with_suffix(f".{found.ending}").write_bytes(found.picture)
    print(found.text or f"wrote {Path(sys.argv[2]).with_suffix('.' + found.ending)}")
