"""A run that ends with an artifact: every round timed, the last one built, judged and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus.deployment.build import Baseline, Builder
from prunus.deployment.deploy import candidates
from prunus.deployment.module import DeployedModule
from prunus.report.page import write_report
from prunus.runtimes import find

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2)
    )


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(model: nn.Module, run: prunus.Run) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    run.attach(optimizer)
    for batch in run.batches([(X, Y)]):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()


def accuracy(model: nn.Module) -> float:
    return float((model(X).argmax(1) == Y).float().mean())


def go(recipe: dict[str, Any], **more: Any) -> prunus.Result:
    plan = {"structure": "channel", "compact": "every_round", "target": {"max_macs": 0.4},
            "rounds": 2, "retrain": "20it", "schedule": "linear", "deploy": "eager",
            **recipe}  # fmt: skip
    given = {"train": train, "evaluate": accuracy, "calibration": [(X, Y)], "loss": loss,
             "example": X[:2], **more}  # fmt: skip
    return prunus.prune(network(), {k: v for k, v in plan.items() if v is not None}, **given)


def test_every_accepted_round_is_timed_and_the_report_draws_them(tmp_path: Path) -> None:
    result = go({}, folder=tmp_path / "run")
    assert [list(r.latency) for r in result.rounds] == [["eager"]] * 3
    assert result.deployment.runtime == "eager"
    assert result.deployment.row().metric == result.metric
    page = write_report(tmp_path / "run").read_text()
    assert "Where it runs" in page
    assert (tmp_path / "run" / "latency.png").stat().st_size > 1000
    opened = prunus.load(tmp_path / "run", model=network())
    assert torch.allclose(opened(X), result.model.eval()(X), atol=1e-6)


@pytest.mark.parametrize("compact", ["end", "every_round"])
def test_rounds_are_timed_as_the_small_models_that_they_would_end_as(compact: str) -> None:
    seen: list[int] = []

    def watched(model: nn.Module, **given: Any) -> Any:
        against = given["baseline"]
        against = against.model if isinstance(against, Baseline) else against
        assert against is None or sum(p.numel() for p in against.parameters()) == seen[0]
        seen.append(sum(p.numel() for p in model.parameters()))
        return type("Made", (), {"rows": (), "runtime": "planted", "path": None})

    from prunus.progressive import deploy_step as serving

    before, serving.deploy = serving.deploy, watched  # type: ignore[assignment]
    try:
        go({"compact": compact})
    finally:
        serving.deploy = before
    assert seen[0] > seen[1] > seen[2] == seen[3]


def test_a_rejected_round_is_not_timed() -> None:
    scores = iter([0.9, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5])
    result = go(
        {"guard": {"max_drop": 0.01}, "target": {"max_macs": 0.4, "smallest": 0.4}},
        evaluate=lambda model: 0.9 if isinstance(model, DeployedModule) else next(scores, 0.5),
    )
    assert [bool(r.latency) for r in result.rounds if r.verdict == "rejected"] == [False]


def test_int8_is_calibrated_and_judged_in_the_runtime_that_serves_it(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="int8 in ONNX Runtime needs onnxruntime")
    pytest.importorskip("onnxscript", reason="the export needs onnxscript")
    judged: list[str] = []

    def evaluate(model: nn.Module) -> float:
        judged.append(model.card.runtime if isinstance(model, DeployedModule) else "PyTorch")
        return accuracy(model)

    result = go({"deploy": "onnxruntime", "quantize": "int8", "rounds": 1}, evaluate=evaluate,
                folder=tmp_path / "run")  # fmt: skip
    made = result.deployment
    assert made.runtime == "onnxruntime_int8"
    assert "onnxruntime_int8" in judged
    assert made.row().metric == pytest.approx(accuracy(made.model))
    assert {r.runtime for r in made.rows if r.model == "dense"} >= {"onnxruntime"}
    saved = json.loads((tmp_path / "run" / "result.json").read_text())["deployment"]
    assert saved["runtime"] == "onnxruntime_int8"
    opened = prunus.load(tmp_path / "run" / "deployed" / "onnxruntime_int8")
    assert torch.allclose(opened(X), made.model(X))


def test_rounds_too_are_calibrated_where_the_runtime_quantizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prunus.progressive import deploy_step as serving

    given: list[int] = []

    def watched(model: nn.Module, **more: Any) -> Any:
        given.append(len(more["calibration"]))
        raise prunus.RunError("seen")

    monkeypatch.setattr(serving, "deploy", watched)
    go({"deploy": "onnxruntime_int8", "quantize": "int8", "rounds": 1})
    assert len(given) == 3  # the dense model, the round, the artifact
    assert min(given) > 0
    given.clear()
    go({"rounds": 1})
    assert set(given) == {0}


def test_int8_that_loses_too_much_is_not_taken() -> None:
    pytest.importorskip("onnxruntime", reason="int8 in ONNX Runtime needs onnxruntime")
    pytest.importorskip("onnxscript", reason="the export needs onnxscript")

    def evaluate(model: nn.Module) -> float:
        spoilt = isinstance(model, DeployedModule) and model.card.runtime.endswith("int8")
        return 0.1 if spoilt else accuracy(model)

    made = go(
        {"deploy": "onnxruntime", "quantize": "int8", "rounds": 1}, evaluate=evaluate
    ).deployment
    assert made.runtime == "onnxruntime"
    assert "metric 0.1000, more than 0.01 below" in made.row("onnxruntime_int8").refused


@pytest.mark.parametrize(
    ("recipe", "more", "words"),
    [
        ({}, {"example": None, "structure": None}, "pass example="),
        ({"quantize": "int8"}, {"calibration": None}, "pass calibration"),
        ({"deploy": "fastest"}, {}, "no runtime 'fastest'"),
        ({"quantize": "int4"}, {}, "quantize"),
    ],
)
def test_what_an_artifact_needs_is_said_before_work_starts(
    recipe: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    more.pop("structure", None)
    trained: list[int] = []
    with pytest.raises(prunus.InputError, match=words):
        go(recipe, **{"train": lambda model, run: trained.append(1), **more})
    assert trained == []


def test_rounds_compare_although_the_machines_speed_wavers(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunus._common.timing import Timing
    from prunus.deployment.table import RuntimeResult
    from prunus.progressive import deploy_step as serving

    speed = iter([1.0, 3.0, 0.5, 1.0])  # of the machine, slower and faster from run to run

    def planted(model: nn.Module, *, baseline: Any, **_: Any) -> Any:
        baseline = baseline.model if isinstance(baseline, Baseline) else baseline
        slow = next(speed)
        times = {"pruned": model, **({} if baseline is None else {"dense": baseline})}
        rows = [
            RuntimeResult(
                "eager", name, latency={1: Timing(t := slow * _size(m), t, 0.0, 9, False)}
            )
            for name, m in times.items()
        ]
        return type("Made", (), {"rows": rows, "runtime": "planted", "path": None})

    def _size(model: nn.Module) -> float:
        return float(sum(p.numel() for p in model.parameters()))

    monkeypatch.setattr(serving, "deploy", planted)
    result = go({})
    found = [r.latency["eager"] for r in result.rounds]
    assert found[0] == _size(network())
    assert found[-1] == pytest.approx(_size(result.model))
    assert found[0] > found[1] > found[2]


def test_auto_takes_what_runs_here_and_is_not_stopped_by_what_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def uncompiled(*_: Any, **__: Any) -> Any:  # it takes longer than all others together
        raise prunus.RunError("there is no compiler")

    monkeypatch.setattr("prunus.runtimes.torch_compile.build", uncompiled)
    names, _ = candidates("auto", quantized=False)
    quick = [n for n in names if not find(n).FACTS.slow and "cpu" in find(n).FACTS.devices]
    quick.remove("sparse")  # which takes weights of which it finds that their zeros pay
    result = go({"deploy": "auto", "rounds": 1, "retrain": "2it"})
    assert [set(r.latency) for r in result.rounds] == [set(quick)] * 2
    assert result.deployment.row("semi_structured").refused
    assert "no compiler" in result.deployment.row("torch_compile").refused
    assert result.deployment.runtime in names


def test_the_dense_model_is_built_once_for_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, str]] = []
    real = Builder._build

    def counted(self: Builder, name: str, kind: str, model: nn.Module) -> Any:
        made.append((name, kind))
        return real(self, name, kind, model)

    monkeypatch.setattr(Builder, "_build", counted)
    result = go({"rounds": 4, "retrain": "2it"})
    assert [list(r.latency) for r in result.rounds] == [["eager"]] * 5
    assert made.count(("eager", "pruned")) == 6  # five rounds, and the artifact
    assert made.count(("eager", "dense")) == 2  # the rounds, and beside the artifact


def test_an_engine_that_fails_costs_no_round(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunus.progressive import deploy_step as serving

    def broken(*_: Any, **__: Any) -> Any:
        raise prunus.RunError("the engine is gone")

    monkeypatch.setattr(serving, "deploy", broken)
    notes: list[str] = []
    result = go({}, on_event=lambda event: notes.append(str(event.get("text"))))
    assert [r.latency for r in result.rounds] == [{}] * 3
    assert result.deployment is None
    assert result.metric is not None
    assert "the round was not timed: the engine is gone" in notes
    assert "no artifact was made: the engine is gone" in notes
