"""The example detection: its metric is COCO's, bad data ends in one line, kills cost nothing."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from example_runs import whole_and_resumed
from fresh import Pythons
from prunus.errors import InputError
from prunus.methods.catalog import module_at
from prunus.recipe.specs import Spec
from prunus.tasks.base import Task
from prunus.tasks.find import find_task
from stand_ins import EXAMPLES, blood_cells, example

pytest.importorskip("pycocotools")

DETECTION = example("detection")
IMAGES = {"train": 8, "val": 4, "test": 4}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first images of the real data, or made-up ones of the same form."""
    folder = tmp_path / "data/blood-cells"
    folder.mkdir(parents=True)
    given = Path(os.environ.get("PRUNUS_DATA", "nowhere"), "blood-cells/bccd.zip")
    if given.is_file():
        with zipfile.ZipFile(given) as source, zipfile.ZipFile(folder / "bccd.zip", "w") as target:
            for part, count in IMAGES.items():
                ids = source.read(f"BCCD/ImageSets/Main/{part}.txt").decode().split()[:count]
                target.writestr(f"BCCD/ImageSets/Main/{part}.txt", "\n".join(ids))
                for one in ids:
                    for name in (f"BCCD/Annotations/{one}.xml", f"BCCD/JPEGImages/{one}.jpg"):
                        target.writestr(name, source.read(name))
    else:
        blood_cells(folder)
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return folder


def make(**changes: Any) -> Task:
    return find_task(Spec(name="detection", width=4, batch=4, **changes))


@pytest.mark.zoo
@pytest.mark.usefixtures("no_pictures", "place")
def test_a_run_is_cut_served_and_goes_on_after_a_kill(tmp_path: Path, python: Pythons) -> None:
    words = ["task.width=8", "task.batch=4", "dense.length=4it", "retrain=3it", "guard=null",
             "deploy=eager"]  # fmt: skip
    result = whole_and_resumed("detection", words, tmp_path, python)
    assert result["cost_after"]["macs"] < 0.72 * result["cost_before"]["macs"]
    assert result["compaction"]["error"] < 1e-10
    assert result["deployment"]["runtime"] == "eager"
    assert result["tested"]["change"][1] <= result["tested"]["change"][2]


def found_near(boxes: Tensor, classes: Tensor, source: torch.Generator) -> Any:
    """The true boxes a little moved, and some that are nowhere."""
    own = boxes[classes >= 0] + torch.randn(int((classes >= 0).sum()), 4, generator=source) * 3
    low = torch.rand(20, 4, generator=source) * 100
    junk = torch.cat([low[:, :2], low[:, :2] + low[:, 2:] + 5], 1)
    kinds = torch.cat([classes[classes >= 0], torch.randint(2, (20,), generator=source)])
    scores, order = torch.rand(len(kinds), generator=source).sort(descending=True)
    return DETECTION.Found(torch.cat([own, junk])[order], kinds[order], scores)


@pytest.mark.usefixtures("place")
def test_the_metric_and_that_of_each_class_are_those_of_coco() -> None:
    held = make().validation
    cells, names, source = held.cells, held.names, torch.Generator().manual_seed(0)  # type: ignore[attr-defined]
    pairs = zip(cells.boxes, cells.classes, strict=True)
    found = [found_near(boxes, classes, source) for boxes, classes in pairs]
    scores = DETECTION.matched(found, cells, names)
    judge = DETECTION.judged(found, cells, len(names))
    with contextlib.redirect_stdout(io.StringIO()):
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, 0]  # [overlaps, recalls, classes]
    there = [c for c in range(len(names)) if bool((cells.classes == c).any())]
    assert 0.05 < scores.mean < 0.95
    assert scores.mean == pytest.approx(precision[:, :, there].mean(), abs=1e-6)
    by_class = [scores.by_group()[names[c]] for c in there]
    assert by_class == pytest.approx(precision[:, :, there].mean((0, 1)).tolist(), abs=1e-6)


@pytest.mark.usefixtures("place")
def test_true_boxes_are_found_whole_and_an_empty_image_has_none() -> None:
    task = make()
    cells, names = task.validation.cells, task.validation.names  # type: ignore[attr-defined]
    there = [c >= 0 for c in cells.classes]
    rows = zip(cells.boxes, cells.classes, there, strict=True)
    right = [DETECTION.Found(b[t], c[t], torch.ones(int(t.sum()))) for b, c, t in rows]
    assert DETECTION.matched(right, cells, names).mean == pytest.approx(1.0)
    none = [DETECTION.Found(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0))] * len(right)
    assert DETECTION.matched(none, cells, names).mean == 0.0


@pytest.mark.usefixtures("place")
def test_boxes_move_with_what_is_in_them() -> None:
    image = torch.zeros(1, 3, DETECTION.HEIGHT, DETECTION.WIDTH)
    image[:, :, 60:90, 100:150] = 1.0  # the one thing in it
    boxes, classes = torch.tensor([[[100.0, 60, 150, 90]]]), torch.zeros(1, 1, dtype=torch.long)
    for seed in range(10):
        torch.manual_seed(seed)
        seen, moved, kept = DETECTION.moved(image, boxes, classes)
        if kept[0, 0] < 0:
            continue
        bright = (seen[0].mean(0) > seen[0].mean(0).amax() - 0.5).nonzero()
        low, high = bright.amin(0).flip(0), bright.amax(0).flip(0) + 1
        assert torch.allclose(moved[0, 0], torch.cat([low, high]).float(), atol=2.5)


