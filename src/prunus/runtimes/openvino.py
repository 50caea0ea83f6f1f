"""OpenVINO on the processor, in float32.

The model reaches it through ONNX, where a recurrent layer is one operator: read from torch.export
directly it is unrolled for the example's length, and an LSTM ran three times slower.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from prunus.runtimes import Answers, Compute, Order, Session
from prunus.runtimes._onnx import refuses, write_onnx
from prunus.runtimes.onnxruntime import array
from prunus.timing import no_denormals

__all__ = ["build", "open_", "refuses"]

NEEDS = ("openvino", "onnx", "onnxscript")
DEVICES = ("cpu",)
EXACT = True
TOLERANCE = 1e-4
SKIPS_ZEROS = False
SLOW = False
SAFE = True
MULTIPLE_OF = 8

OFTEN = 3
"""Calls with the same shapes before a program is made for them."""
FIXED = 2
"""Programs for fixed shapes at most: each holds the weights once more."""

Shapes = tuple[tuple[int, ...], ...]


def build(order: Order) -> Session:
    """Export, convert, write ``model.xml`` and ``model.bin``, and open.

    Raises:
        InputError: if the model cannot be expressed in ONNX.
    """
    with tempfile.TemporaryDirectory(dir=order.folder, prefix=".") as place:
        made = write_onnx(order, Path(place))
        path = _convert(made.path, order.folder)
    opened = open_(path, threads=order.threads)
    return Session(opened.compute, path, made.dynamic, made.notes)


def _convert(source: Path, folder: Path) -> Path:
    """Write an ONNX file as OpenVINO keeps models, its weights as they are."""
    import openvino

    path = folder / "model.xml"
    # By default it would halve the weights' precision.
    openvino.save_model(openvino.Core().read_model(source), path, compress_to_fp16=False)
    return path


def open_(path: Path, *, threads: int) -> Session:
    """Open a ``.xml`` (or ``.onnx``), in float32 whatever the processor would prefer."""

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 by default where the processor has it
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # two processes would be bound to the same core
        "CPU_DENORMALS_OPTIMIZATION": True,
    }
    return Session(computing(path, settings), path)


def computing(path: Path, settings: dict[str, Any]) -> Compute:
    """Tensors in, tensors out; inputs are read where they lie, and answers are copies.

    What comes again and again with the same shapes gets a program of its own for them: with sizes
    fixed, OpenVINO answers a small network's single input a third faster. Inputs are set one by
    one: as arguments of ``infer`` their binding looks them up by exceptions, which takes longer
    than half of a small network's layers, and longer still once ONNX Runtime is imported.
    """
    import openvino

    requests = _Requests(path, settings)

    def compute(inputs: Sequence[Tensor]) -> Answers:
        arrays = [array(t) for t in inputs]
        with requests.lock:  # a request holds the inputs of one caller
            request = requests.of(tuple(a.shape for a in arrays))
            for place, given in enumerate(arrays):
                request.set_input_tensor(place, openvino.Tensor(given, shared_memory=True))
            request.infer(share_outputs=True)
            places = range(requests.outputs)
            return [torch.from_numpy(request.get_output_tensor(i).data.copy()) for i in places]

    return compute


class _Requests:
    """The program for any sizes, and those for the sizes that keep coming."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        import openvino

        self.core, self.settings = openvino.Core(), settings
        self.model = self.core.read_model(path)
        self.outputs = len(self.model.outputs)
        self.any = self._compiled(self.model)
        self.seen: Counter[Shapes] = Counter()
        self.fixed: dict[Shapes, Any] = {}
        self.lock = Lock()

    def of(self, shapes: Shapes) -> Any:
        """The best request for these shapes."""
        if shapes not in self.fixed and self.model.is_dynamic() and len(self.fixed) < FIXED:
            self.seen[shapes] += 1
            if self.seen[shapes] >= OFTEN:
                self.fixed[shapes] = self._for(shapes)
        return self.fixed.get(shapes, self.any)

    def _for(self, shapes: Shapes) -> Any:
        model = self.model.clone()
        try:
            model.reshape({i: list(shape) for i, shape in enumerate(shapes)})
            return self._compiled(model)
        except RuntimeError:  # an operator that insists on open sizes
            return self.any

    def _compiled(self, model: Any) -> Any:
        with no_denormals():  # OpenVINO would leave this thread so, long after
            return self.core.compile_model(model, "CPU", self.settings).create_infer_request()
