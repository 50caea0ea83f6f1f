"""Runs Python files of a user's own: a task, a method, an example.

A file is run under a name of its own that no other file has. It imports what lies beside it, as
when it is run as a script; these run under such names too, so that two projects in one process, or
a project and a run's copy of it, keep their ``net.py`` apart. Where Python finds the same file by
itself, it is the module that Python has.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from prunus._common.own_files import PACKAGE, imported_from, joint_digest, place_of
from prunus.errors import InputError, did_you_mean

PREFIX = "prunus_user_"


def from_file(path: Path, function: str) -> Callable[..., Any]:
    """A function of a user's own Python file, run under a name of its own.

    Raises:
        InputError: if the file is missing, fails, or lacks the function.
    """
    module = module_at(path)
    found = getattr(module, function, None)
    if not callable(found):
        have = [n for n, v in vars(module).items() if inspect.isfunction(v)]
        raise InputError(f"'{path}' has no function '{function}'; {did_you_mean(function, have)}")
    return found  # type: ignore[no-any-return]


def module_at(path: Path) -> ModuleType:
    """A Python file as a module with a name of its own, run once while it stays the same.

    It is run again after it, or a file that it runs in turn, has changed.

    Raises:
        InputError: if the file is missing or fails.
    """
    if not path.is_file():
        raise InputError(f"there is no file '{path}' (looked in {Path.cwd()})")
    place = path.resolve()
    try:
        return _private(place, place.parent)
    except Exception as error:  # the user's file runs
        raise InputError(f"'{path}' fails: {_said(error, place)}") from error


def _said(error: Exception, place: Path) -> str:
    """An error of a user's file, with the line where it stands in another one."""
    text = f"{type(error).__name__}: {error}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    last = next((f for f in reversed(frames) if Path(f.filename).suffix == ".py"), None)
    if last is not None and last.filename != str(place) and _is_beside(last.filename, place):
        text += f" ('{last.filename}', line {last.lineno})"
    if isinstance(error, ModuleNotFoundError) and error.name:
        text += (
            f"; what lies beside '{place.name}' can be imported, and what is installed: put it "
            f"there, install it, or name its folder in PYTHONPATH"
        )
    return text


def _is_beside(file: str, place: Path) -> bool:
    return Path(file).is_relative_to(place.parent)


def _private(place: Path, home: Path) -> ModuleType:
    """What a file, a package or a folder runs as, under a name of its own."""
    stem = place.parent.name if place.name == PACKAGE else place.stem
    sha = "folder" if place.is_dir() else joint_digest(place)[:8]
    name = f"{PREFIX}{stem}_{sha}"
    known = sys.modules.get(name)
    if known is not None and _place(known) == str(place):  # a copy may read what lies beside it
        return known
    return _run(name, place, home)


def _place(module: ModuleType) -> str:
    return module.__file__ or str(next(iter(module.__path__)))


def _run(name: str, place: Path, home: Path) -> ModuleType:
    if place.is_dir():
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(place)]
    else:
        made = importlib.util.spec_from_file_location(
            name, place, loader=_Loader(name, place, home),
            submodule_search_locations=[str(place.parent)] if place.name == PACKAGE else None,
        )  # fmt: skip
        assert made is not None
        spec = made
    module = importlib.util.module_from_spec(spec)
    former = sys.modules.get(name)
    sys.modules[name] = module
    try:
        if spec.loader is not None:
            spec.loader.exec_module(module)
    except BaseException:
        if former is None:
            del sys.modules[name]
        else:
            sys.modules[name] = former
        raise
    return module


class _Loader(SourceFileLoader):
    """Runs a file whose imports look beside it first."""

    def __init__(self, name: str, place: Path, home: Path) -> None:
        super().__init__(name, str(place))
        self.home = home

    def exec_module(self, module: ModuleType) -> None:
        """Run it."""
        own = {**vars(builtins), "__import__": partial(_import, self.home)}
        module.__dict__["__builtins__"] = own
        super().exec_module(module)


def _import(
    home: Path,
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """As Python's own ``__import__``, which is asked for all that does not lie beside."""
    parts = name.split(".") if name else []
    if level:
        package = str((globals or {}).get("__package__") or "")
        if not package.startswith(PREFIX):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        top = sys.modules[package.rsplit(".", level - 1)[0] if level > 1 else package]
    else:
        place = imported_from(home, parts[0])
        if place is None or _is_pythons(parts[0], place):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        top, parts = _private(place, home), parts[1:]
    last = top
    for part in parts:
        last = _inside(last, part, home)
    for one in _wanted(last, fromlist or ()):
        if not hasattr(last, one) and _has(last, one):
            _inside(last, one, home)
    return last if fromlist or level else top


def _wanted(module: ModuleType, names: Sequence[str]) -> Sequence[str]:
    return list(getattr(module, "__all__", ())) if "*" in names else names


def _is_pythons(name: str, place: Path) -> bool:
    """Whether Python itself would take the same file."""
    known = sys.modules.get(name)
    spec = None if known is not None else PathFinder.find_spec(name)
    if place.is_dir():
        named = getattr(known, "__path__", ()) if spec is None else spec.submodule_search_locations
        return place in (Path(folder).resolve() for folder in named or ())
    file = getattr(known, "__file__", None) if spec is None else spec.origin
    return file is not None and Path(file).resolve() == place.resolve()


def _has(module: ModuleType, name: str) -> bool:
    folders = getattr(module, "__path__", ())
    return any(place_of(Path(folder), name) is not None for folder in folders)


def _inside(package: ModuleType, name: str, home: Path) -> ModuleType:
    """A module of a package, run once."""
    full = f"{package.__name__}.{name}"
    if (known := sys.modules.get(full)) is not None:
        return known
    folders = map(Path, getattr(package, "__path__", ()))
    place = next((p for f in folders if (p := place_of(f, name)) is not None), None)
    if place is None:
        raise ModuleNotFoundError(f"No module named '{full}'", name=full)
    module = _run(full, place, home)
    setattr(package, name, module)
    return module
