"""The example spoken sequences: a stream says what a whole pass says, before and after a cut."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.io import wavfile
from torch import nn

import prunus
from example_runs import whole_and_resumed
from fresh import Pythons
from prunus.errors import InputError
from prunus.methods.catalog import module_at
from prunus.recipe.specs import Spec
from prunus.tasks.base import Task
from prunus.tasks.find import find_task
from stand_ins import EXAMPLES, example, speech_digits

SEQUENCES = example("spoken_sequences")
STREAM = module_at(EXAMPLES / "spoken_sequences/stream.py")
SMALL = {"batch": 4, "sequences": 16}
STRUCTURES = {"recurrent": "channel", "conformer": {"name": "channel", "hidden": True}}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Real recordings, or made-up ones of the same form."""
    given = Path(os.environ.get("PRUNUS_DATA", "nowhere"), "speech-digits/recordings.zip")
    folder = tmp_path / "data/speech-digits"
    folder.mkdir(parents=True)
    if given.is_file():
        (folder / "recordings.zip").symlink_to(given)
    else:
        speech_digits(folder)
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return folder


def make(**changes: Any) -> Task:
    return find_task(Spec(name="spoken_sequences", **{**SMALL, **changes}))


@pytest.mark.zoo
@pytest.mark.usefixtures("no_pictures", "place")
@pytest.mark.parametrize("row", ["spoken_sequences", "sequences_conformer"])
def test_a_run_is_cut_served_and_goes_on_after_a_kill(
    row: str, tmp_path: Path, python: Pythons
) -> None:
    words = ["dense.length=4it", "retrain=3it", "rounds=1", "guard={better: lower, max_drop: 9}",
             "target={max_macs: 0.5}", "deploy=eager",
             *(f"task.{key}={value}" for key, value in SMALL.items())]  # fmt: skip
    result = whole_and_resumed(row, words, tmp_path, python)
    assert result["cost_after"]["macs"] <= 0.55 * result["cost_before"]["macs"]
    assert result["compaction"]["error"] < 1e-10
    assert result["compaction"]["route"] in ("attributes", "sliced")  # its class, so its streams
    assert result["metric_name"] == "word error rate"
    low, high = result["tested"]["interval"]
    assert low <= result["tested"]["metric"] <= high


def lively(model: nn.Module) -> nn.Module:
    """With statistics and scales as training leaves them, not zeros and ones."""
    source = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(generator=source)
            module.running_var.uniform_(0.5, 2.0, generator=source)
            nn.init.normal_(module.bias, generator=source)
    return model


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("network", ["recurrent", "conformer"])
@torch.no_grad()
def test_a_stream_says_what_a_whole_pass_says_and_its_state_follows_the_cut(network: str) -> None:
    task = make(network=network)
    dense = lively(task.model()).eval()
    recipe = {"structure": STRUCTURES[network], "target": {"max_macs": 0.5}, "compact": "end",
              "criterion": "magnitude", "allocation": "uniform"}  # fmt: skip
    with torch.enable_grad():
        given = lively(task.model()).eval()
        pruned: Any = prunus.prune(given, recipe, example=task.example).model.eval()
    features = torch.randn(3, 128, 40, generator=torch.Generator().manual_seed(1))
    for model in (dense, pruned):
        whole = model(features)
        for frames in (4, 12, 128):
            found = STREAM.Streamed(model, frames)(features)
            assert torch.allclose(found, whole, atol=1e-4)
    wide, narrow = (m.hear(features[:1], m.begin(1))[1] for m in (dense, pruned))
    assert len(wide) == len(narrow)
    assert sum(t.numel() for t in narrow) < 0.9 * sum(t.numel() for t in wide)
    if network == "recurrent":
        assert narrow[2].shape[2] == pruned.lower.hidden_size < 160


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("network", ["recurrent", "conformer"])
def test_nothing_that_comes_later_changes_what_was_heard(network: str) -> None:
    model = lively(make(network=network).model()).eval()
    features = torch.randn(1, 64, 40)
    later = features.clone()
    later[:, 40:] = 3.0
    assert torch.allclose(model(features)[:, :10], model(later)[:, :10], atol=1e-6)
    assert not torch.allclose(model(features)[:, 10:], model(later)[:, 10:], atol=1e-3)


@pytest.mark.usefixtures("place")
def test_sequences_are_joined_recordings_and_the_loss_is_the_models_own() -> None:
    task = make()
    batch = next(iter(task.validation))
    count = batch["label_lengths"]
    assert bool(((count >= 1) & (count <= SEQUENCES.MOST)).all())
    for row, length in zip(batch["labels"], count, strict=True):
        assert bool((row[:length] > 0).all())
        assert bool((row[length:] == 0).all())
    assert batch["features"].shape[1] % 4 == 0
    scores = task.model().eval()
    own = scores(**batch).detach()
    each = torch.nn.functional.ctc_loss(
        scores(batch["features"]).log_softmax(2).transpose(0, 1), batch["labels"],
        -(-batch["lengths"] // 4), count, reduction="none",
    )  # fmt: skip
    assert float(own) == pytest.approx(float((each.detach() / count).mean()), rel=1e-4)

    def said(part: Any) -> list[Any]:
        return [b["labels"].tolist() for b in part]

    assert said(task.validation) == said(task.validation)
    torch.manual_seed(0)
    assert said(task.train) != said(task.train)


@pytest.mark.usefixtures("place")
def test_the_error_rate_counts_digits_of_the_whole_set() -> None:
    class Says(nn.Module):
        """Always the same outputs."""

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            heard = torch.tensor([0, 3, 3, 0, 4])
            return torch.nn.functional.one_hot(heard, 11).float().expand(len(features), -1, -1)

    def batch(*rows: list[int]) -> Any:
        return SEQUENCES.together([(torch.zeros(20, 40), row) for row in rows])

    found = SEQUENCES.errors(Says(), [batch([3, 4], [3]), batch([5, 5, 3, 4, 4])])
    assert found.items.tolist() == [[0, 2], [1, 1], [3, 5]]
    assert found.mean == 0.5


def test_bad_recordings_end_before_training_in_one_line(place: Path) -> None:
    def write(
        rate: int = 8000, *, name: str = "1_me_9.wav", channels: int = 1, samples: int = 800,
        value: float = 0, end: int | None = None,
    ) -> None:  # fmt: skip
        sound = io.BytesIO()
        shape = (samples,) if channels == 1 else (samples, channels)
        kind = torch.int16 if value == 0 else torch.float32
        wavfile.write(sound, rate, torch.full(shape, value, dtype=kind).numpy())
        (place / "recordings.zip").unlink(missing_ok=True)
        with zipfile.ZipFile(place / "recordings.zip", "w") as archive:
            archive.writestr(name, sound.getvalue()[:end])

    for settings, match in (
        ({"rate": 16000}, "task spoken_sequences: '1_me_9.wav' has 16000 Hz"),
        ({"channels": 2}, r"shape \(800, 2\)"),
        ({"name": "one.wav"}, "'one.wav' in .* is no <digit>_<speaker>_<index>.wav"),
        ({"name": "1_me_-9.wav"}, "is no <digit>_<speaker>_<index>.wav"),
        ({"samples": 0}, "is empty"),
        ({"value": float("nan")}, "holds samples that are no numbers"),
        ({"end": 900}, "Reached EOF prematurely"),
        ({}, "has no recording for validation"),
    ):
        write(**settings)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=match) as error:
            make()
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="network is 'lstm'; use recurrent or conformer"):
        make(network="lstm")
