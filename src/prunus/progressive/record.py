"""A run as its folder tells it, finished or not: the one reader of its files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prunus._common.files import refuse_links
from prunus.errors import InputError
from prunus.progressive.contents import checked
from prunus.progressive.journal import read_events
from prunus.progressive.result import Round, last_accepted
from prunus.recipe.schema import Recipe


@dataclass(frozen=True)
class Record:
    """What lies in the folder of a run; each file is read when its contents are asked for.

    Attributes:
        folder: of the run.

    Raises:
        InputError: from what reads a file, if the folder holds no run or the file is damaged.
    """

    folder: Path

    def __post_init__(self) -> None:
        refuse_links(self.folder)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @cached_property
    def rounds(self) -> list[Round]:
        """All so far; of repeated ones the last."""
        self._held("run.json")
        events = [e for e in read_events(self.folder) if e["event"] == "round"]
        found = {e["index"]: Round.from_dict(e) for e in events}
        return [found[i] for i in sorted(found)]

    @property
    def good(self) -> Round | None:
        """The newest round that was not rejected."""
        return last_accepted(self.rounds) if self.rounds else None

    @cached_property
    def result(self) -> dict[str, Any]:
        """The contents of result.json; empty while the run is not finished."""
        return self._json("result.json")

    @property
    def metric_name(self) -> str:
        """What the task calls its metric."""
        return str(self.result.get("metric_name", "metric"))

    @property
    def deployment(self) -> dict[str, Any] | None:
        """The table of runtimes: the newest of ``prunus deploy``, or what the run ended with."""
        return self._json("deploy.json") or self.result.get("deployment")

    @property
    def environment(self) -> dict[str, str]:
        """Of the machine that ran it."""
        return dict(self._json("run.json").get("environment", {}))

    @property
    def yaml(self) -> str:
        """The recipe as it is written."""
        path = self._held("recipe.yaml")
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"'{path}' cannot be read: {error}") from None

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe."""
        return Recipe.load(self._held("recipe.yaml"))

    def _held(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise InputError(f"'{self.folder}' contains no run (no {name})")
        return path

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"'{path}' cannot be read: {error}") from None
        return {} if value is None else checked(name, value, path)
