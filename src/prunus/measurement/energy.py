"""Millijoules of one item: measured where the machine counts them, estimated elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch

from prunus._common.timing import synchronize
from prunus.measurement.meters import Meter

PJ_PER_MAC = {
    torch.float32: 3.7 + 0.9,
    torch.float16: 1.1 + 0.4,
    torch.bfloat16: 1.1 + 0.4,
    torch.int8: 0.2 + 0.1,
}
"""Picojoules of a multiplication and an addition (int8 adds up in 32 bits; bfloat16, which the
source lacks, as float16). Horowitz 2014, ISSCC, "Computing's energy problem", 45 nm, 0.9 V."""

PJ_PER_BYTE = 1300 / 8
"""Picojoules of a byte to or from DRAM: 1.3 nJ for 64 bits, the lower end of the same source."""

SHORTEST = 0.5
"""Seconds of a measurement at least: counters are renewed up to every tenth of a second."""


@dataclass(frozen=True)
class Energy:
    """Energy of one item.

    Attributes:
        mj: millijoules.
        measured: whether a meter counted it; else it is an estimate.
        how: by which meter, or from what.
    """

    mj: float
    measured: bool
    how: str


def measured_energy(
    forward: Callable[[], object], *, meter: Meter, batch: int, seconds: float
) -> Energy | None:
    """Energy that a meter counts while a forward pass is repeated, for each item.

    Args:
        forward: one pass.
        meter: counts everything on its device, idle power and other programs included.
        batch: items of a pass.
        seconds: how long; at least half a second.

    Returns:
        ``None`` if the meter stands still, as on some virtual machines.
    """
    forward()
    synchronize()
    calls, before, end = 0, meter.joules(), perf_counter() + max(seconds, SHORTEST)
    while calls == 0 or perf_counter() < end:
        forward()
        synchronize()
        calls += 1
    spent = meter.joules() - before
    if spent <= 0:
        return None
    how = f"{meter.what}, everything it counts, idle power included"
    return Energy(1e3 * spent / (calls * batch), measured=True, how=how)


def estimated_energy(
    *, macs: float, moved_bytes: float, dtype: torch.dtype, batch: int = 1
) -> Energy | None:
    """An estimate: ``macs · pJ per MAC + bytes · pJ per byte``.

    The constants are of a 45 nm chip of 2014; today's are several times lower. They serve to
    compare models, not to predict a bill. Every byte counts as one from or to DRAM, which
    caches save in part.

    Args:
        macs: of one pass.
        moved_bytes: read or written by one pass.
        dtype: in which it computes.
        batch: items of a pass.

    Returns:
        For one item; ``None`` for a type of which the source says nothing.

    Source: Horowitz 2014, ISSCC, Computing's energy problem (and what we can do about it).

    >>> energy = estimated_energy(macs=1e9, moved_bytes=1e6, dtype=torch.float32)
    >>> round(energy.mj, 4)
    4.7625
    """
    if dtype not in PJ_PER_MAC:
        return None
    picojoules = macs * PJ_PER_MAC[dtype] + moved_bytes * PJ_PER_BYTE
    how = "MACs and bytes moved, with the constants of Horowitz 2014 (45 nm)"
    return Energy(picojoules * 1e-9 / batch, measured=False, how=how)