@pytest.mark.usefixtures("place")
def test_the_change_of_several_runs_is_bootstrapped_over_images_and_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures = module_at(EXAMPLES / "detection/figures.py")
    monkeypatch.setattr(figures, "DRAWS", 60)
    held = make().validation
    cells, names = held.cells, held.names  # type: ignore[attr-defined]
    pairs = list(zip(cells.boxes, cells.classes, strict=True))
    source = torch.Generator().manual_seed(1)
    every = [
        DETECTION.matched([found_near(b, c, source) for b, c in pairs], cells, names)
        for _ in range(3)
    ]
    same = [{"dense": every[0], "pruned": every[0]}] * 2
    assert "change +0.0000 (+0.0000 to +0.0000" in figures.together(same, len(pairs), None)
    runs = [{"dense": every[0], "pruned": one} for one in every[1:]]
    change = sum(one.mean - every[0].mean for one in every[1:]) / 2
    low, high = figures.interval([(r["dense"].items, r["pruned"].items) for r in runs], len(pairs))
    assert low < change < high
    said = figures.together(runs, len(pairs), aim=-high + 1e-6)
    assert f"2 runs: change {change:+.4f}" in said
    assert said.endswith("is met")
    assert figures.together(runs, len(pairs), aim=-high - 1e-6).endswith("is missed")


def test_each_box_is_learned_by_points_inside_it_and_empty_images_by_none() -> None:
    torch.manual_seed(0)
    points, _ = DETECTION.grid()
    scores, found = torch.randn(len(points), 2), torch.rand(len(points), 4) * 50
    found[:, 2:] += found[:, :2]
    boxes, classes = torch.tensor([[10.0, 10, 60, 60], [100, 100, 130, 130]]), torch.tensor([0, 1])
    rows, want, truths = DETECTION.assigned(scores, found, boxes, classes, points)
    inside = (points[rows] > truths[:, :2]) & (points[rows] < truths[:, 2:])
    assert bool(inside.all())
    assert {tuple(t.tolist()) for t in truths} == {tuple(b.tolist()) for b in boxes}
    assert bool((want >= 0).all() and (want <= 1).all())
    rows, want, _ = DETECTION.assigned(scores, found, boxes[:0], classes[:0], points)
    assert len(rows) == 0
    assert not bool(want.any())


def test_of_two_boxes_that_say_the_same_the_better_stays() -> None:
    boxes = torch.tensor([[0.0, 0, 50, 50], [2, 0, 52, 50], [100, 100, 140, 140]])
    scores = torch.tensor([[1.0, -9], [2.0, -9], [-9.0, 0.5]])
    found = DETECTION.chosen(scores, boxes)
    assert found.boxes.tolist() == [[2, 0, 52, 50], [100, 100, 140, 140]]
    assert found.classes.tolist() == [0, 1]


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """An archive again, each file as ``change`` says; ``None`` leaves it out."""
    with zipfile.ZipFile(path) as archive:
        files = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            if content is not None:
                archive.writestr(name, content)


def without_an_image(name: str, content: bytes) -> bytes | None:
    return None if name.endswith(".jpg") else content


def outside(name: str, content: bytes) -> bytes:
    return content.replace(b"<xmax>", b"<xmax>9") if name.endswith(".xml") else content


def no_number(name: str, content: bytes) -> bytes:
    return content.replace(b"<ymin>", b"<ymin>high") if name.endswith(".xml") else content


def empty_list(name: str, content: bytes) -> bytes:
    return b"\n" if name.endswith("val.txt") else content


def not_utf_8(name: str, content: bytes) -> bytes:
    return b"\xff" + content if name.endswith("train.txt") else content


def twice(name: str, content: bytes) -> bytes:
    return content + b"\n" + content if name.endswith("train.txt") else content


def nameless(name: str, content: bytes) -> bytes:
    return content.replace(b"<name>", b"<was>").replace(b"</name>", b"</was>")


def no_boxes(name: str, content: bytes) -> bytes:
    return b"<annotation/>" if name.endswith(".xml") else content


def cut_off(name: str, content: bytes) -> bytes:
    return content[: len(content) // 2] if name.endswith(".jpg") else content


def no_image(name: str, content: bytes) -> bytes:
    return b"no image" if name.endswith(".jpg") else content


@pytest.mark.parametrize(("change", "words"), [
    (lambda name, content: None, r"it has no 'ImageSets/Main/train\.txt'"),
    (empty_list, r"'ImageSets/Main/val\.txt' is empty"),
    (without_an_image, r"\.xml has no image: there is no .*\.jpg"),
    (outside, r"the box .* is outside the image"),
    (no_number, r"a box is .*: four numbers are needed"),
    (no_image, r"\.jpg cannot be read: it is no image"),
    (cut_off, r"\.jpg cannot be read: .*truncated"),
    (not_utf_8, r"'ImageSets/Main/train\.txt': 'utf-8' codec"),
    (twice, "is listed twice: an image belongs to one of train, val and test"),
    (nameless, r"\.xml: the box .* has no name"),
    (no_boxes, "no annotation of train has a box"),
])  # fmt: skip
def test_bad_data_ends_before_training_in_one_line(
    change: Callable[[str, bytes], bytes | None], words: str, place: Path
) -> None:
    rewritten(place / "bccd.zip", change)
    with pytest.raises(InputError, match=words) as raised:
        make()
    assert "\n" not in str(raised.value)
