"""What a prompt and a notebook show of results, and of a run while it goes."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import prunus
from helpers import quick, tiny_task
from prunus._common.tables import Table
from prunus.progressive import progress


def pruned(**hooks: Any) -> prunus.Result:
    return prunus.prune(tiny_task(), quick(), **hooks)


def measured() -> prunus.Measurement:
    model = nn.Linear(4, 2)
    return prunus.measure(model, torch.ones(1, 4), baseline=nn.Linear(4, 2), batch_sizes=[1],
                          seconds=0.01)  # fmt: skip


def deployed() -> prunus.Deployment:
    return prunus.deploy(nn.Linear(4, 2), example=torch.ones(1, 4), runtime="eager", seconds=0.01)


def compacted() -> prunus.Compact:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    keep = torch.tensor([True, False, True])
    masks = {"0.weight": keep[:, None], "0.bias": keep, "2.weight": keep[None]}
    return prunus.compact(model, masks, torch.ones(1, 4))


def swept() -> Any:
    pytest.importorskip("optuna")
    return prunus.sweep.sweep(
        quick().to_dict(), {"target": [0.3, 0.5]}, task=tiny_task(), folder="out"
    )


@pytest.mark.parametrize("make", [pruned, measured, deployed, compacted, swept])
def test_results_are_short_at_a_prompt_and_a_table_in_notebooks(make: Callable[[], Any]) -> None:
    result = make()
    text = repr(result)
    assert len(text.splitlines()) < 10
    assert "tensor(" not in text
    assert "\nnext: " in text
    assert text.startswith("<")
    assert text.endswith(">")
    html = result._repr_html_()
    assert html.count("<table>") == html.count("</table>") == 1
    assert "tensor(" not in html


def test_a_run_has_a_picture_where_matplotlib_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    result = pruned()
    assert "<svg" in result._repr_html_()
    for name in ("prunus.progressive.picture", "prunus._common.pictures"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "<svg" not in result._repr_html_()
    assert "<table>" in result._repr_html_()


def test_cells_are_escaped() -> None:
    assert "<b>" not in Table(("a<b>",), [("<b>",)]).html()


def on(console: Console | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_console", lambda: console)


def test_a_terminal_shows_a_bar_and_a_line_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    on(Console(file=out, force_terminal=True, width=100, highlight=False), monkeypatch)
    pruned()
    assert "train dense" in out.getvalue()
    assert "steps" in out.getvalue()
    for index in (0, 1, 2):
        assert f"round  {index}  sparsity" in out.getvalue()


@pytest.mark.parametrize("hooks", [{"progress": False}, {"on_event": lambda event: None}])
def test_progress_is_silent_when_asked(
    hooks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    on(Console(file=out, force_terminal=True), monkeypatch)
    pruned(**hooks)
    assert out.getvalue() == ""


def test_progress_is_silent_in_a_pipe_and_without_rich(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned()
    monkeypatch.setitem(sys.modules, "rich.console", None)
    pruned()
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_gone_when_a_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    on(console, monkeypatch)
    with pytest.raises(prunus.Interrupted):
        pruned(should_stop=lambda: True)
    assert console._live is None if hasattr(console, "_live") else not console._live_stack
