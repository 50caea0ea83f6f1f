"""Which packages are installed, and how to install the others; nothing is imported."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from prunus._common.own_code import home_of
from prunus.errors import InputError


def missing(distributions: Iterable[str]) -> list[str]:
    """Those that are not installed, by the names that pip knows.

    >>> missing(["torch", "no-such-package"])
    ['no-such-package']
    """
    return [name for name in distributions if not _installed(name)]


def pip_line(distributions: Iterable[str]) -> str:
    """How to install.

    >>> pip_line(["onnx", "onnxruntime"])
    'pip install onnx onnxruntime'
    """
    return f"pip install {' '.join(distributions)}"


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def require(distribution: str, extra: str) -> None:
    """Refuse to go on without an optional package.

    Args:
        distribution: as pip names it.
        extra: of prunus that brings it.

    Raises:
        InputError: if it is not installed, with both ways to install it.

    >>> require("torch", "nothing")
    """
    if missing([distribution]):
        raise InputError(_how(distribution, extra))


def lacking(error: ModuleNotFoundError) -> str:
    """What to install, after the import of a package failed.

    >>> lacking(ModuleNotFoundError("No module named 'PIL'", name="PIL"))
    "pillow is not installed: pip install pillow, or install prunus with its extra 'tasks'"
    >>> lacking(ModuleNotFoundError("No module named 'nowhere_1'", name="nowhere_1"))
    "No module named 'nowhere_1'"
    """
    module = (error.name or "").partition(".")[0]
    if module in _OPTIONAL:
        return _how(*_OPTIONAL[module])
    folder = home_of(module)
    return (
        str(error)
        if folder is None
        else (
            f"{error}: '{module}' lies in '{folder}', where import statements of your files look; "
            "importlib, torch.load and pickle look where Python does: add that folder to PYTHONPATH"
        )
    )


_OPTIONAL = {
    "click": ("click", "cli"),
    "rich": ("rich", "cli"),
    "jinja2": ("jinja2", "report"),
    "matplotlib": ("matplotlib", "report"),
    "sklearn": ("scikit-learn", "tasks"),
    "PIL": ("pillow", "tasks"),
    "pycocotools": ("pycocotools", "tasks"),
    "tokenizers": ("tokenizers", "text"),
    "sacrebleu": ("sacrebleu", "text"),
}
"""Modules that the core does without: the distribution and the extra that brings it."""


def _how(distribution: str, extra: str) -> str:
    return (
        f"{distribution} is not installed: {pip_line([distribution])}, "
        f"or install prunus with its extra '{extra}'"
    )
