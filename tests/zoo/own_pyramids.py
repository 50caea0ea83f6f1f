"""Networks over several resolutions: a U-Net, and a detector with a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.entry import KERNEL, Entry, normal, reads, seeded, writes


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
]
