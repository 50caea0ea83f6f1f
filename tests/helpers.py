"""Small models, tasks and settings that several tests share."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from packaging.version import Version
from torch import nn

import prunus
from prunus._common.layers import Layer
from prunus._common.torch_internals import lacking
from prunus.compaction.cut import IndexCut
from prunus.graph.analysis import Analysis
from prunus.methods.traits import trait
from prunus.pruning.scope import find_layers
from prunus.recipe.resolve import bind
from prunus.recipe.specs import Spec
from prunus.runtimes import missing, torchao_int8
from prunus.tasks.base import Batches, Task, accuracy, classification_loss
from prunus.types import Allocation, Group

# Settings without a default, for the models of these tests.
NEEDED: dict[str, dict[str, Any]] = {
    "threshold": {"theta": 0.5, "form": "mean"},
    "subset": {"neurons": {"*": [1, 0]}},
    "layer": {"modules": ["*"]},
}


def needs(ability: str) -> None:
    """Skip a test, with the reason, on a torch that cannot do something."""
    if (reason := lacking(ability)) is not None:
        pytest.skip(reason)


def older_than(version: str, reason: str) -> None:
    """Skip a test of what torch cannot do before a version; docs/versions.md has the table."""
    if Version(torch.__version__) < Version(version):
        pytest.skip(f"torch {torch.__version__}: {reason}")


def torchao() -> None:
    """Skip a test where torchao is not installed, or is one that does not work with this torch."""
    if missing("torchao_int8"):
        pytest.skip("torchao is not installed")
    if (reason := torchao_int8.misfit()) is not None:
        pytest.skip(reason)


def transformers() -> Any:
    """The package, where it is installed and imports its models: it imports torchao with them."""
    found = pytest.importorskip("transformers", reason="transformers is not installed")
    try:
        importlib.import_module("transformers.models.llama.modeling_llama")
    except (ImportError, AttributeError, RuntimeError) as error:  # torchao asks for another torch
        pytest.skip(f"transformers does not import its models here: {error}")
    return found


def spec(name: str) -> Spec:
    """An idea with the settings that it cannot do without."""
    return Spec(name=name, **NEEDED.get(name, {}))


def allocation_of(name: str, groups: list[Group]) -> Allocation:
    """An allocation; what it would measure is made up: a curve that rises, with a dip."""
    found = bind("allocations", spec(name))
    if not trait("allocations", name, "MEASURES"):
        return found
    curves = {}
    for number, group in enumerate(groups):
        kept = sorted({max(1, group.units - i * max(1, group.units // 4)) for i in range(5)})
        losses = ((k, (number + 1) * (group.units - k) ** 2 % 7) for k in reversed(kept))
        curves[group] = tuple((k, float(loss)) for k, loss in losses)
    return functools.partial(found, damage=curves)


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight is stored (in, out)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(8, 6),
    "conv1d": lambda: nn.Conv1d(4, 6, 3),
    "conv2d": lambda: nn.Conv2d(8, 6, (3, 2)),
    "grouped": lambda: nn.Conv2d(8, 6, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(8, 6, 3),
    "transposed, grouped": lambda: nn.ConvTranspose2d(8, 6, 3, groups=2),
    "lstm": lambda: nn.LSTM(8, 4, num_layers=2, bidirectional=True),
    "gru": lambda: nn.GRU(8, 4),
    "cell": lambda: nn.LSTMCell(8, 4),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "attention of two widths": lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=4),
    "gpt2": lambda: Conv1D(8, 6),
}


def layers_of(name: str) -> tuple[nn.Module, list[Layer], dict[str, tuple[int, ...]]]:
    """A model of one module, its layers, the shapes of its parameters."""
    torch.manual_seed(1)
    model = nn.Sequential(MODULES[name]())
    return model, find_layers(model), {n: tuple(p.shape) for n, p in model.named_parameters()}


def weights(*sizes: int, run: int = 0) -> list[Group]:
    """Groups of single weights."""
    from prunus.types import Member

    return [
        Group(f"g{i}", n, (Member(f"g{i}"),), (n // (run or n), run or n), run or n)
        for i, n in enumerate(sizes)
    ]


def tiny_task(*, width: int = 16, epochs_of: int = 8, noise: float = 0.0, **changes: Any) -> Task:
    """A task learned in a few steps: the class is the sign of a sum."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(epochs_of * 16, 8, generator=generator)
    classes = (inputs.sum(1) > 0).long()

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Dropout(noise), nn.Linear(width, 2))

    values: dict[str, Any] = {
        "model": model,
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9),
        "loss": classification_loss,
        "metric": accuracy,
        "train": Batches(inputs, classes, size=16, shuffle=True),
        "validation": Batches(inputs[:64], classes[:64], size=64, shuffle=False),
        "test": Batches(inputs[64:], classes[64:], size=64, shuffle=False),
        "example": inputs[:1],
        "calibration": list(Batches(inputs[:64], classes[:64], size=16, shuffle=False)),
        "train_sample": Batches(inputs[:64], classes[:64], size=64, shuffle=False),
        **changes,
    }
    return Task(**values)


