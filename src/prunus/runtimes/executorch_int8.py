"""ExecuTorch in int8: XNNPACK's own quantizer, by ranges that calibration inputs show.

Weights are rounded for each output, w ≈ s·q with q from −127 to 127, so that 0 stays 0; activations
for each tensor. Convolutions, linear layers and what XNNPACK has between them become int8,
recurrent layers stay as they are. A convolutional network of 2,100 parameters: ‖a − b‖ ÷ ‖b‖ 0.004.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.export import ExportedProgram

from prunus.errors import InputError, first_line
from prunus.runtimes import BuildRequest, Facts, Session, _quantize
from prunus.runtimes._arguments import calibration_of
from prunus.runtimes._census import CONVOLUTIONS, PRODUCTS, of_modules
from prunus.runtimes._silent import silent
from prunus.runtimes._sizes import Sizes
from prunus.runtimes.executorch import Single, open_, single, written

__all__ = ["build", "open_", "refuses"]

FACTS = Facts(needs=("executorch", "torchao"), devices=("cpu",), exact=False, tolerance=0.15,
              slow=True, safe=True)  # fmt: skip

MOST = 256
"""Inputs that show the ranges, at most: they pass one by one."""


def refuses(order: BuildRequest) -> str | None:
    """Weights that are not float32, that lie in other layers, or no calibration."""
    odd = {p.dtype for p in order.model.parameters() if p.is_floating_point()} - {torch.float32}
    if odd:
        return f"it quantizes float32, but the weights are {odd.pop()}: call model.float() first"
    census = of_modules(order.model)
    refusal = census.too_few((*CONVOLUTIONS, *PRODUCTS)) if census.layers else None
    return refusal or (None if order.calibration else _quantize.GIVE)


def build(order: BuildRequest) -> Session:
    """Export for one input, quantize, lower, write ``model.pte`` and open.

    Raises:
        InputError: if torch.export cannot trace the model, the quantizer fails, or ExecuTorch lacks
            an operator.
    """
    made = single(order)
    return written(order, replace(made, program=_rounded(made, order)))


def _rounded(made: Single, order: BuildRequest) -> ExportedProgram:
    """The program with int8 weights and activations."""
    with silent():
        quantizer = importlib.import_module(
            "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"
        )
        pt2e = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
        settings = quantizer.get_symmetric_quantization_config(is_per_channel=True)
        args, kwargs = made.program.example_inputs
        try:
            with torch.no_grad():
                module = copy.deepcopy(made.program).module()
                ready = pt2e.prepare_pt2e(module, quantizer.XNNPACKQuantizer().set_global(settings))
                for given in _inputs(made, order):
                    ready(*given[: len(args)], **dict(zip(kwargs, given[len(args) :], strict=True)))
                return torch.export.export(pt2e.convert_pt2e(ready), args, kwargs)
        except Exception as error:  # the quantizer's, of many types
            raise InputError(f"XNNPACK's quantizer fails: {first_line(error)}") from error


def _inputs(made: Single, order: BuildRequest) -> Iterator[Sequence[Tensor]]:
    """Calibration inputs as the program takes them: one at a time, where it takes one."""
    left = MOST
    for given in calibration_of(order, Sizes()):
        if made.parts is None:
            yield given
            left -= 1
            continue
        mine = made.parts[0]
        count = max((len(t) for t, m in zip(given, mine, strict=True) if m), default=1)
        for row in range(min(count, left)):
            yield [t[row : row + 1] if m else t for t, m in zip(given, mine, strict=True)]
        left -= count
        if left <= 0:
            return
