"""The examples of prunus's repository, where a checkout of it is at hand.

They are tasks and recipes whose data is not shipped: ``examples/<task>/<task>.py``, with recipes
beside it. A checkout is the one that Python runs prunus from, or one around the current folder.
"""

from __future__ import annotations

import re
from pathlib import Path

INSTALLED = Path(__file__).parents[3]
"""The folder above ``src`` in a checkout; in an ordinary installation, something without it."""


def tasks() -> dict[str, Path]:
    """The examples' tasks by name."""
    return {p.stem: p for p in _files("*.py") if p.stem == p.parent.name}


def recipes() -> dict[str, Path]:
    """The examples' recipes by name."""
    return {p.stem: p for p in _files("*.yaml")}


def shared(text: str) -> dict[str, Path]:
    """Files above the examples' folders that the text of one of them names, by how it names them.

    >>> shared('Layer = from_file(Path(__file__).parents[1] / "no_such_file.py", "Layer")')
    {}
    """
    folder = _folder()
    named = re.findall(r"Path\(__file__\)\.parents\[1\] / \"([\w/]+\.py)\"", text)
    found = {} if folder is None else {name: folder / name for name in named}
    return {
        f'Path(__file__).parents[1] / "{name}"': path
        for name, path in found.items()
        if path.is_file()
    }


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
