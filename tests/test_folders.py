"""Folders of runs, sweeps and artifacts: links, killed beginnings, damaged files, odd recipes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prunus
from helpers import quick, tiny_task, transformers
from prunus._common import files
from prunus.cli.main import cli
from prunus.deployment.manifest import MANIFEST, read_manifest
from prunus.deployment.store import prepare
from prunus.errors import InputError, Interrupted, PrunusError, RunError
from prunus.progressive.contents import EVENTS
from prunus.progressive.record import Record
from prunus.recipe.load import parsed
from prunus.recipe.schema import Recipe
from prunus.report.page import write_report

BRIEF = {"rounds": 1, "dense": "3it", "retrain": "3it", "snapshot": "2it"}
STRANGERS = "what a stranger's link points to"


def run(folder: str = "run", **values: Any) -> Any:
    return prunus.prune(tiny_task(), quick(**{**BRIEF, **values}), folder=folder)


def weight(result: Any) -> torch.Tensor:
    return result.model[0].weight.detach()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(str(folder))
    write_report(folder)
    return folder


@pytest.fixture
def folder(finished: Path) -> Path:
    """A finished run of one's own, in the present folder."""
    return Path(shutil.copytree(finished, "run"))


def refused(work: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error:
        work()
    return str(error.value)


# --- links


def places(folder: Path) -> list[Path]:
    return [p.relative_to(folder) for p in sorted(folder.rglob("*"))]


NOT_THERE_YET = (".lock", "journal.jsonl", "snapshots", "recipe.yaml", "run.json", "result.json",
                 "model.safetensors", "report.html", "deployed", ".run.json.tmp")  # fmt: skip


@pytest.mark.parametrize("dangling", [True, False])
def test_a_folder_with_a_link_in_it_is_refused_and_what_it_points_to_stays(
    finished: Path, dangling: bool
) -> None:
    for place in {*map(Path, NOT_THERE_YET), *places(finished)}:
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree(finished, "run")
        path = Path("run") / place
        outside = Path("outside").absolute()
        if path.is_dir():
            shutil.rmtree(path)
            outside.mkdir()
            (outside / "000001-snapshot").write_text(STRANGERS)
        else:
            path.unlink(missing_ok=True)
            if not dangling:
                outside.write_text(STRANGERS)
        path.symlink_to(outside)
        before = outside.is_dir() or outside.exists()
        for work in (run, lambda: write_report(Path("run")), lambda: Record(Path("run"))):
            assert str(place) in refused(work), place
        assert (outside.is_dir() or outside.exists()) == before
        if outside.is_dir():
            assert [p.read_text() for p in outside.iterdir()] == [STRANGERS]
            shutil.rmtree(outside)
        elif outside.exists():
            assert outside.read_text() == STRANGERS
            outside.unlink()


def test_an_empty_folder_with_a_link_is_refused_before_anything_is_written() -> None:
    Path("victim").write_text(STRANGERS)
    for name in NOT_THERE_YET:
        shutil.rmtree("run", ignore_errors=True)
        Path("run").mkdir()
        (Path("run") / name).symlink_to(Path("victim").absolute())
        refused(run)
        assert [p.name for p in Path("run").iterdir()] == [name]
        assert Path("victim").read_text() == STRANGERS


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_folder_with_a_pipe_in_it_is_refused_and_not_waited_for(finished: Path) -> None:
    for place in {*map(Path, NOT_THERE_YET), *places(finished)}:
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree(finished, "run")
        path = Path("run") / place
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        for work in (run, lambda: write_report(Path("run")), lambda: Record(Path("run"))):
            assert "is no file, but a pipe" in refused(work), place


def test_the_folder_itself_may_be_a_link() -> None:
    Path("elsewhere").mkdir()
    Path("run").symlink_to(Path("elsewhere").absolute())
    run()
    assert Path("elsewhere/result.json").is_file()


def linked(folder: str) -> Callable[[], bool]:
    """Give every file another name elsewhere; whether all of them hold what they did then."""
    for path in [p for p in Path(folder).rglob("*") if p.is_file()]:
        other = Path("elsewhere") / path
        other.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, other)
    before = {p: p.read_bytes() for p in Path("elsewhere").rglob("*") if p.is_file()}
    assert before
    return lambda: all(p.read_bytes() == data for p, data in before.items())


