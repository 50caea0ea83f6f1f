"""Metrics that are no mean over items: a figure of counts that add up (BLEU, errors per word)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from helpers import tiny_task
from prunus._common.metrics import MetricEstimate, interval_of
from prunus._common.scores import Scores
from prunus.errors import InputError
from prunus.progressive.verdict import evidence, refuse_unproven
from prunus.recipe.fields import Guard
from prunus.report.page import write_report


def share(rows: Tensor) -> Tensor:
    """Errors ÷ words of rows [n, 2]."""
    return rows[:, 0].sum() / rows[:, 1].sum()


def errors(wrong: list[float], words: list[float]) -> Scores:
    return Scores(torch.tensor([wrong, words]).T, better="lower", figure=share)


def test_the_metric_is_of_all_items_together_and_not_their_mean() -> None:
    found = errors([1, 0], [2, 6])
    assert found.mean == 0.125
    assert found.each.tolist() == [0.5, 0.0]
    assert Scores(found.items, ["a", "b"], figure=share).by_group() == {"a": 0.5, "b": 0.0}
    for wrong in (torch.ones(2, 2, 2), torch.ones(0, 2)):
        with pytest.raises(InputError, match="one number for each item, or a row"):
            Scores(wrong, figure=share)
    with pytest.raises(InputError, match=r"one number for each item$"):
        Scores(torch.ones(2, 2))
    with pytest.raises(InputError, match="figure is str"):
        Scores([1.0], figure="mean")  # type: ignore[arg-type]


def test_an_interval_of_a_ratio_is_that_of_its_linearization() -> None:
    source = torch.Generator().manual_seed(0)
    words = torch.randint(1, 12, (800,), generator=source).double()
    wrong = (torch.rand(800, generator=source) * words).round()
    found = Scores(torch.stack([wrong, words], 1), figure=share)
    low, high = interval_of(found)
    spread = (wrong - found.mean * words).std() / words.mean() / 800**0.5
    assert low == pytest.approx(found.mean - 1.96 * float(spread), abs=2e-3)
    assert high == pytest.approx(found.mean + 1.96 * float(spread), abs=2e-3)
    better = Scores(torch.stack([wrong * 0.5, words], 1), figure=share)
    said = MetricEstimate.of(better, found)
    assert said.change is not None
    assert said.change[0] == pytest.approx(-found.mean / 2)
    assert said.change[1] < said.change[0] < said.change[2] < 0


def test_a_guard_weighs_what_was_lost_of_the_figure() -> None:
    before, after = errors([1, 0, 4], [2, 6, 8]), errors([2, 0, 4], [2, 6, 8])
    found = evidence(before, after, Guard(better="lower", confidence=0.9))
    assert found["drop"] == pytest.approx(1 / 16)
    assert found["worse"] == [0]
    assert found["most"] >= found["drop"]
    # counts of 0 and 1 are no answers that are right or wrong: nothing says how many it takes
    rows = Scores(torch.ones(3, 2), better="lower", figure=share)
    refuse_unproven(Guard(better="lower", confidence=0.95, max_drop=1e-6), rows, 1e-6)


def test_a_run_is_judged_by_a_figure_and_its_report_says_so(tmp_path: Path) -> None:
    def evaluate(model: nn.Module) -> Scores:
        gone = sum(int((p == 0).sum()) for p in model.parameters())
        return errors([1.0, gone / 10.0, 0.0], [10, 100, 40])

    recipe: dict[str, Any] = {
        "rounds": 2, "retrain": "2it", "target": 0.5, "guard": {"better": "lower", "max_drop": 9.0}
    }  # fmt: skip
    found = prunus.prune(
        tiny_task(), recipe, evaluate=evaluate, test=evaluate, folder=tmp_path / "run"
    )
    last = found.rounds[-1]
    assert last.metric is not None
    assert last.evidence["drop"] == pytest.approx(last.metric - found.rounds[0].metric)
    assert found.test_metric is not None
    assert found.test_metric.change is not None
    assert found.test_metric.change[0] == pytest.approx(last.evidence["drop"])
    assert "was lost of the metric" in write_report(tmp_path / "run").read_text()
    assert json.loads((tmp_path / "run/result.json").read_text())["tested"]["interval"]
