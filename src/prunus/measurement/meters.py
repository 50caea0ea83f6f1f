"""Counters of energy that machines have: RAPL for processors, NVML for NVIDIA's cards.

Both count whatever the package or the card does: idle power and other programs included.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows RAPL's counters; most systems let only root read them."""


@dataclass(frozen=True)
class Meter:
    """A counter of energy.

    Attributes:
        what: what it counts, for people.
        joules: energy so far, from an arbitrary start; never less than before.
    """

    what: str
    joules: Callable[[], float]


def meter_for(device: torch.device, powercap: Path = POWERCAP) -> Meter | None:
    """The meter of a device, where this machine has one that can be read."""
    if device.type == "cuda":
        return nvml(device)
    return rapl(powercap) if device.type == "cpu" else None


def rapl(folder: Path = POWERCAP) -> Meter | None:
    """Processor packages, and their memory where it is counted apart.

    Args:
        folder: of the kernel's power capping interface.

    Returns:
        ``None`` where there is no counter, or this user may not read it.
    """
    try:
        zones = [_Zone(p) for p in sorted(folder.glob("intel-rapl:*")) if _counts(p)]
    except (OSError, ValueError):
        return None
    if not zones:
        return None
    names = ", ".join(z.name for z in zones)
    return Meter(f"RAPL ({names})", lambda: sum(z.joules() for z in zones))


def _counts(zone: Path) -> bool:
    """Packages and memories: cores are within packages, and ``psys`` holds everything again."""
    name = (zone / "name").read_text(encoding="ascii").strip()
    return name.startswith("package") or name == "dram"


class _Zone:
    """One counter, which starts again at zero when it is full."""

    def __init__(self, folder: Path) -> None:
        self.name = (folder / "name").read_text(encoding="ascii").strip()
        self._counter = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text(encoding="ascii"))
        self._last, self._total = self._read(), 0

    def _read(self) -> int:
        return int(self._counter.read_text(encoding="ascii"))

    def joules(self) -> float:
        now = self._read()
        gone = now - self._last
        self._total += gone if gone >= 0 else gone + self._range
        self._last = now
        return self._total * 1e-6


def nvml(device: torch.device) -> Meter | None:
    """An NVIDIA card of the Volta generation or newer, through the optional package ``pynvml``.

    Returns:
        ``None`` without the package, the driver or the counter.
    """
    try:
        library: Any = importlib.import_module("pynvml")
        library.nvmlInit()
        properties: Any = torch.cuda.get_device_properties(device)
        handle = library.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
        library.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # the package's own errors have no common name without it
        return None
    return Meter(
        f"NVML ({properties.name})",
        lambda: float(library.nvmlDeviceGetTotalEnergyConsumption(handle)) * 1e-3,
    )
