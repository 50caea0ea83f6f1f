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
from prunus._common.nested import tensors_of
from prunus.compaction import shrink as shrinking
from prunus.compaction.search import find_plan
from prunus.compaction.slicing import parameters
from prunus.compaction.verifying import everywhere
from prunus.errors import RunError
from prunus.progressive.journal import Journal

WIDTH = 512


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors made under it that are alive, and the most at any time.

    Those of ``known`` tensors that are let go meanwhile make room.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}
        for storage in (t.untyped_storage() for t in known):
            self._sizes[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self._gone, storage._cdata)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_of(result):
            if type(tensor) not in (Tensor, nn.Parameter):  # traced, or made when read: no memory
                continue
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
    """Without zeros, which would be masks that were there: torch 2.6 draws some in bfloat16."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, dtype=dtype) for _ in range(number)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[parameter == 0] = 0.01
    return model


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


@pytest.fixture
def as_large(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A model that is taken for one of which no second copy is held in float64."""
    monkeypatch.setitem(find_plan.__kwdefaults__, "whole", 0)
    every = everywhere.uses_of
    monkeypatch.setattr(everywhere, "uses_of", lambda *given: list(every(*given))[:3])
    torch.manual_seed(0)
    parts = [part for _ in range(12) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*parts).eval()


CHANNELS: dict[str, Any] = {"structure": "channel", "target": 0.5, "allocation": "uniform"}


def test_a_channel_cut_needs_what_it_removes_and_half_of_the_model(as_large: nn.Module) -> None:
    whole = bytes_of(as_large.parameters())
    live = LiveBytes(as_large.parameters())
    with live:
        result = prunus.prune(
            as_large, {**CHANNELS, "compact": "end"}, example=torch.ones(1, WIDTH)
        )
    gone = whole - bytes_of(result.model.parameters())
    assert gone > 0.4 * whole
    assert live.most <= gone + 0.5 * whole


def test_a_smaller_copy_costs_itself_and_half_of_the_model(as_large: nn.Module) -> None:
    masks = prunus.prune(as_large, CHANNELS, example=torch.ones(1, WIDTH)).masks
    before = [p.detach().clone() for p in as_large.parameters()]
    whole = bytes_of(as_large.parameters())
    live = LiveBytes(as_large.parameters())
    with live:
        small = prunus.compact(as_large, masks, torch.ones(1, WIDTH)).model
    assert live.most <= bytes_of(small.parameters()) + 0.5 * whole
    assert all(map(torch.equal, before, as_large.parameters()))
    theirs = {p.data_ptr() for p in as_large.parameters()}
    assert theirs.isdisjoint(p.data_ptr() for p in small.parameters())


def test_a_slice_that_fails_half_way_leaves_all_as_it_was(
    as_large: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: value.clone() for name, value in as_large.state_dict().items()}
    right, calls = parameters.take, []

    def scarce(tensor: Tensor, indices: Any) -> Tensor:
        calls.append(tuple(tensor.shape))
        if len(calls) == 9:
            raise RuntimeError("not enough memory")
        return right(tensor, indices)

    def perform(*given: Any) -> Any:
        monkeypatch.setattr(parameters, "take", scarce)
        return performing(*given)

    performing = shrinking.perform
    monkeypatch.setattr(shrinking, "perform", perform)
    with pytest.raises(RunError, match="not enough memory"):
        prunus.prune(as_large, {**CHANNELS, "compact": "end"}, example=torch.ones(1, WIDTH))
    assert len(calls) == 9
    assert all(torch.equal(value, before[name]) for name, value in as_large.state_dict().items())


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


def test_an_error_leaves_the_order_in_memory_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    model = model.to(memory_format=torch.channels_last).eval()
    before = {name: (value.clone(), value.stride()) for name, value in model.state_dict().items()}

    def test(small: nn.Module) -> float:
        raise ValueError(str(small[0].weight.shape[0]))

    with pytest.raises(ValueError, match="4"):
        prunus.prune(
            model,
            {"structure": "channel", "target": 0.5, "compact": "end"},
            example=torch.ones(1, 3, 8, 8),
            test=test,
        )
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name][0])
        assert value.stride() == before[name][1]


class Stream(nn.Module):
    """A residual stream with RMS norms, which a cut of it rescales."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 16), nn.RMSNorm(16, eps=1e-3)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.last, self.out = nn.RMSNorm(16, eps=1e-3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        out: Tensor = self.out(self.last(x))
        return out


@pytest.mark.parametrize("judged", [False, True])
def test_an_error_behind_a_rescaled_norm_leaves_its_eps_as_it_was(judged: bool) -> None:
    torch.manual_seed(0)
    model, example, seen = Stream().eval(), torch.ones(2, 6), []
    answers, said = model(example).detach(), str(model)

    def test(small: nn.Module) -> float:
        seen.append(str(small))
        raise ValueError("no data")

    recipe = {"structure": "hidden", "target": 0.5, "compact": "end"}
    judge = (lambda _: 1.0) if judged else None
    with pytest.raises(ValueError, match="no data"):
        prunus.prune(model, recipe, example=example, test=test, evaluate=judge)
    assert "eps=0.002" in seen[0]
    assert str(model) == said
    assert torch.equal(model(example), answers)


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
