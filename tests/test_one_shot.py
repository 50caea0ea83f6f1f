"""A cut without training costs masks and a few scores, not copies of the model."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import prunus
from prunus._common.inputs import tensors_of
from prunus.errors import RunError
from prunus.progressive.journal import Journal

WIDTH = 512


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors made under it that are alive, and the most at any time."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._held = [t.untyped_storage() for t in known]
        self._sizes: dict[int, int] = {s._cdata: 0 for s in self._held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_of(result):
            storage = tensor.untyped_storage()
            if tensor.device.type == "cpu" and storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata)
        self.most = max(self.most, self.now)
        return result

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def layers(number: int = 12, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, dtype=dtype) for _ in range(number)))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


RECIPES: dict[str, dict[str, Any]] = {
    "global": {"target": 0.5},
    "two of four": {"structure": "2:4", "allocation": "uniform"},
    "per neuron": {"target": 0.5, "allocation": "per_neuron"},
    "erk": {"target": 0.5, "allocation": "erk"},
    "theta": {"target": 0.5, "allocation": {"name": "threshold", "theta": 0.5, "form": "mean"}},
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", RECIPES)
def test_a_cut_needs_its_masks_and_less_than_half_of_the_model(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a cut without training stores nothing")

    monkeypatch.setattr(Journal, "store", refused)
    model = layers(dtype=dtype)
    live = LiveBytes(model.parameters())
    with live:
        result = prunus.prune(model, RECIPES[name])
    assert live.most <= bytes_of(result.masks.values()) + 0.5 * bytes_of(model.parameters())
    assert all(mask.dtype is torch.bool for mask in result.masks.values())


def test_where_the_users_code_may_fail_what_was_removed_is_kept_as_well() -> None:
    model = layers()
    live = LiveBytes(model.parameters())
    with live:
        result = prunus.prune(model, {"target": 0.5}, evaluate=lambda _: 1.0)
    whole = bytes_of(model.parameters())
    assert live.most <= bytes_of(result.masks.values()) + (0.5 + 0.5) * whole


def test_gradients_of_one_batch_are_held_as_they_are() -> None:
    model, batch = layers(), torch.ones(1, WIDTH, dtype=torch.bfloat16)
    live = LiveBytes(model.parameters())
    with live:
        result = prunus.prune(
            model,
            {"target": 0.5, "criterion": "sensitivity"},
            calibration=[batch],
            loss=lambda m, b: m(b).float().square().mean(),
        )
    whole = bytes_of(model.parameters())
    assert live.most <= bytes_of(result.masks.values()) + (1 + 0.75) * whole


@pytest.mark.parametrize("structure", ["weight", "channel"])
def test_an_error_after_the_cut_leaves_the_model_as_it_was_given(structure: str) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = []

    def evaluate(pruned: nn.Module) -> float:
        calls.append(int((pruned[0].weight == 0).sum()))
        return float("nan") if len(calls) > 2 else 1.0

    recipe = {"target": 0.5, "structure": structure}
    if structure == "channel":
        recipe["compact"] = "end"
    with pytest.raises(RunError):
        prunus.prune(model, recipe, evaluate=evaluate, example=torch.ones(2, 8))
    assert calls[-1] > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_rejected_round_gives_back_the_weights_of_the_last_good_one() -> None:
    model = layers(2, torch.float32)
    before = {name: value.clone() for name, value in model.named_parameters()}
    result = prunus.prune(
        model,
        {"target": 0.9, "rounds": 4, "guard": {"max_drop": 0.5}},
        evaluate=lambda m: float((m[0].weight != 0).float().mean()),
    )
    assert {r.verdict for r in result.rounds} == {"dense", "accepted", "rejected"}
    assert 0.2 < result.sparsity < 0.6
    for name, weight in model.named_parameters():
        mask = result.masks.get(name, torch.ones((), dtype=torch.bool))
        assert torch.equal(weight, before[name] * mask)
