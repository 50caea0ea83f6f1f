"""MNN on the processor, in float32: an engine for phones, whose wheel runs here as well.

Its convolutions of 3×3 (Winograd) are often the fastest of all on processors without AVX-512. The
model reaches it through ONNX.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from prunus._common.timing import no_denormals
from prunus.errors import InputError
from prunus.runtimes import Answers, BuildRequest, Compute, Facts, Session
from prunus.runtimes._onnx import refuses, write_onnx
from prunus.runtimes.onnxruntime import array

__all__ = ["build", "open_", "refuses"]

FACTS = Facts(needs=("mnn", "onnx", "onnxscript"), devices=("cpu",), safe=True)

CONVERT = (
    "import sys, _tools; _tools.mnnconvert(['mnnconvert', '-f', 'ONNX', '--modelFile', sys.argv[1],"
    " '--MNNModel', sys.argv[2], '--bizCode', 'prunus', '--useOriginRNNImpl'])"
)
"""The converter itself: ``MNN.tools.mnnconvert`` would install a package that reports its use.
Recurrent layers stay one operator: taken apart into loops, some make the converter crash."""


def build(order: BuildRequest) -> Session:
    """Export, convert, write ``model.mnn`` and open.

    Raises:
        InputError: if the model cannot be expressed in ONNX, or MNN does not convert it.
    """
    path = order.folder / "model.mnn"
    with tempfile.TemporaryDirectory(dir=order.folder, prefix=".") as place:
        made = write_onnx(order, Path(place))
        _convert(made.path, path)
    return open_(path, threads=order.threads).as_made(made)


def _convert(source: Path, path: Path) -> None:
    """In a process of its own: the converter ends the one that it runs in where it fails."""
    command = [sys.executable, "-c", CONVERT, str(source), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if not path.is_file():
        raise InputError(f"MNN does not convert this model: {_reason(done.stdout + done.stderr)}")


def _reason(said: str) -> str:
    """The operators that it lacks, or its last line."""
    lacking = re.search(r"Not Support: (.+)", said)
    if lacking:
        return f"it has no {lacking[1].strip().replace('ONNX::', '')}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "its converter ended without a word"


def open_(path: Path, *, threads: int) -> Session:
    """Open a ``.mnn``, in full precision.

    Raises:
        InputError: if MNN cannot read it.
    """
    with _hushed():
        import MNN.nn

    # "high" computes in float32 as well, here and on phones, and prints that it does
    settings = {"precision": "normal", "backend": "CPU", "numThread": threads}
    try:
        with no_denormals():
            manager = MNN.nn.create_runtime_manager((settings,))
            network = MNN.nn.load_module_from_file(str(path), [], [], runtime_manager=manager)
    except (RuntimeError, SystemError) as error:
        raise InputError(f"MNN cannot read '{path.name}'") from error
    return Session(_computing(network, manager), path)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without what MNN's own code prints of the processor, which would stand in ``--json``."""
    own = ctypes.CDLL(None)
    with open(os.devnull, "w") as nowhere:
        sys.stdout.flush()
        own.fflush(None)
        kept = os.dup(1)
        try:
            os.dup2(nowhere.fileno(), 1)
            yield
        finally:
            own.fflush(None)
            os.dup2(kept, 1)
            os.close(kept)


def _computing(network: Any, manager: Any) -> Compute:
    """Tensors in, tensors out; answers are copies."""
    import MNN.expr as mnn

    lock = Lock()  # a network holds the values of one caller
    kinds = {"f": (mnn.float, "float32"), "i": (mnn.int, "int32")}

    def given(tensor: Tensor) -> Any:
        values = array(tensor)
        kind, name = kinds["f" if values.dtype.kind == "f" else "i"]
        values = values.astype(name, copy=False)
        return mnn.const(values, list(values.shape), mnn.NCHW, kind)

    def compute(inputs: Sequence[Tensor]) -> Answers:
        with lock:
            found = network.onForward([given(t) for t in inputs])
            plain = [mnn.convert(v, mnn.NCHW).read() for v in found]
            assert manager is not None  # the network does not keep its settings alive
            return [torch.from_numpy(values.copy()) for values in plain]

    return compute
