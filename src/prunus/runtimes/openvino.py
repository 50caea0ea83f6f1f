"""OpenVINO on the processor, in float32.

The model reaches it through ONNX, where a recurrent layer is one operator: read from torch.export
directly it is unrolled for the example's length, and an LSTM ran three times slower.
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from prunus._common.timing import no_denormals
from prunus.errors import InputError
from prunus.runtimes import Answers, BuildRequest, Compute, Facts, Session, error
from prunus.runtimes._onnx import refuses, write_onnx
from prunus.runtimes.onnxruntime import array

__all__ = ["build", "open_", "refuses"]

FACTS = Facts(needs=("openvino", "onnx", "onnxscript"), devices=("cpu",), safe=True)

OFTEN = 3
"""Calls with the same shapes before a program is made for them."""
FIXED = 2
"""Programs for fixed shapes at most: each holds the weights once more."""
LONG = 8
"""Calls in a row with the same shapes before theirs takes the place of the one not used longest."""

LACKING = r"(?:failed for|operations): (.+)"
"""Where OpenVINO names operators that it has no translation for."""

Shapes = tuple[tuple[int, ...], ...]


def build(order: BuildRequest) -> Session:
    """Export, convert, write ``model.xml`` and ``model.bin``, and open.

    Raises:
        InputError: if the model cannot be expressed in ONNX, or OpenVINO lacks an operator.
    """
    with tempfile.TemporaryDirectory(dir=order.folder, prefix=".") as place:
        made = write_onnx(order, Path(place))
        path = _convert(made.path, order.folder)
    return open_(path, threads=order.threads).as_made(made)


def _convert(source: Path, folder: Path) -> Path:
    """Write an ONNX file as OpenVINO keeps models, its weights as they are."""
    import openvino

    path = folder / "model.xml"
    # By default it would halve the weights' precision.
    openvino.save_model(_read(core(), source), path, compress_to_fp16=False)
    return path


@functools.cache
def core() -> Any:
    """OpenVINO's own state, of which a process has one, for good.

    On processors with wide registers each sets a stack for signals, and puts back the one that it
    found when it goes. Of two the first to go leaves the other's end to put its memory back, which
    is free by then: the next signal, of a loader's process that ends or of Ctrl-C, kills Python.
    """
    import openvino

    return openvino.Core()


def open_(path: Path, *, threads: int) -> Session:
    """Open a ``.xml`` (or ``.onnx``), in float32 whatever the processor would prefer.

    Raises:
        InputError: if OpenVINO cannot read it.
    """
    return Session(computing(path, settings_of(threads), tolerance=FACTS.tolerance), path)


def settings_of(threads: int) -> dict[str, Any]:
    """What OpenVINO is told."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 by default where the processor has it
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # two processes would be bound to the same core
        "CPU_DENORMALS_OPTIMIZATION": True,
    }


def computing(path: Path, settings: dict[str, Any], *, tolerance: float) -> Compute:
    """Tensors in, tensors out; inputs are read where they lie, and answers are copies.

    What comes again and again with the same shapes gets a program of its own for them: with sizes
    fixed, OpenVINO answers a small network's single input a third faster. It is another program,
    and so it is taken only if its answers differ from the first one's, ‖a − b‖ ÷ ‖b‖, by
    ``tolerance`` at most.
    """
    requests = _Requests(path, settings, tolerance)

    def compute(inputs: Sequence[Tensor]) -> Answers:
        arrays = [array(t) for t in inputs]
        with requests.lock:  # a request holds the inputs of one caller
            return requests.answers(arrays)

    return compute


class _Requests:
    """The program for any sizes, and those for the sizes that keep coming."""

    def __init__(self, path: Path, settings: dict[str, Any], tolerance: float) -> None:
        import openvino

        self.core, self.settings, self.tolerance = core(), settings, tolerance
        self.model = _read(self.core, path)
        self.tensor = openvino.Tensor
        self.places = range(len(self.model.inputs)), range(len(self.model.outputs))
        self.any = self._compiled(self.model)
        self.seen: Counter[Shapes] = Counter()
        self.last: Shapes = ()
        self.row = 0
        self.fixed: dict[Shapes, Any] = {}
        self.refused: set[Shapes] = set()
        self.lock = Lock()

    def answers(self, arrays: Sequence[Any]) -> Answers:
        """By the best program for these shapes."""
        return self._asked(self._best(tuple(a.shape for a in arrays), arrays), arrays)

    def _best(self, shapes: Shapes, arrays: Sequence[Any]) -> Any:
        self.row = self.row + 1 if shapes == self.last else 1
        self.last = shapes
        self.seen[shapes] += 1
        made = self.fixed.pop(shapes, None)
        full = len(self.fixed) >= FIXED
        if made is None and (self.row >= LONG if full else self.seen[shapes] >= OFTEN):
            made = self._for(shapes, arrays)
            if made is not None and full:
                del self.fixed[next(iter(self.fixed))]
        if made is None:
            return self.any
        self.fixed[shapes] = made  # the one that was used last stands last
        return made

    def _asked(self, request: Any, arrays: Sequence[Any]) -> Answers:
        """Inputs one by one: as arguments of ``infer`` their binding looks them up by exceptions,
        for 0.03 ms, and 0.05 once ONNX Runtime is imported. The request does not keep the arrays
        alive, so that every call sets all of them."""
        inputs, outputs = self.places
        for place, given in zip(inputs, arrays, strict=True):
            request.set_input_tensor(place, self.tensor(given, shared_memory=True))
        request.infer(share_outputs=True)
        return [torch.from_numpy(request.get_output_tensor(i).data.copy()) for i in outputs]

    def _for(self, shapes: Shapes, arrays: Sequence[Any]) -> Any | None:
        """A program for these shapes, if one can be made and answers like the first."""
        if shapes in self.refused or not self.model.is_dynamic():
            return None
        right = self._asked(self.any, arrays)
        if not all(bool(a.isfinite().all()) for a in right):
            return None  # these answers compare with nothing; the next ones may
        model = self.model.clone()
        try:
            model.reshape({i: list(shape) for i, shape in enumerate(shapes)})
            made = self._compiled(model)
            if error(self._asked(made, arrays), right, how="norm") <= self.tolerance:
                return made
        except RuntimeError:  # an operator that insists on open sizes
            pass
        self.refused.add(shapes)
        return None

    def _compiled(self, model: Any) -> Any:
        with no_denormals():  # OpenVINO would leave this thread so, long after
            return self.core.compile_model(model, "CPU", self.settings).create_infer_request()


def _read(core: Any, path: Path) -> Any:
    """A file as OpenVINO sees it.

    Raises:
        InputError: naming the operators that it lacks, or with its last words.
    """
    try:
        return core.read_model(path)
    except RuntimeError as problem:
        found = re.search(LACKING, str(problem))
        if found:
            raise InputError(f"OpenVINO cannot convert {found[1].strip()}") from problem
        said = [line for line in str(problem).splitlines() if line.strip()]
        why = said[-1] if said else "no reason given"
        raise InputError(f"OpenVINO cannot read '{path.name}': {why}") from problem
