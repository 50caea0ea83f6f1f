"""What a model is made of, for quantizers: which layers hold its weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunus._common.layers import layers_of

CONVOLUTIONS = ("Conv", "ConvTranspose")
PRODUCTS = ("MatMul", "Gemm")
RECURRENT = ("LSTM", "GRU", "RNN")
WORDS = {
    "Conv": "convolutions", "ConvTranspose": "convolutions", "MatMul": "linear layers",
    "Gemm": "linear layers", "LSTM": "LSTMs", "GRU": "GRUs", "RNN": "RNNs",
}  # fmt: skip
LEAST = 0.5
"""Share of the layers' weights that must become int8: below it nothing is gained."""


@dataclass(frozen=True)
class Census:
    """Layers and the elements of their weights, by ONNX's name of the operator."""

    layers: Counter[str]
    weights: Counter[str]

    @property
    def convolutional(self) -> bool:
        """Whether convolutions are at least as many as other layers.

        >>> Census(Counter(Conv=1, Gemm=1), Counter()).convolutional
        True
        """
        others = sum(self.layers[k] for k in (*PRODUCTS, *RECURRENT))
        return sum(self.layers[k] for k in CONVOLUTIONS) >= max(1, others)

    def too_few(self, kinds: Sequence[str]) -> str | None:
        """Why int8 would gain nothing, if layers of these kinds hold little of the weights.

        >>> Census(Counter(), Counter(GRU=9, Gemm=1)).too_few(PRODUCTS)
        'it quantizes linear layers, which hold 10% of the weights here (50% are needed ...
        """
        share = sum(self.weights[k] for k in kinds) / max(1, self.weights.total())
        if share >= LEAST:
            return None
        rest = " and ".join(_words(k for k in self.weights if k not in kinds)) or "no layer"
        return (
            f"it quantizes {', '.join(_words(kinds))}, which hold {share:.0%} of the weights here "
            f"({LEAST:.0%} are needed for a gain); {rest} would stay as they are"
        )


def _words(kinds: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(WORDS[k] for k in kinds))


def of_modules(model: nn.Module) -> Census:
    """Before any work; nothing is counted where the model became a graph.

    >>> of_modules(nn.Sequential(nn.Linear(2, 3), nn.Conv1d(3, 4, 1))).weights
    Counter({'Conv': 12, 'MatMul': 6})
    """
    layers, weights = Counter[str](), Counter[str]()
    for name, module in model.named_modules():
        for layer in layers_of(name, module):
            kind = _operator(layer.kind, module)
            layers[kind] += 1
            weights[kind] += math.prod(layer.shape)
    return Census(layers, weights)


def _operator(kind: str, module: nn.Module) -> str:
    if kind == "recurrent":
        return (
            str(getattr(module, "mode", type(module).__name__)).split("_")[0].removesuffix("Cell")
        )
    return {"conv": "Conv", "conv_transpose": "ConvTranspose"}.get(kind, "MatMul")


def of_graph(graph: Any) -> Census:
    """Of an ONNX graph whose constants are folded: operators with a weight of two dimensions or
    more.
    """
    sizes = {i.name: math.prod(i.dims) for i in graph.initializer if len(i.dims) > 1}
    layers, weights = Counter[str](), Counter[str]()
    for node in graph.node:
        own = [sizes[name] for name in node.input if name in sizes]
        if own and node.op_type in WORDS:
            layers[node.op_type] += 1
            weights[node.op_type] += sum(own)
    return Census(layers, weights)
