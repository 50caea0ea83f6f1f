"""LSTM and GRU whose weights are sparse: inputs by one product, every step by a small one."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from prunus.errors import InputError
from prunus.kernels.choosing import Kernel, kernels
from prunus.kernels.layouts import KINDS, dense
from prunus.kernels.native import DONE, NOT_FINITE, Recurrent, library
from prunus.kernels.pattern import Pattern
from prunus.kernels.prepared import Prepared

Form = Literal["lstm", "gru"]
GATES: dict[Form, int] = {"lstm": 4, "gru": 3}


@dataclass(frozen=True, eq=False)
class Direction:
    """One layer in one direction.

    Attributes:
        inputs: x · W_ihᵀ with the biases that may be added there.
        steps: kernels of W_hh ``[gates · hidden, hidden]``, by the batch.
        bias: of the recurrent product, of a GRU.
        reverse: whether it begins with the last step.
    """

    inputs: Prepared
    steps: list[Kernel]
    bias: Tensor | None
    reverse: bool

    @classmethod
    def of(
        cls, form: Form, weights: Sequence[Tensor], *, reverse: bool, batches: Sequence[int],
        tokens: Sequence[int],
    ) -> Direction:  # fmt: skip
        """From W_ih, W_hh and, where it has them, b_ih and b_hh."""
        first, second, *biases = (w.detach() for w in weights)
        bias = biases[0] + biases[1] if biases and form == "lstm" else biases[0] if biases else None
        own = _kernels(first, tokens)
        inputs = Prepared(own, rows=first.shape[0], cols=first.shape[1], bias=bias)
        later = biases[1].contiguous() if biases and form == "gru" else None
        return cls(inputs, _kernels(second, batches), later, reverse)


def _kernels(weight: Tensor, tokens: Sequence[int]) -> list[Kernel]:
    pattern = Pattern.of(weight)
    return kernels(pattern, weight.reshape(-1)[pattern.flat()], tokens=tokens)


class Recurrence:
    """The layers of an ``nn.LSTM`` or an ``nn.GRU``, with torch's own arguments and answers.

    Args:
        form: ``lstm`` or ``gru``.
        weights: as torch keeps them: of every layer and direction W_ih, W_hh and, with
            ``biases``, b_ih and b_hh.
        biases: whether there are any.
        layers: how many.
        bidirectional: whether every layer runs in both directions.
        batches: batch sizes that are expected.
        steps: that are expected.

    Raises:
        InputError: if the weights are not float32 on the CPU, or not as many.
    """

    def __init__(
        self, form: Form, weights: Sequence[Tensor], *, biases: bool, layers: int,
        bidirectional: bool, batches: Sequence[int] = (1,), steps: int = 128,
    ) -> None:  # fmt: skip
        each, ways = 4 if biases else 2, 2 if bidirectional else 1
        plain = all(w.dtype == torch.float32 and w.device.type == "cpu" for w in weights)
        if len(weights) != each * layers * ways or not plain:
            raise InputError(
                f"{form}: {layers} layers take {each * layers * ways} float32 tensors on the CPU, "
                f"not {len(weights)} of {sorted({str(w.dtype) for w in weights})}"
            )
        self.form, self.layers, self.ways, self.biases = form, layers, ways, biases
        self.hidden = weights[1].shape[1]
        tokens = sorted({b * steps for b in batches})
        parts = [weights[i : i + each] for i in range(0, len(weights), each)]
        self.parts = [
            Direction.of(form, own, reverse=i % ways == 1, batches=batches, tokens=tokens)
            for i, own in enumerate(parts)
        ]

    def __call__(
        self, x: Tensor, states: Sequence[Tensor], *, batch_first: bool
    ) -> tuple[Any, ...]:
        """Outputs and last states, as ``torch.lstm`` and ``torch.gru`` give them.

        Args:
            x: ``[steps, batch, in]``, or ``[batch, steps, in]`` with ``batch_first``.
            states: h, and of an LSTM c, ``[layers · ways, batch, hidden]``.
            batch_first: see ``x``.
        """
        flow = x.transpose(0, 1).contiguous() if batch_first else x
        last: list[list[Tensor]] = [[] for _ in states]
        for layer in range(self.layers):
            many, batch = flow.shape[0], flow.shape[1]
            out = torch.empty(many, batch, self.ways * self.hidden)
            for way in range(self.ways):
                number = layer * self.ways + way
                own = [s[number].clone(memory_format=torch.contiguous_format) for s in states]
                if not self._run(number, flow, own, out, way * self.hidden):
                    return self._densely(x, states, batch_first)
                for kept, state in zip(last, own, strict=True):
                    kept.append(state)
            flow = out
        answers = flow.transpose(0, 1) if batch_first else flow
        return answers, *(torch.stack(kept) for kept in last)

    def _run(self, number: int, x: Tensor, own: list[Tensor], out: Tensor, place: int) -> bool:
        """One layer and direction over all steps; whether everything was finite."""
        part = self.parts[number]
        many, batch, width = out.shape
        gates = part.inputs(x)
        kernel = next(k for k in reversed(part.steps) if k.least <= batch)
        call = Recurrent(
            kernel.layout.data_ptr(), kernel.values.data_ptr(), gates.data_ptr(),
            None if part.bias is None else part.bias.data_ptr(), own[0].data_ptr(),
            own[1].data_ptr() if len(own) > 1 else None, out.data_ptr() + 4 * place,
            many, batch, self.hidden, batch * width, width, 0 if self.form == "lstm" else 1,
            int(part.reverse), KINDS[kernel.values.dtype], torch.get_num_threads(),
        )  # fmt: skip
        status = library().call.prunus_recurrent(byref(call))
        if status not in (DONE, NOT_FINITE):
            raise InputError(f"there is no memory for {many} steps of a batch of {batch}")
        return bool(status == DONE)

    def _densely(self, x: Tensor, states: Sequence[Tensor], batch_first: bool) -> tuple[Any, ...]:
        """By torch, every zero multiplied, where something is not finite."""
        weights: list[Tensor] = []
        for part in self.parts:
            first = next(k for k in part.inputs.kernels if k.values.dim() == 1)
            weights += [dense(k.layout, k.values) for k in (first, part.steps[0])]
            if not self.biases:
                continue
            bias = part.inputs.bias
            assert bias is not None
            weights += [bias, torch.zeros_like(bias) if part.bias is None else part.bias]
        more = (weights, self.biases, self.layers, 0.0, False, self.ways == 2, batch_first)
        if self.form == "lstm":
            return tuple(torch.lstm(x, list(states), *more))
        return tuple(torch.gru(x, states[0], *more))
