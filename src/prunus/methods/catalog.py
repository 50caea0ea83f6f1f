"""The package's own methods, runtimes and tasks, read by name; listing them imports no torch."""

from __future__ import annotations

import ast
import functools
import importlib
import keyword
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus._common import examples
from prunus._common.own_code import from_file
from prunus._common.own_code import module_at as module_at  # copies of tasks in runs ask here
from prunus.errors import InputError, did_you_mean

PACKAGE = Path(__file__).parent.parent
AXES = ("structures", "criteria", "allocations", "schedules", "repairs", "regrowths",
        "regularizers", "restore", "rates", "solvers", "block_rates")  # fmt: skip
_PLACES = {"restore": "methods.restores", "runtimes": "runtimes", "tasks": "tasks",
           "graph/rules": "graph.rules"}  # fmt: skip
"""Folders of the axes that are not those of ``methods`` by the same name."""
_OTHERS = {"tasks": {"base", "find"}}
"""Files in a folder of methods that hold none."""


@dataclass(frozen=True)
class Entry:
    """A method's file: its name, first docstring line, source and settings."""

    name: str
    line: str
    source: str
    settings: tuple[str, ...]


def names(axis: str) -> list[str]:
    """The methods of an axis, by file name.

    >>> "magnitude" in names("criteria")
    True
    """
    folder = PACKAGE.joinpath(*_place(axis).split("."))
    found = _listed(folder, folder.stat().st_mtime_ns) - _OTHERS.get(axis, set())
    return sorted(found | examples.tasks().keys() if axis == "tasks" else found)


@functools.lru_cache(maxsize=64)
def _listed(folder: Path, _: int) -> frozenset[str]:
    """The methods of a folder as it was at a time."""
    files = folder.glob("*.py")
    return frozenset(p.stem.rstrip("_") for p in files if not p.stem.startswith("_"))


def meant(axis: str, name: str) -> str:
    """The end of a message about a name that an axis lacks."""
    return did_you_mean(name, names(axis)) + (examples.hint() if axis == "tasks" else "")


def entries(axis: str) -> list[Entry]:
    """What ``prunus list`` prints of an axis, read from the syntax trees."""
    return [_entry(path_of(axis, name), name) for name in names(axis)]


def recipe_entries() -> list[Entry]:
    """prunus's own recipes and the examples'; the first comment of each says what it is."""
    found = []
    own = (PACKAGE / "recipe" / "library").glob("*.yaml")
    for path in sorted([*own, *examples.recipes().values()], key=lambda p: p.stem):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        found.append(Entry(path.stem, first.lstrip("# "), "", ()))
    return found


def path_of(axis: str, name: str) -> Path:
    """The file of a method; a Python keyword (``global``) has an underscore after its name."""
    if is_own(name):
        return Path(name.rpartition(":")[0])
    if axis == "tasks" and name in (more := examples.tasks()):
        return more[name]
    return PACKAGE.joinpath(*_place(axis).split("."), f"{function_of(name)}.py")


def _place(axis: str) -> str:
    """The package of an axis, below prunus."""
    return _PLACES.get(axis, f"methods.{axis}")


def function_of(name: str) -> str:
    """The function of a method: its name, with an underscore where Python needs one."""
    return f"{name}_" if keyword.iskeyword(name) else name


def _entry(path: Path, name: str) -> Entry:
    tree = _tree(path)
    docs = [ast.get_docstring(tree) or ""]
    settings: tuple[str, ...] = ()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == function_of(name):
            docs.insert(0, ast.get_docstring(node) or "")
            settings = tuple(
                arg.arg if default is None else f"{arg.arg}={ast.unparse(default)}"
                for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            )
    lines = [line.strip() for doc in docs for line in doc.splitlines()]
    source = next((s.removeprefix("Source:").strip() for s in lines if s.startswith("Source:")), "")
    return Entry(name, next((s for s in lines if s), ""), source.rstrip("."), settings)


def constant(axis: str, name: str, key: str) -> Any:
    """What a file of a folder assigns to a name, from its syntax tree: of a call, its keywords.

    >>> constant("runtimes", "eager", "FACTS")["needs"]
    ('torch',)
    """
    for node in _tree(path_of(axis, name)).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == key:
            if isinstance(node.value, ast.Call):
                return {k.arg: ast.literal_eval(k.value) for k in node.value.keywords}
            return ast.literal_eval(node.value)
    raise KeyError(f"{path_of(axis, name)} assigns nothing to {key}")


def defaults(axis: str, name: str) -> dict[str, Any]:
    """The settings of a method that have a literal for a default, and these.

    >>> defaults("restore", "rewind")
    {'k': 0}
    """
    function = _function(axis, name)
    pairs = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return {a.arg: ast.literal_eval(d) for a, d in pairs if d is not None and _is_literal(d)}


def parameters(axis: str, name: str) -> list[str]:
    """The positional parameters of a method.

    >>> parameters("criteria", "fisher")
    ['weight', 'grad_sq']
    """
    arguments = _function(axis, name).args
    return [a.arg for a in (*arguments.posonlyargs, *arguments.args)]


def _function(axis: str, name: str) -> ast.FunctionDef:
    wanted = name.rpartition(":")[2] if is_own(name) else function_of(name)
    for node in _tree(path_of(axis, name)).body:
        if isinstance(node, ast.FunctionDef) and node.name == wanted:
            return node
    raise KeyError(f"{path_of(axis, name)} has no function {wanted}")


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def _tree(path: Path) -> ast.Module:
    if PACKAGE not in path.parents:  # a user's own, which may change at any time
        return _parsed(path.read_text(encoding="utf-8"))
    return _shipped(path)


@functools.cache
def _shipped(path: Path) -> ast.Module:
    """A file of the package, which is imported once as well."""
    return _parsed(path.read_text(encoding="utf-8"))


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def is_own(name: str) -> bool:
    """Whether a name is that of a function of the user's own, ``path/to/file.py:function``."""
    return own_file(name) not in (None, name)


def own_file(name: str) -> str | None:
    """The file of ``path/to/file.py`` or ``path/to/file.py:function``; ``None`` of another name.

    >>> own_file("my.pyproject/task.py:digits"), own_file("digits")
    ('my.pyproject/task.py', None)
    """
    found = re.fullmatch(r"(.+\.py)(:\w*)?", name)
    return found and found[1]


def find(axis: str, name: str) -> Callable[..., Any]:
    """The function of a method: a name of the axis, or ``path/to/file.py:function``.

    Raises:
        InputError: if there is no such name, file or function.
    """
    if is_own(name):
        return from_file(path_of(axis, name), name.rpartition(":")[2])
    if name not in names(axis):
        raise InputError(f"{axis}: there is no '{name}'; {meant(axis, name)}")
    function = function_of(name)
    if PACKAGE not in (path := path_of(axis, name)).parents:
        return from_file(path, function)
    found = getattr(importlib.import_module(f"prunus.{_place(axis)}.{function}"), function)
    assert callable(found)
    return found  # type: ignore[no-any-return]
