"""Reading by position: the dimension that is looked up stays."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from prunus.graph.call import Call, Found, named_arguments
from prunus.graph.labels import Array, Dim, Fixed, Value


def embedding(call: Call) -> Found:
    """Rows by number."""
    w = call.value("weight")
    if w is None:
        return None
    why = f"{call.where}: rows are looked up"
    call.labels.pin(w.dims[0], why)
    rank = call.out.dim()
    dims: list[Dim] = [Fixed(why) for _ in range(rank - 1)]
    return call.result([*dims, w.dims[1]], [*(False for _ in dims), w.zero[1]])


def renorm(call: Call) -> Found:
    """Rows that are longer than allowed are scaled in place: masked numbers add no length."""
    w = call.value("self")
    if w is None:
        return None
    call.labels.pin(w.dims[0], f"{call.where}: rows are looked up")
    return w


def index(call: Call) -> Found:
    """x[:, numbers, …] with tensors of numbers in one or more neighboring places."""
    x, numbers = call.value("self"), call["indices"]
    if x is None:
        return None
    places = [i for i, n in enumerate(numbers) if n is not None]
    why = f"{call.where}: read by position"
    for place in places:
        call.labels.pin(_wanted(call, x, place, numbers[place], alone=len(places) == 1), why)
        value = call.of(numbers[place])
        for dim in value.dims if value is not None else ():
            call.labels.pin(dim, why)
    if places != list(range(places[0], places[-1] + 1)):
        return None
    read = call.out.dim() - (len(x.dims) - len(places))
    first, last = places[0], places[-1] + 1
    dims: list[Dim] = [*x.dims[:first], *(Fixed(why) for _ in range(read)), *x.dims[last:]]
    zero = [*x.zero[:first], *(False for _ in range(read)), *x.zero[last:]]
    return call.result(dims, zero)


BY_POSITION = ("index", "_unsafe_index", "index_select")


def places_read(node: fx.Node) -> list[tuple[int, Any]]:
    """The dimensions along which one of ``BY_POSITION`` reads, and the positions."""
    named = named_arguments(node)
    given = enumerate(named["indices"]) if "indices" in named else [(named["dim"], named["index"])]
    return [(d, numbers) for d, numbers in given if numbers is not None]


def _wanted(call: Call, x: Value, d: int, numbers: object, *, alone: bool = True) -> Dim:
    """The indices of a dimension that are read: all, unless the code writes out which."""
    known, dim = call.constant(numbers) if alone else None, x.dims[d]
    if known is None or known.dtype is not torch.int64 or isinstance(dim, Fixed):
        return dim
    places: Array = known.flatten().numpy() % x.shape[d]
    return dim[places]


def index_put(call: Call) -> Found:
    """x[:, numbers, …] = values: places that are written stay, the others line up."""
    x, values, numbers = call.value("self"), call.value("values"), call["indices"]
    if x is None or values is None:
        return None
    places = [i for i, n in enumerate(numbers) if n is not None]
    why = f"{call.where}: written by position"
    dims: list[Dim] = list(x.dims)
    for place in places:
        call.labels.pin(x.dims[place], why)
        dims[place] = Fixed(why)
        value = call.of(numbers[place])
        for dim in value.dims if value is not None else ():
            call.labels.pin(dim, why)
    after = len(x.dims) - places[-1] - 1  # behind the places, values line up from the last one
    zero = [False] * len(dims)
    for back, dim in enumerate(reversed(values.dims), start=1):
        size = values.shape[-back]
        if size == 1:
            zero[-back] = False
        elif back <= after:
            dims[-back] = call.labels.join(dims[-back], dim)
            zero[-back] = x.zero[-back] and values.zero[-back]
        else:
            call.labels.pin(dim, why)
    if places != list(range(places[-1] + 1)):  # what stands before may line up: not looked into
        for place in range(places[-1]):
            call.labels.pin(dims[place], why)
            dims[place] = Fixed(why)
    return call.result(dims, zero)


def index_select(call: Call) -> Found:
    """Along one dimension."""
    x = call.value("self")
    if x is None:
        return None
    d = int(call["dim"]) % len(x.dims)
    why = f"{call.where}: read by position"
    call.labels.pin(_wanted(call, x, d, call["index"]), why)
    dims: list[Dim] = [Fixed(why) if i == d else dim for i, dim in enumerate(x.dims)]
    return call.result(dims, [z and i != d for i, z in enumerate(x.zero)])


def gather(call: Call) -> Found:
    """Along one dimension, with numbers of the result's shape: other dimensions line up."""
    x, numbers = call.value("self"), call.value("index")
    if x is None or numbers is None:
        return None
    d = int(call["dim"]) % len(x.dims)
    why = f"{call.where}: read by position"
    dims: list[Dim] = []
    for i, (a, b) in enumerate(zip(x.dims, numbers.dims, strict=True)):
        if i == d or x.shape[i] != numbers.shape[i]:
            call.labels.pin(a, why)
            call.labels.pin(b, why)
            dims.append(Fixed(why))
        else:
            dims.append(call.labels.join(a, b))
    return call.result(dims, [z and i != d for i, z in enumerate(x.zero)])


