"""What a deployment found: a row an artifact, and the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunus._common.numbers import NONE, error, megabytes, metric
from prunus._common.tables import Table, page
from prunus._common.timing import Timing
from prunus.deployment.module import DeployedModule
from prunus.methods.traits import trait
from prunus.runtimes import find


@dataclass(frozen=True)
class RuntimeResult:
    """One model in one runtime.

    Attributes:
        runtime: its name.
        model: ``pruned`` or ``dense``.
        refused: why there is no artifact, or why its answers are not kept; ``None`` if it is good.
        error: of the answers, relative to eager's.
        tolerance: that the runtime states, or that of answers a metric judges.
        exact: whether it computes in the model's own precision.
        latency: by batch size.
        bytes: of the artifact.
        metric: of the artifact itself.
        build_s: seconds to build it.
        notes: what to know beside.
    """

    runtime: str
    model: str
    refused: str | None = None
    error: float | None = None
    tolerance: float = 0.0
    exact: bool = True
    latency: Mapping[int, Timing] = field(default_factory=dict)
    bytes: int | None = None
    metric: float | None = None
    build_s: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether it may be chosen."""
        return self.refused is None

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            **{k: v for k, v in vars(self).items() if k != "latency"},
            "latency": {str(b): vars(t) for b, t in self.latency.items()},
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> RuntimeResult:
        """From what :meth:`plain` gave."""
        times = {int(b): Timing(**t) for b, t in plain["latency"].items()}
        return cls(**{**plain, "latency": times, "notes": tuple(plain["notes"])})


