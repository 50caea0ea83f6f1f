"""The shape of the loop: few frames to a criterion, few names on a Pruner."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from helpers import quick, tiny_task
from prunus.methods.catalog import path_of
from prunus.progressive.folder import FORMER
from prunus.progressive.former_names import ELSEWHERE

CRITERION = '''"""Where it stands."""
import inspect
import json

FRAMES = []


def own(weight):
    names = [f.function for f in inspect.stack()]
    FRAMES.append(names[: names.index("prune")])
    return weight.abs()
'''


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_a_criterion_is_at_most_eight_frames_below_prune(allocation: str, tmp_path: Path) -> None:
    from prunus.methods.catalog import from_file

    path = tmp_path / "own.py"
    path.write_text(CRITERION)
    recipe = quick(criterion=f"{path}:own", allocation=allocation)
    prunus.prune(tiny_task(), recipe)
    frames = inspect.getmodule(from_file(path, "own")).FRAMES  # type: ignore[union-attr]
    assert frames
    assert max(map(len, frames)) <= 8, frames[0]


def test_a_pruner_shows_at_most_sixteen_names() -> None:
    model = nn.Linear(8, 1)
    pruner = prunus.Pruner(model, {"target": 0.5})
    shown = {name for name in dir(pruner) if not name.startswith("_")}
    assert shown >= {
        "masks", "sparsity", "achieved", "rounds", "done", "step", "steps", "reason", "model",
        "recipe", "join", "finish", "state_dict", "load_state_dict",
    }  # fmt: skip
    assert len(shown) <= 16


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_names_that_a_pruner_once_had_say_where_to_look(name: str) -> None:
    pruner = prunus.Pruner(nn.Linear(8, 1), {"target": 0.5})
    with pytest.raises(AttributeError, match=f"Pruner has no '{name}': .+"):
        getattr(pruner, name)


def test_a_pruner_copies_and_asks_like_any_object() -> None:
    pruner = prunus.Pruner(nn.Linear(8, 1), {"target": 0.5})
    assert not hasattr(pruner, "nothing")
    assert copy.copy(pruner).sparsity == 0


def test_checkpoints_keep_the_keys_that_they_have_had() -> None:
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = prunus.Pruner(model, {"target": 0.5, "schedule": "linear"}, optimizer, steps=4)
    assert set(pruner.state_dict()) == {
        "step", "masks", "enforced", "cuts", "running", "shrinks", "start", "recipe", "lengths",
        "steps", "given", "began_at", "rounds",
    }  # fmt: skip


@pytest.mark.parametrize("task", FORMER)
def test_a_task_whose_earlier_runs_go_on_differs_from_its_earlier_file_by_words_alone(
    task: str,
) -> None:
    text = path_of("tasks", task).read_text(encoding="utf-8")
    text = text.replace("folder: Path | None", "folder: str | None")
    if len(FORMER[task]) > 2:
        assert hashlib.sha256(text.encode()).hexdigest() == FORMER[task][2]
    text = text.replace("by_class", "accuracy")
    assert hashlib.sha256(text.encode()).hexdigest() == FORMER[task][1]
    lines = text.replace("from prunus.tasks.base import", "from prunus.task import")
    lines = lines.replace('"""Normalized images', '"""Normalised images').splitlines()
    own = [i for i, line in enumerate(lines) if line.startswith("from prunus.")]
    lines[own[0] : own[-1] + 1] = sorted(lines[own[0] : own[-1] + 1])
    assert hashlib.sha256("\n".join([*lines, ""]).encode()).hexdigest() == FORMER[task][0]


def test_a_run_that_was_begun_with_an_earlier_file_of_its_task_goes_on(tmp_path: Path) -> None:
    recipe = {"target": 0.5, "dense": "1ep", "retrain": "1ep", "rounds": 1, "seed": 3}
    stopped: list[int] = []

    def stop() -> bool:
        stopped.append(1)
        return len(stopped) > 20

    with pytest.raises(prunus.Interrupted):
        prunus.prune("digits", {**recipe, "task": "digits"}, folder=tmp_path / "run",
                     should_stop=stop)  # fmt: skip
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    written["identity"]["code"]["digits"] = FORMER["digits"][0]
    (tmp_path / "run" / "run.json").write_text(json.dumps(written))
    assert prunus.resume(tmp_path / "run").sparsity == pytest.approx(0.5, abs=1e-3)
    written["identity"]["code"]["digits"] = "another"
    (tmp_path / "run" / "run.json").write_text(json.dumps(written))
    with pytest.raises(prunus.InputError, match="other code"):
        prunus.resume(tmp_path / "run")
