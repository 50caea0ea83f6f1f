"""Progressive pruning for PyTorch: judged, rolled back, resumable, exact."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunus import sweep as sweep
    from prunus._common.scores import Scores as Scores
    from prunus.blocks.prune_blocks import prune_blocks as prune_blocks
    from prunus.blocks.recipe import BlockResult as BlockResult
    from prunus.compaction.compact import Compact as Compact
    from prunus.compaction.compact import compact as compact
    from prunus.compaction.files.artifact import save as save
    from prunus.deployment.deploy import deploy as deploy
    from prunus.deployment.load import load as load
    from prunus.deployment.table import Deployment as Deployment
    from prunus.errors import InputError as InputError
    from prunus.errors import Interrupted as Interrupted
    from prunus.errors import PrunusError as PrunusError
    from prunus.errors import RunError as RunError
    from prunus.graph.listing import units as units
    from prunus.integrations import hf as hf
    from prunus.integrations import lightning as lightning
    from prunus.integrations import tensorboard as tensorboard
    from prunus.measurement.measure import measure as measure
    from prunus.measurement.result import Measurement as Measurement
    from prunus.progressive.distill import distill as distill
    from prunus.progressive.phase import Run as Run
    from prunus.progressive.prune import prune as prune
    from prunus.progressive.prune import resume as resume
    from prunus.progressive.pruner import Pruner as Pruner
    from prunus.progressive.repair import repair as repair
    from prunus.progressive.result import Result as Result
    from prunus.progressive.result import Round as Round
    from prunus.progressive.scan import Scan as Scan
    from prunus.progressive.scan import scan as scan
    from prunus.pruning.enforce import enforce as enforce
    from prunus.pruning.low_rank import low_rank as low_rank
    from prunus.recipe.schema import Recipe as Recipe
    from prunus.tasks.base import Batches as Batches
    from prunus.tasks.base import Task as Task

__version__ = "0.1.0"

_HOMES = {
    "compact": "compaction.compact",
    "save": "compaction.files.artifact",
    "load": "deployment.load",
    "deploy": "deployment.deploy",
    "Deployment": "deployment.table",
    "Compact": "compaction.compact",
    "units": "graph.listing",
    "measure": "measurement.measure",
    "Measurement": "measurement.result",
    "prune": "progressive.prune",
    "resume": "progressive.prune",
    "Recipe": "recipe.schema",
    "distill": "progressive.distill",
    "repair": "progressive.repair",
    "scan": "progressive.scan",
    "prune_blocks": "blocks.prune_blocks",
    "BlockResult": "blocks.recipe",
    "Scan": "progressive.scan",
    "Pruner": "progressive.pruner",
    "Result": "progressive.result",
    "Round": "progressive.result",
    "Run": "progressive.phase",
    "Task": "tasks.base",
    "Batches": "tasks.base",
    "Scores": "_common.scores",
    "enforce": "pruning.enforce",
    "low_rank": "pruning.low_rank",
    "PrunusError": "errors",
    "InputError": "errors",
    "RunError": "errors",
    "Interrupted": "errors",
}
_MODULES = {
    "hf": "prunus.integrations.hf",
    "lightning": "prunus.integrations.lightning",
    "tensorboard": "prunus.integrations.tensorboard",
    "sweep": "prunus.sweep",
}
"""Modules that are public as well, under their short names."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Public names are loaded when they are first used, so that help needs no torch."""
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'prunus' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"prunus.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])


class _ShortNames(Loader):
    """Lets ``from prunus.hf import …`` find ``prunus.integrations.hf``: the same module."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, short = name.rpartition(".")
        known = package == __name__ and short in _MODULES
        return ModuleSpec(name, _ShortNames()) if known else None

    def create_module(self, spec: ModuleSpec) -> None:
        """An empty one, until it is replaced."""

    def exec_module(self, module: ModuleType) -> None:
        short = module.__name__.rpartition(".")[2]
        sys.modules[module.__name__] = importlib.import_module(_MODULES[short])


class _OwnFiles:
    """Finds a user's own files by the names under which they run, in processes started since."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith("prunus_user_"):
            return None
        from prunus._common.own_code import spec_of

        return spec_of(name, path)


sys.meta_path.append(_ShortNames)
sys.meta_path.insert(0, _OwnFiles)  # before what looks in the folders of packages
