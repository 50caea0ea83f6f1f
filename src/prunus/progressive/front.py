"""The best models at several sizes from one run: those that no other round's is ahead of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunus._common.distributed import on_rank_zero
from prunus.compaction.files.artifact import save
from prunus.progressive.result import Round
from prunus.progressive.state import RunContext, RunState
from prunus.recipe.schema import Recipe

FOLDER = "front"
"""Where their files lie in a run's folder."""


def front(rounds: Sequence[Round], better: str) -> list[Round]:
    """The accepted rounds of which no other has less left and as good a metric.

    >>> rows = [Round(i, 0, 0, 0, a, m, "accepted") for i, (a, m) in enumerate(
    ...     [(0.0, 0.97), (0.5, 0.98), (0.8, 0.96), (0.9, 0.97)])]
    >>> [row.index for row in front(rows, "higher")]
    [1, 3]
    """
    sign = -1 if better == "lower" else 1
    judged = [(r, sign * r.metric) for r in rounds if r.accepted and r.metric is not None]
    return [
        row
        for row, metric in judged
        if not any(
            other.achieved >= row.achieved and its >= metric and other.index > row.index
            for other, its in judged
        )
    ]


def file_of(index: int) -> str:
    """The file of a round's model, within the run's folder."""
    return f"{FOLDER}/round-{index}.safetensors"


def keep_front(job: RunContext, at: RunState) -> None:
    """Write the model of a round that was accepted, and take away those it is ahead of."""
    folder = job.journal.folder
    if folder is None:
        return
    attributes = tuple(a for s in job.engine.shrinks for a in s.step.plan.surgery.attributes)
    stay = {r.index for r in front(at.rounds, better_of(job.engine.recipe))}

    def write(folder: Path = folder) -> None:
        place = folder / file_of(at.rounds[-1].index)
        place.parent.mkdir(exist_ok=True)
        if at.rounds[-1].index in stay:
            save(job.engine.model, place, attributes, sparse=True)
        for row in at.rounds:
            if row.index not in stay:
                (folder / file_of(row.index)).unlink(missing_ok=True)

    on_rank_zero(write)


def kept_front(job: RunContext, at: RunState) -> tuple[tuple[int, Path], ...]:
    """The rounds whose models lie in the folder."""
    folder, recipe = job.journal.folder, job.engine.recipe
    if folder is None or recipe.keep != "front":
        return ()
    return tuple((r.index, folder / file_of(r.index)) for r in front(at.rounds, better_of(recipe)))


def better_of(recipe: Recipe) -> str:
    """Which metric is better."""
    return "higher" if recipe.guard is None else recipe.guard.better
