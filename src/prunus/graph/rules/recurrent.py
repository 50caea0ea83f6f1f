"""LSTM, GRU and plain recurrent layers: a unit is one hidden index with all its gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunus.graph.call import Call, Found
from prunus.graph.labels import Array, Dim, Fixed, Value

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def recurrent(call: Call) -> Found:
    """Layers of one operator share their width, so unit i is hidden index i of each of them.

    The hidden state starts from one tensor ``[layers·directions, batch, hidden]`` and comes out
    as one: the operator knows a single width.
    """
    gates = GATES[call.name]
    packed = call.value("data") is not None
    x = call.value("data") if packed else call.value("input")
    start = call["hx"]
    starts = [call.of(n) for n in (start if isinstance(start, (list, tuple)) else [start])]
    weights = [call.of(n) for n in call["params"]]
    if x is None or any(v is None for v in (*starts, *weights)):
        return None
    per = 4 if call["has_biases"] else 2
    layers, ways = int(call["num_layers"]), 2 if call["bidirectional"] else 1
    hidden: Dim = call.labels.join(*(s.dims[-1] for s in starts if s is not None))
    inputs, size = x.dims[-1], 0
    for layer in range(layers):
        for way in range(ways):
            own = weights[(layer * ways + way) * per :][:per]
            size = _one(call, own, inputs, hidden, gates)
        joined = _twice(hidden, size, ways, call)
        inputs = joined
    zero = all(s is not None and s.zero[-1] for s in starts)
    return _outputs(call, x, inputs, hidden, zero)


def _one(call: Call, own: Sequence[Any], inputs: Dim, hidden: Dim, gates: int) -> int:
    """One layer in one direction: rows of both weights are gates × units."""
    w_in, w_hidden, biases = own[0], own[1], own[2:]
    size = w_hidden.shape[1]
    call.labels.tie(inputs, w_in.dims[1])
    call.labels.tie(hidden, w_hidden.dims[1])
    rows = hidden if isinstance(hidden, Fixed) else np.tile(hidden, gates)
    for part in (w_in, w_hidden, *biases):
        call.labels.tie(rows, part.dims[0])
    return int(size)


def _twice(hidden: Dim, size: int, ways: int, call: Call) -> Dim:
    if isinstance(hidden, Fixed):
        return hidden
    found: Array = np.tile(hidden, ways)
    return found


def _outputs(call: Call, x: Value, out: Dim, hidden: Dim, zero: bool) -> Found:
    """(sequence, last hidden state[, last cell state])."""
    sequence = call.result([*x.dims[:-1], out], [*(False for _ in x.dims[:-1]), zero], call.out[0])
    states = [
        call.result(
            [*(Fixed(f"{call.where}: layers, directions and batch") for _ in t.shape[:-1]), hidden],
            [*(False for _ in t.shape[:-1]), zero],
            t,
        )
        for t in call.out[1:]
    ]
    return [sequence, *states]


def cell(call: Call) -> Found:
    """One step of one layer: (hidden, cell) of an LSTM, else the hidden state."""
    start = call["hx"]
    starts = [call.of(n) for n in (start if isinstance(start, (list, tuple)) else [start])]
    own = [call.value(k) for k in ("w_ih", "w_hh", "b_ih", "b_hh")]
    x = call.value("input")
    if x is None or own[0] is None or own[1] is None or any(s is None for s in starts):
        return None
    states = [s for s in starts if s is not None]
    hidden: Dim = call.labels.join(*(s.dims[-1] for s in states))
    hidden = call.labels.join(hidden, own[1].dims[1])
    _one(call, [w for w in own if w is not None], x.dims[-1], hidden, GATES[call.name[:-5]])
    batch = call.labels.join(*(v.dims[0] for v in (x, *states))) if len(x.dims) > 1 else None
    dims = [hidden] if batch is None else [batch, hidden]
    zero = [*(False for _ in dims[1:]), all(s.zero[-1] for s in states)]
    if not isinstance(call.out, (tuple, list)):
        return call.result(dims, zero)
    return [call.result(dims, zero, t) for t in call.out]


RULES = dict.fromkeys(GATES, recurrent) | {f"{name}_cell": cell for name in GATES}
