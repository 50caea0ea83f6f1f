"""The arguments of sequences of convolutions, as ``native/steps.h`` has them."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

from prunus.kernels.native import library

VIEWS, CONVOLUTION, DEPTHWISE, MAXIMUM, MEAN, SUM, GRADIENT = 1, 2, 3, 4, 5, 6, 7


class Grid(ctypes.Structure):
    """How pictures of one size lie in planes."""

    _fields_ = (
        ("image", c_int64), ("plane", c_int64),
        *((n, c_int32) for n in ("batch", "height", "width", "row", "lead", "unused")),
    )  # fmt: skip


class Step(ctypes.Structure):
    """One step."""

    _fields_ = (
        ("origin", Grid), ("to", Grid),
        *((n, c_int64) for n in ("x", "more", "y")),
        *((n, c_void_p) for n in ("offset", "mask", "view")),
        *((n, c_int32) for n in (
            "kind", "x_base", "more_base", "y_base", "number", "channels", "views", "taps",
            "stride_y", "stride_x", "below", "beside", "vectors", "activation", "checked", "bare",
        )),
        *((n, c_float) for n in ("low", "high", "fill", "scale")),
    )  # fmt: skip


class Sequence(ctypes.Structure):
    """Steps with what they compute on."""

    _fields_ = (
        ("steps", c_void_p), ("count", c_int64), ("room", c_int64),
        *((n, c_void_p) for n in ("bases", "layouts", "values", "biases")),
        ("threads", c_int32), ("unused", c_int32),
    )  # fmt: skip


def calls() -> Any:
    """The library's functions, with the arguments of those for convolutions declared."""
    return _declared(library().name)


@cache
def _declared(name: str) -> Any:
    call = library(name).call
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "sequence": (c_int32, [POINTER(Sequence)]),
        "offsets": (None, [c_void_p, c_void_p, c_void_p]),
        "vectors": (c_int32, [c_int32]),
    }
    for key, (result, arguments) in signatures.items():
        function = getattr(call, f"prunus_{key}")
        function.restype, function.argtypes = result, arguments
    return call
