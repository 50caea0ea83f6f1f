"""One torch thread a worker; nothing of a test outlives it; the long tests first, or any order."""

from __future__ import annotations

import contextlib
import functools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from prunus._common.timing import Timing, interleaved

# What takes how long is the machine's affair, and not a test's.
settings.register_profile("prunus", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("prunus")

MOMENT = 0.02
"""Seconds for which an artifact is timed here at most; 1 where users time theirs."""
LONG = (
    "test_distributed.py",
    "test_resume.py",
    "test_runtimes.py",
    "test_deploy.py",
    "test_serving.py",
    "test_sweep.py",
    "test_rounds.py",
    "test_tasks.py",
)
"""Files whose tests take longest: a worker that starts them last ends alone."""


os.fsync = lambda descriptor: None  # type: ignore[assignment]
"""No test cuts the power: what a killed process has written is there, and the disk is slow."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in a random order")


def pytest_report_header(config: pytest.Config) -> str | None:
    seed = config.getoption("--shuffle")
    return None if seed is None else f"in random order: --shuffle {seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files in random order, and the tests of each; without a seed, the long files first."""
    seed = config.getoption("--shuffle")
    files = list(dict.fromkeys(item.path for item in items))
    if seed is None:
        place = {name: i for i, name in enumerate(LONG)}
        items.sort(key=lambda item: place.get(item.path.name, len(LONG)))
    else:
        chance = random.Random(seed)
        chance.shuffle(items)
        chance.shuffle(files)
        items.sort(key=lambda item: files.index(item.path))


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test in a folder and an environment of its own, with one thread and fixed seeds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    monkeypatch.chdir(tmp_path)
    with patch.dict(os.environ):  # the command line sets variables for what it starts
        os.environ["XDG_CONFIG_HOME"] = f"{tmp_path}-config"  # what code this user has run
        os.environ["PRUNUS_TRUST"] = "1"
        yield


def _briefly(functions: Any, *, seconds: float, **limits: Any) -> dict[str, Timing]:
    return interleaved(functions, seconds=min(seconds, MOMENT), **limits)


@pytest.fixture(autouse=True)
def _a_moment_of_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every artifact and model is timed as always, but not for as long."""
    for user in ("deployment.judge", "measurement.latency", "progressive.latency_target"):
        monkeypatch.setattr(f"prunus.{user}.interleaved", _briefly)


@pytest.fixture(scope="session", autouse=True)
def _one_registry() -> Iterator[None]:
    """torch's ONNX exporter builds its table of operators anew for each model: here, once."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError):  # without onnxscript, or in another torch
            from torch.onnx._internal.exporter import _registration

            registry = _registration.ONNXRegistry
            build = functools.cache(registry.from_torchlib)

            def copied(*args: Any, **kwargs: Any) -> Any:
                made, copy = build(*args, **kwargs), registry()
                vars(copy).update(
                    vars(made), functions={k: [*v] for k, v in made.functions.items()}
                )
                return copy

            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(registry, "from_torchlib", staticmethod(copied))
        yield
