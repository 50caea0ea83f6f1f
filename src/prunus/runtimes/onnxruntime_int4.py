"""ONNX Runtime on the processor, weights of matrix products in int4.

Each 32 weights that follow each other along the inputs of an output share a scale, w ≈ s·q with q
from −8 to 7, so that 0 stays 0; nothing is calibrated. The products are computed in int8: what is
multiplied is rounded as it comes. Embedding tables are int8, all else float32. It is for networks
whose bytes lie in linear layers, transformers above all. One thread of AVX2, MiniLM-L6 on four
reviews of 32 words (‖a − b‖ ÷ ‖b‖ in brackets): 18.7 MB and 133 ms (0.25); int8 22.8 MB and 64 ms
(0.40: its few large activations decide the scale of all); float32 90.3 MB and 148 ms.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from prunus.errors import InputError, first_line
from prunus.runtimes import BuildRequest, Facts, Session, _quantize
from prunus.runtimes._census import PRODUCTS
from prunus.runtimes._onnx import write_onnx
from prunus.runtimes._quantize import Ready, is_big
from prunus.runtimes._silent import silent
from prunus.runtimes._tables import of_subgraphs, round_tables
from prunus.runtimes.onnxruntime import open_

__all__ = ["build", "open_", "refuses"]

FACTS = Facts(needs=("onnxruntime", "onnx", "onnxscript"), devices=("cpu",),
              exact=False, tolerance=0.3, safe=True)  # fmt: skip

BLOCK = 32
"""Weights that share a scale."""
IN_INT8 = 4
"""ONNX Runtime's number for products that are computed in int8."""


def refuses(order: BuildRequest) -> str | None:
    """Half precision; weights that lie in other layers than linear ones."""
    refusal = _quantize.refuses(order, PRODUCTS, calibrates=False)
    return None if refusal is None else refusal.replace("int8", "int4")


def build(order: BuildRequest) -> Session:
    """Export, quantize, write and open.

    Raises:
        InputError: if the model cannot be expressed in ONNX, or ONNX Runtime is too old.
    """
    path = order.folder / "model.onnx"
    with tempfile.TemporaryDirectory(dir=order.folder, prefix=".") as place:
        made = write_onnx(order, Path(place))
        note = _written(_quantize.ready(made, PRODUCTS), path)
    return open_(path, threads=order.threads).as_made(made, note)


def _written(given: Ready, path: Path) -> str:
    """Round, and write; what to know of it."""
    import onnx

    try:
        from onnxruntime.quantization import matmul_nbits_quantizer
    except ImportError as error:  # before 1.22, or without what it writes with
        raise InputError(
            f"ONNX Runtime has no quantizer of four bits here: {first_line(error)}: "
            "pip install -U onnxruntime onnx-ir"
        ) from error
    big = is_big(given.path)
    with silent():
        kind: Any = matmul_nbits_quantizer.MatMulNBitsQuantizer
        model = onnx.load(given.path)
        products(model.graph)
        quantizer = kind(model, block_size=BLOCK, is_symmetric=True, accuracy_level=IN_INT8)
        quantizer.process()
        quantizer.model.save_model_to_file(str(path), big)
    round_tables(path, external=big)
    return f"int4 by {BLOCK}s, a scale each; products in int8, inputs rounded as they come"


def products(graph: Any) -> None:
    """Write A·B + C (Gemm) as a product and a sum, in place: the quantizer knows products alone.

    Args:
        graph: of ONNX. Where B is no constant, or a factor is not one, the operator stays.
    """
    from onnx import helper, numpy_helper

    weights = {one.name: one for one in graph.initializer}
    made: list[Any] = []
    gone: set[str] = set()
    for node in graph.node:
        said = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = said.get("alpha", 1.0) == said.get("beta", 1.0) == 1.0 and not said.get("transA", 0)
        if node.op_type != "Gemm" or node.input[1] not in weights or not plain:
            made.append(node)
            continue
        right, end = node.input[1], node.output[0]
        if said.get("transB", 0):
            turned = f"{right}/turned"
            gone.add(right)
            if turned not in weights:
                rows = numpy_helper.to_array(weights[right])
                weights[turned] = numpy_helper.from_array(rows.T.copy(), turned)
                graph.initializer.append(weights[turned])
            right = turned
        added = len(node.input) > 2 and bool(node.input[2])
        out = f"{end}/product" if added else end
        made.append(helper.make_node("MatMul", [node.input[0], right], [out], name=f"{end}/by"))
        if added:
            made.append(helper.make_node("Add", [out, node.input[2]], [end], name=f"{end}/plus"))
    del graph.node[:]
    graph.node.extend(made)
    read = {name for node in made for name in (*node.input, *of_subgraphs(node))}
    read |= {o.name for o in graph.output}
    for name in gone - read:
        graph.initializer.remove(weights[name])
