"""The floors of the house: a folder imports only from those listed below it."""

from __future__ import annotations

import ast
from pathlib import Path

import prunus

ROOT = Path(prunus.__file__).parent
FLOORS = (
    "cli", "integrations", "sweep", "report", "blocks", "progressive", "deployment", "runtimes",
    "measurement", "compaction", "pruning", "tasks", "recipe", "methods", "graph", "costs",
    "kernels", "_common",
)  # fmt: skip
"""From the doors down."""
TOP = {"__init__", "errors", "types"}
"""Files beside the folders; errors and types stand below all of them, ``__init__`` above."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """The files of the package that a file imports at its head, for types alone too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.Lambda))
              for n in ast.walk(f)}  # fmt: skip
    return {name for node in ast.walk(tree) if id(node) not in inside for name in _named(node)}


def everywhere(path: Path) -> set[str]:
    """The same, inside functions too."""
    return {
        n for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for n in _named(node)
    }


def _named(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {_known(a.name) for a in node.names if a.name.split(".")[0] == "prunus"}
    if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != "prunus":
        return set()
    assert node.module is not None
    return {_known(f"{node.module}.{alias.name}") for alias in node.names}


def _known(name: str) -> str:
    """The file that an import loads: a name of a module is the module's."""
    name = name.removeprefix("prunus").lstrip(".")
    return name if name in FILES else name.rpartition(".")[0]


def floor(module: str) -> int:
    head = module.split(".")[0]
    return len(FLOORS) - FLOORS.index(head) if head in FLOORS else 0


def test_three_files_and_the_floors_stand_at_the_top_level() -> None:
    entries = {p.stem if p.is_file() else p.name for p in ROOT.iterdir() if p.suffix in ("", ".py")}
    assert entries - {"__pycache__", "py"} == {*FLOORS, *TOP}


def test_no_file_imports_from_a_floor_above() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in FILES.items()
        if module
        for name in everywhere(path)
        if floor(name) > floor(module) or (floor(module) and not name)
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle() -> None:
    left = {module: imports(path) - {module, ""} for module, path in FILES.items()}
    while free := [module for module, names in left.items() if not names & left.keys()]:
        for module in free:
            del left[module]
    assert left == {}


def test_one_file_holds_one_idea_and_stays_readable() -> None:
    long = {
        module: n
        for module, path in FILES.items()
        if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}


def test_help_and_lists_import_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from click.testing import CliRunner; from prunus.cli.main import cli\n"
        "for words in ('--help', 'run --help', 'measure --help', 'deploy --help', 'sweep --help',"
        " 'list'):\n"
        "    assert CliRunner().invoke(cli, words.split()).exit_code == 0\n"
        "    assert 'torch' not in sys.modules, words\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
