"""LSTM, GRU and plain recurrent layers: a unit is one hidden index with all its gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunus.graph.call import Call, Found
from prunus.graph.labels import Dim, Fixed, Value

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
    given = start if isinstance(start, (list, tuple)) else [start]
    starts = [v for n in given if (v := call.of(n)) is not None]
    weights = [v for n in call["params"] if (v := call.of(n)) is not None]
    if x is None or len(starts) < len(given) or len(weights) < len(call["params"]):
        return None
    per = 4 if call["has_biases"] else 2
    layers, ways = int(call["num_layers"]), 2 if call["bidirectional"] else 1
    projected = len(weights) > layers * ways * per  # an LSTM whose outputs are narrower than it
    per += projected
    width: Dim = call.labels.join(*(s.dims[-1] for s in starts[projected:]))
    hidden = starts[0].dims[-1] if projected else width
    inputs = x.dims[-1]
    for i in range(layers * ways):
        own = weights[i * per :][:per]
        _one(call, own[: per - projected], inputs, hidden, (width, gates))
        if projected:  # hidden state = w·(what would be the hidden state)
            call.labels.tie(hidden, own[-1].dims[0])
            call.labels.tie(width, own[-1].dims[1])
        if (i + 1) % ways == 0:
            inputs = hidden if isinstance(hidden, Fixed) else np.tile(hidden, ways)
    zero = [s.zero[-1] for s in starts]
    return _outputs(call, x, inputs, [hidden, width], zero if projected else [all(zero)] * 2)


def _one(call: Call, own: Sequence[Any], inputs: Dim, hidden: Dim, rows: tuple[Dim, int]) -> None:
    """One layer in one direction: rows of both weights are gates × units."""
    w_in, w_hidden, biases = own[0], own[1], own[2:]
    call.labels.tie(inputs, w_in.dims[1])
    call.labels.tie(hidden, w_hidden.dims[1])
    width, gates = rows
    every = width if isinstance(width, Fixed) else np.tile(width, gates)
    for part in (w_in, w_hidden, *biases):
        call.labels.tie(every, part.dims[0])


def _outputs(call: Call, x: Value, out: Dim, states: Sequence[Dim], zero: Sequence[bool]) -> Found:
    """(sequence, last hidden state[, last cell state])."""
    batch = [False] * (len(x.dims) - 1)
    sequence = call.result([*x.dims[:-1], out], [*batch, zero[0]], call.out[0])
    where = Fixed(f"{call.where}: layers, directions and batch")
    last = [
        call.result([*(where for _ in t.shape[:-1]), dim], [*(False for _ in t.shape[:-1]), z], t)
        for t, dim, z in zip(call.out[1:], states, zero, strict=False)
    ]
    return [sequence, *last]


def pack(call: Call) -> Found:
    """Sequences of their own lengths, the steps of all of them behind each other."""
    x = call.value("input")
    if x is None:
        return None
    why = f"{call.where}: steps and batch"
    for dim in x.dims[:2]:
        call.labels.pin(dim, why)
    data, sizes = call.out
    rest = [Fixed(why), *x.dims[2:]], [False, *x.zero[2:]]
    return [call.result(*rest, data), call.fixed(why, sizes)]


def pad(call: Call) -> Found:
    """The same backwards, with a value behind the end of each."""
    x = call.value("data")
    if x is None:
        return None
    why = f"{call.where}: steps and batch"
    call.labels.pin(x.dims[0], why)
    padded, lengths = call.out
    filled = call["padding_value"] == 0
    zero = [False, False, *(z and filled for z in x.zero[1:])]
    dims: list[Dim] = [Fixed(why), Fixed(why), *x.dims[1:]]
    return [call.result(dims, zero, padded), call.fixed(why, lengths)]


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
    weights = [w for w in own if w is not None]
    _one(call, weights, x.dims[-1], hidden, (hidden, GATES[call.name[:-5]]))
    batch = call.labels.join(*(v.dims[0] for v in (x, *states))) if len(x.dims) > 1 else None
    dims = [hidden] if batch is None else [batch, hidden]
    zero = [*(False for _ in dims[1:]), all(s.zero[-1] for s in states)]
    if not isinstance(call.out, (tuple, list)):
        return call.result(dims, zero)
    return [call.result(dims, zero, t) for t in call.out]


RULES = (
    dict.fromkeys(GATES, recurrent)
    | {f"{name}_cell": cell for name in GATES}
    | {"_pack_padded_sequence": pack, "_pad_packed_sequence": pad}
)
