"""The example two senses: both towers give by one budget, and one sense alone is enough."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from example_runs import whole_and_resumed
from fresh import Pythons
from prunus.errors import InputError
from prunus.methods.catalog import module_at
from prunus.recipe.specs import Spec
from prunus.tasks.find import find_task
from stand_ins import EXAMPLES, example, mnist, speech_digits

TWO = example("two_senses")
TOWERS = module_at(EXAMPLES / "two_senses/towers.py")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A slice of the real recordings with the real images, or made-up ones of the same form."""
    data = tmp_path / "data"
    for name in ("mnist", "speech-digits"):
        (data / name).mkdir(parents=True)
    given = Path(os.environ.get("PRUNUS_DATA", "nowhere"))
    if (given / "mnist").is_dir() and (given / "speech-digits").is_dir():
        for file in (given / "mnist").glob("*.gz"):
            (data / "mnist" / file.name).symlink_to(file)
        with (
            zipfile.ZipFile(given / "speech-digits/recordings.zip") as source,
            zipfile.ZipFile(data / "speech-digits/recordings.zip", "w") as slice_,
        ):
            for name in source.namelist():
                if "_theo_" in name and name.endswith(tuple(f"_{i}.wav" for i in (0, 5, 8, 9))):
                    slice_.writestr(name, source.read(name))
    else:
        mnist(data / "mnist")
        speech_digits(data / "speech-digits")
    monkeypatch.setenv("PRUNUS_DATA", str(data))
    monkeypatch.chdir(tmp_path)
    return data


@pytest.mark.usefixtures("no_pictures", "place")
def test_a_run_is_cut_served_and_goes_on_after_a_kill(tmp_path: Path, python: Pythons) -> None:
    words = ["task.batch=16", "dense.length=6it", "retrain=3it", "rounds=1",
             "guard={max_drop: 9}", "target={max_macs: 0.5}", "deploy=eager"]  # fmt: skip
    result = whole_and_resumed("two_senses", words, tmp_path, python)
    assert result["compaction"]["error"] < 1e-10
    assert set(result["rounds"][-1]["evidence"]["groups"]) == {"both", "no image", "no sound"}
    assert result["deployment"]["runtime"] == "eager"
    task = find_task(Spec(name="two_senses"))
    before = TOWERS.sizes(task.model(), task.example)
    after = TOWERS.sizes(prunus.load(tmp_path / "broken", model=task.model()), task.example)
    assert sum(macs for _, macs in after.values()) == result["cost_after"]["macs"]
    assert sum(macs for _, macs in before.values()) == result["cost_before"]["macs"]
    assert all(now[0] <= was[0] for now, was in zip(after.values(), before.values(), strict=True))


@pytest.mark.usefixtures("place")
def test_what_is_missing_has_no_influence() -> None:
    model = TWO.TwoSenses().eval()
    torch.nn.init.normal_(model.absent)
    batch = next(iter(find_task(Spec(name="two_senses")).validation))
    image, sound = batch["image"], batch["sound"]
    for gone, column in (("image", 0), ("sound", 1)):
        present = torch.ones(len(image), 2)
        present[:, column] = 0
        other = {"image": image, "sound": sound}
        first = model(**other, present=present)
        noise = model(**{**other, gone: torch.randn_like(other[gone])}, present=present)
        assert torch.equal(first[0], noise[0])
        assert torch.equal(first[2 - column], noise[2 - column])  # of the sense that is there
        whole = model(**other, present=torch.ones(len(image), 2))
        assert not torch.equal(first[0], whole[0])


@pytest.mark.usefixtures("place")
def test_pairs_are_what_they_are_said_to_be() -> None:
    task = find_task(Spec(name="two_senses"))
    torch.manual_seed(0)
    batches = list(task.train)
    digits = torch.cat([b["digits"] for b in batches])
    present = torch.cat([b["present"] for b in batches])
    same = torch.cat([b["same"] for b in batches])
    both = present.all(1)
    assert torch.equal(same[both] == 1, (digits[:, 0] == digits[:, 1])[both])
    assert bool((same[~both] == 0.5).all())
    assert bool((present.sum(1) >= 1).all())
    assert 0.3 < float(same[both].mean()) < 0.7
    image = torch.cat([b["image"] for b in batches])
    assert bool((image[present[:, 0] == 0] == 0).all())

    def said(part: Any) -> list[Any]:
        return [b["digits"].tolist() for b in part]

    assert said(task.validation) == said(task.validation)
    assert said(task.train) != said(task.train)


def test_bad_data_ends_before_training_in_one_line(place: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match) as error:
            find_task(Spec(name="two_senses"))
        assert "\n" not in str(error.value)

    file = place / "speech-digits/recordings.zip"
    with zipfile.ZipFile(file) as archive:
        sounds = {n: archive.read(n) for n in archive.namelist()}
    name, sound = next(iter(sounds.items()))
    rates = (16000).to_bytes(4, "little") + (32000).to_bytes(4, "little")
    wrong = sound[:24] + rates + sound[32:]
    for held, match in (
        ({**sounds, name: wrong}, "16000 Hz"),
        ({n: s for n, s in sounds.items() if "_8." in n}, "nothing is left for validation"),
        ({}, "holds no .wav"),
    ):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for n, s in held.items():
                archive.writestr(n, s)
        file.write_bytes(out.getvalue())
        refused(match)
    mnist(place / "mnist", side=20)
    refused("images of mnist are 20×20; 28×28 are needed")