@dataclass(frozen=True)
class Deployment:
    """A built, compared and timed model.

    Attributes:
        rows: of every runtime tried, pruned and dense.
        runtime: the one taken.
        model: the artifact in it, called like the model; an ``nn.Module``.
        path: of the artifact's folder; ``None`` where nothing is kept.
        advice: why there is no gain, and what would help.
        offers: runtimes that are not installed, and how to install them.
        threads: of the processor, while timing.
        machine: that the times are of.
    """

    rows: tuple[RuntimeResult, ...]
    runtime: str
    model: DeployedModule
    path: Path | None
    advice: tuple[str, ...]
    offers: Mapping[str, str]
    threads: int
    machine: str

    def row(self, runtime: str | None = None, model: str = "pruned") -> RuntimeResult | None:
        """Of a runtime, by default the one taken."""
        wanted = (runtime or self.runtime, model)
        return next((r for r in self.rows if (r.runtime, r.model) == wanted), None)

    def gain(self, batch: int) -> float | None:
        """Times faster than the dense model in its own fastest runtime (:func:`gain`)."""
        return gain(self.rows, self.runtime, batch)

    @property
    def gains(self) -> dict[int, float]:
        """By batch size; empty where there is no dense model to compare with."""
        taken = self.row()
        sizes = sorted(taken.latency) if taken is not None else []
        return {b: g for b in sizes if (g := self.gain(b)) is not None}

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "runtime": self.runtime,
            "path": None if self.path is None else str(self.path),
            "rows": [r.to_dict() for r in self.rows],
            "gains": {str(b): g for b, g in self.gains.items()},
            "advice": list(self.advice),
            "offers": dict(self.offers),
            "threads": self.threads,
            "machine": self.machine,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], model: DeployedModule, path: Path) -> Deployment:
        """From what :meth:`plain` gave, with the artifact, opened from its folder."""
        own = {k: plain[k] for k in ("runtime", "offers", "threads", "machine")}
        rows = tuple(RuntimeResult.from_dict(r) for r in plain["rows"])
        return cls(rows=rows, model=model, path=path, advice=tuple(plain["advice"]), **own)

    @property
    def opened_by(self) -> str:
        """The call that opens the artifact later; without a folder none does."""
        if self.path is None:
            return ""
        needs = trait("runtimes", self.runtime, "NEEDS_MODEL")
        more = ", model=…" if needs else "" if find(self.runtime).FACTS.safe else ", trusted=True"
        return f"prunus.load({str(self.path)!r}{more})"

    def __repr__(self) -> str:
        gains = [f"{g:.2f} times as fast as dense at batch {b}" for b, g in self.gains.items()]
        place = [f"kept in {self.path}"] if self.path is not None else []
        text = "; ".join([f"in {self.runtime}", *gains, *place])
        later = f", {self.opened_by} opens it later" if self.path is not None else ""
        return (
            f"<Deployment: {text}\n"
            f"next: deployment.model(inputs) runs it{later}; print(deployment) shows every runtime>"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the table, and what it does not show."""
        return page("\n".join(self.summary()), table(self.rows, self.runtime).html())

    def __str__(self) -> str:
        later = [f"{self.opened_by} opens it later"] if self.path is not None else []
        return "\n".join([*table(self.rows, self.runtime).lines(), "", *self.summary(), *later])

    def summary(self) -> list[str]:
        """What the table does not show: the gain, where it was measured, advice, offers."""
        taken = self.row()
        return [
            *(f"{g:.2f} times as fast as dense at batch {b} (dense in its fastest runtime)"
              for b, g in self.gains.items()),
            f"measured on {self.machine}, threads: {self.threads}",
            *refusals(self.rows),
            *(f"note: {text}" for text in (*(taken.notes if taken else ()), *self.advice)),
            *(f"not installed: {name} ({how})" for name, how in self.offers.items()),
        ]  # fmt: skip


def takeable(rows: Sequence[RuntimeResult], first: Sequence[str] = ()) -> tuple[RuntimeResult, ...]:
    """The rows of the pruned model of which one is taken.

    Args:
        rows: of all runtimes.
        first: names of runtimes that are preferred to the others.
    """
    good = tuple(r for r in rows if r.model == "pruned" and r.good)
    return tuple(r for r in good if r.runtime in first) or good


SLOWER = 1.03
"""A program that skips zeros may take this much longer than a dense engine: timing's own error."""


def faster_dense(
    rows: Sequence[RuntimeResult], own: RuntimeResult, size: int
) -> RuntimeResult | None:
    """The pruned model in the fastest exact runtime, if ``own`` is slower than that.

    Args:
        rows: of all runtimes.
        own: the row of one that skips zeros.
        size: of the batch.
    """
    good = [r for r in rows if r.model == "pruned" and r.good and r.exact and size in r.latency]
    best = min(good, key=lambda r: r.latency[size].median_ms, default=own)
    slower = own.latency[size].median_ms > SLOWER * best.latency[size].median_ms
    return best if slower else None


def gain(rows: tuple[RuntimeResult, ...], runtime: str, batch: int) -> float | None:
    """Latency of the dense model in its fastest runtime ÷ that of the pruned one in ``runtime``.

    The fastest of those that keep the precision; where ``runtime`` quantizes, of those that
    quantize as well: what int8 gains is not pruning's.
    """
    own = [r for r in rows if (r.runtime, r.model) == (runtime, "pruned") and batch in r.latency]
    dense = [
        r.latency[batch].median_ms
        for r in rows
        if r.model == "dense" and r.good and batch in r.latency and (r.exact or not own[0].exact)
    ] if own else []  # fmt: skip
    if not own or not dense or not own[0].latency[batch].median_ms:
        return None
    return min(dense) / own[0].latency[batch].median_ms


def table(rows: tuple[RuntimeResult, ...], chosen: str) -> Table:
    """A row an artifact; the chosen one has a star."""
    batches = sorted({b for r in rows for b in r.latency})
    answered = [r for r in rows if r.error is not None]
    return Table(
        ("", "runtime", "model", *(f"ms, batch {b}" for b in batches), "MB", "error", "metric"),
        [
            (
                "*" if r.model == "pruned" and r.runtime == chosen else "", r.runtime, r.model,
                *(f"{r.latency[b].median_ms:.3g}" if b in r.latency else NONE for b in batches),
                megabytes(r.bytes), error(r.error), metric(r.metric),
            )
            for r in answered
        ],
        left=(0, 1, 2),
    )  # fmt: skip


def refusals(rows: tuple[RuntimeResult, ...]) -> list[str]:
    """Why runtimes were not taken; what holds of both models is said once."""
    models: dict[tuple[str, str], list[str]] = {}
    for r in rows:
        if r.refused is not None:
            models.setdefault((r.runtime, r.refused), []).append(r.model)
    return [f"not taken: {name} ({' and '.join(m)}): {why}" for (name, why), m in models.items()]
