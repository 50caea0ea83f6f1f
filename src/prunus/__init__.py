"""Progressive pruning for PyTorch: judged, rolled back, resumable, exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunus.call import prune, resume
    from prunus.compaction.artefact import save
    from prunus.compaction.compact import Compact, compact
    from prunus.deployment.deploy import deploy
    from prunus.deployment.table import Deployment
    from prunus.errors import InputError, Interrupted, PrunusError, RunError
    from prunus.graph.listing import units
    from prunus.masks import enforce
    from prunus.measured import Measured
    from prunus.measuring import measure
    from prunus.opening import load
    from prunus.own_loop import Pruner
    from prunus.recipe import Recipe
    from prunus.run import Run
    from prunus.task import Batches, Task
    from prunus.types import Result, Round

__version__ = "0.1.0"

_HOMES = {
    "compact": "compaction.compact",
    "save": "compaction.artefact",
    "load": "opening",
    "deploy": "deployment.deploy",
    "Deployment": "deployment.table",
    "Compact": "compaction.compact",
    "units": "graph.listing",
    "measure": "measuring",
    "Measured": "measured",
    "prune": "call",
    "resume": "call",
    "Recipe": "recipe",
    "Pruner": "own_loop",
    "Result": "types",
    "Round": "types",
    "Run": "run",
    "Task": "task",
    "Batches": "task",
    "enforce": "masks",
    "PrunusError": "errors",
    "InputError": "errors",
    "RunError": "errors",
    "Interrupted": "errors",
}

__all__ = [
    "Batches",
    "Compact",
    "Deployment",
    "InputError",
    "Interrupted",
    "Measured",
    "Pruner",
    "PrunusError",
    "Recipe",
    "Result",
    "Round",
    "Run",
    "RunError",
    "Task",
    "compact",
    "deploy",
    "enforce",
    "load",
    "measure",
    "prune",
    "resume",
    "save",
    "units",
]


def __getattr__(name: str) -> Any:
    """Public names are loaded when they are first used, so that help needs no torch."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'prunus' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"prunus.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
