"""A run as its folder tells it, finished or not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.errors import InputError
from prunus.progressive.folder import rounds_of
from prunus.progressive.result import Round


@dataclass(frozen=True)
class Record:
    """What a report needs of a run.

    Attributes:
        folder: of the run.
        rounds: all so far.
        result: the contents of result.json; empty while the run is not finished.
        recipe: as YAML.
        environment: of the machine that ran it.
        deployed: what ``prunus deploy`` found since.
    """

    folder: Path
    rounds: list[Round]
    result: dict[str, Any]
    recipe: str
    environment: dict[str, str]
    deployed: dict[str, Any] | None = None

    @property
    def deployment(self) -> dict[str, Any] | None:
        """The table of runtimes: the newest of ``prunus deploy``, or what the run ended with."""
        return self.deployed or self.result.get("deployment")

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def good(self) -> Round | None:
        """The newest round that was not rejected."""
        return next((r for r in reversed(self.rounds) if r.verdict != "rejected"), None)

    @property
    def metric_name(self) -> str:
        """What the task calls its metric."""
        return str(self.result.get("metric_name", "metric"))


def read_record(folder: Path) -> Record:
    """Read a run's folder.

    Raises:
        InputError: if it holds no run.
    """
    rounds = rounds_of(folder)
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        done = folder / "result.json"
        result = json.loads(done.read_text(encoding="utf-8")) if done.is_file() else {}
        recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
        table = folder / "deploy.json"
        deployed = json.loads(table.read_text(encoding="utf-8")) if table.is_file() else None
    except (OSError, ValueError) as error:
        raise InputError(f"the run in '{folder}' cannot be read: {error}") from None
    return Record(folder, rounds, result, recipe, about.get("environment", {}), deployed)
