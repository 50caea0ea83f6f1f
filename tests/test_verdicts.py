"""A guard that judges items and classes rather than an average."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from helpers import tiny_task
from prunus._common.scores import Scores
from prunus.errors import InputError
from prunus.progressive.record import Record
from prunus.progressive.verdict import evidence, most_lost
from prunus.recipe.fields import Guard
from prunus.report.page import write_report

ROUNDS = {"rounds": 3, "retrain": "2it", "schedule": "linear", "target": 0.6}


def judged(
    scores: list[Any], guard: dict[str, Any], way: str = "prune", **more: Any
) -> prunus.Result | prunus.Pruner:
    """A run whose rounds get these scores, the dense one's first."""
    recipe = {**ROUNDS, "guard": guard}
    left: Iterator[Any] = iter([scores[0], *scores])  # once before work starts

    def evaluate(model: nn.Module) -> Any:
        return next(left, scores[-1])

    if way == "prune":
        return prunus.prune(tiny_task(), recipe, evaluate=evaluate, **more)
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = prunus.Pruner(model, recipe, optimizer, evaluate=evaluate)
    while not pruner.done:
        model(torch.ones(2, 8)).square().mean().backward()
        optimizer.step()
    return pruner


def right(wrong: range, n: int = 400) -> Tensor:
    """1 for each item but these."""
    items = torch.ones(n)
    items[list(wrong)] = 0
    return items


@pytest.mark.parametrize("way", ["prune", "pruner"])
@pytest.mark.parametrize("kind", [Scores, lambda items: items])
def test_a_drop_that_chance_may_hide_is_rejected(way: str, kind: Any) -> None:
    # 10 of 400 are lost: 0.025 on the mean, and up to 0.042 with 95 % confidence
    scores = [kind(right(range(20))), kind(right(range(30)))]
    mean = judged(scores, {"max_drop": 0.03}, way)
    sure = judged(scores, {"max_drop": 0.03, "confidence": 0.95}, way)
    wide = judged(scores, {"max_drop": 0.05, "confidence": 0.95}, way)
    assert [r.verdict for r in mean.rounds[:2]] == ["dense", "accepted"]
    assert [r.verdict for r in sure.rounds[:2]] == ["dense", "rejected"]
    assert [r.verdict for r in wide.rounds[:2]] == ["dense", "accepted"]
    found = sure.rounds[1].evidence
    assert found["drop"] == pytest.approx(0.025)
    assert found["worse"] == list(range(20, 30))
    assert 0.03 < found["most"] < 0.05


@pytest.mark.parametrize("way", ["prune", "pruner"])
@pytest.mark.parametrize("better", ["higher", "lower"])
def test_no_class_may_lose_more_than_the_worst_may(way: str, better: str) -> None:
    kinds = ["often"] * 380 + ["seldom"] * 20
    sign = 1 if better == "higher" else -1
    dense = Scores(sign * right(range(0)), kinds, better)
    pruned = Scores(sign * right(range(396, 400)), kinds, better)
    guard = {"max_drop": 0.02, "better": better}
    found = judged([dense, pruned], guard, way)
    assert found.rounds[1].verdict == "accepted", "on the mean 0.01 is lost"
    found = judged([dense, pruned], {**guard, "worst_class": 0.1}, way)
    assert found.rounds[1].verdict == "rejected"
    assert found.rounds[1].evidence["groups"]["seldom"] == pytest.approx([sign, sign * 0.8])
    found = judged([dense, pruned], {**guard, "worst_class": 0.2}, way)
    assert found.rounds[1].verdict == "accepted"


def test_a_rejection_says_which_class_and_the_report_names_the_items(tmp_path: Path) -> None:
    kinds = ["cat"] * 380 + ["dog"] * 20
    told: list[str] = []
    judged(
        [Scores(right(range(0)), kinds), Scores(right(range(398, 400)), kinds)],
        {"max_drop": 0.02, "worst_class": 0.05},
        folder=tmp_path / "run",
        on_event=lambda event: told.append(event.get("text", "")),
    )
    assert any("round 1 is rejected: dog lost 0.1; 0.05 is allowed to a class" in t for t in told)
    judged(
        [Scores(right(range(0)), kinds), Scores(right(range(398, 400)), kinds)],
        {"max_drop": 0.02, "worst_class": 0.1, "confidence": 0.95},
        folder=tmp_path / "other",
    )
    page = write_report(tmp_path / "other").read_text()
    assert "Items that became worse: 398, 399" in page
    assert "<td>dog</td><td>1.0000</td><td>0.9000</td><td>0.1000</td>" in page


def test_what_a_round_is_judged_against_outlives_a_stop(tmp_path: Path) -> None:
    kinds = ["a", "b"] * 200

    def evaluate(model: nn.Module) -> Scores:
        return Scores((torch.arange(400) % 7 != 0).double(), kinds)

    recipe = {**ROUNDS, "guard": {"max_drop": 0.02, "worst_class": 0.1, "confidence": 0.9}}
    whole = prunus.prune(tiny_task(), recipe, evaluate=evaluate, folder=tmp_path / "whole")
    asked = iter([False] * 3)
    with pytest.raises(prunus.Interrupted):
        prunus.prune(tiny_task(), recipe, evaluate=evaluate, folder=tmp_path / "run",
                     should_stop=lambda: next(asked, True))  # fmt: skip
    again = prunus.prune(tiny_task(), recipe, evaluate=evaluate, folder=tmp_path / "run")
    assert [r.evidence for r in again.rounds] == [r.evidence for r in whole.rounds]
    assert [r.evidence for r in Record(tmp_path / "run").rounds] == [
        r.evidence for r in whole.rounds
    ]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metric"] == whole.metric


