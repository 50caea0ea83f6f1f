"""Calls that no example makes, of a model that keeps its own code: right, or refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.compaction.slicing.limits import limits_of
from prunus.errors import InputError

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
HALF: dict[str, Any] = {"structure": "channel", "allocation": "uniform", "target": 0.5}
UNREAD = "'side' reads 16 features and is given 10: no example visited it"


class Net(nn.Module):
    """Flags for a branch, for features that lose indices, and for answers that lose none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.side, self.b = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 12)
        self.out = nn.Linear(12, 4)

    def forward(
        self, x: Tensor, features: bool = False, deep: bool = False, last: bool = False, n: int = 0
    ) -> Any:
        h = F.relu(self.a(x))
        for _ in range(n + deep):
            h = self.side(h)
        y = self.out(F.relu(self.b(h)))
        return (y, h) if features else y[:, -2:] if last else y


def smaller(example: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    masked = Net().eval()
    result = prunus.prune(masked, HALF, example=example)
    return masked, prunus.compact(masked, result.masks, example)


def test_a_flag_that_no_example_sets_answers_alike_or_is_refused() -> None:
    masked, found = smaller(X)
    assert found.route == "sliced"
    assert any("features=True; deep=True" in note for note in found.notes)
    assert not any("last" in note for note in found.notes)
    torch.testing.assert_close(found.model(X, last=True), masked(X, last=True))
    torch.testing.assert_close(found.model(X, False), masked(X))
    for call in ({"features": True}, {"deep": 1}):
        with pytest.raises(InputError, match="since no example covers it"):
            found.model(X, **call)
    with pytest.raises(InputError, match=UNREAD):
        found.model(X, n=1)


def test_an_example_of_such_a_call_keeps_what_it_needs() -> None:
    masked, found = smaller([X, {"x": X, "features": True}, {"x": X, "n": 1}])
    assert not limits_of(found.model)
    torch.testing.assert_close(found.model(X, True), masked(X, True))
    torch.testing.assert_close(found.model(X, n=1), masked(X, n=1))


def test_a_file_says_what_its_model_refuses(tmp_path: Path) -> None:
    _, found = smaller(X)
    file = found.save(tmp_path / "small.safetensors")
    again = prunus.load(file, model=Net())
    assert limits_of(again) == limits_of(found.model)
    torch.testing.assert_close(again(X), found.model(X))
    with pytest.raises(InputError, match="features=True"):
        again(X, True)
    with safetensors.safe_open(file, "pt") as stored:
        manifest = json.loads(stored.metadata()["prunus"])
    assert manifest["format"] == "prunus compact 5"
    for damaged in (
        {"flags": {}, "unread": ["c"]},
        {"flags": {"features": 1}, "unread": []},
        {"a": 1},
    ):
        tensors = {k: v.contiguous() for k, v in found.model.state_dict().items()}
        text = json.dumps({**manifest, "limits": damaged})
        safetensors.torch.save_file(tensors, file, {"prunus": text})
        with pytest.raises(InputError, match="does not fit this Net, or is damaged: limits"):
            prunus.load(file, model=Net())


def test_a_model_that_refuses_can_be_copied_and_pruned_again() -> None:
    _, found = smaller(X)
    assert limits_of(copy.deepcopy(found.model)) == limits_of(found.model)
    result = prunus.prune(copy.deepcopy(found.model), {**HALF, "compact": "end"}, example=X)
    assert dict(limits_of(result.model).flags) == {"features": True, "deep": True}
    with pytest.raises(InputError, match="'side' reads 16 features and is given 6"):
        result.model(X, n=1)
