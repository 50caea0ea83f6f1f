"""Methods declare what they are: no other code knows their names; anyone's can be theirs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from helpers import quick, tiny_task
from prunus.errors import InputError
from prunus.methods.catalog import AXES, names, path_of
from prunus.methods.traits import TRAITS, trait

ROOT = Path(prunus.__file__).parent
BELOW = ("methods", "graph", "costs", "_common")
"""Floors that cannot know a method; ``linear`` and ``threshold`` are operators there."""
METHODS = {name for axis in (*AXES, "signals") for name in names(axis)} - {"l1"}  # also a figure

OTHERS = {("artifact.py", "sparse")}
"""A name that is also another thing's: what a model's file calls its packed tensors."""


def compared(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Texts that code decides by: compared, looked for, keys of a literal mapping, cases."""
    for node in ast.walk(tree):
        parts: list[ast.expr | None] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            parts = list(node.keys)
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        for part in parts:
            inner = part.elts if isinstance(part, (ast.Tuple, ast.List, ast.Set)) else [part]
            for one in inner:
                if isinstance(one, ast.Constant) and isinstance(one.value, str):
                    yield one.lineno, one.value


@pytest.mark.parametrize(
    ("known", "inside"), [(METHODS, BELOW), (set(names("runtimes")), ("runtimes",))]
)
def test_no_code_outside_their_folder_decides_by_the_name_of_a_method(
    known: set[str], inside: tuple[str, ...]
) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted(ROOT.rglob("*.py"))
        if path.relative_to(ROOT).parts[0] not in inside
        for line, text in compared(ast.parse(path.read_text(encoding="utf-8")))
        if text in known and (path.name, text) not in OTHERS
    ]
    assert found == []


def own(axis: str, name: str, new: str) -> str:
    """prunus's own method as a user's file, under another name; what a recipe calls it."""
    Path("my").mkdir(exist_ok=True)
    text = path_of(axis, name).read_text(encoding="utf-8")
    assert text.count(f"def {name}(") == 1
    Path(f"my/{new}.py").write_text(text.replace(f"def {name}(", f"def {new}("))
    return f"my/{new}.py:{new}"


def same(a: prunus.Result, b: prunus.Result) -> None:
    assert a.masks.keys() == b.masks.keys()
    assert all(torch.equal(a.masks[k], b.masks[k]) for k in a.masks)
    theirs = b.model.state_dict()
    assert a.model.state_dict().keys() == theirs.keys()
    assert all(torch.equal(v, theirs[k]) for k, v in a.model.state_dict().items())
    assert [r.achieved for r in a.rounds] == [r.achieved for r in b.rounds]


@pytest.mark.parametrize("settings", [
    {},
    {"values": "start"},
    {"values": "cut", "when": "after"},
    {"values": "start", "when": "after"},
])  # fmt: skip
def test_a_users_own_restore_can_do_what_revive_does(settings: dict[str, str]) -> None:
    name = own("restore", "revive", "returns")

    def run(restore: str, **values: Any) -> prunus.Result:
        recipe = quick(restore={"name": restore, **settings}, **values)
        return prunus.prune(tiny_task(), recipe)

    same(run("revive"), run(name))
    if "when" in settings:
        with pytest.raises(InputError, match="acts after a whole retraining"):
            run(name, rounds=None, schedule="early")
    else:
        gradual: dict[str, Any] = {"rounds": None, "schedule": "early"}
        same(run("revive", **gradual), run(name, **gradual))
    with pytest.raises(InputError, match="would undo the cut"):
        quick(restore={"name": name, "values": "cut"})


def test_a_restore_that_never_returns_to_the_cut_may_say_so_without_a_setting() -> None:
    Path("soft.py").write_text(
        'RELEASES = "before"\n\n\ndef soft(state, masks, memory):\n    return state\n'
    )
    same(
        prunus.prune(tiny_task(), quick(restore="revive")),
        prunus.prune(tiny_task(), quick(restore="soft.py:soft")),
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(3)
        )
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)  # type: ignore[no-any-return]


def test_a_users_own_structure_can_do_what_layer_does() -> None:
    name = own("structures", "layer", "stage")

    def run(structure: str, target: float) -> prunus.Result:
        spec = {"name": structure, "modules": ["blocks.[01]"]}
        recipe = quick(structure=spec, target=target, compact="end")
        return prunus.prune(tiny_task(model=Residual), recipe)

    for target in (0.6, 1.0):
        mine, theirs = run(name, target), run("layer", target)
        same(theirs, mine)
        assert mine.compaction is not None
        left = sum(p.numel() for p in mine.model.parameters())
        assert left < sum(p.numel() for p in Residual().parameters())
    spec = {"name": name, "modules": ["blocks.*"]}
    with pytest.raises(InputError, match="every_round takes whole units out"):
        quick(structure=spec, compact="every_round")
    with pytest.raises(InputError, match="removes whole ones"):
        quick(structure=spec, allocation="per_neuron")


def test_a_users_own_criterion_can_do_what_fisher_running_does() -> None:
    name = own("criteria", "fisher_running", "cheap")
    same(
        prunus.prune(tiny_task(), quick(criterion="fisher_running")),
        prunus.prune(tiny_task(), quick(criterion=name)),
    )
    with pytest.raises(InputError, match="cheap reads the gradients of the training"):
        prunus.prune(tiny_task().model(), quick(criterion=name), train=lambda model: None)
    with pytest.raises(InputError, match="cheap has nothing to read"):
        quick(criterion=name, structure="channel", compact="end", deploy="eager",
              target={"max_latency_ms": 0.5})  # fmt: skip


def test_what_a_file_declares_is_known_without_running_it() -> None:
    Path("loud.py").write_text(
        'raise SystemExit("ran")\nNEEDS_ROUNDS = True\nREWINDS_TO = "{to}"\n\n\n'
        'def loud(state, masks, memory, *, to="1ep"):\n    return memory.rewind()\n'
    )
    assert trait("restore", "loud.py:loud", "REWINDS_TO") == "1ep"
    assert trait("restore", "loud.py:loud", "REWINDS_TO", {"to": 0}) == 0
    assert trait("restore", "loud.py:loud", "CHANGES") is True
    with pytest.raises(InputError, match=r"loud\.py:loud returns to a step of round 0"):
        quick(restore="loud.py:loud", dense=0)


def test_every_constant_that_a_method_declares_is_a_known_trait() -> None:
    free = {"signals": {"DECAY"}, "allocations": {"PASSES"}}
    for axis in (*AXES, "signals"):
        for name in names(axis):
            tree = ast.parse(path_of(axis, name).read_text(encoding="utf-8"))
            assigned = [n.targets[0] for n in tree.body if isinstance(n, ast.Assign)]
            said = {target.id for target in assigned if isinstance(target, ast.Name)}
            assert said <= TRAITS.get(axis, {}).keys() | free.get(axis, set()), (axis, name)
