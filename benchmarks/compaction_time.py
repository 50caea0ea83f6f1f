"""Processor seconds of one whole ``prune``: traced, analyzed, chosen, compacted, verified.

Half of the weights go, by whole channels, from networks of real size with random weights, on one
thread, one process each. A phase's seconds are its own: what it calls of another counts there.

- AlexNet, VGG-11, ResNet-50, DenseNet-121: Krizhevsky 2014 (arXiv:1404.5997), Simonyan and
  Zisserman 2014 (arXiv:1409.1556), He et al. 2015 (arXiv:1512.03385), Huang et al. 2016
  (arXiv:1608.06993), written here.
- Swin-T: Liu et al. 2021 (arXiv:2103.14030), written like torchvision's: the width of a head is
  that of the stream by the number of heads, so that its modules must be searched; ``swin_t_hf``,
  ``vit_b`` and ``bert``: transformers' own.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus._common.environment import describe
from prunus.compaction.compact import perform
from prunus.compaction.search import find_plan
from prunus.compaction.verifying.gradients import answers_and_gradients, gradients
from prunus.compaction.verifying.values import values_for_test
from prunus.compaction.verifying.verify import answers, difference
from prunus.graph.analysis import analyze
from prunus.graph.passes import trace_all
from prunus.graph.trace import trace
from prunus.progressive.selector import Selector
from prunus.pruning.space import build_space

# --- networks


def alexnet() -> nn.Module:
    """61 M parameters, most of them in two linear layers."""

    def conv(inputs: int, outputs: int, *sizes: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, *sizes), nn.ReLU(inplace=True)]

    def linear(inputs: int) -> list[nn.Module]:
        return [nn.Dropout(), nn.Linear(inputs, 4096), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *conv(3, 64, 11, 4, 2), nn.MaxPool2d(3, 2),
        *conv(64, 192, 5, 1, 2), nn.MaxPool2d(3, 2),
        *conv(192, 384, 3, 1, 1), *conv(384, 256, 3, 1, 1), *conv(256, 256, 3, 1, 1),
        nn.MaxPool2d(3, 2), nn.AdaptiveAvgPool2d(6), nn.Flatten(),
        *linear(256 * 36), *linear(4096), nn.Linear(4096, 1000),
    )  # fmt: skip


def vgg11() -> nn.Module:
    """133 M parameters."""
    layers: list[nn.Module] = []
    inputs = 3
    for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        if width:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = width
        else:
            layers.append(nn.MaxPool2d(2))
    layers += [nn.AdaptiveAvgPool2d(7), nn.Flatten()]
    for size in (512 * 49, 4096):
        layers += [nn.Linear(size, 4096), nn.ReLU(inplace=True), nn.Dropout()]
    return nn.Sequential(*layers, nn.Linear(4096, 1000))


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1, and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride > 1:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        return F.relu(self.bn3(self.conv3(hidden)) + self.shortcut(x))


def resnet50() -> nn.Module:
    """25.6 M parameters."""
    stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for i in range(depth):
            layers.append(Bottleneck(inputs, width, 2 if i == 0 and width > 64 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


class Dense(nn.Module):
    """One layer of a dense block: its output beside its input."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 128, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(128), nn.Conv2d(128, 32, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(hidden)))], 1)


def densenet121() -> nn.Module:
    """8 M parameters."""
    stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for depth in (6, 12, 24, 16):
        for _ in range(depth):
            layers.append(Dense(width))
            width += 32
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        if depth != 16:
            layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


