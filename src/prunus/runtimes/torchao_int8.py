"""torchao: linear layers multiply in int8; weights rounded once, inputs row by row as they come.

Zeros stay zeros. The file is a ``.pt2`` of plain ATen operators, which opens without torchao.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from prunus._common.modules import detached_copy
from prunus._common.torch_internals import torch_version
from prunus.errors import first_line
from prunus.runtimes import BuildRequest, Facts, Session
from prunus.runtimes._exported import exported, write_pt2
from prunus.runtimes._silent import silent
from prunus.runtimes.torch_export import open_ as open_program

FACTS = Facts(needs=("torch", "torchao"), devices=("cpu", "cuda"), exact=False, tolerance=0.1)

LEAST = 0.5
"""Share of the weights that linear layers must hold: others stay as they are."""
APART = nn.modules.linear.NonDynamicallyQuantizableLinear
"""The last layer of attention, whose weight is read without a call of the layer."""


def refuses(order: BuildRequest) -> str | None:
    """Models whose weights lie elsewhere than in linear layers."""
    share = linear_share(order.model)
    if share < LEAST:
        return (
            f"it quantizes linear layers, which hold {share:.0%} of the weights here ({LEAST:.0%} "
            "are needed for a gain): take a runtime that quantizes convolutions, onnxruntime_int8"
        )
    kinds = {p.dtype for p in order.model.parameters() if p.is_floating_point()}
    odd = kinds - {torch.float32, torch.bfloat16}
    return f"it takes float32 and bfloat16 weights, not {odd.pop()}" if odd else misfit()


@functools.cache
def misfit() -> str | None:
    """Why the torchao that is installed does not work with this torch: the newest ones need more
    than prunus asks for, or round nothing, and neither package says so to pip."""
    try:
        with silent(), torch.no_grad():
            rounded = quantized(nn.Sequential(nn.Linear(16, 16))).parameters()
            if not any(p.dtype == torch.int8 for p in rounded):
                raise LookupError("it leaves a linear layer's weight as it is")
    except Exception as error:  # whatever a missing name of torch leads to
        return (
            f"this torchao does not work with torch {torch_version()} ({first_line(error)}): "
            "install another of the two, or take the runtime onnxruntime_int8"
        )
    return None


def build(order: BuildRequest) -> Session:
    """Quantize a copy, export, write and open.

    Raises:
        InputError: if torch.export cannot trace the quantized model.
    """
    with silent(), torch.no_grad():  # torchao names every kernel that it cannot load
        made = exported(replace(order, model=quantized(order.model), made={}))
        program = made.program.run_decompositions()  # torchao's own operators into torch's
    path = write_pt2(order, program)
    return open_(path, threads=order.threads).as_made(made)


def open_(path: Path, *, threads: int) -> Session:
    """Open the ``.pt2``; torchao is not needed for it."""
    return open_program(path, threads=threads)


def quantized(model: nn.Module) -> nn.Module:
    """A copy whose linear layers hold int8 weights and a scale for each output, as plain tensors.

    Weight ``w[o, i]`` becomes round(w ÷ s[o]), s[o] = max_i |w[o, i]| ÷ 127.5; 0 becomes 0.
    """
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    from torchao.utils import unwrap_tensor_subclass

    made = detached_copy(model).eval()
    quantize_(made, Int8DynamicActivationInt8WeightConfig())
    unwrap_tensor_subclass(made)  # a tensor class of torchao's would be written as a pickle
    return made


def linear_share(model: nn.Module) -> float:
    """Weights in linear layers ÷ weights of two or more dimensions, 0 to 1.

    >>> linear_share(nn.Sequential(nn.Conv2d(1, 3, 2), nn.Linear(3, 4)))
    0.5
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and not isinstance(m, APART)]
    linear = {id(m.weight): m.weight.numel() for m in layers}
    every = {id(p): p.numel() for p in model.parameters() if p.dim() > 1}
    return sum(linear.values()) / max(1, sum(every.values()))
