"""What version 2 of a recipe adds where nothing is written, and what a run's folder says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus


def network(*, norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(12) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(6, 12), middle, nn.ReLU(), nn.Linear(12, 3))


def batches() -> list[tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 6, generator=source) * 3 + 1, torch.randint(0, 3, (16,)))
            for _ in range(3)]  # fmt: skip


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def train(model: nn.Module, run: prunus.Run) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    run.attach(optimizer)
    for batch in batches():
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()


RECIPE = {"target": 0.5, "rounds": 2}


def statistics(recipe: dict[str, Any], folder: Path, **more: Any) -> tuple[Tensor, dict[str, Any]]:
    model = network()
    given = {"calibration": batches(), "loss": loss, **more}
    result = prunus.prune(model, {**RECIPE, **recipe}, folder=folder, progress=False, **given)
    assert isinstance(result.model[1], nn.BatchNorm1d)
    assert result.model[1].running_mean is not None
    written = prunus.Recipe.load(folder / "recipe.yaml").to_dict()
    return result.model[1].running_mean, written


def test_version_2_repairs_batch_norms_and_the_folder_says_so(tmp_path: Path) -> None:
    new, written = statistics({"version": 2}, tmp_path / "new")
    asked, explicit = statistics({"repair": "batch_norm"}, tmp_path / "asked")
    old, _ = statistics({}, tmp_path / "old")
    assert torch.equal(new, asked)
    assert not torch.equal(new, old)
    assert written == explicit
    assert written["version"] == 1
    assert written["repair"] == "batch_norm"


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ({"repair": "none"}, {}),
        ({}, {"calibration": None, "loss": None}),
        ({}, {"loss": None, "calibration": [x for x, _ in batches()]}),
        ({"restore": "revive"}, {"train": train}),
    ],
    ids=["asked not to", "no data", "no loss", "a restore that it does not go with"],
)
def test_it_adds_nothing_that_cannot_be(
    recipe: dict[str, Any], more: dict[str, Any], tmp_path: Path
) -> None:
    _, written = statistics({"version": 2, **recipe}, tmp_path / "run", **more)
    assert "repair" not in written


def test_it_adds_nothing_where_there_are_no_batch_norms(tmp_path: Path) -> None:
    prunus.prune(network(norm=False), {**RECIPE, "version": 2}, calibration=batches(), loss=loss,
                 folder=tmp_path / "run", progress=False)  # fmt: skip
    assert "repair" not in (tmp_path / "run" / "recipe.yaml").read_text()


def test_another_repair_that_is_written_is_kept(tmp_path: Path) -> None:
    _, written = statistics({"version": 2, "repair": "bias_correction"}, tmp_path / "run")
    assert written["repair"] == "bias_correction"


def test_a_run_of_version_2_goes_on_from_its_folder(tmp_path: Path) -> None:
    recipe = {**RECIPE, "version": 2, "retrain": "3it"}
    more: dict[str, Any] = {"calibration": batches(), "loss": loss, "train": train,
                            "progress": False}  # fmt: skip
    whole = prunus.prune(network(), recipe, folder=tmp_path / "whole", **more)
    stops = iter([False, True])
    with pytest.raises(prunus.Interrupted):
        prunus.prune(network(), recipe, folder=tmp_path / "stopped",
                     should_stop=lambda: next(stops, False), **more)  # fmt: skip
    again = prunus.prune(network(), recipe, folder=tmp_path / "stopped", **more)
    for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values(),
                    strict=True):  # fmt: skip
        assert torch.equal(a, b)


def test_version_3_is_not_known() -> None:
    with pytest.raises(prunus.InputError, match="version"):
        prunus.Recipe(version=3)
