"""The examples of prunus's repository, where a checkout of it is at hand.

They are tasks and recipes whose data is not shipped: ``examples/<task>/<task>.py``, with recipes
beside it. A checkout is the one that Python runs prunus from, or one around the current folder.
"""

from __future__ import annotations

from pathlib import Path

INSTALLED = Path(__file__).parents[3]
"""The folder above ``src`` in a checkout; in an ordinary installation, something without it."""


def tasks() -> dict[str, Path]:
    """The examples' tasks by name."""
    return {p.stem: p for p in _files("*.py") if p.stem == p.parent.name}


def recipes() -> dict[str, Path]:
    """The examples' recipes by name."""
    return {p.stem: p for p in _files("*.yaml")}


def hint() -> str:
    """Where the examples are, for a message about an unknown name; empty inside a checkout."""
    if _folder() is not None:
        return ""
    return "; examples such as cifar10 are in prunus's repository: run inside a checkout of it"


def _files(pattern: str) -> list[Path]:
    folder = _folder()
    return [] if folder is None else sorted(folder.glob(f"*/{pattern}"))


def _folder() -> Path | None:
    """The nearest checkout's examples; a folder of that name elsewhere is somebody else's."""
    here = Path.cwd()
    for place in (here, *here.parents, INSTALLED):
        if (place / "examples").is_dir() and (place / "src/prunus/__init__.py").is_file():
            return place / "examples"
    return None
