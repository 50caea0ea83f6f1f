"""OpenVINO on the processor, in int8: it reads what ONNX Runtime's quantizer wrote.

Always statically, from calibration inputs. One thread of a processor with VNNI, against float32 in
OpenVINO at batch 1 (‖a − b‖ ÷ ‖b‖ in brackets): ResNet-50 3.4 times faster (0.04), BERT-base at 128
tokens 2.9 times (0.03), ResNet-20 2.2 times (0.07). NNCF, OpenVINO's own quantizer, was tried
beside it without VNNI and is not used: no faster on ResNet-20 and slower on BERT-base, with errors
as large, and it takes several times as long. Where a transformer's activations hold large outliers
the ranges do not fit (0.25 on BERT with four such channels) and the answers are rejected:
onnxruntime_int8 keeps them. The file stays ONNX, which OpenVINO opens by itself: its own XML spells
every operator out, and is four times as large for a small network.
"""

from __future__ import annotations

from pathlib import Path

from prunus.runtimes import BuildRequest, Facts, Session, _quantize
from prunus.runtimes._census import CONVOLUTIONS, PRODUCTS
from prunus.runtimes.openvino import computing, settings_of

__all__ = ["build", "open_", "refuses"]

FACTS = Facts(needs=("openvino", "onnxruntime", "onnx", "onnxscript"), devices=("cpu",),
              exact=False, tolerance=0.15, safe=True)  # fmt: skip

KINDS = (*CONVOLUTIONS, *PRODUCTS)
SETTINGS = {"SNIPPETS_MODE": "DISABLE"}
"""Where sizes are known and rows are few, OpenVINO 2026.4 makes one kernel of linear layers that
follow each other; in int8, where one of them has no bias, its answers are off by several times."""
AGREEMENT = 0.05
"""Answers of a program for fixed sizes may be rounded otherwise, at most by this."""


def refuses(order: BuildRequest) -> str | None:
    """Half precision; no calibration; weights that lie in other layers, recurrent ones too."""
    return _quantize.refuses(order, KINDS, calibrates=True)


def build(order: BuildRequest) -> Session:
    """Export, quantize, write ``model.onnx``, and open.

    Raises:
        InputError: if the model cannot be expressed in ONNX, OpenVINO lacks an operator, or for
            what :func:`refuses` could not see of a graph.
    """
    return _quantize.build(order, KINDS, open_, calibrates=True)


def open_(path: Path, *, threads: int) -> Session:
    """Open the ONNX file, without kernels that are wrong in int8.

    Raises:
        InputError: if OpenVINO cannot read it.
    """
    return Session(computing(path, settings_of(threads) | SETTINGS, tolerance=AGREEMENT), path)
