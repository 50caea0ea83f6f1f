"""Networks over several resolutions: a U-Net, and a detector with a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.entry import KERNEL, STREAM, Entry, normal, reads, seeded, writes


def double(inputs: int, inner: int, outputs: int) -> nn.Sequential:
    """Two 3×3 convolutions, each with its batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, inner, 3, padding=1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Ronneberger 2015: the way up reads what the way down wrote, beside its own."""

    def __init__(self, widths: Sequence[int] = (5, 8, 12), inner: int = 7, up: int = 6) -> None:
        super().__init__()
        self.widths, self.inner, self.up_width = widths, inner, up
        self.down = nn.ModuleList(
            double(i, inner, o) for i, o in zip((3, *widths), widths, strict=False)
        )
        self.up, self.join = nn.ModuleList(), nn.ModuleList()
        below = widths[-1]
        for skip in reversed(widths[:-1]):
            self.up.append(nn.ConvTranspose2d(below, up, 2, stride=2))
            self.join.append(double(skip + up, inner, skip))
            below = skip
        self.out = nn.Conv2d(below, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(skips[:-1]), strict=True):
            y = up(x)
            rows, columns = skip.shape[2] - y.shape[2], skip.shape[3] - y.shape[3]
            y = F.pad(y, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
            x = join(torch.cat([skip, y], dim=1))
        return self.out(x)

    def units(self) -> dict[str, int]:
        levels, ups = len(self.widths), len(self.widths) - 1
        return {
            "inner channels": (levels + ups) * self.inner,
            "down": sum(self.widths),
            "transposed": ups * self.up_width,
            "joined": sum(self.widths[:-1]),
        }


class Detector(nn.Module):
    """Lin 2016 and 2017: a pyramid of features, and two heads that every level shares."""

    def __init__(
        self, widths: Sequence[int] = (6, 9, 14), pyramid: int = 10, head: int = 8
    ) -> None:
        super().__init__()
        self.widths, self.pyramid, self.head = widths, pyramid, head
        self.classes, self.anchors = 5, 3
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
            for i, o in zip((3, *widths), widths, strict=False)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(w, pyramid, 1) for w in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(pyramid, pyramid, 3, padding=1) for _ in widths)
        self.class_tower = nn.Conv2d(pyramid, head, 3, padding=1)
        self.box_tower = nn.Conv2d(pyramid, head, 3, padding=1)
        self.class_out = nn.Conv2d(head, self.anchors * self.classes, 3, padding=1)
        self.box_out = nn.Conv2d(head, self.anchors * 4, 3, padding=1)

    def flat(self, x: Tensor, each: int) -> Tensor:
        n, _, h, w = x.shape
        x = x.view(n, self.anchors, each, h, w).permute(0, 3, 4, 1, 2)
        return x.reshape(n, -1, each)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        merged = [self.lateral[-1](levels[-1])]
        for level, lateral in zip(levels[-2::-1], list(self.lateral)[-2::-1], strict=True):
            above = F.interpolate(merged[0], size=level.shape[-2:], mode="nearest")
            merged.insert(0, lateral(level) + above)
        features = [smooth(m) for smooth, m in zip(self.smooth, merged, strict=True)]
        classes = [self.class_out(F.relu(self.class_tower(f))) for f in features]
        boxes = [self.box_out(F.relu(self.box_tower(f))) for f in features]
        return (
            torch.cat([self.flat(c, self.classes) for c in classes], dim=1).sigmoid(),
            torch.cat([self.flat(b, 4) for b in boxes], dim=1),
        )

    def units(self) -> dict[str, int]:
        """Sums tie the laterals of all levels, the shared heads tie all smoothed levels."""
        return {
            "backbone": sum(self.widths),
            "laterals": self.pyramid,
            "smoothed": self.pyramid,
            "heads": 2 * self.head,
        }


class PooledAttention(nn.Module):
    """Heads whose queries, keys and values are convolved in time and space, but a class token."""

    def __init__(self, width: int, out: int, heads: int, stride: int) -> None:
        super().__init__()
        self.heads, self.size = heads, out // heads
        self.qkv = nn.Linear(width, 3 * out)
        strides = ((1, stride, stride), (1, 2, 2), (1, 2, 2))
        self.pools = nn.ModuleList(
            nn.Conv3d(self.size, self.size, 3, s, padding=1, groups=self.size, bias=False)
            for s in strides
        )
        self.norms = nn.ModuleList(nn.LayerNorm(self.size) for _ in strides)
        self.project = nn.Sequential(nn.Linear(out, out), nn.Dropout(0.1))

    def pooled(self, x: Tensor, form: tuple[int, ...], which: int) -> tuple[Tensor, Any]:
        token, x = x[:, :, :1], x[:, :, 1:]
        batch, heads, _, size = x.shape
        x = x.reshape(batch * heads, *form, size).permute(0, 4, 1, 2, 3)
        x = self.pools[which](x)
        form = tuple(x.shape[2:])
        x = x.flatten(2).transpose(1, 2).reshape(batch, heads, -1, size)
        return self.norms[which](torch.cat([token, x], 2)), form

    def forward(self, x: Tensor, form: tuple[int, ...]) -> tuple[Tensor, Any]:
        batch, n, _ = x.shape
        parts = self.qkv(x).reshape(batch, n, 3, self.heads, self.size).transpose(1, 3).unbind(2)
        (q, new), (k, _), (v, _) = (self.pooled(p, form, i) for i, p in enumerate(parts))
        found = ((q * self.size**-0.5) @ k.transpose(2, 3)).softmax(-1) @ v
        found = torch.cat([found[:, :, :1], found[:, :, 1:] + q[:, :, 1:]], 2)
        return self.project(found.transpose(1, 2).reshape(batch, -1, self.heads * self.size)), new


class Multiscale(nn.Module):
    """Fan 2021 (MViT): blocks of pooled attention, the second wider and at half the resolution."""

    def __init__(self, widths: tuple[int, int] = (16, 24), heads: Sequence[int] = (2, 3)) -> None:
        super().__init__()
        first, second = self.widths = widths
        self.heads = heads
        self.patches = nn.Conv3d(3, first, (3, 7, 7), (2, 4, 4), (1, 3, 3))
        self.token = nn.Parameter(torch.zeros(1, 1, first))
        self.positions = nn.Parameter(torch.randn(1, 1 + 2 * 4 * 4, first) * 0.1)
        self.norms = nn.ModuleList(nn.LayerNorm(n) for n in (first, first, first, second, second))
        self.attention = nn.ModuleList(
            [
                PooledAttention(first, first, heads[0], 1),
                PooledAttention(first, second, heads[1], 2),
            ]
        )
        self.inner = nn.ModuleList(
            nn.Sequential(nn.Linear(n, 19), nn.GELU(), nn.Linear(19, n)) for n in widths
        )
        self.wider = nn.Linear(first, second)
        self.smaller = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.head = nn.Linear(second, 5)

    def forward(self, video: Tensor) -> Tensor:
        x = self.patches(video)
        form = tuple(x.shape[2:])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        found, form = self.attention[0](self.norms[0](x), form)
        x = x + found
        x = x + self.inner[0](self.norms[1](x))
        seen = self.norms[2](x)
        found, _ = self.attention[1](seen, form)
        token, rest = self.wider(seen).split([1, seen.shape[1] - 1], 1)
        batch, _, width = rest.shape
        rest = self.smaller(rest.transpose(1, 2).reshape(batch, width, *form))
        x = torch.cat([token, rest.flatten(2).transpose(1, 2)], 1) + found
        x = x + self.inner[1](self.norms[3](x))
        return self.head(self.norms[4](x)[:, 0])

    def units(self) -> dict[str, int]:
        """Pooling is shared by the heads of an attention; whole heads can go all the same."""
        return {"heads": sum(self.heads), "neurons": 2 * 19}


ENTRIES = [
    Entry(
        "u-net",
        seeded(UNet),
        normal(2, 3, 13, 18),
        lambda: UNet().units(),
        reads("down.0.0") | writes("out") | KERNEL,
    ),
    Entry(
        "detector with a pyramid",
        seeded(Detector),
        normal(2, 3, 32, 24),
        lambda: Detector().units(),
        reads("stages.0.0") | writes("class_out", "box_out") | KERNEL,
    ),
    Entry(
        "multiscale vision transformer",
        seeded(Multiscale),
        normal(2, 3, 4, 16, 16),
        lambda: Multiscale().units(),
        {
            "patches.*:[01]": "reads the model's input; " + STREAM,
            "token:2": STREAM,
            "positions:[12]": "a row per position; " + STREAM,
            "*norms.*:0": STREAM,
            "*.qkv.weight:1": STREAM,
            "*.pools.*:0": STREAM,
            "*.project.*:0": STREAM,
            "inner.*.0.weight:1": STREAM,
            "inner.*.2.*:0": STREAM,
            "wider.*:[01]": STREAM,
            "head.*:[01]": "is the model's output; " + STREAM,
        }
        | KERNEL,
    ),
]
