"""Recurrent layers as one operator each, while a model is exported with lengths left open.

Torch's own are taken apart step by step wherever sizes are only known by name, so that a length
becomes a number for good. The operators here have shapes alone; in the finished program torch's
stand in their places, and ONNX has one operator for each.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunus._common.instead import Instead

LIBRARY = torch.library.Library("prunus_steps", "DEF")
"""Torch takes the definitions back with it."""
_REST = (
    "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, "
    "bool bidirectional, bool batch_first)"
)
SIGNATURES: Mapping[str, str] = {
    "lstm": f"lstm(Tensor input, Tensor[] hx, {_REST} -> (Tensor, Tensor, Tensor)",
    **{
        name: f"{name}(Tensor input, Tensor hx, {_REST} -> (Tensor, Tensor)"
        for name in ("gru", "rnn_tanh", "rnn_relu")
    },
}
"""As ATen's operators of these names, without what is projected."""


class Whole(Instead):
    """Recurrent layers are taken as these operators, but projected LSTMs and packed sequences."""

    def found(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """A layer as an operator whose steps are not looked at."""
        if func not in _TAKEN or not _is_plain(args):
            return None
        return getattr(torch.ops.prunus_steps, _TAKEN[func])(args[0], *_listed(args[1:]))


def packs(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a recurrent layer of a model gets a packed sequence; one pass is run."""
    found: list[bool] = []

    def look(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = (*args, *named.values())
        found.append(any(isinstance(value, nn.utils.rnn.PackedSequence) for value in given))

    layers = [m for m in model.modules() if isinstance(m, nn.RNNBase)]
    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    try:
        model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return any(found)


def _is_plain(args: tuple[Any, ...]) -> bool:
    """Called as ``nn.RNNBase`` does, with a padded input, and nothing projected."""
    if len(args) != 9 or isinstance(args[3], Tensor) or args[0].dim() != 3:
        return False
    layers, ways = args[4], 2 if args[7] else 1
    return bool(len(args[2]) == layers * ways * (4 if args[3] else 2))


def _listed(args: Sequence[Any]) -> list[Any]:
    return [list(a) if isinstance(a, tuple) else a for a in args]


_TAKEN: Mapping[Any, str] = {getattr(torch, name): name for name in SIGNATURES}


def in_torch(program: ExportedProgram) -> ExportedProgram:
    """The program with torch's operators in their places."""
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target in _THEIRS:
            node.target = _THEIRS[node.target]
    program.graph_module.recompile()
    return program


def has_recurrent(program: ExportedProgram) -> bool:
    """Whether torch's operators stand in it."""
    return any(node.target in _THEIRS.values() for node in program.graph.nodes)


def onnx_table() -> dict[Any, Callable[..., Any]]:
    """How ONNX says them, each one operator for a layer; needs onnxscript."""
    from onnxscript.function_libs.torch_lib.ops import core

    ours = torch.ops.prunus_steps
    return {
        ours.lstm.default: _without_annotations(core.aten_lstm),
        ours.gru.default: _without_annotations(core.aten_gru),
        ours.rnn_tanh.default: _onnx_simple("Tanh"),
        ours.rnn_relu.default: _onnx_simple("Relu"),
    }


def _without_annotations(function: Any) -> Callable[..., Any]:
    """The exporter passes over functions whose annotations it does not know."""
    return lambda input, hx, params, has_biases, num_layers, dropout, train, bidirectional, \
        batch_first: function(input, hx, params, has_biases, num_layers, dropout, train,
                              bidirectional, batch_first)  # fmt: skip


def _onnx_simple(activation: str) -> Callable[..., Any]:
    """hₜ = f(W xₜ + b + U hₜ₋₁ + c), layer by layer, as ONNX's RNN."""

    def made(
        input: Any, hx: Any, params: Any, has_biases: Any, num_layers: Any, dropout: Any,
        train: Any, bidirectional: Any, batch_first: Any,
    ) -> tuple[Any, Any]:  # fmt: skip
        op: Any = importlib.import_module("onnxscript.onnx_opset").opset18
        ways, each = 2 if bidirectional else 1, 4 if has_biases else 2
        value = op.Transpose(input, perm=[1, 0, 2]) if batch_first else input
        last = []
        for layer in range(num_layers):
            own = [params[(layer * ways + way) * each :][:each] for way in range(ways)]
            weights, recurrent, *biases = (
                op.Concat(*(op.Unsqueeze(p[i], [0]) for p in own), axis=0) for i in range(each)
            )
            bias = op.Concat(*biases, axis=1) if biases else None
            first = op.Slice(hx, [layer * ways], [(layer + 1) * ways], [0])
            found, end = op.RNN(
                value, weights, recurrent, bias, None, first,
                activations=[activation] * ways, hidden_size=own[0][1].shape[1],
                direction="bidirectional" if bidirectional else "forward",
            )  # fmt: skip
            last.append(end)  # found: [steps, ways, batch, hidden]
            value = op.Reshape(op.Transpose(found, perm=[0, 2, 1, 3]), [0, 0, -1])
        value = op.Transpose(value, perm=[1, 0, 2]) if batch_first else value
        return value, op.Concat(*last, axis=0)

    return _without_annotations(made)


def _computing(name: str) -> Callable[..., Any]:
    own = getattr(torch, name)

    def compute(*args: Any) -> tuple[Tensor, ...]:
        return tuple(t.clone() for t in own(*args))  # an operator's answers are not its inputs

    return compute


def _fake(
    input: Tensor, hx: Any, params: Sequence[Tensor], has_biases: bool, num_layers: int,
    dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    states = [hx] if isinstance(hx, Tensor) else hx
    width = states[0].shape[2] * (2 if bidirectional else 1)
    found = input.new_empty((*input.shape[:2], width))
    return found, *(s.new_empty(s.shape) for s in states)


for _name, _signature in SIGNATURES.items():
    LIBRARY.define(_signature)
    LIBRARY.impl(_name, _computing(_name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"prunus_steps::{_name}", _fake, lib=LIBRARY)
_THEIRS: Mapping[Any, Any] = {
    getattr(torch.ops.prunus_steps, name).default: getattr(torch.ops.aten, name).input
    for name in SIGNATURES
}
