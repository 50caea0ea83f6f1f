"""Two recognizers that listen as it is said: a recurrent one and a Conformer-like one.

``forward`` hears a whole recording (training, judging). ``begin`` and ``hear`` take it piece by
piece and keep a state; the two say the same. Sizes of the state are read off the layers, so
that a pruned network streams by the same code, with a smaller state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLANK = 0
EVERY = 4
"""Frames for one output: pieces are multiples of it."""
State = tuple[Tensor, ...]


class Recognizer(nn.Module):
    """Scores over time of digits and "nothing new"; the CTC loss is the model's own.

    Source: Graves, Fernández, Gomez, Schmidhuber 2006, ICML, for the loss.
    """

    def __init__(self, bands: int, width: int, digits: int = 10) -> None:
        super().__init__()
        self.first, self.second = Halved(bands, width), Halved(width, width)
        self.head = nn.Linear(width, digits + 1)

    def forward(
        self, features: Tensor, lengths: Tensor | None = None, labels: Tensor | None = None,
        label_lengths: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Scores ``[b, frames/4, digits + 1]``; with ``labels`` their mean loss in nats per digit.

        Args:
            features: ``[b, frames, bands]``; what lies behind an end changes nothing before it.
            lengths: ``[b]``, frames that are there.
            labels: ``[b, l]``, digits + 1.
            label_lengths: ``[b]``.
        """
        x = self.second(self.first(features.transpose(1, 2))).transpose(1, 2)
        scores = self.head(self.listen(x))
        if lengths is None or labels is None or label_lengths is None:
            return scores  # type: ignore[no-any-return]
        return F.ctc_loss(
            scores.log_softmax(2).transpose(0, 1), labels, -(-lengths // EVERY), label_lengths,
            blank=BLANK, zero_infinity=True,
        )  # fmt: skip

    def listen(self, x: Tensor) -> Tensor:
        """``[b, n, width]`` to the same shape, each of what came up to its place."""
        raise NotImplementedError  # each network has its own

    def begin(self, count: int) -> State:
        """The state before anything was heard, of ``count`` streams."""
        raise NotImplementedError  # each network has its own

    def hear(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        """Scores of the next piece ``[b, frames, bands]`` and the state; frames: ``EVERY``·k."""
        x, first = self.first.hear(features.transpose(1, 2), state[0])
        x, second = self.second.hear(x, state[1])
        x, others = self.go_on(x.transpose(1, 2), state[2:])
        return self.head(x), (first, second, *others)

    def go_on(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """:meth:`listen` of a piece."""
        raise NotImplementedError  # each network has its own


class Halved(nn.Module):
    """A causal convolution of three frames that keeps every second one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(inputs, outputs, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, inputs, n]`` to ``[b, outputs, n/2]``."""
        return F.relu(self.norm(self.convolution(F.pad(x, (2, 0)))))

    def begin(self, count: int) -> Tensor:
        """The last two frames: silence."""
        return self.convolution.weight.new_zeros(count, self.convolution.in_channels, 2)

    def hear(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """A piece, and its last two frames."""
        whole = torch.cat([before, x], 2)
        return F.relu(self.norm(self.convolution(whole))), whole[:, :, -2:]


class Recurrent(Recognizer):
    """Two GRUs, one behind the other, each as wide as it is left."""

    def __init__(self, bands: int, *, width: int, hidden: int, dropout: float) -> None:
        super().__init__(bands, width)
        self.lower = nn.GRU(width, hidden, batch_first=True)
        self.upper = nn.GRU(hidden, hidden, batch_first=True)
        self.head = nn.Linear(hidden, self.head.out_features)
        self.dropout = nn.Dropout(dropout)

    def listen(self, x: Tensor) -> Tensor:
        """``[b, n, width]`` to ``[b, n, hidden]``."""
        x, _ = self.lower(self.dropout(x))
        x, _ = self.upper(self.dropout(x))
        return self.dropout(x)  # type: ignore[no-any-return]

    def begin(self, count: int) -> State:
        """Frames of the convolutions, and a state ``[1, b, hidden]`` of each GRU."""
        own = [gru.weight_hh_l0.new_zeros(1, count, gru.hidden_size)
               for gru in (self.lower, self.upper)]  # fmt: skip
        return (self.first.begin(count), self.second.begin(count), *own)

    def go_on(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """A piece."""
        x, lower = self.lower(x, state[0])
        x, upper = self.upper(x, state[1])
        return x, (lower, upper)


class Conformer(Recognizer):
    """Blocks of neurons, attention to the last moments, a depthwise convolution, and neurons.

    Source: Gulati et al. 2020, arXiv:2005.08100; causal, without relative positions.
    """

    def __init__(
        self, bands: int, *, width: int, heads: int, blocks: int, dropout: float
    ) -> None:  # fmt: skip
        super().__init__(bands, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def listen(self, x: Tensor) -> Tensor:
        """``[b, n, width]`` to the same shape."""
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]

    def begin(self, count: int) -> State:
        """Of each block keys and values of what was, none yet, and frames of its convolution."""
        first, second = self.first.begin(count), self.second.begin(count)
        nothing = first.new_zeros(count, 0, self.norm.weight.shape[0])
        own = [part for block in self.blocks for part in block.begin(nothing)]
        return (first, second, *own)

    def go_on(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """A piece."""
        found: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x, own = block.hear(x, state[3 * i : 3 * i + 3])
            found += own
        return self.norm(x), tuple(found)


class Block(nn.Module):
    """Half a step of neurons, attention, convolution, half a step of neurons."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.before, self.after = Neurons(width, dropout), Neurons(width, dropout)
        self.attention = Attention(width, heads)
        self.convolution = Convolution(width)
        self.norm, self.end = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, n, width]`` to the same shape."""
        x = x + 0.5 * self.before(x)
        x = x + self.dropout(self.attention(self.norm(x)))
        x = x + self.dropout(self.convolution(x))
        return self.end(x + 0.5 * self.after(x))  # type: ignore[no-any-return]

    def begin(self, nothing: Tensor) -> State:
        """Of ``[b, 0, width]``."""
        return (*self.attention.read(nothing), self.convolution.begin(len(nothing)))

    def hear(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """A piece."""
        x = x + 0.5 * self.before(x)
        found, keys, values = self.attention.hear(self.norm(x), *state[:2])
        x = x + found
        found, frames = self.convolution.hear(x, state[2])
        x = x + found
        return self.end(x + 0.5 * self.after(x)), (keys, values, frames)


class Neurons(nn.Module):
    """Two linear layers, normed before."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, n, width]`` to the same shape."""
        return self.dropout(self.down(self.dropout(F.silu(self.up(self.norm(x))))))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Attention to the last ``HISTORY`` places, its own included."""

    HISTORY = 25  # a second

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.size = width // heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """``[b, n, width]`` to the same shape."""
        return self._attend(x, *self.read(x))

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[b, heads, n, size]``."""
        return self._split(self.key(x)), self._split(self.value(x))

    def hear(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A piece, and the keys and values that the next one may look at."""
        new = self.read(x)
        keys, values = torch.cat([keys, new[0]], 2), torch.cat([values, new[1]], 2)
        kept = slice(max(0, keys.shape[2] - self.HISTORY + 1), None)
        return self._attend(x, keys, values), keys[:, :, kept], values[:, :, kept]

    def _attend(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        last = torch.arange(keys.shape[2], device=x.device)
        own = last[keys.shape[2] - x.shape[1] :, None]  # the places of x
        seen = (last <= own) & (last > own - self.HISTORY)  # [n, places]
        found = F.scaled_dot_product_attention(self._split(self.query(x)), keys, values, seen)
        return self.output(found.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.size)).transpose(1, 2)


class Convolution(nn.Module):
    """A gate, a causal convolution of each channel by itself, and the way back."""

    FRAMES = 7

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.gate, self.down = (nn.Linear(width, width) for _ in range(3))
        self.depthwise = nn.Conv1d(width, width, self.FRAMES, groups=width, bias=False)
        self.batch_norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, n, width]`` to the same shape."""
        return self._back(F.pad(self._gated(x), (self.FRAMES - 1, 0)))

    def begin(self, count: int) -> Tensor:
        """The frames before the first one: silence."""
        weight = self.depthwise.weight
        return weight.new_zeros(count, weight.shape[0], self.FRAMES - 1)

    def hear(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """A piece, and its last frames."""
        whole = torch.cat([before, self._gated(x)], 2)
        return self._back(whole), whole[:, :, 1 - self.FRAMES :]

    def _gated(self, x: Tensor) -> Tensor:
        """``[b, n, width]`` to ``[b, width, n]``."""
        normed = self.norm(x)
        return (self.up(normed) * torch.sigmoid(self.gate(normed))).transpose(1, 2)

    def _back(self, x: Tensor) -> Tensor:
        x = F.silu(self.batch_norm(self.depthwise(x)))
        return self.down(x.transpose(1, 2))  # type: ignore[no-any-return]
