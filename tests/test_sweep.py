"""Sweeps, from the shell and from Python: what runs, what is skipped, what is on the front."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import prunus
from fresh import Pythons
from helpers import tiny_task
from prunus._common import packages as distributions
from prunus.cli.main import cli
from prunus.progressive.journal import read_events
from prunus.progressive.result import Round
from prunus.recipe.fields import Guard
from prunus.recipe.schema import Recipe
from prunus.report.front import draw_front
from prunus.sweep import Sweep, Trial, sweep
from prunus.sweep.pareto import choose, front
from prunus.sweep.space import from_mapping, parse
from prunus.sweep.stopping import hopeless

TASK = """
import os, signal
from pathlib import Path
from helpers import tiny_task
from prunus.tasks.base import accuracy

def metric(model, batches):
    with Path("judged").open("a") as file:
        file.write("x")
    if os.environ.get("KILL_AT") == str(Path("judged").stat().st_size):
        os.kill(os.getpid(), signal.SIGKILL)
    return accuracy(model, batches)

def task():
    return tiny_task(metric=metric, train_sample=None)

def never(progress, dense):
    return 0.0

def fails(weight):
    raise ZeroDivisionError("no such score")
"""


@pytest.fixture(autouse=True, scope="module")
def _without_waiting_for_the_disk() -> Iterator[None]:
    """The ledger's database, as conftest has it for our own files."""
    sqlalchemy = pytest.importorskip("sqlalchemy")

    def connected(connection: Any, _: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", connected)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", connected)


FAST = ["task=task.py", "dense=2ep", "retrain=1ep", "rounds=2"]
PYTHON = {"dense": "2ep", "retrain": "1ep", "rounds": 2, "schedule": "linear"}


@pytest.fixture(autouse=True)
def _task() -> None:
    Path("task.py").write_text(TASK)


