"""Networks of many trades: detection, generation, points, graphs, comparison."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.entry import Entry, normal, seeded


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    )


class CrossStage(nn.Module):
    """YOLO's C2f: halves split off, a chain of bottlenecks, and all of them concatenated."""

    def __init__(self, width: int, half: int) -> None:
        super().__init__()
        self.half = half
        self.enter, self.leave = _conv(width, 2 * half, 1), _conv(4 * half, width, 1)
        self.chain = nn.ModuleList(_conv(half, half) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).split((self.half, self.half), 1))
        for link in self.chain:
            parts.append(link(parts[-1]) + parts[-1])
        return self.leave(torch.cat(parts, 1))


class Yolo(nn.Module):
    """Two scales, pyramid pooling, a neck that goes up, anchors from the maps' sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = _conv(3, 8, 3, 2), CrossStage(8, 5)
        self.down, self.b = _conv(8, 14, 3, 2), CrossStage(14, 6)
        self.squeeze, self.pooled = _conv(14, 7, 1), _conv(28, 14, 1)
        self.neck = _conv(22, 10)
        self.boxes = nn.ModuleList([nn.Conv2d(10, 4, 1), nn.Conv2d(14, 4, 1)])
        self.classes = nn.ModuleList([nn.Conv2d(10, 3, 1), nn.Conv2d(14, 3, 1)])

    def forward(self, x: Tensor) -> Any:
        fine = self.a(self.stem(x))
        coarse = self.b(self.down(fine))
        pools = [self.squeeze(coarse)]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        coarse = self.pooled(torch.cat(pools, 1))
        up = F.interpolate(coarse, scale_factor=2.0)
        maps = [self.neck(torch.cat([up, fine], 1)), coarse]
        if self.training:
            return [torch.cat([b(m), c(m)], 1)
                    for m, b, c in zip(maps, self.boxes, self.classes, strict=True)]  # fmt: skip
        found = []
        for i, m in enumerate(maps):
            h, w = m.shape[-2:]
            rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
            grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))[None].to(x.dtype)
            place, size = self.boxes[i](m).chunk(2, 1)
            box = torch.cat([(place.sigmoid() + grid) * 2 ** (i + 1), size.exp()], 1)
            found.append(torch.cat([box, self.classes[i](m).sigmoid()], 1).flatten(2))
        return torch.cat(found, 2).transpose(1, 2)


class Timed(nn.Module):
    """A diffusion block: group norms, the step's embedding added to the channels, a skip."""

    def __init__(self, inputs: int, outputs: int, time: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(2, inputs), nn.Conv2d(inputs, inner, 3, padding=1)
        self.time = nn.Linear(time, inner)
        self.norm2, self.conv2 = nn.GroupNorm(inner, inner), nn.Conv2d(inner, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(t))[:, :, None, None]
        return self.conv2(F.silu(self.norm2(h))) + self.skip(x)


class Diffusion(nn.Module):
    """A small U-Net that is told the step by sines, with attention at the bottom."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 15), nn.Linear(15, 12)
        self.enter = nn.Conv2d(3, 8, 3, padding=1)
        self.down, self.middle = Timed(8, 12, 12, 9), Timed(12, 12, 12, 10)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.up, self.out = Timed(20, 8, 12, 11), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        rates = torch.exp(torch.arange(4, device=x.device) * -1.5)
        angles = step[:, None].to(x.dtype) * rates.to(x.dtype)
        t = self.two(F.silu(self.one(torch.cat([angles.sin(), angles.cos()], -1))))
        first = self.enter(x)
        h = self.middle(self.down(F.avg_pool2d(first, 2), t), t)
        flat = h.flatten(2).transpose(1, 2)
        h = h + self.attention(flat, flat, flat, need_weights=False)[0].transpose(1, 2).view_as(h)
        h = F.interpolate(h, size=first.shape[-2:])
        return self.out(F.silu(self.up(torch.cat([h, first], 1), t)))


class Variational(nn.Module):
    """A variational autoencoder: noise when it trains, the mean otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(1, 7, 3, 2, 1), nn.ReLU(), nn.Conv2d(7, 10, 3, 2, 1))
        self.mean, self.spread = nn.Linear(40, 6), nn.Linear(40, 6)
        self.open = nn.Linear(6, 40)
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(10, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> Any:
        h = F.relu(self.encode(x)).flatten(1)
        mean, spread = self.mean(h), self.spread(h)
        z = mean + torch.randn_like(mean) * (spread / 2).exp() if self.training else mean
        picture = self.decode(F.relu(self.open(z)).view(-1, 10, 2, 2)).sigmoid()
        return {"picture": picture, "mean": mean, "spread": spread}


class Adversarial(nn.Module):
    """A generator (transposed convolutions, batch norms) and the critic that judges it."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(5, 14, 4), nn.BatchNorm2d(14), nn.ReLU(),
            nn.ConvTranspose2d(14, 9, 4, 2, 1), nn.BatchNorm2d(9), nn.ReLU(),
            nn.ConvTranspose2d(9, 3, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip
        critic = (nn.Conv2d(3, 8, 4, 2, 1), nn.Conv2d(8, 12, 4, 2, 1), nn.Conv2d(12, 1, 4))
        self.critic = nn.ModuleList(nn.utils.parametrizations.spectral_norm(c) for c in critic)

    def judge(self, picture: Tensor) -> Tensor:
        for layer in self.critic[:-1]:
            picture = F.leaky_relu(layer(picture), 0.2)
        return self.critic[-1](picture).flatten(1)

    def forward(self, noise: Tensor) -> Any:
        picture = self.generator(noise[:, :, None, None])
        return picture, self.judge(picture)


class Flow(nn.Module):
    """RealNVP: halves that scale and shift each other, and the logarithm of the volume."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        half = width // 2
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(half, 11), nn.Tanh(), nn.Linear(11, 9), nn.ReLU(),
                          nn.Linear(9, 2 * half))
            for _ in range(3)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Any:
        volume = x.new_zeros(x.shape[0])
        for net in self.nets:
            still, moved = x.chunk(2, -1)
            scale, shift = net(still).chunk(2, -1)
            moved = moved * scale.tanh().exp() + shift
            x, volume = torch.cat([moved, still], -1), volume + scale.tanh().sum(-1)
        return x, volume


