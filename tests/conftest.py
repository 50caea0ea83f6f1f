"""One torch thread a worker; nothing of a test outlives it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# What takes how long is the machine's affair, and not a test's.
settings.register_profile("prunus", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("prunus")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test in a folder of its own, with one thread and a fixed seed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    return