@pytest.mark.parametrize("way", ["prune", "pruner"])
@pytest.mark.parametrize(("guard", "scores", "says"), [
    ({"confidence": 0.95}, 0.9, "evaluate returns one number: return prunus.Scores"),
    ({"worst_class": 0.1}, 0.9, "evaluate returns one number: return prunus.Scores"),
    ({"worst_class": 0.1}, Scores([1.0, 0.0]), "worst_class needs classes"),
    ({"confidence": 0.95}, Scores([0.3, 0.2], better="lower"), "set guard.better=lower"),
    ({"confidence": 0.95}, Scores(torch.ones(100)), "268 items are needed"),
    ({"confidence": 0.95, "max_drop": 0}, Scores(torch.ones(9)), "no number of items is enough"),
])  # fmt: skip
def test_a_guard_that_could_never_judge_is_refused_before_work_starts(
    way: str, guard: dict[str, Any], scores: Any, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        judged([scores], guard, way)


@pytest.mark.parametrize("after", [Scores(torch.ones(3)), Scores([1.0, 1.0], ["a", "c"])])
def test_other_items_than_before_are_refused(after: Scores) -> None:
    with pytest.raises(InputError, match="the same items in the same order"):
        judged([Scores([1.0, 1.0], ["a", "b"]), after], {"max_drop": 0.5})


@pytest.mark.parametrize("wrong", [
    {"items": []}, {"items": [[1.0]]}, {"items": ["a"]}, {"items": [1.0], "groups": []},
    {"items": [1.0], "better": "more"},
])  # fmt: skip
def test_scores_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="Scores: "):
        Scores(**wrong)


def test_a_metric_of_scores_is_their_mean_everywhere() -> None:
    items = torch.arange(8) / 8
    tensor = judged([items], {"max_drop": 0.1})
    scores = judged([Scores(items)], {"max_drop": 0.1})
    assert [r.metric for r in scores.rounds] == [r.metric for r in tensor.rounds]
    assert "evidence" not in tensor.rounds[1].to_dict()


@settings(max_examples=40)
@given(st.integers(1, 200), st.data())
def test_the_bound_is_above_the_drop_and_grows_with_confidence(n: int, data: Any) -> None:
    answers = st.lists(st.booleans(), min_size=n, max_size=n)
    before, after = (torch.tensor(data.draw(answers)).double() for _ in range(2))
    drop = float((before - after).mean())
    bounds = [most_lost(before, after, c) for c in (0.6, 0.9, 0.99)]
    assert drop <= bounds[0] <= bounds[1] <= bounds[2] <= 1
    assert most_lost(before, before, 0.9) <= bounds[1] or drop < 0


@pytest.mark.parametrize(("b", "c", "n"), [(1, 0, 44), (9, 3, 60), (0, 5, 30), (12, 12, 200)])
def test_the_bound_solves_the_score_test_with_the_likeliest_share(b: int, c: int, n: int) -> None:
    """The share of pairs that only the later model has right, found on a grid of likelihoods."""
    before = torch.tensor([1.0] * b + [0.0] * c + [1.0] * (n - b - c))
    after = torch.tensor([0.0] * b + [1.0] * c + [1.0] * (n - b - c))
    delta = most_lost(before, after, 0.95)
    ends = max(0.0, -delta) + 1e-9, (1 - delta) / 2 - 1e-9
    share = torch.linspace(*ends, 2_000_001, dtype=torch.float64)
    likely = (b * (share + delta).log() if b else 0) + (n - b - c) * (1 - 2 * share - delta).log()
    share = share[int((likely + (c * share.log() if c else 0)).argmax())]
    z = (b - c - n * delta) / float((n * (2 * share + delta - delta**2)).sqrt())
    assert z == pytest.approx(-NormalDist().inv_cdf(0.95), rel=1e-4)


def test_the_chance_of_being_wrong_is_what_was_asked_for() -> None:
    """Of models that lose exactly what is allowed, about 5 % pass at 95 % confidence."""
    source = torch.Generator().manual_seed(0)
    n, allowed, passed = 300, 0.05, 0
    for _ in range(2000):
        chance = torch.rand(n, generator=source)
        before = (chance < 0.85).double()
        after = (((chance >= 0.08) & (chance < 0.85)) | (chance >= 0.97)).double()  # 0.05 less
        passed += most_lost(before, after, 0.95) <= allowed
    assert 0.03 < passed / 2000 < 0.07


def test_numbers_that_are_no_answers_are_bounded_by_resampling() -> None:
    source = torch.Generator().manual_seed(0)
    before = torch.rand(500, generator=source).double()
    lost = 0.1 + 0.05 * torch.randn(500, generator=source).double()
    normal = float(lost.mean() + NormalDist().inv_cdf(0.95) * lost.std() / 500**0.5)
    assert most_lost(before, before - lost, 0.95) == pytest.approx(normal, abs=5e-4)
    assert evidence(Scores(before), Scores(before - lost), Guard(confidence=0.95))["most"] > 0.1


def test_embedded_tasks_know_their_classes() -> None:
    found = prunus.prune("mlp", {"target": 0.5, "dense": "1it", "guard": {"worst_class": 1.0},
                                 "rounds": 1, "retrain": "1it"})  # fmt: skip
    assert len(found.rounds[1].evidence["groups"]) > 1
    assert found.test_metric is not None
    assert found.test_metric.interval is not None
