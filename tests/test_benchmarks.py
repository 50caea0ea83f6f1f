"""The benchmarks keep up with the package: each is imported here, and none is run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
OPPONENT = {"structure_opponent"}
"""Runs in an environment of its own, with Torch-Pruning."""


@pytest.mark.parametrize("name", sorted({p.stem for p in FOLDER.glob("*.py")} - OPPONENT))
def test_a_benchmark_finds_all_that_it_imports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    for other in {p.stem for p in FOLDER.glob("*.py")} & sys.modules.keys():
        monkeypatch.delitem(sys.modules, other)
