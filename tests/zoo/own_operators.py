"""Operators that few models have: PReLU, Fourier transforms, packed sequences, channel gates."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.entry import Entry, normal, seeded, tokens


def parametric() -> nn.Module:
    """A slope for each channel, in two and in four dimensions."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.PReLU(12), nn.Conv2d(12, 9, 3), nn.BatchNorm2d(9), nn.PReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 14), nn.PReLU(14), nn.Linear(14, 5),
    )  # fmt: skip


class Fourier(nn.Module):
    """A Fourier neural operator: complex weights between a transform and its inverse."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 12), nn.Linear(12, 1)
        self.weight = nn.Parameter(torch.randn(12, 14, 5, dtype=torch.cfloat) / 12)
        self.side, self.mix = nn.Conv1d(12, 14, 1), nn.Conv1d(14, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).transpose(1, 2)
        f = torch.einsum("bim,iom->bom", torch.fft.rfft(h)[..., :5], self.weight)
        h = F.gelu(torch.fft.irfft(f, n=h.shape[-1]) + self.side(h))
        return self.last(F.gelu(self.mix(h)).transpose(1, 2))


class Spectrogram(nn.Module):
    """A short-time transform in front of convolutions: complex views."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(16))
        self.a, self.b = nn.Conv2d(2, 10, 3, padding=1), nn.Conv2d(10, 8, 3, padding=1)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        f = torch.stft(x, 16, 8, window=self.window, return_complex=True)
        h = torch.view_as_real(f).permute(0, 3, 1, 2)
        return self.out(F.relu(self.b(F.relu(self.a(h)))).mean((2, 3)))


class Packed(nn.Module):
    """Sequences of different lengths, packed for an LSTM in two directions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(19, 7)
        self.lstm = nn.LSTM(7, 9, batch_first=True, bidirectional=True)
        self.out = nn.Linear(18, 4)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(ids), lengths, batch_first=True, enforce_sorted=False
        )
        _, (state, _) = self.lstm(packed)
        return self.out(torch.cat([state[0], state[1]], -1))


class Projected(nn.Module):
    """An LSTM whose output is narrower than its state (``proj_size``)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 12, proj_size=7, batch_first=True)
        self.a, self.out = nn.Linear(7, 11), nn.Linear(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.a(self.lstm(x)[0])))


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 9), nn.Linear(6, 8)
        self.both, self.out = nn.Bilinear(9, 8, 13), nn.Linear(13, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(F.relu(self.both(F.relu(self.left(x)), F.relu(self.right(y)))))


class Adjoint(nn.Module):
    """Complex layers: a product with its conjugate, whose size is the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 10, dtype=torch.cfloat)
        self.b = nn.Linear(10, 6, dtype=torch.cfloat)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(self.a(x) * 0.5)
        return (h @ h.mH).abs()


class ChannelGate(nn.Module):
    """ECA: a convolution over the channels weighs them by their neighbors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate = nn.Conv2d(3, 10, 3), nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.b, self.out = nn.Conv2d(10, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        w = self.gate(h.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]
        return self.out(F.relu(self.b(h * w)).mean((2, 3)))


class PixelNorm(nn.Module):
    """Each pixel divided by the size of its channels' mean square, as in StyleGAN."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 9, 3), nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.a(x), 0.2)
        h = h * (h.pow(2).mean(1, keepdim=True) + 1e-8).rsqrt()
        return self.out(F.leaky_relu(self.b(h), 0.2))


class Deformed(nn.Module):
    """Pixels looked up where another convolution says."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.off = nn.Conv2d(3, 12, 3, 1, 1), nn.Conv2d(12, 2, 3, 1, 1)
        self.b, self.out = nn.Conv2d(12, 10, 3, 1, 1), nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        f = F.relu(self.a(x))
        grid = self.off(f).permute(0, 2, 3, 1).tanh()
        return self.out(F.relu(self.b(F.grid_sample(f, grid, align_corners=False))))


class Attended(nn.Module):
    """Efficient attention: softmax over the channels of the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Conv2d(5, n, 1) for n in (8, 8, 11))
        self.out = nn.Conv2d(11, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x).flatten(2).softmax(1), self.k(x).flatten(2).softmax(2)
        context = k @ self.v(x).flatten(2).transpose(1, 2)
        return self.out((q.transpose(1, 2) @ context).transpose(1, 2).unflatten(2, x.shape[-2:]))


def _entry(name: str, make: Any, example: Any, units: dict[str, int], **more: Any) -> Entry:
    return Entry(name, seeded(make), example, lambda: units, None, **more)


ENTRIES = [
    _entry("prelu", parametric, normal(2, 3, 9, 8), {"channels": 21, "neurons": 14}),
    _entry("fourier operator", Fourier, normal(2, 20, 2), {"first": 12, "modes": 14, "mix": 12},
           note="``first`` and ``mix`` are apart: the last layer reads ``mix`` alone"),
    _entry("spectrogram", Spectrogram, normal(2, 64), {"channels": 18}),
    _entry("packed sequences", Packed, lambda: (tokens(19, 2, 6), torch.tensor([6, 4])),
           {"embedding": 7, "hidden": 9}, export=False),
    _entry("projected lstm", Projected, normal(2, 6, 5), {"state": 12, "projection": 7, "a": 11}),
    _entry("bilinear", Bilinear, lambda: (normal(2, 5)(), normal(2, 6)()),
           {"left": 9, "right": 8, "both": 13}),
    _entry("complex layers", Adjoint,
           lambda: torch.complex(normal(2, 3, 4)(), normal(2, 3, 4)().flip(-1)),
           {"a": 10, "b": 6}),
    _entry("channel gate", ChannelGate, normal(2, 3, 9, 8), {"b": 8}),
    _entry("pixel norm", PixelNorm, normal(2, 3, 9, 8), {"b": 9}),
    _entry("deformed sampling", Deformed, normal(2, 3, 9, 8), {"a": 12, "b": 10}),
    _entry("softmax over channels", Attended, normal(2, 5, 6, 7), {"values": 11}),
]  # fmt: skip