def test_nothing_is_written_through_another_name_of_a_runs_files() -> None:
    stopped("run")
    unchanged = linked("run")
    run(rounds=2)
    write_report(Path("run"))
    assert unchanged()


def test_a_sweeps_table_with_another_name_is_refused() -> None:
    shared: Any = {"space": ["rounds=1", "dense=1it", "retrain=1it", "target=0.5,0.6"],
                   "task": tiny_task(), "folder": "study"}  # fmt: skip
    prunus.sweep.sweep("iterative", trials=1, **shared)
    unchanged = linked("study")
    assert "another name" in refused(lambda: prunus.sweep.sweep("iterative", **shared))
    assert unchanged()


def test_a_folder_of_transformers_is_written_past_the_links_in_it() -> None:
    config = transformers().BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                       intermediate_size=8, vocab_size=9)  # fmt: skip
    model = transformers().BertModel(config)
    prunus.hf.save(model, "small")
    unchanged = linked("small")
    Path("small/config.json").unlink()
    Path("small/config.json").symlink_to(Path("elsewhere/small/config.json").absolute())
    config.vocab_size = 10
    prunus.hf.save(transformers().BertModel(config), "small")
    assert unchanged()
    assert json.loads(Path("small/config.json").read_text())["vocab_size"] == 10


@pytest.mark.parametrize("name", ["eager", ".eager.new", ".eager.old", "eager/model.onnx"])
def test_a_link_where_an_artifact_would_lie_is_refused(name: str) -> None:
    Path("outside").mkdir()
    path = Path("deployed") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(Path("outside").absolute())
    assert "link" in refused(lambda: prepare(Path("deployed"), ["eager"]))
    assert list(Path("outside").iterdir()) == []


def test_an_artifact_with_a_link_in_it_is_not_opened() -> None:
    Path("artifact").mkdir()
    (Path("artifact") / MANIFEST).symlink_to("/etc/hostname")
    assert "link" in refused(lambda: read_manifest(Path("artifact")))


def test_a_temporary_file_is_new_whatever_lies_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 16)
    Path("victim").write_text(STRANGERS)
    Path(".a.json.0000000000000000.tmp").symlink_to(Path("victim").absolute())
    with pytest.raises(RunError):
        files.write_json(Path("a.json"), 1)
    assert Path("victim").read_text() == STRANGERS
    assert not Path("a.json").exists()


def test_only_what_a_run_wrote_is_cleared_away(folder: Path) -> None:
    own = [".run.json.0123456789abcdef.tmp", "snapshots/.000001-snapshot.0123456789abcdef.tmp"]
    others = [".notes.md.0123456789abcdef.tmp", "snapshots/notes", "snapshots/1-x", "x.tmp"]
    for name in (*own, *others):
        (folder / name).write_text("")
    run()
    assert [n for n in own if (folder / n).exists()] == []
    assert [n for n in others if not (folder / n).exists()] == []


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", ".", "..", ".git", "", "a\n", "x" * 101])
def test_a_recipes_name_is_no_path(name: str) -> None:
    assert "name" in refused(lambda: Recipe.load({"name": name}))


# --- beginnings


class Failing:
    """The module os for what writes files; from one event on, the disk is full."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in ("open", "write", "fsync", "replace"):
            return real

        def event(*args: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args)

        return event


def test_a_full_disk_at_any_file_event_costs_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean afterwards, and the same bits once there is room: the first two files included."""
    counting = Failing(10**9)
    monkeypatch.setattr(files, "os", counting)
    expected = run("whole")
    events = 10**9 - counting.left
    assert events > 60
    for at in [*range(16), *range(16, events, 7)]:
        monkeypatch.setattr(files, "os", Failing(at))
        with pytest.raises(RunError, match="the disk is full"):
            run()
        assert list(Path("run").rglob("*.tmp")) == []
        monkeypatch.setattr(files, "os", os)
        assert torch.equal(weight(run()), weight(expected)), at
        shutil.rmtree("run")


