"""One trial: an ordinary run in a folder of its own, stopped when it is hopeless."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus._common.files import remove_temporaries
from prunus.errors import InputError, Interrupted, RunError
from prunus.progressive.ending import REACHED
from prunus.progressive.guard import allowed_drop
from prunus.progressive.prune import Source, prune
from prunus.progressive.record import Record
from prunus.progressive.result import Result, Round, last_accepted
from prunus.progressive.state import OnEvent
from prunus.recipe.resolve import folder_name
from prunus.recipe.schema import Recipe
from prunus.sweep.locks import held, is_held
from prunus.sweep.space import Space
from prunus.sweep.stopping import hopeless
from prunus.sweep.types import Trial
from prunus.tasks.base import Task
from prunus.tasks.find import task_of


@dataclass(frozen=True)
class Trials:
    """What the trials of a sweep have in common.

    Attributes:
        source: the recipe.
        space: what varies.
        folder: of the sweep.
        task: instead of the one that the recipe names.
        on_event: gets every event.
        should_stop: asked between steps.
        finished: the trials that have ended so far; ``None``: none is stopped as hopeless.
    """

    source: Source
    space: Space
    folder: Path
    task: Task | None
    on_event: OnEvent
    should_stop: Callable[[], bool]
    finished: Callable[[], Sequence[Trial]] | None

    def __call__(self, number: int, values: Mapping[str, str]) -> Trial:
        """Run one, and say what became of it.

        Raises:
            Interrupted: if it was asked to stop.
            RunError: if the disk refuses: no other trial could go on then.
        """
        self.on_event({"event": "trial", "number": number, "values": dict(values)})
        made = self._run(number, values)
        self.on_event({"event": "tried", **made.to_dict()})
        return made

    def _run(self, number: int, values: Mapping[str, str]) -> Trial:
        about: dict[str, Any] = {"number": number, "values": values}
        beaten: list[str] = []
        try:
            recipe = Recipe.load(self.source, self.space.changes(values))
            about["name"] = folder_name(recipe)
            where = self.folder / about["name"]
            if is_held(where / ".lock"):
                return Trial(**about, state="failed", reason=f"another run is at work in '{where}'")
            result = self._prune(recipe, where, beaten)
        except Interrupted:
            if not beaten:
                raise
            return Trial(**about, **_figures(recipe, Record(where).rounds), state="stopped",
                         reason=beaten[0])  # fmt: skip
        except InputError as error:
            return Trial(**about, state="refused", reason=_line(error))
        except RunError as error:
            if isinstance(error.__cause__, OSError):
                raise
            return Trial(**about, state="failed", reason=_line(error))
        except Exception as error:  # the task's code runs: its failure is a row
            return Trial(**about, state="failed", reason=f"{type(error).__name__}: {_line(error)}")
        figures = {**_figures(recipe, result.rounds), "cost": dict(result.cost_after)}
        reason = "" if result.reason == REACHED else result.reason
        return Trial(**about, **figures, state="finished", reason=reason)

    def _prune(self, recipe: Recipe, where: Path, beaten: list[str]) -> Result:
        def watch(event: Mapping[str, Any]) -> None:
            self.on_event(event)
            if event["event"] == "judged" and self.finished is not None:
                row = event["row"]
                rounds = [*(r for r in Record(where).rounds if r.index < row.index), row]
                by = hopeless(rounds, recipe, self.finished())
                if by is not None:
                    beaten.append(
                        f"metric {row.metric:.4f} in round {row.index}; trial {by.number} was "
                        f"ahead there and ended with {by.metric:.4f} and {by.left:.3g} left"
                    )

        task = task_of(recipe) if self.task is None else self.task
        return prune(
            task,
            recipe,
            folder=where,
            on_event=watch,
            should_stop=lambda: bool(beaten) or self.should_stop(),
            _dense=self._dense_file,
        )

    @contextlib.contextmanager
    def _dense_file(self, key: str) -> Iterator[Path]:
        """Where trials with the same dense phase leave its end; one at a time trains it.

        A process that dies lets the lock go, and the next one trains it.
        """
        folder = self.folder / ".dense"
        folder.mkdir(exist_ok=True)
        told: list[str] = []

        def waiting() -> None:
            if self.should_stop():
                raise Interrupted("stopped")
            if not told:
                told.append("waiting for the dense model, which another trial trains")
                self.on_event({"event": "note", "text": told[0]})

        with held(folder / f"{key}.lock", waiting):
            remove_temporaries(folder, re.escape(key))
            yield folder / key


def _figures(recipe: Recipe, rounds: Sequence[Round]) -> dict[str, Any]:
    """Of the last accepted round."""
    good, dense = last_accepted(rounds), rounds[0].metric
    known = recipe.guard is not None and dense is not None
    return {
        "metric": good.metric,
        "left": 1 - good.achieved,
        "dense": dense,
        "allowed": allowed_drop(recipe.guard, dense) if known else None,  # type: ignore[arg-type]
        "cost": dict(good.cost),
        "rounds": len(rounds) - 1,
        "course": [
            (r.step, r.metric, 1 - r.achieved)
            for r in rounds
            if r.metric is not None and r.accepted
        ],
        "seconds": sum(r.seconds for r in rounds),
    }


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
