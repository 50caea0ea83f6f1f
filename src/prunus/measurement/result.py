"""What a model was measured to cost, alone or beside another; as a table and as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunus._common.numbers import count, milliseconds, size, times
from prunus._common.tables import page
from prunus._common.timing import Timing
from prunus.measurement.energy import Energy
from prunus.measurement.table import machine, table


@dataclass(frozen=True)
class PassCost:
    """What one forward pass takes.

    Attributes:
        batch: items of the pass.
        latency: measured, of the whole pass.
        peak_bytes: parameters and buffers, inputs, and activations alive together at the worst
            moment (:class:`prunus.measurement.memory.Memory` says what is counted); ``None`` where
            the model does not run while it is watched.
        energy: of one item, measured or estimated; ``None`` where neither can be.
        why: why a figure is not known.
    """

    batch: int
    latency: Timing
    peak_bytes: int | None
    energy: Energy | None
    why: str = ""

    @property
    def items_per_second(self) -> float:
        """Throughput: items ÷ median latency."""
        return 1e3 * self.batch / self.latency.median_ms

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return {
            "batch": self.batch,
            "latency_ms": self.latency.median_ms,
            "latency_p95_ms": self.latency.p95_ms,
            "latency_spread": self.latency.spread,
            "calls": self.latency.calls,
            "busy": self.latency.busy,
            "items_per_second": self.items_per_second,
            "peak_bytes": self.peak_bytes,
            "energy_mj": None if self.energy is None else self.energy.mj,
            "energy_measured": None if self.energy is None else self.energy.measured,
            "energy_how": None if self.energy is None else self.energy.how,
        }


@dataclass(frozen=True)
class ModelCost:
    """What one model costs as it stands.

    Attributes:
        params: numbers in all parameters.
        nonzero_params: those that are not zero (theoretical: zeros are stored and multiplied
            all the same).
        macs: of one item; ``None`` where the counter cannot follow the model (``warnings``).
        macs_if_zeros_skipped: theoretical.
        l1: Σ|w|.
        bytes: of parameters and buffers in memory.
        disk_bytes: of the file that :func:`prunus.save` writes.
        sparse_disk_bytes: of the one that it writes with ``sparse=True``.
        passes: one for each batch size.
    """

    params: int
    nonzero_params: int
    macs: float | None
    macs_if_zeros_skipped: float | None
    l1: float
    bytes: int
    disk_bytes: int
    sparse_disk_bytes: int
    passes: tuple[PassCost, ...]

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return {**vars(self), "passes": [p.to_dict() for p in self.passes]}


@dataclass(frozen=True)
class Measurement:
    """A model measured, alone or in one interleaved run with another.

    Attributes:
        model: its figures.
        baseline: those of the other one, the dense model by custom.
        device: on which both ran.
        threads: processor threads that an operator may use.
        environment: the machine.
        warnings: what a reader must know beside the numbers.
    """

    model: ModelCost
    baseline: ModelCost | None
    device: str
    threads: int
    environment: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    @property
    def ratios(self) -> dict[str, Any]:
        """``baseline`` ÷ model for every figure: above 1, the model costs less.

        Figures of a pass are by batch size. Empty without ``baseline``.
        """
        if self.baseline is None:
            return {}
        mine, theirs = self.model, self.baseline
        keys = ("params", "nonzero_params", "macs", "bytes", "disk_bytes", "sparse_disk_bytes")
        found: dict[str, Any] = {k: _ratio(getattr(theirs, k), getattr(mine, k)) for k in keys}
        pairs = [
            (p.to_dict(), q.to_dict()) for p, q in zip(mine.passes, theirs.passes, strict=True)
        ]
        for key in ("latency_ms", "peak_bytes", "energy_mj"):
            found[key] = {str(p["batch"]): _ratio(q[key], p[key]) for p, q in pairs}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return {
            "model": self.model.to_dict(),
            "against": None if self.baseline is None else self.baseline.to_dict(),
            "ratios": self.ratios,
            "device": self.device,
            "threads": self.threads,
            "environment": dict(self.environment),
            "warnings": list(self.warnings),
        }

    def __repr__(self) -> str:
        return "\n".join([f"<Measurement: {count(self.model.params)} parameters",
                          *map(self._of, self.model.passes),
                          "next: print(measurement) shows every cost>"])  # fmt: skip

    def _of(self, cost: PassCost) -> str:
        """A pass in a line."""
        factor = self.ratios.get("latency_ms", {}).get(str(cost.batch))
        beside = "" if factor is None else f", dense ÷ pruned {times(factor)}"
        text = f"batch {cost.batch}: {milliseconds(cost.latency.median_ms)}{beside}"
        return f"{text}, {size(cost.peak_bytes)} at the peak"

    def _repr_html_(self) -> str:
        """For notebooks: the table."""
        plain = self.to_dict()
        notes = [f"note: {text}" for text in self.warnings]
        return page("\n".join([machine(plain), *notes]), table(plain).html())

    def __str__(self) -> str:
        plain = self.to_dict()
        notes = [f"note: {text}" for text in self.warnings]
        return "\n".join([*table(plain).lines(), machine(plain), *notes])


def _ratio(before: float | None, after: float | None) -> float | None:
    return before / after if before is not None and after else None
