"""The example edge: small networks are cut, quantized and served; strange sounds are found."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from example_runs import whole_and_resumed
from fresh import Pythons
from prunus.errors import InputError
from prunus.recipe.specs import Spec
from prunus.tasks.base import Task
from prunus.tasks.find import find_task
from stand_ins import example, make_all

EDGE = example("edge")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some of the real recordings, or tones; images are made up."""
    folder = make_all(tmp_path / "data")
    given = Path(os.environ.get("PRUNUS_DATA", "nowhere"), "speech-digits/recordings.zip")
    if given.is_file():
        target = folder / "speech-digits/recordings.zip"
        with zipfile.ZipFile(given) as source, zipfile.ZipFile(target, "w") as file:
            names = [n for n in source.namelist() if n.endswith(".wav")]
            for name in (n for n in names if int(Path(n).stem.split("_")[2]) in (0, 5, 8)):
                file.writestr(name, source.read(name))
    monkeypatch.setenv("PRUNUS_DATA", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def make(network: str, **changes: Any) -> Task:
    return find_task(Spec(name="edge", network=network, batch=8, **changes))


@pytest.mark.zoo
@pytest.mark.usefixtures("no_pictures", "place")
@pytest.mark.parametrize("network", ["keywords", "images", "anomalies"])
def test_a_run_is_cut_served_in_int8_and_goes_on_after_a_kill(
    network: str, tmp_path: Path, python: Pythons
) -> None:
    pytest.importorskip("onnxruntime")
    words = ["task.batch=8", "dense.length=4it", "retrain=3it", "rounds=1", "guard=null"]
    result = whole_and_resumed(f"edge_{network}", words, tmp_path, python)
    assert result["cost_after"]["macs"] <= 0.35 * result["cost_before"]["macs"]
    assert result["compaction"]["error"] < 1e-10
    assert result["tested"]["change"][1] <= result["tested"]["change"][2]
    rows = result["deployment"]["rows"]
    small = next(r for r in rows if r["runtime"] == "onnxruntime_int8" and r["model"] == "pruned")
    assert small["refused"] is None or "max_drop" in small["refused"] or small["bytes"] > 0


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    rows = torch.tensor([[0.1, 0], [0.5, 0], [0.5, 1], [0.9, 1], [0.0, 1]])
    assert EDGE.area(rows) == pytest.approx((1.5 + 2 + 0) / 6)
    assert EDGE.area(rows[:2]) == 0.5  # nothing to tell apart


def test_damage_is_the_same_each_time_and_leaves_the_recording_alone() -> None:
    sounds = torch.randn(8, 1, 40, 100, generator=torch.Generator().manual_seed(0))
    held = EDGE.Sounds(sounds)
    (whole, none), (damaged, kinds) = held
    assert torch.equal(whole, EDGE.windows(sounds))
    assert not bool(none.any())
    assert sorted(set(kinds.tolist())) == [1, 2, 3, 4]
    assert torch.equal(damaged, list(held)[1][0])
    assert bool((damaged != whole).flatten(1).any(1).all())
    before = sounds.clone()
    EDGE.damage(sounds[0], "noise", torch.Generator().manual_seed(0))
    assert torch.equal(sounds, before)


def test_windows_are_frames_in_a_row() -> None:
    sounds = torch.arange(40 * 100.0).view(1, 1, 40, 100)
    seen = EDGE.windows(sounds)
    assert seen.shape == (1, 96, 200)
    assert torch.equal(seen[0, 3].view(5, 40), sounds[0, 0, :, 3:8].T)


def test_networks_and_recordings_that_are_not_there_are_refused(place: Path) -> None:
    with pytest.raises(InputError, match="use keywords, images or anomalies"):
        make("words")
    path = place / "speech-digits/recordings.zip"
    with zipfile.ZipFile(path) as archive:
        kept = [(n, archive.read(n)) for n in archive.namelist() if not n.endswith("_0.wav")]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in kept:
            if int(Path(name).stem.split("_")[2]) >= 5:
                archive.writestr(name, content)
    with pytest.raises(InputError, match="no recordings for test"):
        make("anomalies")
