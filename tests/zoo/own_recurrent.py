"""Recurrent layers: the gates of a hidden unit are packed, and all of them fall with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.entry import Entry, normal, reads, seeded, tokens, writes


class Recurrent(nn.Module):
    """Several layers in both directions, read by a linear layer."""

    def __init__(
        self, kind: type[nn.RNNBase], width: int = 6, hidden: int = 9, layers: int = 3
    ) -> None:
        super().__init__()
        self.width, self.hidden, self.layers = width, hidden, layers
        self.embedding = nn.Embedding(23, width)
        self.rnn = kind(width, hidden, layers, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * hidden, 5)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.rnn(self.embedding(ids))
        return self.out(states)

    def units(self) -> dict[str, int]:
        """A hidden index is one unit in all layers and directions.

        One operator runs them all and knows one width: ``hidden_size`` of the module, and of the
        initial state ``[layers·directions, batch, hidden]``, which is one tensor. Taken apart,
        each layer would need an LSTM of its own.
        """
        return {"embedding": self.width, "hidden units": self.hidden}


class LastState(nn.Module):
    """The final state of the last layer, without biases, time first."""

    def __init__(self, hidden: int = 8, layers: int = 2) -> None:
        super().__init__()
        self.hidden, self.layers = hidden, layers
        self.lstm = nn.LSTM(4, hidden, layers, bias=False)
        self.out = nn.Linear(hidden, 5)

    def forward(self, x: Tensor) -> Tensor:
        _, (state, _) = self.lstm(x)
        return self.out(torch.relu(state[-1]))

    def units(self) -> dict[str, int]:
        """The final states are one tensor, which ties a unit of all layers."""
        return {"hidden units": self.hidden}


class Cells(nn.Module):
    """A loop over time in Python: an LSTM cell under a GRU cell."""

    def __init__(self, lower: int = 7, upper: int = 10) -> None:
        super().__init__()
        self.lower, self.upper = lower, upper
        self.lstm = nn.LSTMCell(4, lower)
        self.gru = nn.GRUCell(lower, upper)
        self.out = nn.Linear(upper, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.size(1), self.lower)
        state = x.new_zeros(x.size(1), self.upper)
        outputs = []
        for step in x:
            h, c = self.lstm(step, (h, c))
            state = self.gru(h, state)
            outputs.append(self.out(state))
        return torch.stack(outputs)

    def units(self) -> dict[str, int]:
        return {"lstm": self.lower, "gru": self.upper}


class ByHand(nn.Module):
    """A GRU written with linear layers and ``chunk``."""

    def __init__(self, hidden: int = 11) -> None:
        super().__init__()
        self.hidden = hidden
        self.inputs = nn.Linear(5, 3 * hidden)
        self.states = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.size(0), self.hidden)
        for t in range(x.size(1)):
            ir, iz, inew = self.inputs(x[:, t]).chunk(3, dim=1)
            hr, hz, hnew = self.states(state).chunk(3, dim=1)
            new = torch.tanh(inew + torch.sigmoid(ir + hr) * hnew)
            update = torch.sigmoid(iz + hz)
            state = new + update * (state - new)
        return self.out(state)

    def units(self) -> dict[str, int]:
        return {"hidden units": self.hidden}


def lstm() -> Recurrent:
    return Recurrent(nn.LSTM)


def gru() -> Recurrent:
    return Recurrent(nn.GRU, width=5, hidden=8, layers=2)


ROWS = {"embedding.weight:0": "a row per word: looked up"}
INPUT = "reads the model's input"

ENTRIES = [
    Entry(
        "lstm",
        seeded(lstm),
        lambda: tokens(23, 2, 7),
        lambda: lstm().units(),
        ROWS | writes("out"),
        core=True,
    ),
    Entry(
        "gru", seeded(gru), lambda: tokens(23, 2, 7), lambda: gru().units(), ROWS | writes("out")
    ),
    Entry(
        "last state of an lstm",
        seeded(LastState),
        normal(7, 2, 4),
        lambda: LastState().units(),
        {"lstm.weight_ih_l0:1": INPUT} | writes("out"),
    ),
    Entry(
        "recurrent cells in a loop",
        seeded(Cells),
        normal(6, 2, 4),
        lambda: Cells().units(),
        {"lstm.weight_ih:1": INPUT} | writes("out"),
    ),
    Entry(
        "gru by hand",
        seeded(ByHand),
        normal(2, 6, 5),
        lambda: ByHand().units(),
        reads("inputs") | writes("out"),
    ),
]
