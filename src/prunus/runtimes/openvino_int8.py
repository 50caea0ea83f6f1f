"""OpenVINO on the processor, in int8: it reads what ONNX Runtime's quantiser wrote.

Always statically, from calibration inputs. NNCF, OpenVINO's own quantiser, was tried beside it on
AVX2 without VNNI and is not used: on ResNet-20 (CIFAR-10) both ran 2 times faster than float32,
with ‖a − b‖ ÷ ‖b‖ 0.05 here and 0.07 there; BERT-base at 128 tokens ran 1.2 times faster with 0.07
here, and no faster with 0.08 there (0.045 without SmoothQuant); it takes ten times as long. Where
a transformer's activations hold large outliers the ranges do not fit (0.25 instead of 0.1) and the
answers are rejected: onnxruntime_int8 keeps them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from prunus.runtimes import Order, Session, _quantise
from prunus.runtimes._census import CONVOLUTIONS, PRODUCTS
from prunus.runtimes._onnx import write_onnx
from prunus.runtimes.openvino import convert, open_

__all__ = ["build", "open_", "refuses"]

NEEDS = ("openvino", "onnxruntime", "onnx", "onnxscript")
DEVICES = ("cpu",)
EXACT = False
TOLERANCE = 0.15
SKIPS_ZEROS = False
SLOW = False

KINDS = (*CONVOLUTIONS, *PRODUCTS)


def refuses(order: Order) -> str | None:
    """Half precision; no calibration; weights that lie in other layers, recurrent ones too."""
    return _quantise.refuses(order, KINDS, calibrates=True)


def build(order: Order) -> Session:
    """Export, quantise, convert, write ``model.xml`` and ``model.bin``, and open.

    Raises:
        InputError: if the model cannot be expressed in ONNX, or for what :func:`refuses` could
            not see of a graph.
    """
    with tempfile.TemporaryDirectory(dir=order.folder, prefix=".") as place:
        made = write_onnx(order, Path(place))
        rounded = Path(place) / "int8.onnx"
        note = _quantise.static(order, _quantise.ready(made, KINDS), rounded)
        path = convert(rounded, order.folder)
    opened = open_(path, threads=order.threads)
    return Session(opened.compute, path, made.dynamic, (*made.notes, note))