class WindowAttention(nn.Module):
    """Attention within windows of 7×7, every second time shifted by half of one."""

    def __init__(self, dim: int, heads: int, shift: int) -> None:
        super().__init__()
        self.heads, self.shift = heads, shift
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.table = nn.Parameter(0.02 * torch.randn(169, heads))
        at = torch.stack(torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij")).flatten(1)
        near = (at[:, :, None] - at[:, None, :]).permute(1, 2, 0) + 6
        self.register_buffer("index", (13 * near[:, :, 0] + near[:, :, 1]).flatten())

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        down, right = -height % 7, -width % 7
        x = F.pad(x, (0, 0, 0, right, 0, down))
        _, tall, wide, _ = x.shape
        shift = self.shift if tall > 7 and wide > 7 else 0
        if shift:
            x = torch.roll(x, (-shift, -shift), (1, 2))
        many = (tall // 7) * (wide // 7)
        x = x.view(batch, tall // 7, 7, wide // 7, 7, dim).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch * many, 49, dim)
        qkv = self.qkv(x).reshape(x.size(0), 49, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = (q * (dim // self.heads) ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.table[self.index].view(49, 49, -1).permute(2, 0, 1)[None]
        if shift:
            scores = scores + self._apart(x, tall, wide, shift, scores.size(0) // many)
        x = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.size(0), 49, dim)
        x = self.proj(x).view(batch, tall // 7, wide // 7, 7, 7, dim)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch, tall, wide, dim)
        if shift:
            x = torch.roll(x, (shift, shift), (1, 2))
        return x[:, :height, :width]

    @staticmethod
    def _apart(x: Tensor, tall: int, wide: int, shift: int, batch: int) -> Tensor:
        """−100 between pixels of a window that come from opposite edges."""
        region = x.new_zeros((tall, wide))
        parts = (slice(0, -7), slice(-7, -shift), slice(-shift, None))
        for number, (rows, columns) in enumerate((r, c) for r in parts for c in parts):
            region[rows, columns] = number
        region = region.view(tall // 7, 7, wide // 7, 7).permute(0, 2, 1, 3).reshape(-1, 49)
        apart = (region[:, None, :] != region[:, :, None]) * -100.0
        return apart.repeat(batch, 1, 1)[:, None]


class SwinBlock(nn.Module):
    """Attention and two linear layers, each beside its input."""

    def __init__(self, dim: int, heads: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, heads, shift)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Merge(nn.Module):
    """Four neighbors become one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        rows = (x[:, 0::2], x[:, 1::2])
        x = torch.cat([r[:, :, start::2] for start in (0, 1) for r in rows], -1)
        return self.reduction(self.norm(x))


class Swin(nn.Module):
    """Swin-T: 28 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.first = nn.Conv2d(3, 96, 4, 4), nn.LayerNorm(96)
        layers: list[nn.Module] = []
        for stage, depth in enumerate((2, 2, 6, 2)):
            dim = 96 << stage
            layers += [SwinBlock(dim, 3 << stage, 3 * (i % 2)) for i in range(depth)]
            if stage < 3:
                layers.append(Merge(dim))
        self.layers = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(768), nn.Linear(768, 1000)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[b, 3, h, w]`` to scores ``[b, 1000]``."""
        x = self.first(self.patches(images).permute(0, 2, 3, 1))
        return self.head(self.norm(self.layers(x)).mean((1, 2)))


def swin_t_hf() -> nn.Module:
    """28 M parameters: the default configuration is that of Swin-T."""
    import transformers

    return transformers.SwinForImageClassification(transformers.SwinConfig(num_labels=1000))


def vit_b() -> nn.Module:
    """86 M parameters."""
    import transformers

    return transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000))


def bert() -> nn.Module:
    """110 M parameters."""
    import transformers

    return transformers.BertForSequenceClassification(transformers.BertConfig())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": resnet50, "densenet121": densenet121, "alexnet": alexnet, "vgg11": vgg11,
    "swin_t": Swin, "swin_t_hf": swin_t_hf, "vit_b": vit_b, "bert": bert,
}  # fmt: skip


def example_of(name: str) -> Any:
    """One image, as users pass it, or two sentences."""
    if name == "bert":
        return {"input_ids": torch.randint(0, 30000, (2, 64))}
    return torch.randn(1, 3, 224, 224)


# --- phases

PHASES: dict[str, tuple[Callable[..., Any], ...]] = {
    "trace": (trace, trace_all),
    "analysis": (analyze,),
    "choosing": (Selector.choose, build_space),
    "gate": (answers, answers_and_gradients, gradients, difference, values_for_test),
    "compaction": (find_plan, perform),
}
"""Functions in which a phase's seconds are spent, less what they call of another phase."""


class Clock:
    """Processor seconds by phase; a phase within another stops it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._stack = ["rest"]
        self._since = time.process_time()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside under this name."""
        self.turn()
        self._stack.append(name)
        try:
            yield
        finally:
            self.turn()
            self._stack.pop()

    def turn(self) -> None:
        """Book what passed since the last time."""
        now = time.process_time()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def watch(self, phase: str, function: Callable[..., Any]) -> None:
        """Time a function wherever prunus holds it."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(phase):
                return function(*args, **kwargs)

        for owner in (*[m for n, m in sys.modules.items() if n.startswith("prunus.")], Selector):
            if vars(owner).get(function.__name__) is function:
                setattr(owner, function.__name__, timed)


RECIPE = {"target": 0.5, "structure": "channel", "compact": "end"}


def measured(name: str) -> dict[str, Any]:
    """One model, pruned; a small one before it brings what is imported on the way."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    prunus.prune(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), RECIPE, example=torch.ones(2, 4))
    model, example = MODELS[name]().eval(), example_of(name)
    parameters = sum(p.numel() for p in model.parameters())
    clock = Clock()
    for phase, functions in PHASES.items():
        for function in functions:
            clock.watch(phase, function)
    clock.turn()
    clock.seconds.clear()
    result = prunus.prune(model, RECIPE, example=example)
    clock.turn()
    assert result.compaction is not None
    return {
        "model": name, "parameters": parameters, "seconds": round(clock.seconds.total(), 1),
        **{p: round(clock.seconds[p], 1) for p in (*PHASES, "rest")},
        "left": sum(p.numel() for p in result.model.parameters()),
        "route": result.compaction.route, "error": result.compaction.error,
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> list[str]:
    """In Markdown."""
    phases = (*PHASES, "rest")
    return [
        "| model | M parameters | " + " | ".join(phases) + " | seconds | left | route | GB |",
        "|---" * (len(phases) + 6) + "|",
        *(
            f"| {r['model']} | {r['parameters'] / 1e6:.1f} | "
            + " | ".join(f"{r[p]:.1f}" for p in phases)
            + f" | {r['seconds']:.1f} | {r['left'] / r['parameters']:.0%} | {r['route']} | "
            + f"{r['peak_gb']:.1f} |"
            for r in rows
        ),
    ]


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--one", choices=MODELS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measured(chosen.one)))
        return
    print(f"One thread of {describe()['processor']}, torch {torch.__version__}.\n")
    rows = []
    for name in chosen.models or MODELS:  # each in a process of its own, for its peak memory
        command = [sys.executable, __file__, "--one", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    print("\n", *(f"{line}\n" for line in table(rows)), sep="")


if __name__ == "__main__":
    main()