def test_a_file_is_on_the_disk_before_its_name_and_the_name_before_the_call_returns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Seen:
        def __getattr__(self, name: str) -> Any:
            if name in ("write", "fsync", "replace"):
                order.append(name)
            return getattr(os, name)

    order: list[str] = []
    monkeypatch.setattr(files, "os", Seen())
    files.write_json(Path("a.json"), 1)
    files.append_line(Path("b.jsonl"), "{}")
    assert order == ["write", "fsync", "replace", "fsync", "write", "fsync"]


def test_another_recipe_does_not_take_what_a_killed_beginning_left() -> None:
    Path("run/snapshots").mkdir(parents=True)
    Path("run/.lock").touch()
    Path("run/recipe.yaml").write_text(quick(**BRIEF).to_yaml())
    assert "recipe.yaml" in refused(lambda: run(rounds=2))
    run()


def test_init_goes_on_where_it_was_killed() -> None:
    assert CliRunner().invoke(cli, ["init", "one"]).exit_code == 0
    Path("two").mkdir()
    text = Path("one/task.py").read_text()
    Path("two/task.py").write_text(text.replace("one/", "two/"))
    assert CliRunner().invoke(cli, ["init", "two"]).exit_code == 0
    Path("three").mkdir()
    Path("three/task.py").write_text("mine = 1\n")
    assert CliRunner().invoke(cli, ["init", "three"]).exit_code == 2
    assert Path("three/task.py").read_text() == "mine = 1\n"


# --- damage


def stopped(folder: str) -> None:
    steps: list[Any] = []
    task, recipe = tiny_task(), quick(**{**BRIEF, "rounds": 2})
    with pytest.raises(Interrupted):
        prunus.prune(task, recipe, folder=folder, on_event=steps.append,
                     should_stop=lambda: sum(e["event"] == "step" for e in steps) >= 8)  # fmt: skip


@pytest.mark.parametrize("harm", ["garbage", "cut", "types", "nested"])
def test_a_damaged_line_costs_that_line_and_is_named(harm: str) -> None:
    expected = run("whole", rounds=2)
    stopped("half")
    lines = Path("half/journal.jsonl").read_bytes().splitlines(keepends=True)
    bad = {"garbage": b"\xff\x00{\n", "types": b'{"event": "round", "n": 4, "index": "x"}\n',
           "nested": b"[" * 20_000 + b"\n"}  # fmt: skip
    for i, line in enumerate(lines):
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree("half", "run")
        new = line[: len(line) // 2] + b"\n" if harm == "cut" else bad[harm]
        whole = b"".join([*lines[:i], new, *lines[i + 1 :]])
        Path("run/journal.jsonl").write_bytes(whole)
        said: list[str] = []
        done = prunus.prune(
            tiny_task(), quick(**{**BRIEF, "rounds": 2}), folder="run",
            on_event=lambda e, said=said: said.append(str(e.get("text"))),
        )  # fmt: skip
        assert any("damaged lines" in s and f": {i + 1} (" in s for s in said), said
        assert Path("run/journal.jsonl.1").read_bytes() == whole
        assert torch.equal(weight(done), weight(expected))
        again = [json.loads(x) for x in Path("run/journal.jsonl").read_text().splitlines()]
        assert [x["n"] for x in again] == sorted({x["n"] for x in again})


def test_a_line_that_a_crash_cut_short_is_no_damage() -> None:
    stopped("run")
    with Path("run/journal.jsonl").open("ab") as file:
        file.write(b'{"event": "rou')
    run(rounds=2)
    assert not Path("run/journal.jsonl.1").exists()


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4),
    st.sampled_from([[], {}, [[]], {"x": 1}, "../../x", 10**30, -1]),
)  # fmt: skip


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from leaves(value, (*path, key))


def changed(draw: st.DataObject, value: Any) -> Any:
    tree = [json.loads(json.dumps(value))]
    *path, last = draw.draw(st.sampled_from([(0,), *leaves(tree)]))
    owner: Any = tree
    for key in path:
        owner = owner[key]
    if draw.draw(st.booleans()) and path:
        del owner[last]
    else:
        owner[last] = draw.draw(ODD)
    return tree[0]


