"""OpenVINO on the processor, in float32.

The model reaches it through ONNX, where a recurrent layer is one operator: read from torch.export
directly it is unrolled for the example's length, and an LSTM ran three times slower.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prunus.runtimes import Answers, Compute, Order, Session
from prunus.runtimes._onnx import refuses, write_onnx
from prunus.runtimes.onnxruntime import array
from prunus.timing import no_denormals

if TYPE_CHECKING:
    from openvino import CompiledModel

__all__ = ["build", "open_", "refuses"]

NEEDS = ("openvino", "onnx", "onnxscript")
DEVICES = ("cpu",)
EXACT = True
TOLERANCE = 1e-4
SKIPS_ZEROS = False
SLOW = False
SAFE = True


def build(order: Order) -> Session:
    """Export, convert, write ``model.xml`` and ``model.bin``, and open.

    Raises:
        InputError: if the model cannot be expressed in ONNX.
    """
    with tempfile.TemporaryDirectory(dir=order.folder, prefix=".") as place:
        made = write_onnx(order, Path(place))
        path = convert(made.path, order.folder)
    opened = open_(path, threads=order.threads)
    return Session(opened.compute, path, made.dynamic, made.notes)


def convert(source: Path, folder: Path) -> Path:
    """Write an ONNX file as OpenVINO keeps models, its weights as they are."""
    import openvino

    path = folder / "model.xml"
    # By default it would halve the weights' precision.
    openvino.save_model(openvino.Core().read_model(source), path, compress_to_fp16=False)
    return path


def open_(path: Path, *, threads: int) -> Session:
    """Open a ``.xml`` with its ``.bin``, in float32 whatever the processor would prefer."""
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 by default where the processor has it
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # two processes would be bound to the same core
        "CPU_DENORMALS_OPTIMIZATION": True,
    }
    with no_denormals():  # OpenVINO would leave this thread so, long after
        model = openvino.Core().compile_model(path, "CPU", settings)
    return Session(computing(model), path)


def computing(model: CompiledModel) -> Compute:
    """Tensors in, tensors out; inputs are read where they lie, and answers are copies."""
    request: Any = model.create_infer_request()
    count = len(model.outputs)

    def compute(inputs: Sequence[Tensor]) -> Answers:
        found = request.infer([array(t) for t in inputs], share_inputs=True)
        return [torch.from_numpy(found[i]) for i in range(count)]

    return compute
