"""ONNX Runtime on the processor, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prunus._common.timing import no_denormals
from prunus.runtimes import Answers, BuildRequest, Compute, Facts, Session
from prunus.runtimes._onnx import refuses, write_onnx

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["build", "open_", "refuses"]

FACTS = Facts(needs=("onnxruntime", "onnx", "onnxscript"), devices=("cpu",), safe=True)


def build(order: BuildRequest) -> Session:
    """Export, write and open.

    Raises:
        InputError: if the model cannot be expressed in ONNX.
    """
    made = write_onnx(order, order.folder)
    return open_(made.path, threads=order.threads).as_made(made)


def open_(path: Path, *, threads: int) -> Session:
    """Open an ONNX file with fixed threads, which do not spin between calls."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    with no_denormals():  # the first session of a process would leave this thread so, long after
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    return Session(computing(session), path)


def computing(session: InferenceSession) -> Compute:
    """Tensors in, tensors out, without a copy of the outputs."""
    names = [i.name for i in session.get_inputs()]

    def compute(inputs: Sequence[Tensor]) -> Answers:
        given = {n: array(t) for n, t in zip(names, inputs, strict=True)}
        return [torch.from_numpy(a) for a in session.run(None, given)]

    return compute


def array(tensor: Tensor) -> Any:
    """The numbers of a tensor as numpy sees them, without a copy where they lie in order."""
    return tensor.detach().cpu().resolve_neg().contiguous().numpy()
