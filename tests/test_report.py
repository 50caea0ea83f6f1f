"""The report: one file that needs nothing from outside and says what happened."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import prunus
from helpers import quick, tiny_task
from prunus.errors import Interrupted
from prunus.report.compare import compare
from prunus.report.page import write_report

METRICS = [0.9, 0.9, 0.88, 0.2, 0.87, 0.86, 0.86]


def finished(folder: str = "run", **changes: object) -> Path:
    """A run with a rejected round."""
    values = iter(METRICS)
    recipe = quick(guard={"max_drop": 0.1}, **changes)
    prunus.prune(tiny_task(), recipe, evaluate=lambda m: next(values), folder=folder)
    return Path(folder)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of such a run; what it was made from lies beside it."""
    return write_report(finished(str(tmp_path_factory.mktemp("page") / "run")))


def test_the_page_needs_nothing_from_outside(page: Path) -> None:
    html = page.read_text()
    assert "http://" not in html
    assert "https://" not in html
    assert "<script" not in html
    for address in re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', html):
        assert "".join(address).startswith("#")


def test_every_round_has_a_row_and_rejected_ones_are_named(page: Path) -> None:
    html = page.read_text()
    rows = re.findall(r'<tr class="round"><td>(\d+)</td>.*?class="(\w+)">', html)
    assert rows == [("0", "dense"), ("1", "accepted"), ("2", "rejected"), ("3", "accepted"),
                    ("4", "accepted")]  # fmt: skip


def test_theoretical_figures_are_marked(page: Path) -> None:
    html = page.read_text()
    marked = html.index("Theoretical")
    assert html.index(">params<") < marked < html.index("nonzero_params")
    assert marked < html.index("macs_if_zeros_skipped")


def test_pictures_are_png_as_well(page: Path) -> None:
    for name in ("metric", "density", "complexity"):
        assert page.with_name(f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_run_gives_the_same_page(page: Path) -> None:
    first = page.read_bytes()
    assert write_report(page.parent).read_bytes() == first


def test_ids_of_pictures_do_not_meet(page: Path) -> None:
    html = page.read_text()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)) > 0


def test_names_are_escaped() -> None:
    html = write_report(finished(folder="a<b>&c")).read_text()
    assert "a<b>" not in html
    assert "a&lt;b&gt;&amp;c" in html


def test_a_run_that_is_not_finished_says_how_to_go_on() -> None:
    steps: list[int] = []

    def watch(event: object) -> None:
        steps.append(1)

    with pytest.raises(Interrupted):
        prunus.prune(tiny_task(), quick(), folder="run", on_event=watch,
                     should_stop=lambda: len(steps) > 25)  # fmt: skip
    html = write_report(Path("run")).read_text()
    assert "prunus resume run" in html
    assert "not finished" in html


def test_a_run_without_metric_has_a_page_too() -> None:
    prunus.prune(tiny_task().model(), {"target": 0.5}, folder="run")
    html = write_report(Path("run")).read_text()
    assert "sparsity 0.5" in html


def test_compare_reads_what_the_runs_ended_with() -> None:
    one, two = finished("one"), finished("two", target=0.4)
    rows = compare([one, two])
    assert [r["name"] for r in rows] == ["one", "two"]
    assert rows[0]["sparsity"] == 0.5
    assert rows[1]["sparsity"] == pytest.approx(0.4, abs=0.01)
    assert rows[0]["rejected"] == 1
    assert rows[0]["metric_minus_dense"] == pytest.approx(-0.04)
