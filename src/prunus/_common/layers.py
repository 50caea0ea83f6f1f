"""Which dimension of a weight is input and which is output: one table for every layer type."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """A prunable parameter and how to read it.

    Attributes:
        name: the parameter's full name.
        module: the name of the module that owns it.
        kind: linear, conv, conv_transpose, recurrent, attention or other.
        shape: of the parameter.
        out_dim: the dimension that runs over output neurons.
        in_dim: the dimension that runs over inputs.
        gates: row blocks that belong to one neuron (LSTM 4, GRU 3, packed q, k, v 3).
        groups: of a transposed convolution, whose output index is split over both dimensions.
        stack: dimensions that number separate matrices, as a fused tensor of experts has them.
        bias: full names of the biases that fall with a neuron.
        neuron: name shared by parameters whose neurons are the same (weight_ih and weight_hh).
    """

    name: str
    module: str
    kind: str
    shape: tuple[int, ...]
    out_dim: int = 0
    in_dim: int = 1
    gates: int = 1
    groups: int = 1
    stack: tuple[int, ...] = ()
    bias: tuple[str, ...] = ()
    neuron: str = ""

    @property
    def outputs(self) -> int:
        """Output neurons of the layer, of all matrices of a stack together."""
        matrices = math.prod(self.shape[d] for d in self.stack)
        return matrices * self.shape[self.out_dim] * self.groups // self.gates

    @property
    def matrix(self) -> tuple[int, ...]:
        """The shape of one matrix."""
        return tuple(n for d, n in enumerate(self.shape) if d not in self.stack)


_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def layers_of(name: str, module: nn.Module) -> Iterator[Layer]:
    """The prunable weights that a module itself owns, in the order of its parameters."""
    own = dict(module.named_parameters(recurse=False))
    prefix = f"{name}." if name else ""
    for key, kind, biases, more in _weights(name, module, own):
        yield Layer(
            name=prefix + key,
            module=name,
            kind=kind,
            shape=tuple(own[key].shape),
            bias=tuple(prefix + b for b in biases if b in own),
            **{"neuron": prefix + key, **more},
        )


Row = tuple[str, str, tuple[str, ...], dict[str, Any]]
"""Name of a weight, its kind, names of biases that may fall with it, and what else is not usual."""


def _weights(name: str, module: nn.Module, own: dict[str, nn.Parameter]) -> Iterator[Row]:
    if isinstance(module, nn.RNNBase):
        for key in own:
            if key.startswith("weight") and not key.startswith("weight_hr"):
                tail = key.removeprefix("weight_ih").removeprefix("weight_hh")
                more = {"gates": _GATES[module.mode], "neuron": name + tail}
                yield key, "recurrent", (f"bias_ih{tail}", f"bias_hh{tail}"), more
    elif isinstance(module, nn.RNNCellBase):
        more = {"gates": len(module.weight_ih) // module.hidden_size, "neuron": f"{name}cell"}
        for key in ("weight_ih", "weight_hh"):
            yield key, "recurrent", ("bias_ih", "bias_hh"), more
    elif isinstance(module, nn.MultiheadAttention):
        for key in own:
            if key.endswith("proj_weight"):
                yield key, "attention", ("in_proj_bias",) if key == "in_proj_weight" else (), {}
    else:
        key = "weight_orig" if "weight_orig" in own else "weight"
        if key in own and (kind := _kind(module, own[key])):
            yield key, kind[0], ("bias", "bias_orig"), kind[1]


def _kind(module: nn.Module, weight: Tensor) -> tuple[str, dict[str, Any]] | None:
    """Of a module with one weight, and how its dimensions differ from a linear layer's."""
    if isinstance(module, nn.Linear):
        return "linear", {}
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return "conv_transpose", {"out_dim": 1, "in_dim": 0, "groups": module.groups}
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return "conv", {}
    if type(module).__name__ == "Conv1D" and weight.dim() == 2:  # GPT-2's, transposed
        return "linear", {"out_dim": 1, "in_dim": 0}
    return None
