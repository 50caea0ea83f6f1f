"""What a sweep ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prunus._common.numbers import metric

Point = tuple[float, float]
"""A metric, and the part that is left of what the target counts; less left is better."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        number: in the study.
        values: of the fields that vary, as they are written on the command line.
        state: ``finished``, ``stopped`` (hopeless), ``refused`` (by the recipe's rules or the
            model), ``failed`` or ``running`` (in another process).
        name: of its folder below the sweep's.
        metric: of the last accepted round, on validation data.
        left: the part of what the target counts that is left then: the density, or a part of the
            dense model's macs, params or bytes.
        dense: the metric of its dense model.
        allowed: how much worse than dense its guard lets a metric be; ``None`` without a guard.
        cost: of its model as it stands.
        rounds: judged, the dense one not counted.
        seconds: of all rounds.
        course: optimizer step, metric and part left of each round that was not rejected.
        reason: why it was stopped, refused or failed, or ended short of its target.
    """

    number: int
    values: Mapping[str, str]
    state: str
    name: str | None = None
    metric: float | None = None
    left: float | None = None
    dense: float | None = None
    allowed: float | None = None
    cost: Mapping[str, float | None] = field(default_factory=dict)
    rounds: int = 0
    seconds: float = 0.0
    course: Sequence[tuple[int, float, float]] = ()
    reason: str = ""

    @property
    def point(self) -> Point | None:
        """Metric and part left of a finished trial."""
        if self.state != "finished" or self.metric is None or self.left is None:
            return None
        return self.metric, self.left

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Sweep:
    """All trials, and those that nothing else beats.

    Attributes:
        name: of the study.
        trials: by number.
        front: numbers of the trials that no other dominates, from the least left to the most.
        best: the one to take (:func:`prunus.sweep.pareto.choose`); ``None`` if none is finished.
        command: that runs the best one again, alone.
        metric_name: what the task calls the metric.
        better: ``higher`` or ``lower``.
        counts: what ``left`` is a part of: ``sparsity`` (then it is the density), or a cost.
        folder: of the sweep: its runs, ``sweep.json``, ``pareto.png``.
    """

    name: str
    trials: Sequence[Trial]
    front: Sequence[int]
    best: Trial | None
    command: str | None
    metric_name: str
    better: str
    counts: str
    folder: Path

    def __repr__(self) -> str:
        best = "none is finished" if self.best is None else _described(self.best, self)
        after = self.command or "sweep.trials, sweep.front"
        return (
            f"<Sweep: {len(self.trials)} trials, {len(self.front)} of them on the front, in "
            f"{self.folder}\nbest: {best}\nnext: {after}>"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the table and the picture."""
        from prunus.sweep.summary import notebook_page

        return notebook_page(self)

    @property
    def left_name(self) -> str:
        """What is left, for people."""
        return "density" if self.counts == "sparsity" else f"{self.counts} left"

    def to_dict(self) -> dict[str, Any]:
        """As ``sweep.json`` holds it."""
        values = {k: v for k, v in vars(self).items() if k not in ("trials", "best", "folder")}
        return {
            **values,
            "front": list(self.front),
            "best": None if self.best is None else self.best.number,
            "trials": [t.to_dict() for t in self.trials],
        }


def _described(trial: Trial, sweep: Sweep) -> str:
    """A trial in a line."""
    values = ", ".join(f"{k}={v}" for k, v in trial.values.items())
    figures = f"{sweep.metric_name} {metric(trial.metric)}, {sweep.left_name} {metric(trial.left)}"
    return f"trial {trial.number} ({values}), {figures}"
