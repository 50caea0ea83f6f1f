"""The compiled kernels: found beside this file, one for each instruction set, called by ctypes."""

from __future__ import annotations

import ctypes
import os
import platform
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prunus.errors import InputError, did_you_mean

SETS = ("avx512", "avx2", "neon", "portable")
"""Instruction sets, the best first."""
VARIABLE = "PRUNUS_INSTRUCTIONS"
"""Name of the environment variable that forces one of them."""
VERSION = 2
HEADER = 32
TILES, MASK, SLICES, COLUMNS, WINDOWS = 1, 2, 3, 4, 5
DONE, NOT_FINITE, REFUSED = 0, 1, 2
LACKING = (
    "the sparse kernels are not compiled: install GCC or Clang (C++17), then install prunus again "
    "from its sources (pip install --no-binary prunus --force-reinstall --no-deps prunus, or pip "
    "install -e . in a checkout)"
)


class Product(ctypes.Structure):
    """The arguments of a product; see ``abi.h``."""

    _fields_ = (
        *((name, c_void_p) for name in ("layout", "values", "x", "y", "bias", "residual")),
        *((name, c_int64) for name in ("tokens", "x_stride", "y_stride", "residual_stride")),
        *((name, c_int32) for name in ("type", "activation", "threads", "unused")),
    )


class Gradient(ctypes.Structure):
    """The arguments of a gradient of weights."""

    _fields_ = (
        *((name, c_void_p) for name in ("layout", "gradient", "x", "dy")),
        *((name, c_int64) for name in ("tokens", "x_stride", "dy_stride")),
        ("type", c_int32), ("threads", c_int32),
    )  # fmt: skip


class Recurrent(ctypes.Structure):
    """A layer and direction of an LSTM or a GRU; see ``abi.h``."""

    _fields_ = (
        *((name, c_void_p) for name in ("layout", "values", "gates", "bias", "h", "c", "out")),
        *((name, c_int64) for name in ("steps", "batch", "hidden", "out_step", "out_batch")),
        *((name, c_int32) for name in ("kind", "reverse", "type", "threads")),
    )


class Rows(ctypes.Structure):
    """A matrix by its rows."""

    _fields_ = (("first", c_void_p), ("column", c_void_p), ("rows", c_int64), ("cols", c_int64))


class Shape(ctypes.Structure):
    """How tiles are cut."""

    _fields_ = tuple((n, c_int32) for n in ("side", "height", "width", "band", "panel"))


@dataclass(frozen=True)
class Native:
    """Kernels for one instruction set.

    Attributes:
        name: of the set.
        call: the library, with its functions' arguments declared.
    """

    name: str
    call: Any


def built() -> dict[str, Path]:
    """The libraries that were compiled with the package, by instruction set."""
    here = Path(__file__).parent
    found = {name: sorted(here.glob(f"{name}.*so")) for name in SETS}
    return {name: paths[0] for name, paths in found.items() if paths}


def usable() -> list[str]:
    """Instruction sets that are compiled and that this processor has, the best first.

    >>> set(usable()) <= set(SETS)
    True
    """
    paths = built()
    if "portable" not in paths:
        return []
    ask = _opened(str(paths["portable"])).prunus_supported
    return [name for name in SETS if name in paths and ask(name.encode())]


def library(name: str | None = None) -> Native:
    """The kernels for an instruction set.

    Args:
        name: of the set; ``None`` takes what the environment variable names, or the best.

    Raises:
        InputError: if nothing is compiled, or the set is unknown, not compiled or not this
            processor's.
    """
    wanted = name or os.environ.get(VARIABLE)
    if not wanted:
        best = next(iter(_usable()), None)
        if best is None:
            raise InputError(LACKING)
        return _native(best)
    if wanted not in SETS:
        raise InputError(f"there is no instruction set '{wanted}'; {did_you_mean(wanted, SETS)}")
    if not built():
        raise InputError(LACKING)
    if wanted not in built():
        raise InputError(f"the kernels for {wanted} are not compiled here; these are: {_known()}")
    if wanted not in usable():
        raise InputError(
            f"this processor ({platform.machine()}) has no {wanted}; it can take: {_known()}"
        )
    return _native(wanted)


def _known() -> str:
    return ", ".join(usable()) or "none"


@cache
def _usable() -> tuple[str, ...]:
    return tuple(usable())


@cache
def _native(name: str) -> Native:
    return Native(name, _opened(str(built()[name])))


@cache
def _opened(path: str) -> Any:
    library = ctypes.CDLL(path)
    pointers = [c_void_p, c_int64, c_void_p, c_int64, POINTER(c_int64)]
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "version": (c_int32, []),
        "name": (c_char_p, []),
        "supported": (c_int32, [c_char_p]),
        "check": (c_char_p, [c_void_p, c_int64]),
        "tiles": (c_int64, [POINTER(Rows), POINTER(Shape), *pointers]),
        "mask": (c_int64, [POINTER(Rows), c_void_p, c_int64]),
        "slices": (c_int64, [POINTER(Rows), c_int32, *pointers]),
        "product": (c_int32, [POINTER(Product)]),
        "gradient": (c_int32, [POINTER(Gradient)]),
        "recurrent": (c_int32, [POINTER(Recurrent)]),
        "dense": (None, [c_void_p, c_void_p, c_int32, c_void_p]),
        "gather": (c_int32, [c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int32]),
        "scatter": (c_int32, [c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int32]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"prunus_{name}")
        function.restype, function.argtypes = result, arguments
    if library.prunus_version() != VERSION:
        raise InputError(f"'{path}' is of another version of prunus: install the package again")
    return library
