"""The example networks: written-out networks of others are cut, and their files are checked."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import InputError
from prunus.methods.catalog import module_at

EXAMPLE = Path(__file__).parents[1] / "examples" / "networks"


@pytest.fixture(scope="module")
def networks() -> ModuleType:
    return module_at(EXAMPLE / "architectures.py")


@pytest.fixture(scope="module")
def inputs() -> ModuleType:
    return module_at(EXAMPLE / "inputs.py")


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def cut(model: nn.Module, example: tuple[Tensor, ...]) -> prunus.Result:
    recipe = {"structure": "channel", "target": 0.25, "allocation": "uniform", "compact": "end"}
    whole = sum(p.numel() for p in model.parameters())
    result = prunus.prune(model, recipe, example=example)
    assert result.compaction is not None
    assert result.compaction.route in ("sliced", "attributes")
    assert result.compaction.error < 1e-9
    assert sum(p.numel() for p in result.model.parameters()) < 0.85 * whole
    return result


def test_a_voice_encoder_becomes_smaller(networks: ModuleType) -> None:
    small = cut(networks.VoiceEncoder().eval(), (drawn(2, 12, 40).abs(),)).model
    assert small.get_submodule("lstm").hidden_size < 256
    assert small(drawn(3, 9, 40)).shape == (3, 256)


def test_a_detector_of_speech_hands_on_a_smaller_state(
    networks: ModuleType, inputs: ModuleType
) -> None:
    model = inputs.Streamed(networks.VoiceActivity()).eval()
    small = cut(model, (0.1 * drawn(2, 3, 576),)).model
    assert small.detector.lstm_cell.hidden_size < 128
    assert small(drawn(4, 5, 576)).shape == (4, 5)


def test_alone_the_detectors_state_stays_as_wide_as_the_one_it_answers(
    networks: ModuleType,
) -> None:
    example = drawn(2, 576), drawn(2, 128), drawn(2, 128)
    found = prunus.units(networks.VoiceActivity().eval(), example)
    assert {p.why for p in found.pinned if p.place[0] == "lstm_cell.weight_hh"} == {"input h"}


def test_a_reader_of_lines_becomes_smaller(networks: ModuleType) -> None:
    small = cut(networks.Reader().eval(), (drawn(2, 1, 64, 40),)).model
    assert small(drawn(1, 1, 64, 56)).shape == (1, 13, 97)


def test_weights_are_found_in_the_files_of_the_packages(
    networks: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="pip install --no-deps --target"):
        networks.opened("Resemblyzer", tmp_path)
    path = tmp_path / "resemblyzer" / "pretrained.pt"
    path.parent.mkdir()
    wanted = networks.VoiceEncoder().state_dict()
    torch.save({"model_state": {**wanted, "similarity_weight": torch.ones(1)}}, path)
    found = networks.opened("Resemblyzer", tmp_path)
    assert not found.training
    assert all(torch.equal(t, wanted[n]) for n, t in found.state_dict().items())
    torch.save({"model_state": {"linear.bias": torch.ones(256)}}, path)
    with pytest.raises(InputError, match=r"has no 'linear\.weight', which Resemblyzer needs"):
        networks.opened("Resemblyzer", tmp_path)


def test_printed_words_and_mel_bands_are_what_they_should_be(inputs: ModuleType) -> None:
    best = torch.tensor([0, 11, 11, 0, 11, 96, 0])
    assert inputs._read(best) == "!!z"
    bands = inputs._bands()
    assert bands.shape == (40, 201)
    assert bool((bands >= 0).all())
    assert bool((bands.sum(1) > 0).all())
    peaks = bands.argmax(1)
    assert bool((peaks[1:] >= peaks[:-1]).all())
