"""The example driving: who sees what, what mirrors do, bad logs, kills."""

from __future__ import annotations

import csv
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from example_runs import whole_and_resumed
from fresh import Pythons
from prunus.errors import InputError
from prunus.recipe.specs import Spec
from prunus.tasks.base import Task
from prunus.tasks.find import find_task
from stand_ins import driving, example

DRIVING = example("driving")
FIRST, MOMENTS = 130, 80
"""Of the real drive the moments that the slice has: the car drives in them."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some moments of the real drive, or made-up ones of the same form."""
    folder = tmp_path / "data/driving"
    folder.mkdir(parents=True)
    given = Path(os.environ.get("PRUNUS_DATA", "nowhere"), "driving/driving.zip")
    if given.is_file():
        with zipfile.ZipFile(given) as source, zipfile.ZipFile(folder / "driving.zip", "w") as file:
            lines = source.read("log.csv").decode().splitlines()
            some = lines[1:][3 * FIRST : 3 * (FIRST + MOMENTS)]
            file.writestr("log.csv", "\n".join([lines[0], *some]))
            for line in some:
                file.writestr(line.split(",")[0], source.read(line.split(",")[0]))
    else:
        driving(folder)
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return folder


def make(**changes: Any) -> Task:
    return find_task(Spec(name="driving", batch=16, **changes))


@pytest.mark.usefixtures("no_pictures", "place")
@pytest.mark.parametrize("row", ["driving", pytest.param("driving_gru", marks=pytest.mark.zoo)])
def test_a_run_is_cut_served_and_goes_on_after_a_kill(
    row: str, tmp_path: Path, python: Pythons
) -> None:
    words = ["task.batch=16", "dense.length=4it", "retrain=3it", "rounds=1", "guard=null",
             "deploy=eager", "target={max_macs: 0.4}"]  # fmt: skip
    result = whole_and_resumed(row, words, tmp_path, python)
    assert result["cost_after"]["macs"] <= 0.4 * result["cost_before"]["macs"]
    assert result["compaction"]["error"] < 1e-10
    assert result["deployment"]["runtime"] == "eager"
    assert result["tested"]["change"][1] <= result["tested"]["change"][2]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("network", ["pilotnet", "recurrent"])
def test_no_moment_is_in_two_parts_and_none_of_a_car_that_stands_in_any(
    network: str, place: Path
) -> None:
    drive = DRIVING.read(place / "driving.zip").moving()
    assert bool((drive.speed * DRIVING.FASTEST >= DRIVING.STANDS).all())
    steps = 8 if network == "recurrent" else 1
    parts = []
    for part in DRIVING.PARTS:
        starts = drive.starts(part, steps, every=1)
        moments = starts[:, None] + torch.arange(steps)
        parts.append(set(moments.flatten().tolist()))
        blocks = moments // DRIVING.BLOCK
        assert bool((blocks == blocks[:, :1]).all())  # no example crosses into another part
    assert all(parts)
    assert sum(map(len, parts)) == len(set().union(*parts))
    images, wanted = next(iter(make(network=network).test))  # type: ignore[call-overload]
    assert images.shape[:-3] == wanted.shape[:-1]


def test_left_and_right_cameras_ask_for_the_way_back_and_mirrors_for_the_other_side() -> None:
    pixels = torch.zeros(1, 3, 66, 200, 3, dtype=torch.uint8)
    pixels[:, :, :, :50] = 200  # something on the left
    drive = DRIVING.Drive(pixels, torch.tensor([0.3]), torch.tensor([1.0]))
    assert drive.wanted(torch.zeros(3).long(), torch.arange(3))[:, 0].tolist() == pytest.approx(
        [0.5, 0.3, 0.1]
    )
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        data = DRIVING.Driven(drive, torch.tensor([0]), steps=1, size=8)
        for images, wanted in data:
            for image, row in zip(images, wanted, strict=True):
                left = bool(image[:, :, :50].mean() > image[:, :, 150:].mean())
                assert left == (row[0] > 0)
                seen.add((left, int(row[2])))
    assert len(seen) == 6  # each camera, as it is and mirrored


def test_errors_are_those_of_the_steering_by_camera() -> None:
    class Ahead(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(len(images)), torch.ones(len(images))

    wanted = torch.tensor([[0.2, 1, 0], [-0.5, 1, 1], [0.1, 1, 2], [0.3, 1, 1]])
    scores = DRIVING.errors(Ahead(), [(torch.zeros(4, 3, 66, 200), wanted)])
    assert dict(scores.by_group()) == pytest.approx({"center": 0.4, "left": 0.2, "right": 0.1})
    assert scores.better == "lower"


def rewritten(path: Path, change: Callable[[list[dict[str, str]]], list[dict[str, str]]]) -> None:
    """The archive with another log."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    rows = change(list(csv.DictReader(io.StringIO(files["log.csv"].decode()))))
    out = io.StringIO()
    writer = csv.DictWriter(out, ["image", "camera", "steering", "throttle", "speed"])
    writer.writeheader()
    writer.writerows(rows)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, "log.csv": out.getvalue().encode()}.items():
            archive.writestr(name, content)


def other(**values: str) -> Callable[[list[dict[str, str]]], list[dict[str, str]]]:
    return lambda rows: [*rows[:4], rows[4] | values, *rows[5:]]


@pytest.mark.parametrize(("change", "words"), [
    (lambda rows: [], "the log has no moments"),
    (lambda rows: rows[:5] + rows[6:], "moment 2 lacks a camera"),
    (lambda rows: rows[:60], "the car drives in .* moments"),
    (other(steering="hard left"), "line 6: could not convert"),
    (other(steering="3"), "line 6: camera is '.*', steering 3.0"),
    (other(steering="nan"), "line 6: camera is '.*', steering nan"),
    (lambda rows: [row | {"camera": None} for row in rows], "line 2: camera is ''"),
    (other(camera="roof"), "line 6: camera is 'roof'"),
    (other(image="images/none.jpg"), "line 6: .*none.jpg"),
])  # fmt: skip
def test_bad_logs_end_before_training_in_one_line(
    change: Callable[[list[dict[str, str]]], list[dict[str, str]]], words: str, place: Path
) -> None:
    rewritten(place / "driving.zip", change)
    with pytest.raises(InputError, match=words) as raised:
        make()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("change", "words"), [
    (lambda log: log.replace(b"steering", b"wheel", 1), "has no column 'steering'; it has image, "),
    (lambda log: log + b"\nimages/left.jpg,left", "line .* is too short"),
    (lambda log: log + b"\n" + b"x" * 200_000, "line .*: field larger than field limit"),
    (lambda log: log + b"\n\xff", "log.csv: 'utf-8' codec"),
    (lambda log: b"", "the log has no moments"),
])  # fmt: skip
def test_a_log_that_is_no_table_ends_before_training_in_one_line(
    change: Callable[[bytes], bytes], words: str, place: Path
) -> None:
    with zipfile.ZipFile(place / "driving.zip") as archive:
        log = change(archive.read("log.csv"))
    with zipfile.ZipFile(place / "driving.zip", "w") as archive:
        archive.writestr("log.csv", log)
    with pytest.raises(InputError, match=words) as raised:
        make()
    assert "\n" not in str(raised.value)
