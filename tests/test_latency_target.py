"""A latency as the target: few measurements, met or said to be out of reach."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import prunus
from prunus._common.timing import Timing
from prunus.deployment.table import Deployment, RuntimeResult
from prunus.progressive import latency_target
from prunus.progressive.latency_target import TRIES, latency_verdict, search

EXAMPLE = torch.randn(2, 6)
SINGLY = {"name": "channel", "multiple_of": 1}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)
    )


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "structure": "channel", "compact": "end", "deploy": "eager", "allocation": "uniform",
        "target": {"max_latency_ms": 0.5}, **changes,
    }  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock by which a model takes a microsecond a mac, and 100 of overhead."""
    shown: list[float] = []

    def macs_of(call: Any) -> float:
        model = inspect.getclosurevars(call.func).nonlocals["model"]
        return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))

    def interleaved(functions: Any, **_: Any) -> dict[str, Timing]:
        times = {k: (100 + macs_of(f)) / 1000 for k, f in functions.items()}
        shown.append(times.get("small", 0.0))
        return {k: Timing(t, t, 0.0, 9, False) for k, t in times.items()}

    monkeypatch.setattr(latency_target, "interleaved", interleaved)
    return shown


@given(
    overhead=st.floats(0, 1), slope=st.floats(0.1, 10), power=st.floats(0.5, 2),
    share=st.floats(0.2, 0.95),
)  # fmt: skip
def test_the_bound_is_kept_with_few_measurements(
    overhead: float, slope: float, power: float, share: float
) -> None:
    def latency(part: float) -> float:
        return overhead + slope * (1 - part) ** power

    bound = latency(0.9) + share * (latency(0.0) - latency(0.9))
    part, found, measured = search(latency, bound, most=0.9)
    assert found <= bound
    assert measured <= TRIES + 2
    assert found == latency(part)


def test_of_a_line_three_measurements_come_near_the_bound() -> None:
    part, found, measured = search(lambda part: 2 - part, 1.5, most=0.99)
    assert (measured, found) == (3, pytest.approx(1.5 * 0.985))
    assert part == pytest.approx(2 - 1.5 * 0.985)


def test_a_dense_model_that_is_fast_enough_loses_nothing() -> None:
    assert search(lambda part: 1 - part / 2, 1.0, most=0.9)[0] == 0


def test_the_artifact_keeps_a_bound_that_is_a_part_of_dense(clock: list[float]) -> None:
    model = network()
    dense = (100 + sum(p.numel() for p in model.parameters() if p.dim() > 1)) / 1000
    result = prunus.prune(model, recipe(structure=SINGLY), example=EXAMPLE)
    left = (100 + sum(p.numel() for p in result.model.parameters() if p.dim() > 1)) / 1000
    assert 0.4 * dense < left <= 0.5 * dense
    assert "max_latency_ms is" in result.reason
    assert len(clock) <= TRIES + 2


def test_an_absolute_bound_is_kept(clock: list[float]) -> None:
    result = prunus.prune(network(), recipe(target={"max_latency_ms": "0.4ms"}), example=EXAMPLE)
    left = (100 + sum(p.numel() for p in result.model.parameters() if p.dim() > 1)) / 1000
    assert left <= 0.4


def test_widths_are_measured_once_however_many_parts_lead_to_them(clock: list[float]) -> None:
    coarse = {"name": "channel", "multiple_of": 8}
    notes: list[str] = []
    prunus.prune(network(), recipe(structure=coarse), example=EXAMPLE,
                 on_event=lambda event: notes.append(str(event.get("text"))))  # fmt: skip
    assert len(clock) == len(set(clock))
    assert any(f"({len(clock)} artifacts measured)" in note for note in notes)


