"""Where the files lie that a recipe names: the one place that decides.

A name in a recipe's file is relative to the folder of that file; where nothing lies there, to the
working directory, as a name from Python or from the command line is. The recipe in a run's folder
names what it named when the run began: the folder says where that was, and has a copy of code.
Paths among the settings of a task are found alike; only the task knows which settings are paths.
So is the file of a teacher.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus._common import examples
from prunus._common.own_files import BESIDE, digest
from prunus.errors import InputError
from prunus.methods.catalog import names, own_file
from prunus.recipe.fields import AXIS, RecipeFields

CODE = "code"
"""The folder of a run in which copies lie, each in a folder of its digest."""


def files_of(
    values: Mapping[str, Any], changed: Mapping[str, Any], recipe: Path | None
) -> dict[str, str]:
    """The path of every file that a recipe names, by that name; of settings by ``task: …``.

    Args:
        values: of the recipe as its file has it.
        changed: the same after the changes of the command line.
        recipe: its file; ``None``: it was written in Python.

    Raises:
        InputError: if one name stands for two files.
    """
    run = None if recipe is None else _Run.of(recipe.parent)
    before, after = _named(values), _named(changed)
    found: dict[str, str] = {}
    for field, name in before.items():
        if after.get(field) == name:
            place = _code(name, recipe) if run is None else run.find(name)
            found |= {} if place is None else {name: str(place)}
    for name in {n for field, n in after.items() if before.get(field) != n and own_file(n)}:
        place = Path(name).absolute()
        if found.setdefault(name, str(place)) != str(place) and place.is_file():
            raise InputError(
                f"'{name}' is '{found[name]}' in the recipe and '{place}' from here: write out "
                "the path of one"
            )
    given = set(_texts(values))
    for text in _texts(changed):
        beside = _beside(text, recipe if text in given else None)
        found[f"task: {text}"] = str(beside if run is None or text not in given else run.path(text))
    return found


def settings_paths(recipe: RecipeFields) -> dict[str, str]:
    """Where the paths lie that settings say, as far as something is there."""
    fields = {"task": recipe.task, "teacher": recipe.teacher}
    settings = {k: field.model_dump() for k, field in fields.items() if field is not None}
    found = {text: recipe.place_of(text) for text in _texts(settings)}
    return {text: str(path.resolve()) for text, path in found.items() if _is_there(path)}


def _texts(values: Mapping[str, Any]) -> list[str]:
    """What the settings of a task and a teacher say, which may be paths."""
    task, teacher = values.get("task"), values.get("teacher")
    settings = [v for k, v in task.items() if k != "name"] if isinstance(task, Mapping) else []
    own = teacher.get("model") if isinstance(teacher, Mapping) else teacher
    settings += [] if own == "dense" else [own]
    every = [one for v in settings for one in (v if isinstance(v, (list, tuple)) else [v])]
    return [os.fspath(one) for one in every if isinstance(one, (str, Path))]


def _named(values: Mapping[str, Any]) -> dict[str, str]:
    """The files that values name, by field; and the task, if it is named without one."""
    found = {}
    for field in ("task", *AXIS):
        value: Any = values
        for part in (*field.split("."), "name"):
            value = value.get(part) if isinstance(value, Mapping) else value
        if isinstance(value, str) and (field == "task" or own_file(value)):
            found[field] = own_file(value) or value
    return found


def _code(name: str, recipe: Path | None) -> Path | None:
    return _beside(name, recipe) if own_file(name) else None


def _beside(name: str, recipe: Path | None) -> Path:
    here = Path(name).expanduser().absolute()
    beside = here if recipe is None else (recipe.parent / Path(name).expanduser()).absolute()
    return here if _is_there(here) and not _is_there(beside) else beside


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no path: too long, a null character
        return False


@dataclass(frozen=True)
class _Run:
    """What the folder of a run says about the code that it named.

    Attributes:
        folder: where it is now.
        was: where it was.
        places: of the files, when the run began, by name.
        digests: of the files.
        paths: of the task's settings, when the run began, by what the settings say.
    """

    folder: Path
    was: str
    places: Mapping[str, str]
    digests: Mapping[str, str]
    paths: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path) -> _Run | None:
        """``None`` if this is no run's folder, or one that does not say so."""
        try:
            values = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            code, origin = values["identity"]["code"], values["origin"]
            was, places = origin["folder"], origin["code"]
            paths = origin.get("paths", {})
            texts = [was, *code.values(), *places.values(), *paths.values()]
        except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return None
        known = all(isinstance(text, str) for text in texts)
        return cls(folder.resolve(), was, places, code, paths) if known else None

    def find(self, name: str) -> Path | None:
        """The bytes that ran: where they were, seen from the folder or by themselves, or the copy.

        A file that was edited stands for itself, so that it is asked about and the run refuses it;
        once the folder was moved, only the same bytes do.
        """
        if name not in self.places:
            return _code(name, self.folder / "recipe.yaml")
        if name in names("tasks"):
            return None
        was, sha = Path(self.places[name]), self.digests.get(name, "")
        original = self._moved_along(was)
        others = self._others(name)
        for place in (original, was, Path(name).absolute()):
            if _same(place, sha, others):
                return place
        copy = self.folder / copy_of(was, sha, others)
        at_home = str(self.folder) == self.was and original.is_file()
        return original if at_home or not copy.is_file() else copy

    def _others(self, name: str) -> dict[str, str]:
        """Digests of what a file runs in turn, by paths seen from it."""
        every = ((key.partition(BESIDE), sha) for key, sha in self.digests.items())
        return {path: sha for (of, _, path), sha in every if of == name and path}

    def path(self, text: str) -> Path:
        """What a setting says: where it was, seen from the folder or by itself."""
        if text not in self.paths or Path(text).is_absolute():
            return _beside(text, self.folder / "recipe.yaml")
        was = Path(self.paths[text])
        original = self._moved_along(was)
        return original if _is_there(original) else was

    def _moved_along(self, was: Path) -> Path:
        return Path(os.path.normpath(self.folder / os.path.relpath(was, self.was)))


def copy_of(file: Path, sha: str, others: Iterable[str] = ()) -> Path:
    """Where a run's folder has a copy of a file, seen from the folder.

    Args:
        file: where it lay.
        sha: its digest.
        others: paths, seen from it, of what it runs in turn; they lie beside the copy alike.

    >>> copy_of(Path("/project/code/task.py"), "0123456789abcdef", ["net.py", "../common/data.py"])
    PosixPath('code/0123456789ab/code/task.py')
    """
    up = max((Path(other).parts.count("..") for other in others), default=0)
    above = [part for part in file.parent.parts[1:] if part != ".."]
    return Path(CODE, sha[:12], *above[max(0, len(above) - up) :], file.name)


def _same(place: Path, sha: str, others: Mapping[str, str]) -> bool:
    """Whether a file has these bytes, and so has what it runs in turn."""
    own = {place: sha, **{place.parent / path: other for path, other in others.items()}}
    return all(path.is_file() and digest(path) == wanted for path, wanted in own.items())


def code_files(recipe: RecipeFields) -> dict[str, Path]:
    """The files outside prunus that a recipe names, by that name: a user's own, an example's."""
    found = {file: recipe.path_of(file) for s in recipe.written() if (file := own_file(s.name))}
    task = recipe.task
    if task is not None and not own_file(task.name):
        found[task.name] = examples.tasks().get(task.name, recipe.path_of(task.name))
    return {
        name: path
        for name, path in sorted(found.items())
        if path.suffix == ".py" and path.is_file()
    }
