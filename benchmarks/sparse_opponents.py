"""Dense engines at their best settings, for benchmarks/sparse.py; each gives a call."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.nested import tensors_of
from prunus.errors import PrunusError
from prunus.runtimes import BuildRequest, error, find, missing

Call = Callable[[], Any]
DENSE = ("onnxruntime", "openvino", "mnn", "eager")
"""In float32; the fastest of them is the opponent."""
INT8 = ("onnxruntime_int8", "openvino_int8")


def engines(
    model: nn.Module, example: Any, place: Path, *, threads: int,
    calibration: Sequence[Any] = (), rounded: float = 0.2,
) -> dict[str, Call]:  # fmt: skip
    """The calls of all engines that are installed and take this model, and ours.

    Args:
        model: in eval mode.
        example: its inputs.
        place: a folder for what is built.
        threads: of each engine.
        calibration: inputs, for int8.
        rounded: how far int8 answers may be off, ‖a − b‖ ÷ ‖b‖.
    """
    inputs = tensors_of(example)
    batch = (len(inputs[0]),)
    made: dict[tuple[str, int], Any] = {}
    found: dict[str, Call] = {}
    for name in (*DENSE, *INT8, "sparse"):
        folder = place / name
        folder.mkdir(parents=True, exist_ok=True)
        order = BuildRequest(model, example, folder, threads=threads, made=made,
                             calibration=calibration, batch=batch)  # fmt: skip
        with contextlib.suppress(PrunusError):
            if name == "mnn":
                found[name] = mnn(place / "onnxruntime", inputs, threads)
            else:
                found[name] = _opened(order, name, inputs)
    if isinstance(model, nn.Linear):
        found["torch CSR"] = csr(model, inputs[0])
    with torch.inference_mode():
        right = found["eager"]()
    for name, call in found.items():
        far = error(call(), right, how="norm")
        # Winograd's transforms lose a digit
        limit = rounded if name in INT8 else 1e-3 if name == "mnn" else 1e-4
        assert far < limit, (name, far)
    return found


def _opened(order: BuildRequest, name: str, inputs: Sequence[Tensor]) -> Call:
    if missing(name):
        raise PrunusError(f"{name} is not installed")
    runtime = find(name)
    refusal = runtime.refuses(order)
    if refusal:
        raise PrunusError(refusal)
    return partial(runtime.build(order).compute, inputs)


def mnn(onnx: Path, inputs: Sequence[Tensor], threads: int) -> Call:
    """MNN in full precision, from the file that ONNX Runtime runs."""
    if importlib.util.find_spec("MNN") is None:
        raise PrunusError("MNN is not installed")
    source, target = onnx / "model.onnx", onnx / "model.mnn"
    # the converter itself: MNN.tools.mnnconvert would install a package that reports its use
    code = (
        f"import _tools; _tools.mnnconvert(['mnnconvert', '-f', 'ONNX', '--modelFile', '{source}', "
        f"'--MNNModel', '{target}', '--bizCode', 'biz'])"
    )
    subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    if not target.is_file():
        raise PrunusError("MNN does not convert this model")
    with contextlib.redirect_stdout(io.StringIO()):
        import MNN.expr
        import MNN.nn

        settings = {"precision": "high", "backend": "CPU", "numThread": threads}
        manager = MNN.nn.create_runtime_manager((settings,))
        network = MNN.nn.load_module_from_file(str(target), [], [], runtime_manager=manager)
    arrays = [t.detach().contiguous().numpy() for t in inputs]
    given = [MNN.expr.const(a, a.shape, MNN.expr.NCHW, _kind(a)) for a in arrays]

    def call() -> list[Tensor]:
        answers = network.onForward(given)
        return [torch.from_numpy(MNN.expr.convert(a, MNN.expr.NCHW).read().copy()) for a in answers]

    return call


def _kind(array: Any) -> Any:
    import MNN.expr

    return MNN.expr.int if array.dtype.kind == "i" else MNN.expr.float


def csr(layer: nn.Linear, x: Tensor) -> Call:
    """torch's own product with a matrix by rows; it has the columns as tokens."""
    weight = layer.weight.detach().to_sparse_csr()
    bias = layer.bias

    def call() -> list[Tensor]:
        with torch.inference_mode():
            return [(weight @ x.reshape(-1, x.shape[-1]).T).T + bias]

    return call