def test_a_bound_out_of_reach_is_refused_with_the_best_found(clock: list[float]) -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(
        prunus.InputError, match=r"out of reach in eager.*the best found is 0\.11 ms"
    ):
        prunus.prune(
            model, recipe(structure=SINGLY, target={"max_latency_ms": "0.1ms"}), example=EXAMPLE
        )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_widths_are_those_that_the_runtime_computes_well(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunus.runtimes import eager

    def widths(structure: object = "channel") -> list[int]:
        result = prunus.prune(network(), recipe(structure=structure), example=EXAMPLE)
        return [m.out_features for m in result.model.modules() if isinstance(m, nn.Linear)][:-1]

    assert all(w % eager.FACTS.multiple_of == 0 for w in widths()), "of the runtime's own"
    monkeypatch.setattr(eager, "FACTS", replace(eager.FACTS, multiple_of=4))
    assert all(w % 4 == 0 for w in widths())
    fine = widths({"name": "channel", "multiple_of": 1})
    assert any(w % 4 for w in fine), "what the recipe says goes first"


def test_a_run_that_goes_on_measures_nothing_again(clock: list[float], tmp_path: Path) -> None:
    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        run.attach(optimizer)
        for batch in run.batches([EXAMPLE]):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()

    plan = recipe(rounds=2, retrain="2it", schedule="linear")
    steps: list[int] = []

    def stop() -> bool:
        steps.append(1)
        return len(steps) > 1

    kinds: dict[str, Any] = {"train": train, "example": EXAMPLE}
    with pytest.raises(prunus.Interrupted):
        prunus.prune(network(), plan, folder=tmp_path / "a", should_stop=stop, **kinds)
    before = len(clock)
    assert before > 0
    resumed = prunus.prune(network(), plan, folder=tmp_path / "a", **kinds)
    whole = prunus.prune(network(), plan, folder=tmp_path / "b", **kinds)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)
    lines = (tmp_path / "a" / "journal.jsonl").read_text().splitlines()
    found = [e for e in map(json.loads, lines) if e["event"] == "latency"]
    assert [e["when"] for e in found] == ["start", "last"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"deploy": None}, "name it, for example deploy: onnxruntime"),
        ({"deploy": "auto"}, "name it, for example deploy: onnxruntime"),
        ({"compact": "none"}, "set compact"),
        ({"target": {"max_latency_ms": "soon"}}, "write, for example, '0.4ms'"),
        ({"target": {"max_latency_ms": 0.5, "max_macs": 0.5}}, "cannot be combined"),
        ({"deploy": "onnxruntim"}, "onnxruntime"),
    ],
)
def test_what_a_latency_needs_is_said_before_work_starts(
    changes: dict[str, Any], words: str
) -> None:
    plan = {k: v for k, v in recipe(**changes).items() if v is not None}
    with pytest.raises(prunus.InputError, match=words):
        prunus.prune(network(), plan, example=EXAMPLE)


@pytest.mark.parametrize(("bound", "verdict"), [(0.9, "kept"), ("0.6ms", "missed")])
def test_the_finished_artifact_is_held_against_the_bound(bound: object, verdict: str) -> None:
    def row(model: str, ms: float) -> RuntimeResult:
        return RuntimeResult("eager", model, latency={1: Timing(ms, ms, 0.0, 9, False)})

    made = Deployment(
        rows=(row("pruned", 0.8), row("dense", 1.0)), runtime="eager", model=None,  # type: ignore[arg-type]
        path=None, advice=(), offers={}, threads=1, machine="none",
    )  # fmt: skip
    said = latency_verdict(prunus.Recipe(**recipe(target={"max_latency_ms": bound})), made)
    assert verdict in said
    assert "0.8 ms of at most" in said


def test_measuring_leaves_a_model_that_trains_in_training_mode(clock: list[float]) -> None:
    modes: list[bool] = []

    def train(model: nn.Module, run: prunus.Run) -> None:
        modes.append(model.training)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        run.attach(optimizer)
        for batch in run.batches([EXAMPLE]):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()

    prunus.prune(network().train(), recipe(rounds=2, retrain="1it", schedule="linear"),
                 train=train, example=EXAMPLE)  # fmt: skip
    assert modes == [True, True]