def index_add(call: Call) -> Found:
    """Slices written by number along one dimension; other dimensions line up."""
    x, source, numbers = call.value("self"), call.value("source"), call.value("index")
    if x is None or source is None or numbers is None or len(x.dims) != len(source.dims):
        return None
    d = int(call["dim"]) % len(x.dims)
    why = f"{call.where}: written by position"
    for dim in (x.dims[d], source.dims[d], *numbers.dims):
        call.labels.pin(dim, why)
    dims: list[Dim] = [
        Fixed(why) if i == d else call.labels.join(a, b)
        for i, (a, b) in enumerate(zip(x.dims, source.dims, strict=True))
    ]
    zero = [a and b and i != d for i, (a, b) in enumerate(zip(x.zero, source.zero, strict=True))]
    return call.result(dims, zero)


def segments(call: Call) -> Found:
    """Neighboring slices along one dimension, gathered by given lengths."""
    x = call.value("data")
    if x is None:
        return None
    d = int(call["axis"]) % len(x.dims)
    why = f"{call.where}: which segment a slice belongs to"
    marks = [v for k in ("lengths", "indices", "offsets") if (v := call.value(k)) is not None]
    for dim in (x.dims[d], *(m for mark in marks for m in mark.dims)):
        call.labels.pin(dim, why)
    dims: list[Dim] = [Fixed(why) if i == d else dim for i, dim in enumerate(x.dims)]
    empty = call["initial"] in (None, 0) and call["reduce"] == "sum"
    return call.result(dims, [z and i != d and empty for i, z in enumerate(x.zero)])


def buckets(call: Call) -> Found:
    """Where each value falls among boundaries."""
    x, bounds = call.value("self"), call.value("boundaries", "sorted_sequence")
    if x is None or bounds is None:
        return None
    why = f"{call.where}: boundaries are counted"
    sorter = call.value("sorter")
    for value in (bounds,) if sorter is None else (bounds, sorter):
        call.labels.pin(value.dims[-1], why)
    rows = [bounds, x] if len(bounds.dims) > 1 else [x]
    dims = [call.labels.join(*(v.dims[i] for v in rows)) for i in range(len(x.dims) - 1)]
    last = x.dims[-1:] if len(rows) == 1 else [Fixed(why)]
    if len(rows) > 1:
        call.labels.pin(x.dims[-1], why)
    return call.result([*dims, *last], [False] * len(x.dims))


def scatter(call: Call) -> Found:
    """Elements written along one dimension, with numbers of the source's shape."""
    x, numbers, source = call.value("self"), call.value("index"), call.value("src")
    if x is None or numbers is None:
        return None
    d = int(call["dim"]) % len(x.dims)
    why = f"{call.where}: written by position"
    parts = [x, numbers] if source is None else [x, numbers, source]
    dims: list[Dim] = []
    for i, size in enumerate(x.shape):
        if i == d or any(v.shape[i] != size for v in parts):
            for value in parts:
                call.labels.pin(value.dims[i], why)
            dims.append(Fixed(why))
        else:
            dims.append(call.labels.join(*(v.dims[i] for v in parts)))
    written = call["value"] == 0 if source is None else None
    zero = [
        x.zero[i] and i != d and (written if source is None else source.zero[i])
        for i in range(len(dims))
    ]
    return call.result(dims, [bool(z) for z in zero])


def embedding_bag(call: Call) -> Found:
    """Means or sums of rows by number."""
    w = call.value("weight")
    if w is None:
        return None
    why = f"{call.where}: rows are looked up"
    call.labels.pin(w.dims[0], why)
    first = call.result([Fixed(why), w.dims[1]], [False, w.zero[1]], call.out[0])
    return [first, *(call.fixed(why, t) for t in call.out[1:])]


def one_hot(call: Call) -> Found:
    """Numbers to unit vectors: nothing can go."""
    for node in call.node.all_input_nodes:
        value = call.of(node) if isinstance(node, fx.Node) else None
        for dim in value.dims if value is not None else ():
            call.labels.pin(dim, f"{call.where}: read by position")
    return call.fixed(f"{call.where}: positions")


RULES = {
    "embedding": embedding,
    "embedding_renorm": renorm,
    "embedding_bag": embedding_bag,
    "_embedding_bag": embedding_bag,
    "_embedding_bag_forward_only": embedding_bag,
    "index": index,
    "index_put": index_put,
    "_unsafe_index": index,
    "_unsafe_index_put": index_put,
    "index_select": index_select,
    "index_add": index_add,
    "index_copy": index_add,
    "index_reduce": index_add,
    "segment_reduce": segments,
    "bucketize": buckets,
    "searchsorted": buckets,
    "scatter": scatter,
    "scatter_add": scatter,
    "scatter_reduce": scatter,
    "gather": gather,
    "one_hot": one_hot,
}
