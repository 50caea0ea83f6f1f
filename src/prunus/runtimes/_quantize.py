"""An ONNX model in int8, by ONNX Runtime's own quantizer.

Weights are rounded symmetrically, w ≈ s·q with a scale s for each output, so that 0 stays 0; they
have seven bits: eight overflow where a processor without VNNI adds products in pairs (ResNet-20 on
AVX2: ‖a − b‖ ÷ ‖b‖ 0.25 with eight, 0.06 with seven; an LSTM: 0.29 and 0.005), and a file travels.
Embedding tables, which the quantizer leaves alone, are rounded by :mod:`prunus.runtimes._tables`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.errors import InputError, first_line
from prunus.runtimes import BuildRequest, Session
from prunus.runtimes import _onnx as onnx_file
from prunus.runtimes._arguments import calibration_of
from prunus.runtimes._census import CONVOLUTIONS, PRODUCTS, Census, of_graph, of_modules
from prunus.runtimes._exported import batch_of
from prunus.runtimes._onnx import OnnxFile, write_onnx
from prunus.runtimes._silent import silent
from prunus.runtimes._sizes import Sizes
from prunus.runtimes._tables import round_tables
from prunus.runtimes.onnxruntime import array

BETWEEN = (
    "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool",
    "Mul", "Pad", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
)  # fmt: skip
"""What stands between convolutions is int8 too, so that values need not change their kind."""
EXTRA = {"WeightSymmetric": True, "MatMulConstBOnly": True}
BIG = 1_500_000_000
"""Bytes from which on weights lie in a file of their own; one file holds at most 2 GB."""
GIVE = "it rounds by the ranges found in inputs: pass calibration, inputs like the example"


@dataclass(frozen=True)
class Ready:
    """A model folded and simplified, and what it is made of.

    Attributes:
        path: of the ONNX file.
        inputs: names of its inputs.
        dynamic: whether it takes any batch size.
        sizes: the others that it takes.
        census: of its layers.
    """

    path: Path
    inputs: tuple[str, ...]
    dynamic: bool
    sizes: Sizes
    census: Census


def refuses(order: BuildRequest, kinds: Sequence[str], *, calibrates: bool) -> str | None:
    """Weights that are not float32, too few of these kinds, or no calibration, before any work.

    Args:
        order: what is to be built.
        kinds: of operators whose weights become int8.
        calibrates: whether networks without convolutions need calibration as well.
    """
    census = of_modules(order.model)
    refusal = onnx_file.refuses(order)
    if any(p.dtype is torch.float64 for p in order.model.parameters()):
        refusal = (
            "it quantizes float32, but the weights are torch.float64: call model.float() first"
        )
    if refusal or not census.layers:  # a graph is counted when it is built
        return refusal
    lacking = not order.calibration and (calibrates or census.convolutional)
    return census.too_few(kinds) or (GIVE if lacking else None)


def build(
    order: BuildRequest, kinds: Sequence[str], open_: Callable[..., Session], *, calibrates: bool
) -> Session:
    """Export, quantize, write ``model.onnx``, and open.

    Args:
        order: what is to be built.
        kinds: of operators whose weights become int8.
        open_: opens the file.
        calibrates: whether networks without convolutions are quantized by calibration as well.

    Raises:
        InputError: if the model cannot be expressed in ONNX, or for what :func:`refuses` could
            not see of a graph.
    """
    path = order.folder / "model.onnx"
    with tempfile.TemporaryDirectory(dir=order.folder, prefix=".") as place:
        made = write_onnx(order, Path(place))
        given = ready(made, kinds)
        by_calibration = calibrates or given.census.convolutional
        note = static(order, given, path) if by_calibration else dynamic(given, path)
    return open_(path, threads=order.threads).as_made(made, note)


def ready(source: OnnxFile, kinds: Sequence[str]) -> Ready:
    """Fold constants and batch norms, infer shapes, and count what there is to quantize.

    Raises:
        InputError: if operators of these kinds hold too few of the weights.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = source.path.with_name("ready.onnx")
    big = is_big(source.path)
    for skip in (False, True):  # symbolic shapes fail on some models, and are a help, no need
        try:
            with silent():
                quant_pre_process(
                    str(source.path), str(path), skip_symbolic_shape=skip,
                    save_as_external_data=big, all_tensors_to_one_file=big,
                )  # fmt: skip
            break
        except Exception as error:  # onnxruntime's and sympy's, of no common type
            if skip:
                raise InputError(f"ONNX Runtime cannot prepare it: {first_line(error)}") from error
    graph = onnx.load(path, load_external_data=False).graph
    census = of_graph(graph)
    refusal = census.too_few(kinds)
    if refusal:
        raise InputError(refusal)
    return Ready(path, tuple(i.name for i in graph.input), source.dynamic, source.sizes, census)


def static(order: BuildRequest, given: Ready, path: Path) -> str:
    """Weights and activations in int8, by the ranges that calibration inputs show.

    Returns:
        What to know of it.

    Raises:
        InputError: without calibration that fits the example.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    inputs = calibration_of(order, given.sizes)
    batches = inputs if given.dynamic else list(_parts(inputs, batch_of(order) or 1))
    if not batches:
        raise InputError(GIVE)
    chain = (*CONVOLUTIONS, *PRODUCTS, *BETWEEN) if given.census.convolutional else PRODUCTS
    with silent():
        quantize_static(
            str(given.path), str(path), _reader(given.inputs, batches), per_channel=True,
            reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            quant_format=QuantFormat.QDQ, op_types_to_quantize=list(chain),
            use_external_data_format=is_big(given.path), extra_options=dict(EXTRA),
        )  # fmt: skip
    round_tables(path, external=is_big(given.path))
    left_out = len(order.calibration) - len(inputs)
    other = f", {left_out} of other sizes left out" if left_out else ""
    return f"static int8, ranges from {len(inputs)} calibration batches{other}"


def dynamic(given: Ready, path: Path) -> str:
    """Weights in int8; inputs of matrix products and LSTMs are rounded as they come.

    Returns:
        What to know of it.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with silent():
        quantize_dynamic(
            str(given.path), str(path), op_types_to_quantize=[*PRODUCTS, "LSTM"], per_channel=True,
            reduce_range=True, weight_type=QuantType.QInt8, extra_options=dict(EXTRA),
            use_external_data_format=is_big(given.path),
        )  # fmt: skip
    round_tables(path, external=is_big(given.path))
    return "dynamic int8, ranges taken from each input as it arrives"


def _reader(names: Sequence[str], batches: Sequence[Sequence[Tensor]]) -> Any:
    """As the quantizer asks for its inputs: one mapping after the other, then None."""
    from onnxruntime.quantization import CalibrationDataReader

    left = iter(batches)

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            tensors = next(left, None)
            return tensors and dict(zip(names, map(array, tensors), strict=True))

    return Reader()


def _parts(inputs: Sequence[Sequence[Tensor]], size: int) -> Iterator[list[Tensor]]:
    """Batches cut for a model that takes one size; what is left over is not used."""
    for tensors in inputs:
        count = next((len(t) for t in tensors if t.dim()), size)
        for start in range(0, count - size + 1, size):
            yield [t[start : start + size] if t.dim() and len(t) == count else t for t in tensors]


def is_big(path: Path) -> bool:
    """Whether weights must lie in a file of their own."""
    return sum(p.stat().st_size for p in path.parent.glob(f"{path.name}*")) > BIG
