"""Gated linear units: one half of a dimension multiplies the other."""

from __future__ import annotations

from prunus.graph.call import Call, Found
from prunus.graph.labels import Fixed


def glu(call: Call) -> Found:
    """a·σ(b): index i of the first half falls with index i of the second."""
    x = call.value("self")
    if x is None:
        return None
    d = int(call["dim"]) % len(x.dims)
    dims, whole = list(x.dims), x.dims[d]
    if not isinstance(whole, Fixed):
        dims[d] = call.labels.join(*whole.reshape(2, -1))
    return call.result(dims, x.zero)


RULES = {"glu": glu}
