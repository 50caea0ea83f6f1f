"""The tasks of the gallery, on tiny made-up files in the forms that they read."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from prunus._common.metrics import MetricEstimate, bootstrap, number
from prunus._common.nested import tensors_of
from prunus.cli.main import cli
from prunus.errors import InputError
from prunus.recipe.schema import Recipe
from prunus.recipe.specs import Spec
from prunus.tasks.base import Task
from prunus.tasks.find import find_task
from stand_ins import EXAMPLES, MAKERS, ROWS, each_of, example, make_all

CIFAR10, SHAKESPEARE, SPEECH = (example(n) for n in ("cifar10", "shakespeare", "spoken_digits"))
BANDS, FRAMES, log_mel = SPEECH.BANDS, SPEECH.FRAMES, SPEECH.log_mel
Crops, normalized = CIFAR10.Crops, CIFAR10.normalized
bits, cut = SHAKESPEARE.bits, SHAKESPEARE.cut

SMALL: dict[str, dict[str, Any]] = {
    "cifar10": {"weights": None, "batch": 8},
    "movie_reviews": {"vocabulary": 60, "batch": 16},
    "spoken_digits": {"batch": 8},
    "translation": {"vocabulary": 300, "width": 32, "batch": 16},
    "two_senses": {"batch": 16},
    "detection": {"width": 4, "batch": 4},
    "driving": {"batch": 16},
    "spoken_sequences": {"batch": 4, "sequences": 16},
    "edge": {"batch": 16},
    "shakespeare": {"length": 16, "layers": 1, "width": 16, "heads": 2, "batch": 4, "steps": 3},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all(tmp_path_factory.mktemp("data"))


@pytest.fixture
def place(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PRUNUS_DATA", str(data))
    monkeypatch.chdir(tmp_path)
    return data


# --- where the examples are found


def test_every_example_holds_its_task_its_recipes_and_a_page() -> None:
    folders = {p.name: p for p in EXAMPLES.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert set(folders) == {*MAKERS, "networks"}  # which is trained by others, and no task
    for name, folder in folders.items():
        recipes = {p.stem for p in folder.glob("*.yaml")}
        assert recipes == {row for row, task in ROWS.items() if task == name}
        page = (folder / "README.md").read_text(encoding="utf-8")
        assert all(f"prunus run {row} --data" in page for row in recipes)


def test_a_checkout_around_the_current_folder_is_where_examples_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunus._common.examples.INSTALLED", tmp_path)
    asked = (
        lambda: Recipe.load("spoken_digits"),
        lambda: Recipe.load("iterative", ["task=cifar10"]),
        lambda: find_task(Spec(name="cifar10")),
    )
    (tmp_path / "examples/cifar10").mkdir(parents=True)  # somebody's own folder of that name
    (tmp_path / "examples/cifar10/cifar10.py").write_text("raise RuntimeError('never run')\n")
    for ask in asked:
        with pytest.raises(InputError, match="prunus's repository: run inside a checkout"):
            ask()
    listed = CliRunner().invoke(cli, ["list", "tasks"]).output
    assert "mnist" in listed
    assert "cifar10" not in listed
    monkeypatch.chdir(EXAMPLES / "cifar10")
    assert Recipe.load("spoken_digits").task == Spec(name="spoken_digits")
    assert re.search(r"^  cifar10 \(", CliRunner().invoke(cli, ["list"]).output, re.MULTILINE)


def test_files_that_are_no_tasks_are_not_listed_as_tasks() -> None:
    shown = CliRunner().invoke(cli, ["list", "tasks", "--json"]).output.splitlines()
    names = {json.loads(line)["name"] for line in shown}
    assert names == {"digits", "digits_normed", "mnist", "mlp", "diagnosis", *MAKERS}


def make(name: str, **changes: Any) -> Task:
    return find_task(Spec(name=name, **{**SMALL[name], **changes}))


CORE = ("spoken_digits", "reviews_transformer", "cifar10_weights")
"""The rows that `make test` runs; `make test-zoo` runs the others."""


@pytest.mark.parametrize("name", each_of(ROWS, core=CORE))
@pytest.mark.usefixtures("no_pictures")
def test_a_row_of_the_gallery_runs_from_its_recipe_to_its_artifact(name: str, place: Path) -> None:
    task = ROWS[name]
    words = [f"task.{k}={json.dumps(v)}" for k, v in SMALL[task].items()]
    words += ["quantize=none"] if task == "edge" else []  # eager does not: test_example_edge.py
    better = "lower" if task in ("shakespeare", "driving", "spoken_sequences") else "higher"
    # a latency cannot be promised on a busy machine: test_latency_target.py has its own clock
    goal = "target={max_macs: 0.5}" if name == "driving" else "target.step=0.3"
    done = CliRunner().invoke(cli, [
        "run", name, *words, "dense.length=3it", "retrain=1it", "rounds=1", goal,
        f"guard={{max_drop: 9, better: {better}}}", "deploy=eager", "--folder", "run",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    result = json.loads(Path("run/result.json").read_text())
    assert result["deployment"]["runtime"] == "eager"
    assert result["tested"]["change"][1] <= result["tested"]["change"][2]
    assert (result["compaction"] is None) == (name in ("cifar10_weights", "translation_zeros"))
    if result["compaction"]:
        assert result["cost_after"]["macs"] < result["cost_before"]["macs"]
        assert result["compaction"]["error"] < 1e-10


@pytest.mark.parametrize("name", each_of(MAKERS))
def test_a_task_says_what_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PRUNUS_DATA", raising=False)
    with pytest.raises(InputError, match="set PRUNUS_DATA"):
        make(name)
    with pytest.raises(InputError, match="there is no folder"):
        make(name, folder=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="there is no"):
        make(name, folder=str(tmp_path))


@pytest.mark.parametrize("name", each_of(MAKERS))
def test_the_three_parts_of_the_data_share_no_item(name: str, place: Path) -> None:
    task = make(name)
    assert task.test is not None
    parts = []
    for part in (task.validation, task.test):
        first = [next(iter(b.values())) if isinstance(b, dict) else b[0] for b in part]
        parts.append({tuple(row.flatten().tolist()) for batch in first for row in batch})
    if name in ("cifar10", "spoken_digits"):  # others may say the same thing twice
        assert parts[0].isdisjoint(parts[1])
    assert min(map(len, parts)) >= 1


@pytest.mark.parametrize("part", [0.1, 0.5, 1.0])
def test_a_part_of_the_images_is_all_that_a_task_sees(part: float, place: Path) -> None:
    task = make("cifar10", part=part)
    count = round(part * 48)
    images = task.train.padded[:, 4:-4, 4:-4]
    assert len(images) == count
    known = {tuple(row.flatten().tolist()) for row in normalized(images)}
    for sample in (task.train_sample, task.calibration):
        seen = torch.cat([images.flatten(1) for images, _ in sample])
        assert {tuple(row.tolist()) for row in seen} == known


def test_damaged_archives_and_wrong_sounds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.zip").write_bytes(b"no archive")
    with pytest.raises(InputError, match="is not a zip archive"):
        make("cifar10", folder=str(tmp_path))
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr("train/cat/1.jpg", b"no image")
    with pytest.raises(InputError, match=r"train/cat/1\.jpg' in .* cannot be read: it is no image"):
        make("cifar10", folder=str(tmp_path))
    sizes = [io.BytesIO() for _ in range(2)]
    for out, side in zip(sizes, (32, 8), strict=True):
        Image.new("RGB", (side, side)).save(out, "PNG")
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for number, out in enumerate(sizes):
            archive.writestr(f"train/cat/{number}.png", out.getvalue())
    with pytest.raises(InputError, match=r"1\.png' .* is 8×8, and the first image 32×32"):
        make("cifar10", folder=str(tmp_path))
    with zipfile.ZipFile(tmp_path / "recordings.zip", "w") as archive:
        archive.writestr("1_me_0.wav", b"RIFFnothing")
    with pytest.raises(InputError, match="1_me_0"):
        make("spoken_digits", folder=str(tmp_path))


def test_a_run_starts_from_given_weights_or_says_why_not(place: Path, tmp_path: Path) -> None:
    first = make("shakespeare").model()
    file = tmp_path / "dense.safetensors"
    save_file(first.state_dict(), file)
    again = make("shakespeare", weights=str(file)).model()
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(bool((a == b).all()) for a, b in pairs)
    with pytest.raises(InputError, match="does not fit"):
        find_task(Spec(name="shakespeare", length=16, weights=str(file))).model()
    with pytest.raises(InputError, match="there are no weights"):
        find_task(Spec(name="cifar10")).model()


def test_settings_that_cannot_be_are_refused(place: Path) -> None:
    for name, wrong in (("cifar10", {"part": 0.0}), ("movie_reviews", {"network": "gru"})):
        with pytest.raises(InputError, match=next(iter(wrong))):
            make(name, **wrong)
    with pytest.raises(InputError, match="divide the width"):
        find_task(Spec(name="shakespeare", width=15, heads=2))


def test_a_part_of_the_training_images_leaves_validation_as_it_is(place: Path) -> None:
    whole, half = make("cifar10"), make("cifar10", part=0.5)
    assert len(half.train.classes) == round(len(whole.train.classes) / 2)  # type: ignore[attr-defined]
    assert len(next(iter(half.validation))[1]) == len(next(iter(whole.validation))[1])


def trained_on(task: Task) -> set[Any]:
    """What a task learns from, as far as it can be told apart."""
    if hasattr(task.train, "by_speaker"):  # which are joined anew each time
        found = [one for said in task.train.by_speaker.values() for one in said]
        return {one.sound.tobytes() for one in found}
    if hasattr(task.train, "heard"):
        return {tuple(row.flatten().tolist()) for row in task.train.heard[0]}
    assert task.train_sample is not None
    first = [b["english"] if isinstance(b, dict) else b[0] for b in task.train_sample]
    rows = [row for batch in first for row in batch]
    return {row if isinstance(row, str) else tuple(row.flatten().tolist()) for row in rows}


@pytest.mark.parametrize("name", each_of(MAKERS))
def test_a_part_of_the_data_trains_from_given_weights_and_nothing_else_changes(
    name: str, place: Path, tmp_path: Path
) -> None:
    whole, file = make(name), tmp_path / "dense.safetensors"
    save_file({n: t.contiguous() for n, t in whole.model().state_dict().items()}, file)
    half = make(name, part=0.5, weights=str(file))
    seen, more = trained_on(half), trained_on(whole)
    assert seen < more or (name == "shakespeare" and seen <= more)  # it repeats itself
    assert len(seen) >= len(more) // 3
    given = load_file(file)
    assert all(torch.equal(t, given[n]) for n, t in half.model().named_parameters())
    pairs = zip(flat(half.validation), flat(whole.validation), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match=f"part is {wrong}"):
            make(name, part=wrong)


def flat(batches: Iterable[Any]) -> list[torch.Tensor]:
    return [t for batch in batches for t in tensors_of(batch)]


def test_crops_are_windows_of_the_padded_image_perhaps_flipped() -> None:
    image = torch.arange(32 * 32 * 3).remainder(251).to(torch.uint8).view(1, 32, 32, 3)
    padded = torch.nn.functional.pad(image, (0, 0, 4, 4, 4, 4))
    windows = [padded[:, i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
    every = torch.cat([normalized(w) for w in [*windows, *(w.flip(2) for w in windows)]])
    torch.manual_seed(0)
    crops = Crops(image, torch.tensor([7]), size=4)
    for _ in range(5):
        ((got, classes),) = crops
        assert classes.tolist() == [7]
        assert bool((every == got).flatten(1).all(1).any())


def test_the_bands_of_a_tone_are_loudest_where_it_is() -> None:
    time = np.arange(8000) / 8000
    tones = [log_mel(np.sin(2 * np.pi * f * time)) for f in (300, 1000, 3000)]
    loudest = [int(tone.mean(1).argmax()) for tone in tones]
    # mel(300) = 402 of mel(4000) = 2146 in 41 steps: the center of band 7 (from 0) is the nearest
    assert loudest[0] in (6, 7)
    assert loudest == sorted(set(loudest))
    byte = np.rint(127.5 + 100 * np.sin(2 * np.pi * 300 * time)).astype(np.uint8)
    assert abs(SPEECH.as_wave(byte).mean()) < 0.01  # silence is in the middle of bytes
    short = log_mel(np.sin(2 * np.pi * 300 * time[:1000]))
    assert short.shape == (BANDS, FRAMES)


def test_bits_of_a_uniform_guess_are_the_logarithm_of_the_letters() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(8, 4), torch.nn.Linear(4, 8))
    torch.nn.init.zeros_(model[1].weight)
    torch.nn.init.zeros_(model[1].bias)
    found = bits(model, [cut(torch.arange(25) % 8, 6, 100)])
    assert found.shape == (4,)
    assert found.tolist() == pytest.approx([3.0] * 4)


def test_attention_sees_no_later_character_and_no_empty_place(place: Path) -> None:
    model = make("shakespeare").model().eval()
    codes = torch.zeros(1, 16, dtype=torch.long)
    later = codes.clone()
    later[0, 10:] = 3
    assert torch.allclose(model(codes)[:, :10], model(later)[:, :10], atol=1e-6)
    assert not torch.allclose(model(codes)[:, 10:], model(later)[:, 10:], atol=1e-3)
    for network in ("lstm", "transformer"):
        task = make("movie_reviews", network=network)
        words = next(iter(task.validation))[0][:1]
        count = int((words != 0).sum())
        assert count < words.shape[1]
        classifier = task.model().eval()
        if network == "transformer":  # the backward LSTM reads the empty places first
            shorter = words[:, :count]
            padded = classifier(words)
            classifier.places = torch.nn.Parameter(classifier.places[:count])
            assert torch.allclose(padded, classifier(shorter), atol=1e-5)


@pytest.mark.skipif("PRUNUS_DATA" not in os.environ, reason="PRUNUS_DATA names no data folder")
def test_real_speech_is_read_by_its_own_split() -> None:
    task = find_task(Spec(name="spoken_digits"))
    assert task.test is not None
    assert sum(len(c) for _, c in task.test) == 300
    assert sum(len(c) for _, c in task.validation) == 180


# --- metrics of items


def test_a_metric_may_be_a_value_for_each_item() -> None:
    assert number(torch.tensor([True, False, True, True]), "evaluate") == 0.75
    assert number(torch.tensor(0.5), "evaluate") == 0.5
    for wrong in (torch.zeros(2, 2), torch.zeros(0), "0.5", None, True):
        with pytest.raises(InputError, match="evaluate returned"):
            number(wrong, "evaluate")


def test_the_interval_is_that_of_the_binomial_where_items_are_right_or_wrong() -> None:
    items = torch.arange(400) < 300
    low, high = bootstrap(items)
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert low == pytest.approx(0.75 - half, abs=0.008)
    assert high == pytest.approx(0.75 + half, abs=0.008)
    assert bootstrap(items) == (low, high)


def test_the_change_is_compared_item_by_item() -> None:
    dense = torch.cat([torch.ones(90), torch.zeros(10)])
    worse = dense.clone()
    worse[0] = 0  # one item in a hundred
    found = MetricEstimate.of(worse, dense)
    assert found.change is not None
    assert found.change[0] == pytest.approx(-0.01)
    assert -0.04 < found.change[1] <= found.change[0] <= found.change[2] <= 0.0
    assert MetricEstimate.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    with pytest.raises(InputError, match="the same items"):
        MetricEstimate.of(worse[:50], dense)
