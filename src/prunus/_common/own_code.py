"""Runs Python files of a user's own: a task, a method, an example.

A file is run under a name of its own that no other file has. It imports what lies beside it, as
when it is run as a script; these run under such names too, so that two projects in one process, or
a project and a run's copy of it, keep their ``net.py`` apart. Where Python finds the same file by
itself, it is the module that Python has.

Processes that this one starts (a loader's workers) find these names too: which file a name stands
for is in an environment variable, which they inherit.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from prunus._common.own_files import PACKAGE, imported_from, place_digest, place_of
from prunus.errors import InputError, did_you_mean

PREFIX = "prunus_user_"
VARIABLE = "PRUNUS_OWN_CODE"
"""Of the environment: for each name the file, and the folder beside which it imports."""
MOST = 100
"""Names that are told: the system bounds what a process inherits."""


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
        return _private(place, _Beside(place.parent))
    except Exception as error:  # the user's file runs
        raise InputError(f"'{path}' fails: {_said(error, place)}") from error


def where(error: BaseException) -> str:
    """Where an error was raised: the last line of a user's own file on the way, if there is one."""
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [one for one in frames if str(one[0].f_globals.get("__name__")).startswith(PREFIX)]
    frame, line = (own or frames)[-1]
    return f"{Path(frame.f_code.co_filename).name}, line {line}"


def _said(error: Exception, place: Path) -> str:
    """An error of a user's file, with the line where it stands in another one."""
    text = f"{type(error).__name__}: {error}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    last = next((f for f in reversed(frames) if Path(f.filename).suffix == ".py"), None)
    if last is not None and last.filename != str(place) and _is_beside(last.filename, place):
        text += f" ('{last.filename}', line {last.lineno})"
    if isinstance(error, ModuleNotFoundError) and error.name:
        text += f"; {_missing(error.name.partition('.')[0], place)}"
    return text


def _missing(name: str, place: Path) -> str:
    if not name.startswith(PREFIX) and imported_from(place.parent, name) is not None:
        return (
            "import statements look beside the file, but importlib, torch.load and pickle where "
            f"Python does: add '{place.parent}' to PYTHONPATH"
        )
    return (
        f"what lies beside '{place.name}' can be imported, and what is installed: put it "
        "there, install it, or name its folder in PYTHONPATH"
    )


def _is_beside(file: str, place: Path) -> bool:
    return Path(file).is_relative_to(place.parent)


@dataclass(frozen=True)
class _Beside:
    """What files that are run together find beside them.

    Attributes:
        home: the folder.
        modules: what was found, by the name that imports it; an edit changes nothing in files
            that run already.
    """

    home: Path
    modules: dict[str, ModuleType] = field(default_factory=dict)

    def module(self, name: str) -> ModuleType | None:
        """What an import of a name means; ``None``: what Python finds."""
        if name not in self.modules:
            place = imported_from(self.home, name)
            if place is None or _is_pythons(name, place):
                return None
            self.modules[name] = _private(place, self)
        return self.modules[name]


def _private(place: Path, beside: _Beside) -> ModuleType:
    """What a file, a package or a folder runs as, under a name of its own."""
    name = _name(place, beside.home)
    if (known := sys.modules.get(name)) is not None:
        return known
    _tell(name, place, beside.home)
    return _run(name, place, beside)


def _tell(name: str, place: Path, home: Path) -> None:
    """Lets processes that are started from here find what the latest names stand for."""
    told = [*_told().items(), (name, [str(place), str(home)])]
    os.environ[VARIABLE] = json.dumps(dict(told[-MOST:]))


def _told() -> dict[str, list[str]]:
    try:
        return dict(json.loads(os.environ.get(VARIABLE, "{}")))
    except (ValueError, TypeError):  # not of ours
        return {}