@pytest.fixture(autouse=True)
def _few_pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and pages are made where a test looks at them, and else as without matplotlib."""
    if "picture" not in request.node.name:
        for name in ("sweep", "summary"):
            module = importlib.import_module(f"prunus.sweep.{name}")
            monkeypatch.setattr(module, "why_not", lambda: "not in this test")


def shell(*words: str, code: int = 0) -> Result:
    done = CliRunner().invoke(cli, ["sweep", "iterative", *FAST, *words, "--folder", "out"])
    assert done.exit_code == code, done.output
    return done


def rows(folder: str = "out") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path(folder, "sweep.json").read_text())["trials"]
    return found


def journals(folder: str = "out") -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in Path(folder).glob("*/journal.jsonl")}


def test_a_grid_runs_each_combination_once_and_ends_with_table_picture_and_command() -> None:
    done = shell("guard=null", "target=0.3,0.5,0.7")
    assert [(r["values"], r["state"]) for r in rows()] == [
        ({"target": t}, "finished") for t in ("0.3", "0.5", "0.7")
    ]
    for row in rows():
        folder = Path("out", row["name"])
        result = json.loads((folder / "result.json").read_text())
        assert row["metric"] == result["metric"]
        assert row["left"] == pytest.approx(1 - float(row["values"]["target"]), abs=0.01)
    assert Path("out/pareto.png").read_bytes().startswith(b"\x89PNG")
    assert done.output.count("no guard: no trial is stopped early") == 1
    starred = [x.split()[1] for x in done.output.splitlines() if x.startswith("*  ")]
    assert [int(n) for n in starred] == json.loads(Path("out/sweep.json").read_text())["front"]
    (line,) = [x for x in done.output.splitlines() if x.startswith("again: prunus run")]
    again = CliRunner().invoke(cli, [*line.removeprefix("again: prunus ").split(), "--folder", "b"])
    assert again.exit_code == 0
    best = json.loads(Path("out/sweep.json").read_text())["best"]
    assert Path("out", rows()[best]["name"], "report.html").is_file()
    assert json.loads(Path("b/result.json").read_text())["metric"] == rows()[best]["metric"]


def test_a_finished_sweep_is_not_repeated() -> None:
    first = shell("target=0.3,0.5", "--json")
    before = journals(), Path("judged").read_bytes()
    again = shell("target=0.3,0.5", "--json")
    assert (journals(), Path("judged").read_bytes()) == before
    assert again.output.splitlines()[-1] == first.output.splitlines()[-1]
    assert json.loads(again.output.splitlines()[-1])["event"] == "sweep"


def test_a_killed_sweep_goes_on_and_repeats_no_finished_trial(python: Pythons) -> None:
    words = ["sweep", "iterative", *FAST, "guard=null", "target=0.3,0.5,0.7"]
    code = "from prunus.cli.entry import main; main()"
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "KILL_AT": "8"}
    killed = python(code, *words, "--folder", "out", env=paths)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [r["state"] for r in rows()] == ["finished"]
    (first,) = [r["name"] for r in rows()]
    before = journals()
    assert len(before) == 2
    shell("guard=null", "target=0.3,0.5,0.7")
    after = journals()
    assert after[first] == before[first]
    (second,) = set(before) - {first}
    assert after[second].startswith(before[second])
    assert [e["event"] for e in read_events(Path("out", second))].count("resumed") == 1
    whole = CliRunner().invoke(cli, [*words, "--folder", "whole"])
    assert whole.exit_code == 0
    ended = [{(r["name"], r["metric"], r["left"], r["state"]) for r in rows(f)}
             for f in ("out", "whole")]  # fmt: skip
    assert ended[0] == ended[1]
    assert len(ended[0]) == 3


def test_a_sweep_that_is_asked_to_stop_goes_on_in_the_middle_of_a_trial() -> None:
    judged: list[int] = []

    def watch(event: Mapping[str, Any]) -> None:
        judged.extend([event["row"].index] if event["event"] == "judged" else [])

    def go(**more: Any) -> Sweep:
        return sweep(PYTHON, {"target": [0.3, 0.5]}, task=tiny_task(), folder="out",
                     on_event=watch, **more)  # fmt: skip

    with pytest.raises(prunus.Interrupted, match="the same command continues in"):
        go(should_stop=lambda: len(judged) == 4)
    assert [r["state"] for r in rows()] == ["finished", "unfinished"]
    done = go()
    assert [t.state for t in done.trials] == ["finished", "finished"]
    assert judged == [0, 1, 2, 0, 1, 2]


def test_a_trial_that_learns_nothing_is_stopped_after_its_dense_round_unless_told() -> None:
    words = ["guard={max_drop: 0.1}", "target=0.3", "dense.learning_rate=constant,task.py:never"]
    done = shell(*words)
    good, bad = rows()
    assert (good["state"], bad["state"], bad["rounds"]) == ("finished", "stopped", 0)
    assert "trial 0 was ahead there" in bad["reason"]
    assert "trial 1 stopped" in done.output
    assert [r["state"] for r in rows()].count("finished") == 1
    every = CliRunner().invoke(
        cli, ["sweep", "iterative", *FAST, *words, "--folder", "every", "--no-stop"]
    )
    assert every.exit_code == 0, every.output
    assert [r["state"] for r in rows("every")] == ["finished", "finished"]


def judged(index: int, metric: float, achieved: float, verdict: str = "accepted") -> Round:
    return Round(index, 10 * index, 0.0, achieved, achieved, metric, verdict)


DENSE = judged(0, 0.9, 0.0, "dense")
OTHER = Trial(
    0, {}, "finished", metric=0.88, left=0.2,
    course=((0, 0.9, 1.0), (10, 0.89, 0.5), (20, 0.88, 0.2)),
)  # fmt: skip
GUARDED = Recipe(target=0.8, rounds=2, guard=Guard(max_drop=0.05))  # type: ignore[arg-type]


def test_ahead_means_better_by_more_than_the_guard_allows_with_as_little_left() -> None:
    def stops(*rounds: Round, recipe: Recipe = GUARDED, other: Trial = OTHER) -> bool:
        return hopeless([DENSE, *rounds], recipe, [other]) is not None

    assert not stops()
    assert stops(judged(1, 0.8, 0.4))
    assert not stops(judged(1, 0.84, 0.4))  # within the tolerance of the other's 0.88
    assert not stops(judged(1, 0.8, 0.6))  # the other had more left after as much training
    assert stops(judged(2, 0.8, 0.6))
    further = GUARDED.model_copy(update={"target": Recipe(target=0.9).target})  # type: ignore[arg-type]
    assert not stops(judged(1, 0.8, 0.4), recipe=further)  # aims at less than the other left
    assert not stops(judged(1, 0.8, 0.4), recipe=Recipe(target=0.8, rounds=2))  # type: ignore[arg-type]
    until = Recipe(target="guard", guard=Guard(max_drop=0.05))  # type: ignore[arg-type]
    assert not stops(judged(2, 0.8, 0.81), recipe=until)
    assert stops(judged(2, 0.8, 0.79), recipe=until)


def test_one_rejected_round_is_rolled_back_and_two_in_a_row_are_hopeless() -> None:
    rejected = [judged(1, 0.7, 0.4, "rejected"), judged(2, 0.7, 0.3, "rejected")]
    assert hopeless([DENSE, rejected[0]], GUARDED, [OTHER]) is None
    assert hopeless([DENSE, *rejected], GUARDED, [OTHER]) is OTHER


def test_where_lower_is_better_ahead_is_below() -> None:
    other = Trial(0, {}, "finished", metric=0.3, left=0.2, course=((10, 0.3, 0.2),))
    recipe = Recipe(target=0.8, rounds=2, guard={"max_drop": 0.1, "better": "lower"})  # type: ignore[arg-type]
    assert hopeless([DENSE, judged(1, 0.5, 0.4)], recipe, [other]) is other
    assert hopeless([DENSE, judged(1, 0.35, 0.4)], recipe, [other]) is None


def test_the_front_of_five_trials_computed_by_hand() -> None:
    points = [(0.95, 0.5), (0.97, 0.6), (0.94, 0.5), (0.90, 0.1), (0.97, 0.7)]
    assert front(points) == [3, 0, 1]
    assert front([(-m, left) for m, left in points], better="lower") == [3, 0, 1]
    assert front([]) == []


POINT = st.tuples(st.integers(0, 5).map(float), st.integers(0, 5).map(float))


def dominates(one: tuple[float, float], other: tuple[float, float], *, better: str) -> bool:
    """Whether one is as good in both and better in one."""
    sign = 1 if better == "higher" else -1
    return sign * one[0] >= sign * other[0] and one[1] <= other[1] and one != other


@given(points=st.lists(POINT, max_size=12), better=st.sampled_from(["higher", "lower"]))
def test_nothing_dominates_a_member_of_the_front_and_a_member_dominates_every_other(
    points: list[tuple[float, float]], better: str
) -> None:
    found = front(points, better=better)
    members = [points[i] for i in found]
    assert len(set(found)) == len(found)
    for i, point in enumerate(points):
        beaten = any(dominates(m, point, better=better) for m in members)
        assert beaten != (i in found)
        assert not (i in found and any(dominates(p, point, better=better) for p in points))
    assert [left for _, left in members] == sorted(left for _, left in members)


def test_the_best_is_the_smallest_that_the_guard_accepts_against_the_best_dense_model() -> None:
    def trial(number: int, metric: float, left: float, allowed: float | None) -> Trial:
        return Trial(number, {}, "finished", metric=metric, left=left, dense=0.9 + number / 100,
                     allowed=allowed)  # fmt: skip

    guarded = [trial(0, 0.85, 0.1, 0.05), trial(1, 0.87, 0.2, 0.05), trial(2, 0.89, 0.4, 0.05)]
    best = choose(guarded)
    assert best is not None
    assert best.number == 1  # 0.05 below 0.92; the first lies 0.07 below it
    free = choose([trial(0, 0.85, 0.1, None), trial(1, 0.87, 0.2, None)])
    assert free is not None
    assert free.number == 1
    assert choose([Trial(0, {}, "stopped", metric=0.9, left=0.1)]) is None


def test_a_combination_that_the_rules_refuse_is_skipped_with_its_reason() -> None:
    shell("guard=null", "target=0.5", "compact=end,none")
    refused, ran = rows()
    assert (refused["state"], ran["state"]) == ("refused", "finished")
    assert "structure weight only sets weights to zero" in refused["reason"]
    assert list(journals()) == [ran["name"]]


def test_a_trial_whose_code_fails_does_not_end_the_others_and_is_tried_again_next_time() -> None:
    words = ["guard=null", "target=0.5", "criterion=task.py:fails,magnitude"]
    shell(*words)
    assert {r["values"]["criterion"]: r["state"] for r in rows()} == {
        "task.py:fails": "failed", "magnitude": "finished",
    }  # fmt: skip
    assert "ZeroDivisionError" in next(r["reason"] for r in rows() if r["reason"])
    before = Path("judged").stat().st_size
    done = shell(*words)
    assert "trial 2: criterion=task.py:fails" in done.output
    assert Path("judged").stat().st_size == before  # it had its dense round; the rest is skipped


def test_if_no_trial_finishes_the_exit_code_says_so() -> None:
    done = shell("guard=null", "target=0.5", "criterion=task.py:fails", "seed=0,1", code=1)
    assert "no trial is finished" in done.output


def test_a_range_is_drawn_the_same_way_again_and_a_higher_number_of_trials_adds_to_it() -> None:
    space = {"target": "0.5..0.9", "seed": "0..9"}

    def values(folder: str, trials: int) -> list[Mapping[str, str]]:
        done = sweep({**PYTHON, "retrain": "1it", "dense": "1it"}, space, task=tiny_task(),
                     trials=trials, folder=folder)  # fmt: skip
        assert {t.state for t in done.trials} == {"finished"}
        return [t.values for t in done.trials]

    first = values("one", 2)
    assert all(0.5 <= float(v["target"]) <= 0.9 and 0 <= int(v["seed"]) <= 9 for v in first)
    assert first[0]["target"] != first[1]["target"]
    whole = values("two", 3)
    assert whole[:2] == first
    assert values("one", 3) == whole


@pytest.mark.parametrize("storage", [None, "shared.journal", "sqlite:///shared.db"])
def test_a_second_worker_takes_other_trials_and_both_see_all(storage: str | None) -> None:
    second = "out" if storage is None else "elsewhere"
    ran: dict[str, list[str]] = {"first": [], "second": []}
    ends: list[Sweep] = []

    def go(who: str, folder: str) -> Sweep:
        def watch(event: Mapping[str, Any]) -> None:
            if event["event"] == "trial":
                ran[who].append(event["values"]["target"])
                if who == "first" and not ends:  # while the first is at its first trial
                    ends.append(go("second", "out" if storage is None else second))

        return sweep(PYTHON, {"target": [0.3, 0.5, 0.7]}, task=tiny_task(), folder=folder,
                     storage=storage, study="shared", on_event=watch)  # fmt: skip

    done = go("first", "out")
    assert ran == {"first": ["0.3"], "second": ["0.5", "0.7"]}
    assert [t.state for t in ends[0].trials] == ["running", "finished", "finished"]
    assert [t.state for t in done.trials] == ["finished"] * 3
    assert len(journals("out")) + (len(journals(second)) if storage else 0) == 3


class Killed(BaseException):
    """Stands for the end of a process."""


def test_a_trial_of_a_dead_machine_is_given_to_another_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def go(folder: str, **more: Any) -> Sweep:
        return sweep(PYTHON, {"target": [0.3, 0.5]}, task=tiny_task(), folder=folder,
                     storage="sqlite:///shared.db", **more)  # fmt: skip

    def dies(event: Mapping[str, Any]) -> None:
        if event["event"] == "judged":
            raise Killed

    with pytest.raises(Killed):
        go("dead", study="shared", on_event=dies)
    early = go("alive", study="shared")
    assert [(t.values["target"], t.state) for t in early.trials] == [
        ("0.3", "running"), ("0.5", "finished"),
    ]  # fmt: skip
    monkeypatch.setattr("prunus.sweep.study.GRACE", 1)
    time.sleep(2.5)
    assert [t.state for t in go("alive", study="shared").trials] == ["finished", "finished"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["critrion=a,b"], r"critrion: there is no such key; did you mean 'criterion'"),
        (["criterion=magnitude,fishr"], r"there is no 'fishr'; did you mean 'fisher'"),
        (["criterion={name: magnitude, q: 1},fisher"], r"q: there is no such key"),
        (["target=0.5,,0.9"], r"target: '0.5,,0.9' holds an empty value"),
        (["target="], r"target: '' holds an empty value"),
        (["target=0.5,0.5"], r"names a value twice"),
        (["target=0.5..1.5"], r"less than or equal to 1 \(got 1.5\)"),
        (["target=0.9..0.5"], r"the lower end comes first"),
        (["target=0..0.5:log"], r"begins above 0"),
        (["retrain=1ep..9it"], r"both ends need the same unit"),
        (["target=0.5"], r"nothing varies"),
        (["target"], r"'target' varies nothing"),
        (["seed=1,2", "seed=3,4"], r"seed is named twice"),
        (["task=null", "target=0.5,0.6"], r"the recipe names no task"),
        (["task=task.py,digits", "target=0.5"], r"metrics of tasks cannot be compared"),
        (["structure=channel", "target=0.5,{max_macs: 0.5}"], r"cannot be compared"),
        (["compact=end,every_round"], r"no combination can be run"),
        (["target=0.5,0.6", "--storage", "nosuch://x"], r"--storage: it cannot be opened"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_work(words: list[str], message: str) -> None:
    fast = [w for w in FAST if w.split("=")[0] not in {x.split("=")[0] for x in words}]
    done = CliRunner().invoke(cli, ["sweep", "iterative", *fast, *words, "--folder", "out"])
    assert done.exit_code == 2, done.output
    assert re.search(message, " ".join(done.output.split())), done.output
    assert not Path("judged").exists()


def test_another_sweep_in_the_folder_is_refused() -> None:
    shell("target=0.3,0.5")
    done = shell("target=0.3,0.5", "--study", "other", "seed=0,1")
    assert len(rows()) == 4
    assert "seed" in done.output
    taken = shell("target=0.4,0.5", "--study", "other", code=2)
    assert "is another sweep's" in taken.output
    Path("full").mkdir()
    Path("full/thesis.txt").touch()
    full = CliRunner().invoke(cli, ["sweep", "iterative", "target=0.3,0.5", "--folder", "full"])
    assert "holds other files" in full.output


def test_without_optuna_it_is_refused_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "missing", lambda names: list(names))
    done = shell("target=0.3,0.5", code=2)
    assert "pip install optuna, or install prunus with its extra 'sweep'" in done.output
    assert not Path("out").exists()


def test_words_are_read_as_lists_ranges_and_values() -> None:
    space = parse(["guard={max_drop: 0.1, better: lower},null", "structure=2:4", "retrain=1..9ep",
                   "target=1e-3..0.9", "scope.exclude=[a, b]", "rounds=2..5:log"])  # fmt: skip
    guard, retrain, target, rounds = space.axes
    assert vars(guard)["texts"] == ("{max_drop: 0.1, better: lower}", "null")
    assert [retrain.text(3), target.text(0.123456789), rounds.text(4)] == ["3ep", "0.123457", "4"]
    assert [vars(x)["log"] for x in (retrain, target, rounds)] == [False, True, True]
    assert space.changes({"guard": "null", "retrain": "1ep", "target": "0.5", "rounds": "2"}) == [
        "guard=null", "structure=2:4", "retrain=1ep", "target=0.5", "scope.exclude=[a, b]",
        "rounds=2",
    ]  # fmt: skip
    mixed = from_mapping({"guard": [{"max_drop": 0.1}, None], "scope.exclude": ["[a, b]", "[]"]})
    assert [vars(x)["texts"] for x in mixed.axes] == [('{"max_drop": 0.1}', "null"),
                                                      ("[a, b]", "[]")]  # fmt: skip


def test_fewer_trials_than_a_grid_has_are_drawn_and_more_add_to_them() -> None:
    space = parse(["a=1,2,3", "b=1,2,3,4"])
    assert len(space.corners()) == 12
    some, more = space.corners(4), space.corners(7)
    assert more[:4] == some
    assert len({tuple(x.values()) for x in more}) == 7
    assert some != space.corners()[:4]


def test_the_picture_shows_every_trial_and_numbers_the_front_without_overlap() -> None:
    finished = {0: (0.9, 0.1), 1: (0.95, 0.3), 2: (0.951, 0.301), 3: (0.8, 0.5)}
    figure = draw_front(finished, [0, 1, 2], stopped={4: (0.5, 0.9)}, names=("accuracy", "density"),
                        dense=0.97)  # fmt: skip
    axes = figure.axes[0]
    assert sum(len(line.get_xdata()) for line in axes.lines if line.get_label() == "finished") == 4
    assert [t.get_text() for t in axes.texts] == ["dense", "0", "1, 2"]
    assert (axes.get_ylabel(), axes.get_xlabel()[:7]) == ("accuracy", "density")