class Siamese(nn.Module):
    """One tower for both pictures, whose features are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            _conv(3, 9), nn.MaxPool2d(2), _conv(9, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(12, 10),
        )  # fmt: skip
        self.out = nn.Linear(10, 1)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.out((self.tower(one) - self.tower(other)).abs())


class PointNet(nn.Module):
    """Points one by one, their maximum, and a matrix of three that turns them first."""

    def __init__(self) -> None:
        super().__init__()
        self.turn1, self.turn2, self.turn3 = nn.Conv1d(3, 7, 1), nn.Linear(7, 8), nn.Linear(8, 9)
        self.a, self.b = nn.Conv1d(3, 13, 1), nn.Conv1d(13, 16, 1)
        self.norm = nn.BatchNorm1d(13)
        self.c, self.d = nn.Conv1d(29, 12, 1), nn.Conv1d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        turn = self.turn3(F.relu(self.turn2(F.relu(self.turn1(x)).amax(2)))).view(-1, 3, 3)
        near = F.relu(self.norm(self.a(torch.bmm(turn, x))))
        far = self.b(near).amax(2, keepdim=True).expand(-1, -1, x.shape[2])
        return self.d(F.relu(self.c(torch.cat([near, far], 1)))).log_softmax(1)


class Sets(nn.Module):
    """Deep sets: a sum over members, of which some are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.inner = nn.Linear(5, 14), nn.Linear(14, 11)
        self.all, self.out = nn.Linear(11, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        h = self.inner(F.elu(self.each(x)))
        h = h if there is None else h.masked_fill(~there[..., None], 0.0)
        return self.out(F.elu(self.all(h.sum(1))))


class GraphConvolution(nn.Module):
    """Neighbors added up by ``index_add``."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(7, 14), nn.Linear(14, 11), nn.Linear(11, 3)

    def spread(self, x: Tensor, edges: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add_(0, edges[1], x[edges[0]]) + x

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = F.relu(self.spread(self.a(x), edges))
        return self.out(F.relu(self.spread(self.b(h), edges)))


class GraphAttention(nn.Module):
    """Neighbors weighed by a softmax over each node's edges (scatter)."""

    def __init__(self, heads: int = 4, width: int = 6) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.read = nn.Linear(7, heads * width, bias=False)
        self.source = nn.Parameter(torch.randn(1, heads, width))
        self.target = nn.Parameter(torch.randn(1, heads, width))
        self.out = nn.Linear(heads * width, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        z = self.read(x).view(-1, self.heads, self.width)
        a = (z * self.source).sum(-1)[edges[0]] + (z * self.target).sum(-1)[edges[1]]
        a = F.leaky_relu(a).exp()
        total = a.new_zeros(x.shape[0], self.heads)
        total = total.scatter_add_(0, edges[1][:, None].expand_as(a), a)
        a = a / (total[edges[1]] + 1e-9)
        sent = torch.zeros_like(z).index_add_(0, edges[1], z[edges[0]] * a[:, :, None])
        return self.out(F.elu(sent.flatten(1)))


class Vectors(nn.Module):
    """Scalars and vectors of a molecule (GVP): norms of vectors gate them."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.vectors = nn.Linear(4, 12, bias=False), nn.Linear(12, 6, bias=False)
        self.scalars, self.gate, self.out = nn.Linear(20, 15), nn.Linear(15, 6), nn.Linear(15, 2)

    def forward(self, s: Tensor, v: Tensor) -> Any:
        h = self.hidden(v.transpose(1, 2))
        sizes = (h.pow(2).sum(1) + 1e-8).sqrt()
        s = F.relu(self.scalars(torch.cat([s, sizes], -1)))
        return self.out(s), (self.vectors(h) * self.gate(s).sigmoid()[:, None]).transpose(1, 2)


def edges() -> Tensor:
    return torch.randint(0, 9, (2, 20), generator=torch.Generator().manual_seed(2))


def _entry(name: str, make: Any, example: Any, units: dict[str, int], **more: Any) -> Entry:
    return Entry(name, seeded(make), example, lambda: units, None, **more)


ENTRIES = [
    _entry("yolo", Yolo, normal(2, 3, 16, 24),
           {"stem": 8, "halves": 10 + 12, "a": 8, "down": 14, "b": 14,
            "squeeze": 7, "pooled": 14, "neck": 10}),
    _entry("diffusion", Diffusion, lambda: (normal(2, 3, 8, 6)(), torch.tensor([3, 40])),
           {"time": 15 + 12, "inner": 9 + 10 + 11, "heads": 3, "groups of down": 2,
            "groups behind the skip": 2, "up": 8}),
    _entry("vae", Variational, normal(2, 1, 8, 8), {"channels": 7 + 10 + 10 + 8}),
    _entry("gan", Adversarial, normal(2, 5), {"generator": 14 + 9, "critic": 8 + 12}),
    _entry("normalizing flow", Flow, normal(2, 6), {"neurons": 3 * (11 + 9)}),
    _entry("siamese", Siamese, lambda: (normal(2, 3, 8, 8)(), normal(2, 3, 8, 8)().flip(0) + 0.1),
           {"channels": 9 + 12, "embedding": 10}),
    _entry("pointnet", PointNet, normal(2, 3, 17),
           {"turn": 7 + 8 + 3, "near": 13, "far": 16, "c": 12}),
    _entry("deep sets", Sets, normal(2, 6, 5), {"neurons": 14 + 11 + 12},
           calls=lambda: {"a mask": (normal(2, 6, 5)(), torch.arange(6)[None].expand(2, 6) < 4)}),
    _entry("graph convolution", GraphConvolution, lambda: (normal(9, 7)(), edges()),
           {"neurons": 14 + 11},
           calls=lambda: {"a larger graph": (normal(12, 7)(), edges() + 3),
                          "one edge": (normal(9, 7)(), edges()[:, :1])}),
    _entry("graph attention", GraphAttention, lambda: (normal(9, 7)(), edges()),
           {"width of heads": 6},
           calls=lambda: {"a larger graph": (normal(12, 7)(), edges() + 3)}),
    _entry("vectors of a molecule", Vectors, lambda: (normal(9, 8)(), normal(9, 4, 3)()),
           {"hidden": 12, "scalars": 15},
           calls=lambda: {"more atoms": (normal(12, 8)(), normal(12, 4, 3)())}),
]  # fmt: skip
