"""ONNX Runtime on the processor, in int8.

Networks of convolutions are quantized statically (weights and activations, QDQ, from calibration
inputs); those of matrix products and LSTMs dynamically, which needs no calibration and does not
suffer from the few large values in the activations of transformers. Measured against float32 on
one core of an AVX2 processor without VNNI that others used too (‖a − b‖ ÷ ‖b‖ in brackets):
ResNet-20 1.5 times faster at batch 1, 1.7 times at 16 (0.06), CIFAR-10 accuracy 0.8134 after
0.8102; BERT-base at 128 tokens 1.8 times (0.04; static 1.9 times, 0.07, and with four outlier
channels 0.25 where dynamic has 0.02); an LSTM of 256 units 2.6 times (0.005). Signed activations
are several times slower there than unsigned ones.
"""

from __future__ import annotations

from prunus.runtimes import BuildRequest, Facts, Session, _quantize
from prunus.runtimes._census import CONVOLUTIONS, PRODUCTS
from prunus.runtimes.onnxruntime import open_

__all__ = ["build", "open_", "refuses"]

FACTS = Facts(needs=("onnxruntime", "onnx", "onnxscript"), devices=("cpu",),
              exact=False, tolerance=0.15, safe=True)  # fmt: skip

KINDS = (*CONVOLUTIONS, *PRODUCTS, "LSTM")


def refuses(order: BuildRequest) -> str | None:
    """Half precision; convolutions without calibration; weights that lie in other layers."""
    return _quantize.refuses(order, KINDS, calibrates=False)


def build(order: BuildRequest) -> Session:
    """Export, quantize, write and open.

    Raises:
        InputError: if the model cannot be expressed in ONNX, or for what :func:`refuses` could
            not see of a graph.
    """
    return _quantize.build(order, KINDS, open_, calibrates=False)
