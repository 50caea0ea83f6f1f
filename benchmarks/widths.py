"""What a width costs: six convolutions of 24 to 32 channels in every engine of the processor.

python benchmarks/widths.py        (a minute, one thread)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus._common.timing import interleaved
from prunus.runtimes import BuildRequest, find, missing

WIDTHS = (24, 26, 28, 30, 32)
ENGINES = ("onnxruntime", "openvino", "eager")


def network(width: int) -> nn.Module:
    """Convolutions of one width, after one of three channels."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    for _ in range(6):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers).eval()


def main() -> None:
    """Print a table in Markdown."""
    torch.set_num_threads(1)
    images = torch.randn(4, 3, 32, 32)
    print(f"| runtime | {' | '.join(f'{w} channels, ms' for w in WIDTHS)} |")
    print(f"|---{'|---' * len(WIDTHS)}|")
    for name in ENGINES:
        if missing(name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            calls: dict[str, Callable[[], Any]] = {}
            for width in WIDTHS:
                place = Path(folder) / str(width)
                place.mkdir()
                order = BuildRequest(network(width), images[:2], place, batch=(4,))
                calls[str(width)] = partial(find(name).build(order).compute, [images])
            times = interleaved(calls, seconds=1.0)
        print(f"| {name} | {' | '.join(f'{t.median_ms:.2f}' for t in times.values())} |")


if __name__ == "__main__":
    main()
