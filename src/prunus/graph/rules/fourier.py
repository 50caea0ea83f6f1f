"""Fourier transforms, and complex numbers as pairs of real ones."""

from __future__ import annotations

from prunus.graph.call import Call, Found
from prunus.graph.labels import Dim, Fixed


def fourier(call: Call) -> Found:
    """Every frequency sees every index of a transformed dimension; the others pass through."""
    x = call.value("self")
    if x is None:
        return None
    rank = len(x.dims)
    given = call["dim"]
    if given is None:  # of the last dimensions as many as sizes are given, or all
        given = range(-len(call["s"] or x.dims), 0)
    mixed = {int(d) % rank for d in ([given] if isinstance(given, int) else given)}
    why = f"{call.where}: every frequency counts every index"
    for d in mixed:
        call.labels.pin(x.dims[d], why)
    dims: list[Dim] = [Fixed(why) if d in mixed else dim for d, dim in enumerate(x.dims)]
    return call.result(dims, [z and d not in mixed for d, z in enumerate(x.zero)])


def pairs_to_complex(call: Call) -> Found:
    """The last dimension holds real and imaginary part."""
    x = call.value("self")
    if x is None:
        return None
    call.labels.pin(x.dims[-1], f"{call.where}: real and imaginary part")
    return call.result(x.dims[:-1], x.zero[:-1])


def complex_to_pairs(call: Call) -> Found:
    """The same backwards."""
    x = call.value("self")
    if x is None:
        return None
    part = Fixed(f"{call.where}: real and imaginary part")
    return call.result([*x.dims, part], [*x.zero, False])


_TRANSFORMS = [f"fft_{way}{real}fft{many}" for way in ("", "i") for real in ("", "r", "h")
               for many in ("", "2", "n")]  # fmt: skip

PAIRS = {"view_as_complex": pairs_to_complex, "view_as_real": complex_to_pairs}
RULES = {
    **dict.fromkeys((*_TRANSFORMS, "_fft_c2c", "_fft_r2c", "_fft_c2r"), fourier),
    **PAIRS,
}
