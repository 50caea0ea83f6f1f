"""One torch thread a worker; nothing of a test outlives it; the long tests first, or any order."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings

from fresh import Pythons

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
gc.set_threshold(50_000, 20, 50)
"""Garbage is looked for more rarely: imports and traces make many objects that all stay alive."""
os.fsync = lambda descriptor: None  # type: ignore[assignment]
"""No test cuts the power: what a killed process has written is there, and the disk is slow."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in a random order")


def pytest_configure(config: pytest.Config) -> None:
    """torch, before its warnings are errors; not in the process that only hands out the tests."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        import torch  # noqa: F401


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


@pytest.fixture(scope="module", autouse=True)
def _what_is_imported_stays() -> None:
    """What the modules have made is not looked through again whenever memory is."""
    gc.collect()
    gc.freeze()


_FOLDERS = itertools.count()


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that no other test has; to number it, pytest looks through all that there are."""
    return tmp_path_factory.mktemp(f"test-{next(_FOLDERS)}", numbered=False)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test in a folder and an environment of its own, with one thread and fixed seeds."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    if torch.accelerator.is_available():
        torch.manual_seed(0)
    else:  # that would note a stack of calls for devices that are not there: most of its time
        torch.default_generator.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    monkeypatch.chdir(tmp_path)
    with patch.dict(os.environ):  # the command line sets variables for what it starts
        os.environ["XDG_CONFIG_HOME"] = f"{tmp_path}-config"  # what code this user has run
        os.environ["PRUNUS_TRUST"] = "1"
        yield
    if "accelerate.state" in sys.modules:  # what one Accelerator counted, the next would go on from
        for state in ("GradientState", "AcceleratorState", "PartialState"):
            getattr(sys.modules["accelerate.state"], state)._shared_state.clear()


def _briefly(functions: Any, *, seconds: float, **limits: Any) -> Any:
    from prunus._common.timing import interleaved

    return interleaved(functions, seconds=min(seconds, MOMENT), **limits)


@pytest.fixture(autouse=True)
def _a_moment_of_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every artifact and model is timed as always, but not for as long."""
    for user in ("deployment.judge", "measurement.latency", "progressive.latency_target"):
        monkeypatch.setattr(f"prunus.{user}.interleaved", _briefly)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have none: to draw them takes longer than a small run."""
    with contextlib.suppress(ImportError):  # without matplotlib there are no reports
        monkeypatch.setattr("prunus.report.page.PICTURES", {})


@pytest.fixture
def costs() -> None:
    """For a test that looks at what ``no_costs`` leaves out."""


@pytest.fixture
def no_costs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Walks over folders count and draw nothing: both take longer than to prune a small model."""
    from prunus.blocks.costs import Costs

    nothing = Costs(0, 0, None, None, 0)
    with pytest.MonkeyPatch.context() as patched:  # its own: tests undo theirs
        if "costs" not in request.fixturenames:
            where = "prunus.blocks.side_by_side"
            patched.setattr(f"{where}.costs_of", lambda folder, batch: nothing)
            patched.setattr(f"{where}.picture_of", lambda result: b"")
        yield


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of the sparse kernels run on every instruction set."""
    if "instructions" in metafunc.fixturenames:
        from prunus.kernels.native import SETS

        metafunc.parametrize("instructions", SETS, indirect=True)


@pytest.fixture
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The set that the kernels use; one that is not here is skipped with the reason."""
    from prunus.kernels.native import VARIABLE, built, usable

    name = str(request.param)
    if name not in built():
        pytest.skip(f"{name}: not compiled for this machine")
    if name not in usable():
        pytest.skip(f"{name}: this processor does not have it; it was compiled")
    monkeypatch.setenv(VARIABLE, name)
    return name


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pythons]:
    """Code in a process of its own."""
    with Pythons(tmp_path_factory.mktemp("python")) as started:
        yield started


@pytest.fixture(scope="session", autouse=True)
def _one_registry() -> Iterator[None]:
    """torch's exporters build their tables of operators anew for each model: here, once."""
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        _quicker_exports(patch)
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

            patch.setattr(registry, "from_torchlib", staticmethod(copied))
        yield


def _quicker_exports(patch: pytest.MonkeyPatch) -> None:
    """What each export does to thousands of operators, where that is the same as last time."""
    import torch._ops

    class Annotation(Callable):  # type: ignore[misc,valid-type]
        """Of the functions that export registers: to make it anew takes longer than to register."""

        @classmethod
        def __class_getitem__(cls, _: Any) -> Any:
            return cls

        @classmethod
        def __subclasshook__(cls, other: type) -> bool:
            return any("__call__" in vars(base) for base in other.__mro__)

    patch.setattr(torch._ops, "Callable", Annotation, raising=False)
    with contextlib.suppress(ImportError, AttributeError):  # in another torch
        from torch._export import utils

        made, seen = utils._materialize_cpp_cia_ops, []

        def once() -> None:
            now = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
            if now != seen:
                made()
                seen[:] = now

        patch.setattr(utils, "_materialize_cpp_cia_ops", once)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was imported is nothing that a collector, or who looks for tensors, must walk again."""
    gc.collect()
    gc.freeze()
