"""Which dimension of a weight is input and which is output: one table for every layer type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


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
    bias: tuple[str, ...] = ()
    neuron: str = ""

    @property
    def outputs(self) -> int:
        """Output neurons of the layer."""
        return self.shape[self.out_dim] * self.groups // self.gates


_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def plain_name(name: str) -> str:
    """A name without the prefixes that wrappers put before it.

    >>> plain_name("module._orig_mod.fc.weight")
    'fc.weight'
    """
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def layers_of(name: str, module: nn.Module) -> Iterator[Layer]:
    """The prunable weights that a module itself owns, in the order of its parameters."""
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, nn.RNNBase):
        gates = _GATES[module.mode]
        for key, weight in own.items():
            if key.startswith("weight") and not key.startswith("weight_hr"):
                tail = key.removeprefix("weight_ih").removeprefix("weight_hh")
                biases = tuple(f"bias_{side}{tail}" for side in ("ih", "hh"))
                yield _layer(
                    name, key, weight, "recurrent", gates=gates, biases=biases, own=own, neuron=tail
                )
    elif isinstance(module, nn.RNNCellBase):
        gates = module.weight_ih.shape[0] // module.hidden_size
        for key in ("weight_ih", "weight_hh"):
            yield _layer(
                name,
                key,
                own[key],
                "recurrent",
                gates=gates,
                biases=("bias_ih", "bias_hh"),
                own=own,
                neuron="cell",
            )
    elif isinstance(module, nn.MultiheadAttention):
        for key, weight in own.items():
            if key == "in_proj_weight":
                yield _layer(name, key, weight, "attention", biases=("in_proj_bias",), own=own)
            elif key.endswith("proj_weight"):
                yield _layer(name, key, weight, "attention", own=own)
    else:
        key = "weight_orig" if "weight_orig" in own else "weight"
        if key in own:
            yield from _single(name, module, key, own)


def _single(
    name: str, module: nn.Module, key: str, own: dict[str, nn.Parameter]
) -> Iterator[Layer]:
    weight = own[key]
    biases = ("bias", "bias_orig")
    if isinstance(module, nn.Linear):
        yield _layer(name, key, weight, "linear", biases=biases, own=own)
    elif isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        yield _layer(
            name,
            key,
            weight,
            "conv_transpose",
            out_dim=1,
            in_dim=0,
            groups=module.groups,
            biases=biases,
            own=own,
        )
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        yield _layer(name, key, weight, "conv", biases=biases, own=own)
    elif type(module).__name__ == "Conv1D" and weight.dim() == 2:  # GPT-2's, stored transposed
        yield _layer(name, key, weight, "linear", out_dim=1, in_dim=0, biases=biases, own=own)


def _layer(
    module: str,
    key: str,
    weight: nn.Parameter,
    kind: str,
    *,
    own: dict[str, nn.Parameter],
    biases: tuple[str, ...] = (),
    neuron: str = "",
    out_dim: int = 0,
    in_dim: int = 1,
    gates: int = 1,
    groups: int = 1,
) -> Layer:
    prefix = f"{module}." if module else ""
    return Layer(
        name=prefix + key,
        module=module,
        kind=kind,
        shape=tuple(weight.shape),
        out_dim=out_dim,
        in_dim=in_dim,
        gates=gates,
        groups=groups,
        bias=tuple(prefix + b for b in biases if b in own),
        neuron=f"{module}{neuron}" if neuron else prefix + key,
    )
