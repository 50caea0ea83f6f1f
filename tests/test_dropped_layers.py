"""Residual branches and whole blocks taken out of models, and the files that know it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.compaction.slicing.drop import Dropped
from stand_ins import example

Transformer = example("shakespeare").Transformer


class BasicBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(x + y)


class Blocks(nn.Module):
    def __init__(self, block: Callable[[], nn.Module], first: nn.Module) -> None:
        super().__init__()
        self.first, self.out = first, nn.Linear(8, 3)
        self.blocks = nn.ModuleList(block() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x.flatten(2).mean(2) if x.dim() == 4 else x)


def blocks_of(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if kind == "relu":
        first = nn.Conv2d(3, 8, 3, padding=1)
        return Blocks(lambda: BasicBlock(8), first), torch.randn(2, 3, 5, 5)
    layer = partial(nn.TransformerEncoderLayer, 8, 2, 16, batch_first=True, norm_first=True)
    return Blocks(layer, nn.Linear(4, 8)), torch.randn(2, 6, 4)


@pytest.mark.parametrize("left", ["relu", "input"])
def test_whole_blocks_are_dropped_and_what_is_left_of_them_stays(left: str, tmp_path: Path) -> None:
    model, x = blocks_of(left)
    dense = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in (*model.blocks[1].parameters(), *model.blocks[2].parameters()):
            parameter.mul_(0.01)
    recipe = {"structure": {"name": "layer", "modules": ["blocks.*"]}, "target": 0.5,
              "compact": "end", "scope": {"include": ["blocks.*"]}}  # fmt: skip
    result = prunus.prune(model, recipe, example=x, folder=tmp_path / "run")
    assert result.compaction is not None
    assert result.compaction.error == 0
    gone = [m.left for m in result.model.blocks if isinstance(m, Dropped)]
    assert gone == [left, left]
    assert isinstance(result.model.blocks[1], Dropped)
    found = result.model.eval()(x)
    dense.blocks[1] = dense.blocks[2] = nn.ReLU() if left == "relu" else nn.Identity()
    torch.testing.assert_close(found, dense(x))
    opened = prunus.load(tmp_path / "run" / "model.safetensors", blocks_of(left)[0])
    assert torch.equal(opened(x), found)
    # And what is left can be pruned by channels: the second file knows both.
    if left == "relu":
        again = prunus.prune(
            result.model, {"structure": "channel", "target": {"max_macs": 0.5}, "compact": "end"},
            example=x, folder=tmp_path / "again",
        )  # fmt: skip
        opened = prunus.load(tmp_path / "again" / "model.safetensors", blocks_of(left)[0])
        torch.testing.assert_close(opened(x), again.model.eval()(x))


def test_a_block_that_leaves_something_else_is_not_dropped() -> None:
    class Sigmoid(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(super().forward(x))  # 1/2 without its weights

    torch.manual_seed(0)
    model = Blocks(lambda: Sigmoid(8, 8), nn.Linear(4, 8))
    recipe = {"structure": {"name": "layer", "modules": ["blocks.*"]}, "target": 0.5,
              "compact": "end", "scope": {"include": ["blocks.*"]}}  # fmt: skip
    with pytest.raises(prunus.InputError, match="or its input, as a block"):
        prunus.prune(model, recipe, example=torch.randn(2, 4))


def test_layers_of_different_sizes_do_not_pass_the_target() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 32, bias=False),
                          nn.Linear(32, 4, bias=False), nn.Linear(4, 16, bias=False))  # fmt: skip
    with torch.no_grad():
        model[1].weight.mul_(0.01)  # 128 of 336 weights
        model[0].weight.mul_(0.02)  # 16
    for target, gone in ((0.37, 0), (0.39, 128), (0.5, 144)):
        recipe = {"structure": {"name": "layer", "modules": ["[0-3]"]}, "target": target}
        assert prunus.prune(copy.deepcopy(model), recipe).sparsity == pytest.approx(gone / 336)


def test_a_target_of_one_takes_out_all_that_are_named() -> None:
    model, x = blocks_of("relu")
    recipe = {"structure": {"name": "layer", "modules": ["blocks.[0-2]"]}, "target": 1,
              "compact": "end"}  # fmt: skip
    result = prunus.prune(model, recipe, example=x)
    assert result.sparsity == 1
    assert [isinstance(b, Dropped) for b in result.model.blocks] == [True, True, True, False]
    with pytest.raises(prunus.InputError, match="layer can remove all"):
        prunus.prune(blocks_of("relu")[0], {"target": 1, "structure": "channel"}, example=x)


def test_a_model_that_is_pruned_again_and_again_opens_from_each_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = Transformer(letters=9, length=6, layers=1, width=16, heads=8).eval()
    ids = torch.randint(9, (2, 6))
    model: nn.Module = copy.deepcopy(dense)
    for number, structure in enumerate(("head", "head", "weight", "channel")):
        recipe = {"structure": structure, "target": 0.25}
        if structure != "weight":
            recipe["compact"] = "end"
        result = prunus.prune(model, recipe, example=ids, folder=tmp_path / str(number))
        file = tmp_path / str(number) / "model.safetensors"
        model = prunus.load(file, copy.deepcopy(dense))  # the next round is of what was opened
        assert torch.equal(model(ids), result.model.eval()(ids))
    attention = model.layers[0].attention
    assert attention.heads * attention.size == len(attention.query.weight) < 12