def spec_of(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """What a name of a user's own file means, for Python's own import.

    Python asks where another process unpickles what such a file defines.

    Args:
        name: that begins with ``PREFIX``.
        path: the folders of the package that it is a part of.

    Raises:
        ImportError: if the file was edited since.
    """
    package, _, last = name.rpartition(".")
    if package:
        beside = _beside(sys.modules[package])
        places = (place_of(Path(folder), last) for folder in path or ())
        place = next((one for one in places if one is not None), None)
        return None if place is None or beside is None else _spec(name, place, beside)
    told = _told().get(name)
    if told is None:
        return None
    place, home = map(Path, told)
    if not place.exists() or _name(place, home) != name:
        raise ImportError(
            f"'{place}', or what it imports, was edited while it was at work: start again",
            name=name,
        )
    return _spec(name, place, _Beside(home))


def home_of(name: str) -> Path | None:
    """The folder of a file that runs, if what an import of this name would mean lies there."""
    own = [module for key, module in list(sys.modules.items()) if key.startswith(PREFIX)]
    homes = {found.home for module in own if (found := _beside(module)) is not None}
    return next((home for home in sorted(homes) if name and imported_from(home, name)), None)


def _name(place: Path, home: Path) -> str:
    stem = place.parent.name if place.name == PACKAGE else place.stem
    return f"{PREFIX}{stem}_{place_digest(place, home)[:8]}"


def _beside(module: ModuleType) -> _Beside | None:
    spec = module.__spec__
    return None if spec is None else spec.loader_state


def _spec(name: str, place: Path, beside: _Beside) -> ModuleSpec:
    if place.is_dir():
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(place)]
    else:
        made = importlib.util.spec_from_file_location(
            name, place, loader=_Loader(name, place, beside),
            submodule_search_locations=[str(place.parent)] if place.name == PACKAGE else None,
        )  # fmt: skip
        assert made is not None
        spec = made
    spec.loader_state = beside
    return spec


def _run(name: str, place: Path, beside: _Beside) -> ModuleType:
    spec = _spec(name, place, beside)
    module = importlib.util.module_from_spec(spec)
    former = sys.modules.get(name)
    sys.modules[name] = module
    try:
        if spec.loader is not None:
            spec.loader.exec_module(module)
    except BaseException:  # a stop too: what ran in part is no module
        if former is None:
            del sys.modules[name]
        else:
            sys.modules[name] = former
        raise
    return module


class _Loader(SourceFileLoader):
    """Runs a file whose imports look beside it first."""

    def __init__(self, name: str, place: Path, beside: _Beside) -> None:
        super().__init__(name, str(place))
        self.beside = beside

    def exec_module(self, module: ModuleType) -> None:
        """Run it."""
        own = {**vars(builtins), "__import__": partial(_import, self.beside)}
        module.__dict__["__builtins__"] = own
        super().exec_module(module)


def _import(
    beside: _Beside,
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """As Python's own ``__import__``, which is asked for all that does not lie beside."""
    parts = name.split(".") if name else []
    top: ModuleType | None
    if level:
        package = str((globals or {}).get("__package__") or "")
        if not package.startswith(PREFIX):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        top = sys.modules[importlib.util.resolve_name("." * level, package)]
    else:
        top, parts = beside.module(parts[0]), parts[1:]
        if top is None:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
    last = top
    for part in parts:
        last = _inside(last, part, beside)
    for one in _wanted(last, fromlist or ()):
        if not hasattr(last, one) and _has(last, one):
            _inside(last, one, beside)
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


def _inside(package: ModuleType, name: str, beside: _Beside) -> ModuleType:
    """A module of a package, run once."""
    full = f"{package.__name__}.{name}"
    if (known := sys.modules.get(full)) is not None:
        return known
    folders = map(Path, getattr(package, "__path__", ()))
    place = next((p for f in folders if (p := place_of(f, name)) is not None), None)
    if place is None:
        raise ModuleNotFoundError(f"No module named '{full}'", name=full)
    module = _run(full, place, beside)
    setattr(package, name, module)
    return module
