"""LSTMs and GRUs of an exported program, as recurrences whose weights are sparse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus._common.timing import interleaved
from prunus.kernels.recurrent import GATES, Form, Recurrence
from prunus.runtimes._sparse_sites import LEAST, tensors_by_name

aten = torch.ops.aten
FORMS: dict[Any, Form] = {aten.lstm.input: "lstm", aten.gru.input: "gru"}
BETTER = 0.97
"""A recurrence must take at most this part of torch's time."""


@dataclass(frozen=True, eq=False)
class RecurrentSite:
    """An LSTM or a GRU in a program; its arguments are those of torch's operator."""

    node: fx.Node
    form: Form
    weights: list[Tensor]
    biases: bool
    layers: int
    bidirectional: bool
    batch_first: bool

    @property
    def sparsity(self) -> float:
        """Zeros ÷ weights, biases aside."""
        own = [w for w in self.weights if w.dim() > 1]
        return 1 - sum(int(w.count_nonzero()) for w in own) / max(1, sum(w.numel() for w in own))

    def sizes(self, shape: Sequence[int]) -> tuple[int, int]:
        """Batch and steps of an input."""
        return (shape[0], shape[1]) if self.batch_first else (shape[1], shape[0])

    def recurrence(self, batches: Sequence[int], steps: int) -> Recurrence:
        """With the weights packed."""
        return Recurrence(
            self.form, self.weights, biases=self.biases, layers=self.layers,
            bidirectional=self.bidirectional, batches=batches, steps=steps,
        )  # fmt: skip

    def densely(self, x: Tensor, states: Sequence[Tensor]) -> tuple[Any, ...]:
        """By torch."""
        first = self.batch_first
        more = (self.weights, self.biases, self.layers, 0.0, False, self.bidirectional, first)
        if self.form == "lstm":
            return torch.lstm(x, list(states), *more)
        return torch.gru(x, states[0], *more)


@dataclass(frozen=True)
class RecurrentChoice:
    """How one is computed at a batch size, and what both ways took."""

    batch: int
    steps: int
    ms: float
    dense_ms: float

    @property
    def wins(self) -> bool:
        """Whether it is sparse."""
        return self.ms <= BETTER * self.dense_ms


def recurrent_sites(module: fx.GraphModule) -> list[RecurrentSite]:
    """Those in float32 without projections whose weights hold enough zeros."""
    known = tensors_by_name(module)
    found = []
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target not in FORMS:
            continue
        _, _, params, biases, layers, _, trains, bidirectional, batch_first = node.args
        weights = [known.get(str(p.target)) for p in params]
        each = (4 if biases else 2) * layers * (2 if bidirectional else 1)
        if trains or len(weights) != each or any(w is None for w in weights):
            continue
        held = [w.detach() for w in weights if w is not None]
        form = FORMS[node.target]
        square = held[1].shape[0] == GATES[form] * held[1].shape[1]
        if square and all(w.dtype == torch.float32 and w.device.type == "cpu" for w in held):
            site = RecurrentSite(node, form, held, biases, layers, bidirectional, batch_first)
            found += [site] if site.sparsity >= LEAST else []
    return found


def choose_recurrent(
    site: RecurrentSite, shape: Sequence[int], *, seconds: float
) -> RecurrentChoice:
    """Both ways in turn, on an input of a shape."""
    batch, steps = site.sizes(shape)
    x = torch.randn(tuple(shape))
    ways = 2 if site.bidirectional else 1
    hidden = site.weights[1].shape[1]
    states = [
        torch.zeros(site.layers * ways, batch, hidden)
        for _ in range(2 if site.form == "lstm" else 1)
    ]
    made = site.recurrence([batch], steps)
    with torch.inference_mode():
        found = interleaved({
            "sparse": lambda: made(x, states, batch_first=site.batch_first),
            "dense": lambda: site.densely(x, states),
        }, seconds=seconds)  # fmt: skip
    return RecurrentChoice(batch, steps, found["sparse"].median_ms, found["dense"].median_ms)


class RecurrentLayer(nn.Module):
    """In the place of torch's operator; at the batch sizes where that is faster, it is that one."""

    def __init__(self, site: RecurrentSite, choices: Sequence[RecurrentChoice]) -> None:
        super().__init__()
        self.choices = sorted(choices, key=lambda c: c.batch)
        batches = [c.batch for c in self.choices if c.wins]
        self.recurrence = site.recurrence(batches, self.choices[0].steps)
        self.dense = None if all(c.wins for c in self.choices) else site.densely
        self.batch_first = site.batch_first

    def forward(self, x: Tensor, states: Any) -> tuple[Any, ...]:
        """Outputs, h, and of an LSTM c."""
        states = list(states) if isinstance(states, (list, tuple)) else [states]
        batch = x.shape[0 if self.batch_first else 1]
        near = min(self.choices, key=lambda c: abs(c.batch - batch))
        if self.dense is not None and not near.wins:
            return self.dense(x, states)
        return self.recurrence(x, states, batch_first=self.batch_first)


def put_recurrent(
    module: fx.GraphModule, site: RecurrentSite, choices: Sequence[RecurrentChoice]
) -> None:
    """A recurrence in the operator's place."""
    name = f"sparse_{site.node.name}"
    module.add_submodule(name, RecurrentLayer(site, choices))
    with module.graph.inserting_before(site.node):
        node = module.graph.call_module(name, (site.node.args[0], site.node.args[1]))
    node.meta = dict(site.node.meta)
    site.node.replace_all_uses_with(node)
    module.graph.erase_node(site.node)  # torch takes it for random, and would leave it
    assert all(user.target is getitem for user in node.users)


def recurrent_choices(found: Any) -> list[RecurrentChoice]:
    """What the artifact keeps of them.

    Raises:
        KeyError, TypeError, ValueError: if it is something else.
    """
    made = [RecurrentChoice(int(c["batch"]), int(c["steps"]), float(c["ms"]), float(c["dense_ms"]))
            for c in found]  # fmt: skip
    if not made or any(c.batch < 0 or c.steps < 0 for c in made):
        raise ValueError("an LSTM without a choice")
    return made