@settings(deadline=None, max_examples=40,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(draw=st.data())
def test_wrong_types_in_any_file_end_in_one_line(finished: Path, draw: st.DataObject) -> None:
    """Of a finished run: whatever stands in a file, it is read or refused; pictures left out."""
    with patch("prunus.report.page.PICTURES", {}):
        judge_changed(finished, draw)


@pytest.mark.parametrize("part", ["recipe", "code", "parameters", "weights"])
@pytest.mark.parametrize("value", [None, "0", 3, [1], {"x": None}])
def test_an_identity_of_other_types_is_refused(folder: Path, part: str, value: Any) -> None:
    about = json.loads((folder / "run.json").read_text())
    about["identity"][part] = value
    (folder / "run.json").write_text(json.dumps(about))
    assert "run" in refused(run)


def judge_changed(finished: Path, draw: st.DataObject) -> None:
    shutil.rmtree("run", ignore_errors=True)
    folder = Path(shutil.copytree(finished, "run"))
    name = draw.draw(st.sampled_from(["run.json", "result.json", "deploy.json", "journal.jsonl"]))
    path = folder / name
    if name == "journal.jsonl":
        lines = [json.loads(x) for x in path.read_text().splitlines()]
        i = draw.draw(st.integers(0, len(lines) - 1))
        lines[i] = changed(draw, lines[i])
        path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    else:
        value = DEPLOYED if name == "deploy.json" else json.loads(path.read_text())
        path.write_text(json.dumps(changed(draw, value)))
    for work in (run, lambda: write_report(folder), lambda: Record(folder).environment):
        with contextlib.suppress(PrunusError):
            work()


DEPLOYED = {
    "rows": [{"runtime": "eager", "model": "pruned", "refused": None, "error": 0.0, "bytes": 9,
              "latency": {"1": {"median_ms": 0.1}}, "metric": None, "notes": ["x"]}],
    "runtime": "eager", "threads": 1, "machine": "x", "advice": ["x"], "offers": {"a": "b"},
}  # fmt: skip


def test_the_events_that_are_read_are_written_so(finished: Path) -> None:
    """The types speak of what is written: no line of a real run is called damaged."""
    lines = [json.loads(x) for x in (finished / "journal.jsonl").read_text().splitlines()]
    assert {x["event"] for x in lines} >= EVENTS.keys() - {"latency"}
    assert len(Record(finished).rounds) == 2


# --- recipes


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
LARGE = {
    "aliases": BOMB,
    "merge keys": "a0: &a0 {k: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)),
    "merge keys one by one": "a0: &a0 {k: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: *a{i - 1}, x: *a{i - 1}}}\n" for i in range(1, 40)),
    "an alias in itself": "a: &a [*a]",
    "a mapping in itself": "a: &a {b: *a}",
    "brackets": "a: " + "[" * 1500 + "]" * 1500,
    "open brackets": "a: " + "[" * 3000,
    "indents": "".join(" " * i + "a:\n" for i in range(300)),
    "digits": "target: " + "9" * 100_000,
    "a fraction": "target: 0." + "9" * 100_000,
    "hexadecimal": "target: 0x" + "f" * 100_000,
    "underscores": "target: " + "1_" * 50_000 + "1",
    "a long text": "a: " + "x " * 150_000,
    "keys": "".join(f"k{i}: 1\n" for i in range(1_900)),
}


@pytest.mark.parametrize("kind", LARGE)
def test_whatever_a_recipes_text_expands_to_it_is_refused_in_bounded_time(kind: str) -> None:
    """Bounded by the text: what would be expanded is counted, never made."""
    Path("b.yaml").write_text(LARGE[kind])
    for work in (
        lambda: Recipe.load("b.yaml"),
        lambda: Recipe.load("one_shot", ["target=" + LARGE[kind].removeprefix("target: ")]),
    ):
        assert len(refused(work)) < 4_000


@given(text=st.text(alphabet="ab:-[]{}&*!?|>%@`'\"#, \n0.9x<", max_size=60))
@settings(deadline=None, max_examples=200)
def test_any_text_is_a_value_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        parsed(text)
