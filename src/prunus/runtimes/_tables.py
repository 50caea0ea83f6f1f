"""Embedding tables of an ONNX model in int8, a scale for each row.

A table is read row by row and multiplied with nothing, so that rounding it costs no accuracy that a
scale a row does not give back, and no time. Quantizers leave tables alone, or give one scale to all
of a table, whose largest value then decides for every word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LEAST = 10_000
"""Values of a table from which on it is worth four operators instead of one."""


def round_tables(path: Path, *, external: bool = False) -> int:
    """Round the tables of a file, in place: w ≈ s·q, s = max |row| ÷ 127, zeros stay zeros.

    Args:
        path: of the ONNX file.
        external: whether weights are kept in a file beside it.

    Returns:
        How many tables there were.
    """
    import onnx

    model = onnx.load(path)
    tables = list(_tables(model.graph))
    for table, nodes in tables:
        _round(model.graph, table, nodes)
    if tables:
        for old in path.parent.glob(f"{path.name}*"):
            old.unlink()
        onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data")
    return len(tables)


def _tables(graph: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Matrices that are read by rows and in no other way, and the nodes that read them."""
    import onnx

    readers: dict[str, list[tuple[Any, int]]] = defaultdict(list)
    for node in graph.node:
        for place, name in enumerate(node.input):
            readers[name].append((node, place))
    seen = {o.name for o in graph.output}
    inner = {name for node in graph.node for name in of_subgraphs(node)}
    for table in graph.initializer:
        rows = [node for node, place in readers[table.name] if place == 0 and _by_rows(node)]
        if (
            table.data_type == onnx.TensorProto.FLOAT
            and len(table.dims) == 2
            and table.dims[0] * table.dims[1] >= LEAST
            and rows
            and len(rows) == len(readers[table.name])
            and table.name not in seen | inner
        ):
            yield table, rows


def of_subgraphs(node: Any) -> Iterator[str]:
    """Names that the branches and loops of a node read."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from of_subgraphs(inner)


def _by_rows(node: Any) -> bool:
    return node.op_type == "Gather" and all(a.i == 0 for a in node.attribute if a.name == "axis")


def _round(graph: Any, table: Any, nodes: list[Any]) -> None:
    """Gather, as four operators: rows of int8, as float, times their scales."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    values = numpy_helper.to_array(table)
    scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    scales[scales == 0] = 1
    whole = np.rint(values / scales).astype(np.int8)
    graph.initializer.remove(table)
    # With a slash: the quantizer calls what it adds name_scale and the like.
    names = {"rows": f"{table.name}/rows", "scales": f"{table.name}/scales"}
    graph.initializer.append(numpy_helper.from_array(whole, names["rows"]))
    graph.initializer.append(numpy_helper.from_array(scales.astype(np.float32), names["scales"]))
    for node in nodes:
        place = list(graph.node).index(node)
        number, out = node.input[1], node.output[0]
        made = [
            helper.make_node("Gather", [names["rows"], number], [f"{out}/rows"], axis=0),
            helper.make_node("Cast", [f"{out}/rows"], [f"{out}/float"], to=TensorProto.FLOAT),
            helper.make_node("Gather", [names["scales"], number], [f"{out}/scales"], axis=0),
            helper.make_node("Mul", [f"{out}/float", f"{out}/scales"], [out]),
        ]
        graph.node.remove(node)
        for new in reversed(made):
            graph.node.insert(place, new)
