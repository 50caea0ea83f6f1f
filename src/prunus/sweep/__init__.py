"""Many runs of a recipe with other values: which of them nothing else beats."""

from __future__ import annotations

from prunus.sweep.sweep import sweep
from prunus.sweep.types import Sweep, Trial

__all__ = ["Sweep", "Trial", "sweep"]