class Heads(nn.Module):
    """Attention over one token per input, for structures that look for heads."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = torch.stack([x, x.flip(1)], 1)
        return self.out(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


class Fused(nn.Module):
    """Experts as two tensors of three dimensions, chosen by a softmax over a router's rows."""

    def __init__(self, experts: int = 4, most: int = 2, *, width: int = 8, inner: int = 6) -> None:
        super().__init__()
        self.num_experts, self.top_k = experts, most
        self.router = nn.Parameter(torch.randn(experts, width))
        self.gate_up = nn.Parameter(torch.randn(experts, 2 * inner, width) / 4)
        self.down = nn.Parameter(torch.randn(experts, width, inner) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        weights, chosen = (
            nn.functional.linear(tokens, self.router).softmax(-1).topk(self.top_k, dim=-1)
        )
        weights = weights / weights.sum(-1, keepdim=True)
        gate, up = torch.einsum("td,tkod->tko", tokens, self.gate_up[chosen]).chunk(2, dim=-1)
        out = torch.einsum("tki,tkoi->tko", nn.functional.silu(gate) * up, self.down[chosen])
        return (out * weights[..., None]).sum(1).reshape(*x.shape[:-1], -1)


def zeros(model: nn.Module, name: str) -> int:
    """How many weights of a parameter are exactly zero."""
    return int((model.get_parameter(name) == 0).sum())


def pruned_both(model: nn.Module, recipe: Any, example: Any) -> tuple[nn.Module, prunus.Result]:
    """A model that is masked, and the result that is smaller, of one choice; the model shrinks."""
    masked = copy.deepcopy(model)
    result = prunus.prune(model, {**recipe, "compact": "end"}, example=example)
    assert result.compaction is not None
    with torch.no_grad():
        for name, mask in result.masks.items():
            masked.get_parameter(name).mul_(mask)
    return masked, result


def quick(**values: Any) -> prunus.Recipe:
    """A recipe in rounds on the tiny task."""
    return prunus.Recipe(**{
        "dense": "2ep", "retrain": "1ep", "rounds": 2, "target": 0.5, "schedule": "linear",
        **values,
    })  # fmt: skip


def cut_units(analysis: Analysis, classes: NDArray[np.int64]) -> IndexCut:
    """The cut that removes these classes, but for what is pinned."""
    chosen = np.isin(np.arange(len(analysis.solved.reason)), classes)
    return IndexCut(analysis, chosen & (analysis.solved.reason < 0))


def language_model(place: Path, name: str) -> None:
    """A folder of transformers with a tiny Llama and a tokenizer that knows the words w2 to w63."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    library = transformers()
    torch.manual_seed(0)
    config = library.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    library.LlamaForCausalLM(config).save_pretrained(place / name)
    vocabulary = {**{f"w{i}": i for i in range(64) if i != 1}, "<s>": 1}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = library.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>")
    tokenizer.save_pretrained(place / name)
