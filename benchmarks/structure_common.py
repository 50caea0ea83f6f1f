"""What every row of the structured benchmark shares: data, networks, training, macs.

Only torch, safetensors and (for the images of CIFAR) pillow: no prunus and no Torch-Pruning, so
that each library's own environment imports this file and all rows train alike.

CIFAR-10: ResNet-20 with option A shortcuts, its weights from ``cifar10/resnet20.safetensors``;
EPOCHS epochs of retraining in all, pad-4 random crop and horizontal flip, SGD with Nesterov
momentum 0.9, weight decay 5e-4, batch 128; the rate warms up, holds, then falls linearly to zero.
MNIST: SimpleCNN, 600 dense steps that all rows of one seed share (``train_mnist``), then
MNIST_STEPS steps of retraining, as in ``quality.py``.
"""

from __future__ import annotations

import copy
import gzip
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.flop_counter import FlopCounterMode

Batch = tuple[Tensor, Tensor]
Data = dict[str, tuple[Tensor, Tensor]]

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HELD_OUT = 150  # training images of each class that validate when settings are chosen
EPOCHS, BATCH = 3, 128
STEPS = EPOCHS * (15_000 // BATCH)  # the last, short batch of an epoch is left out
MNIST_DENSE_STEPS, MNIST_STEPS, MNIST_BATCH, MNIST_RATE = 600, 400, 100, 0.05
CIFAR_SHAPE, MNIST_SHAPE = (1, 3, 32, 32), (1, 1, 28, 28)


# --- networks


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zeros on both sides of the channels (He et al. 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """``[b, inputs, h, w]`` to ``[b, outputs, h / stride, w / stride]``."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Callable[..., nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        same = inputs == width and stride == 1
        self.shortcut = nn.Identity() if same else shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class ResNet20(nn.Module):
    """CIFAR ResNet-20 (He et al. 2015): 0.27 M parameters, 40.6 M macs.

    ``shortcut(inputs, outputs, stride)`` makes the two shortcuts that change the width; it must
    compute what ``PadShortcut`` computes and hold nothing in the state dict.
    """

    def __init__(self, shortcut: Callable[..., nn.Module] = PadShortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, shortcut)
        self.layer2 = self._stage(16, 32, 2, shortcut)
        self.layer3 = self._stage(32, 64, 2, shortcut)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(
        inputs: int, width: int, stride: int, shortcut: Callable[..., nn.Module]
    ) -> nn.Module:
        later = (Block(width, width, 1, shortcut) for _ in range(2))
        return nn.Sequential(Block(inputs, width, stride, shortcut), *later)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[b, 3, 32, 32]`` to scores ``[b, 10]``."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class SimpleCNN(nn.Module):
    """The network of ``prunus.tasks.mnist``, again, so that this file needs no prunus."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.pool = nn.AdaptiveAvgPool2d(6)
        self.fc1 = nn.Linear(64 * 6 * 6, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[b, 1, 28, 28]`` to scores ``[b, 10]``."""
        hidden = torch.relu(self.conv2(torch.relu(self.conv1(images))))
        return self.fc2(torch.relu(self.fc1(self.pool(hidden).flatten(1))))


def resnet20(folder: Path | str, shortcut: Callable[..., nn.Module] = PadShortcut) -> ResNet20:
    """The trained ResNet-20 of ``folder/cifar10``, in eval mode and channels_last."""
    model = ResNet20(shortcut)
    weights = load_file(Path(folder) / "cifar10" / "resnet20.safetensors")
    lacking, unknown = model.load_state_dict(weights, strict=False)  # the file counts no batches
    assert not unknown
    assert all(k.endswith("num_batches_tracked") for k in lacking)
    return model.to(memory_format=torch.channels_last).eval()


# --- data


def load_cifar(folder: Path | str, part: str) -> tuple[Tensor, Tensor]:
    """Images ``[n, 32, 32, 3]`` (uint8) and classes ``[n]`` of ``train`` or ``test``, by name."""
    import numpy as np  # with pillow: only CIFAR needs them
    from PIL import Image

    with zipfile.ZipFile(Path(folder) / "cifar10" / f"{part}.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
        pixels = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names]
    classes = torch.tensor([CLASSES.index(n.split("/")[1]) for n in names])
    return torch.from_numpy(np.stack(pixels)), classes


def cifar(folder: Path | str, *, fit: str = "all") -> Data:
    """``train``, ``test`` and, for ``fit="split"``, ``validation``.

    ``all``: the 15,000 training images train (final runs, test accuracy). ``split``: the last
    150 of each class validate and the other 13,500 train (settings are chosen on these).
    """
    images, classes = load_cifar(folder, "train")
    data = {"train": (images, classes), "test": load_cifar(folder, "test")}
    if fit == "split":
        held = torch.zeros(len(classes), dtype=torch.bool)
        for c in range(len(CLASSES)):
            held[(classes == c).nonzero()[-HELD_OUT:]] = True
        data["train"] = (images[~held], classes[~held])
        data["validation"] = (images[held], classes[held])
    return data


def normalized(images: Tensor) -> Tensor:
    """Bytes ``[b, 32, 32, 3]`` to floats ``[b, 3, 32, 32]``, channels_last in memory."""
    mean, std = (255 * torch.tensor(values) for values in (MEAN, STD))
    return images.float().sub_(mean).div_(std).permute(0, 3, 1, 2)


class Crops:
    """Training batches: pad-4 random crops, flips, a new order each epoch; re-iterable.

    With a seed, the n-th iteration is a pure function of (seed, n); without, everything comes
    from torch's global generator (which a prunus run sets from seed and epoch).
    """

    def __init__(self, images: Tensor, classes: Tensor, *, size: int = BATCH, seed: int | None):
        self.padded = F.pad(images, (0, 0, 4, 4, 4, 4))  # black, before the normalization
        self.classes, self.size, self.seed, self.epoch = classes, size, seed, 0

    def __len__(self) -> int:
        return len(self.classes) // self.size

    def __iter__(self) -> Iterator[Batch]:
        source = None
        if self.seed is not None:
            source = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        self.epoch += 1
        count = len(self.classes)
        order = torch.randperm(count, generator=source)[: len(self) * self.size]
        down, right = (torch.randint(9, (count,), generator=source) for _ in range(2))
        flip = torch.rand(count, generator=source) < 0.5
        ahead = torch.arange(32)
        for chosen in order.split(self.size):
            rows = down[chosen, None] + ahead  # [b, 32]
            columns = right[chosen, None] + torch.where(flip[chosen, None], 31 - ahead, ahead)
            cut = self.padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
            yield normalized(cut), self.classes[chosen]


def plain(images: Tensor, classes: Tensor, *, size: int = 500) -> list[Batch]:
    """Batches without augmentation, in order: for evaluation."""
    parts = zip(images.split(size), classes.split(size), strict=True)
    return [(normalized(x) if x.dtype == torch.uint8 else x, y) for x, y in parts]


def load_mnist(folder: Path | str) -> Data:
    """``train`` (55,000), ``validation`` (the last 5,000 training images) and ``test``."""

    def idx(name: str) -> Tensor:
        raw = gzip.decompress((Path(folder) / "mnist" / f"{name}.gz").read_bytes())
        shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
        return torch.frombuffer(bytearray(raw[4 + 4 * raw[3] :]), dtype=torch.uint8).view(shape)

    def read(part: str) -> tuple[Tensor, Tensor]:
        images = idx(f"{part}-images-idx3-ubyte").float().div_(255).sub_(0.1307).div_(0.3081)
        return images[:, None], idx(f"{part}-labels-idx1-ubyte").long()

    images, classes = read("train")
    return {
        "train": (images[:-5000], classes[:-5000]),
        "validation": (images[-5000:], classes[-5000:]),
        "test": read("t10k"),
    }


class Shuffled:
    """MNIST training batches in a new order each epoch; re-iterable, seeds as in ``Crops``."""

    def __init__(
        self, images: Tensor, classes: Tensor, *, size: int = MNIST_BATCH, seed: int | None
    ):
        self.images, self.classes, self.size, self.seed, self.epoch = images, classes, size, seed, 0

    def __len__(self) -> int:
        return len(self.classes) // self.size

    def __iter__(self) -> Iterator[Batch]:
        source = None
        if self.seed is not None:
            source = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        self.epoch += 1
        order = torch.randperm(len(self.classes), generator=source)[: len(self) * self.size]
        for chosen in order.split(self.size):
            yield self.images[chosen], self.classes[chosen]


def endless(loader: Crops | Shuffled) -> Iterator[Batch]:
    """Epoch after epoch of a loader."""
    while True:
        yield from loader


# --- training and judging


def warm_hold_decay(progress: float, *, warm: float = 0.03, tail: float = 0.7) -> float:
    """The factor of the rate: linear warm-up, then 1, then linearly to 0 over ``tail``."""
    return min(1.0, (progress + 1e-3) / max(warm, 1e-3), (1 - progress) / tail)


def mnist_decay(progress: float) -> float:
    """The factor on MNIST: held, then linearly to zero over the last 40 %, as in quality.py."""
    return min(1.0, (1 - progress) / 0.4)


def sgd(model: nn.Module, rate: float) -> SGD:
    """CIFAR's optimizer."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return SGD(parameters, lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)


def mnist_sgd(model: nn.Module, rate: float = MNIST_RATE) -> SGD:
    """MNIST's optimizer, as in quality.py."""
    return SGD(model.parameters(), lr=rate, momentum=0.9)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy."""
    return F.cross_entropy(model(batch[0]), batch[1])


def train(
    model: nn.Module,
    batches: Iterator[Batch],
    steps: int,
    *,
    optimizer: Optimizer,
    peak: float,
    factor: Callable[[float], float] = warm_hold_decay,
    part: tuple[float, float] = (0.0, 1.0),
) -> nn.Module:
    """``steps`` steps at rate ``peak · factor(progress)``; back in eval mode.

    Progress runs over ``part``: a training in pieces, with cuts between, follows one schedule.
    """
    start, end = part
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * factor(start + (end - start) * step / steps)
        batch = next(batches)
        optimizer.zero_grad(set_to_none=True)
        loss_of(model, batch).backward()
        optimizer.step()
    return model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, batches: list[Batch]) -> float:
    """Share of right answers, in eval mode."""
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return right / sum(len(y) for _, y in batches)


def macs(model: nn.Module, shape: tuple[int, ...] = CIFAR_SHAPE) -> int:
    """Multiply-accumulates of one image: convolutions and linear layers, on the meta device."""
    model = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(shape, device="meta"))
    return counter.get_total_flops() // 2


def params(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def train_mnist(seed: int, folder: Path | str, *, cache: Path | str = "/tmp") -> SimpleCNN:
    """The dense SimpleCNN of a seed: 600 steps at rate 0.05, held; made once and kept.

    ``cache/mnist_dense_<seed>.safetensors`` is what all rows of this seed start from.
    """
    path = Path(cache) / f"mnist_dense_{seed}.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SimpleCNN()
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    loader = Shuffled(*load_mnist(folder)["train"], seed=1000 + seed)
    train(
        model,
        endless(loader),
        MNIST_DENSE_STEPS,
        optimizer=mnist_sgd(model),
        peak=MNIST_RATE,
        factor=lambda progress: 1.0,
    )
    save_file(model.state_dict(), path.with_suffix(f".{os.getpid()}"))
    path.with_suffix(f".{os.getpid()}").replace(path)
    return model


def big_model(name: str) -> tuple[nn.Module, Any]:
    """A model of real size with random weights, and an input."""
    import transformers

    torch.manual_seed(0)
    if name == "resnet50":
        made = transformers.ResNetForImageClassification(transformers.ResNetConfig())
        return made.eval(), torch.randn(1, 3, 224, 224)
    if name == "vit_b":
        made = transformers.ViTForImageClassification(transformers.ViTConfig())
        return made.eval(), torch.randn(1, 3, 224, 224)
    if name == "llama_8b_meta":  # no values: shapes alone
        config = transformers.LlamaConfig(
            hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=8, vocab_size=128256, use_cache=False,
        )  # fmt: skip
        with torch.device("meta"):
            big = transformers.LlamaForCausalLM(config).eval()
            return big, {"input_ids": torch.zeros(1, 8, dtype=torch.long)}
    config = transformers.LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=24, num_attention_heads=16,
        num_key_value_heads=4, vocab_size=32000, use_cache=False,
    )  # fmt: skip
    ids = torch.randint(0, 32000, (1, 16))
    return transformers.LlamaForCausalLM(config).eval(), {"input_ids": ids}
