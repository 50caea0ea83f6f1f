"""Layers that read a size from a configuration they share, and lose different numbers of heads."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.compaction.slicing.attributes import Attribute, changed


class Attention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        heads = self.config.num_attention_heads
        q, k, v = (
            t.reshape(*x.shape[:2], heads, 4).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], heads * 4))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_attention_heads=4, vocabulary=4)
        self.layers = nn.ModuleList(Attention(self.config) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
        self.end = nn.Linear(16, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x), mask)
        return self.end(x)


def uneven() -> tuple[Model, nn.Module, prunus.Result]:
    """The dense model, the masked one, and a compact one whose layers have 1, 2 and 4 heads."""
    dense = Model().eval()
    with torch.no_grad():
        dense.layers[0].out.weight[:, 4:] *= 1e-3
        dense.layers[1].out.weight[:, 8:] *= 1e-3
    recipe = {"structure": "head", "target": 5 / 12}
    masked = copy.deepcopy(dense)
    prunus.prune(masked, recipe, example=torch.randn(2, 6, 16))
    model = copy.deepcopy(dense)
    result = prunus.prune(model, {**recipe, "compact": "end"}, example=torch.randn(2, 6, 16))
    return dense, masked, result


def heads_of(model: Any) -> list[int]:
    return [layer.config.num_attention_heads for layer in model.layers]


def test_each_layer_has_its_own_number_and_takes_calls_that_the_example_did_not_show() -> None:
    dense, masked, result = uneven()
    assert result.compaction is not None
    assert result.compaction.route == "attributes"
    assert heads_of(result.model) == [1, 2, 4]
    assert heads_of(dense) == [4, 4, 4]
    x, mask = torch.randn(3, 9, 16), torch.ones(9, 9).tril().bool()
    torch.testing.assert_close(result.model(x), masked(x))
    torch.testing.assert_close(result.model(x, mask), masked(x, mask))


def test_a_file_gives_each_layer_its_number_again(tmp_path: Path) -> None:
    dense, masked, result = uneven()
    file = prunus.save(result.model, tmp_path / "uneven.safetensors")
    opened = prunus.load(file, copy.deepcopy(dense))
    assert heads_of(opened) == [1, 2, 4]
    x = torch.randn(3, 9, 16)
    torch.testing.assert_close(opened(x), masked(x))


def test_an_attribute_of_a_shared_object_is_taken_back_with_the_object() -> None:
    model = Model()
    shared = model.config
    own = Attribute("layers.1", "config.num_attention_heads", 4, 2)
    own.set(model)
    assert heads_of(model) == [4, 2, 4]
    assert changed(model) == [own]
    own.set(model, back=True)
    assert model.layers[1].config is shared
    assert changed(model) == []
    Attribute("", "config.num_attention_heads", 4, 3).set(model)
    assert heads_of(model) == [3, 3, 3]
