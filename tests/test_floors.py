"""Imports go downward only."""

from __future__ import annotations

import ast
from pathlib import Path

import prunus

ROOT = Path(prunus.__file__).parent
FLOORS = [
    {"_common", "types", "duration", "layout", "folder", "errors", "files", "randomness",
     "environment", "timing", "select", "metrics", "native", "distributions", "distributed"},
    {"criteria", "allocations", "schedules", "restore", "rates"},
    {"structures", "signals", "costs", "scope", "graph"},
    {"members", "figures", "plan", "masks"},
    {"compaction",  # what makes a model really smaller
     "fits", "measuring", "measured", "cost_table"},  # and what it costs then
    {"runtimes", "deployment", "opening"},  # how it is run
    {"recipe", "recipe_file", "conflicts", "ideas", "view", "shrinking", "pruner", "guard",
     "journal"},
    {"task", "run", "position", "cutting", "training", "judging", "rounds",
     "own_rounds", "own_loop", "run_folder", "loop",
     "call", "finding", "finished", "report", "serving", "latency_target"},
    {"foreign", "hf", "lightning", "console", "dry_run", "template", "commands", "cli", "tasks",
     "sweep", "tensorboard"},
]  # fmt: skip
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module == "prunus":
                names |= {alias.name for alias in node.names}
            elif node.module.startswith("prunus."):
                names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("prunus.")}
    return names


def test_every_file_stands_on_a_floor() -> None:
    parts = {part(p) for p in ROOT.rglob("*.py")} - {"__init__"}
    assert parts == set(FLOOR)


def test_no_file_imports_from_a_floor_above() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        own = part(path)
        if own == "__init__":
            continue
        for name in imported(ast.parse(path.read_text(encoding="utf-8"))) & set(FLOOR):
            if FLOOR[name] > FLOOR[own]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_one_file_holds_one_idea_and_stays_readable() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for p in ROOT.rglob("*.py")
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}


def test_help_and_lists_import_no_torch() -> None:
    import subprocess
    import sys

    for command in (["--help"], ["run", "--help"], ["measure", "--help"],
                    ["deploy", "--help"], ["sweep", "--help"], ["list"]):  # fmt: skip
        code = (
            "import sys; from click.testing import CliRunner; from prunus.cli import cli; "
            f"done = CliRunner().invoke(cli, {command!r}); assert done.exit_code == 0; "
            "sys.exit('torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
