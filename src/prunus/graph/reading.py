"""Indices that this example reads: rows of a table beyond its lengths look free, and are not."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import fx

from prunus.graph.call import Known
from prunus.graph.labels import Array, Fixed, Value
from prunus.graph.solve import Solved


def values_of(known: Known) -> Iterator[Value]:
    """The tensors of a node, if it gives any."""
    found = (known,) if isinstance(known, Value) or known is None else known
    yield from (value for value in found if value is not None)


def read_classes(
    nodes: Iterable[fx.Node], known: Mapping[fx.Node, Known], solved: Solved
) -> NDArray[np.bool_]:
    """Classes that some operator does not pass on: it sums over them, or writes them down.

    What is only passed on, operator by operator, until a slice leaves it out, is read by none;
    another example may have it.

    Args:
        nodes: operators that do more than move elements.
        known: labels of nodes.
        solved: the classes of labels.

    Returns:
        Bool, ``[classes]``.
    """
    read = np.zeros(len(solved.reason), dtype=bool)
    passed = np.zeros(len(solved.reason), dtype=bool)
    for node in nodes:
        taken = [u for u in node.users if u.target is operator.getitem and u.users] or [node]
        out = [classes for n in taken for classes in _classes(known.get(n), solved)]
        for classes in out:
            passed[classes] = True
        for operand in node.all_input_nodes:
            for classes in _classes(known.get(operand), solved):
                read[classes[~passed[classes]]] = True
        for classes in out:
            passed[classes] = False
    return read


def _classes(known: Known, solved: Solved) -> Iterator[Array]:
    for value in values_of(known):
        yield from (solved.of(dim) for dim in value.dims if not isinstance(dim, Fixed))
