"""Convolutional networks through sequences of sparse convolutions: the same answers as torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from prunus._common.torch_internals import exported_module
from prunus.deployment.build import Builder
from prunus.deployment.module import open_artifact
from prunus.deployment.store import keep
from prunus.errors import InputError
from prunus.kernels import LACKING, usable
from prunus.runtimes import _sparse_convs as convs
from prunus.runtimes import find
from prunus.runtimes._sparse_convs import (
    ConvChoice,
    choose_convs,
    conv_choices,
    conv_sites,
    prepared,
    put_convs,
)
from prunus.runtimes._sparse_sites import drop_idle, finish

if not usable():
    pytest.skip(LACKING, allow_module_level=True)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured here says nothing on a busy machine."""
    monkeypatch.setattr(convs, "SECONDS", 1e-4)


def pruned(model: nn.Module, sparsity: float = 0.8) -> nn.Module:
    """Random zeros in every convolution; batch norms that are not the identity."""
    make = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                kept = torch.rand(module.weight.shape, generator=make) >= sparsity
                module.weight *= kept / math.sqrt(1 - sparsity)
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                module.running_mean.normal_(generator=make)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2, generator=make)  # type: ignore[union-attr]
                module.weight.data.uniform_(0.5, 2, generator=make)
                module.bias.data.normal_(generator=make)
    return model.eval()


class Bottleneck(nn.Module):
    """With a shortcut that comes after the branch in the program, as in ResNet-50."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width))
        three = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.two = nn.Sequential(three, nn.BatchNorm2d(width))
        self.three = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.BatchNorm2d(2 * width))
        self.cut = nn.Conv2d(inputs, 2 * width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.two(F.relu(self.one(x), inplace=True)), inplace=True)
        y = self.three(y)
        y += self.cut(x)
        return F.relu(y)


class Inverted(nn.Module):
    """As MobileNet has it, with its norm before the first convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(width)
        self.up = nn.Sequential(nn.Conv2d(width, 3 * width, 1), nn.ReLU6(inplace=True))
        own = nn.Conv2d(3 * width, 3 * width, 3, 1, 1, groups=3 * width, bias=False)
        self.own = nn.Sequential(own, nn.BatchNorm2d(3 * width), nn.SiLU())
        self.down = nn.Conv2d(3 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.own(self.up(F.gelu(self.before(x)))))
        return x + y


class Squeezed(nn.Module):
    """A part that no sequence computes stands in the middle and depends on what goes before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.one(x))
        scale = torch.sigmoid(self.up(F.relu(self.down(y.mean((2, 3), keepdim=True)))))
        other: Tensor = self.two(y)
        return other * scale + y


class Concatenated(nn.Module):
    """Values that go outside while the region goes on, and an activation that torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 2, 1)
        self.three = nn.Conv2d(6, 6, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        early = torch.tanh(y)
        z = F.relu(self.two(y))
        last = F.relu_(self.three(y))
        return torch.cat([z, last, F.max_pool2d(early, 2)], 1)


class Changed(nn.Module):
    """An activation in place changes what a later operator reads."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x)
        z: Tensor = self.two(F.relu_(y))
        return z + y


def whole() -> nn.Module:
    """A stem, bottlenecks, an inverted block, pooling and a classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        Bottleneck(16, 8, 1), Bottleneck(16, 12, 2), nn.Dropout(), Inverted(24), nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


def grouped() -> nn.Module:
    """As ResNeXt and ShuffleNet have them."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.Conv2d(12, 24, 3, 2, 1, groups=3, bias=False), nn.BatchNorm2d(24),
        nn.ReLU(), nn.Conv2d(24, 8, 1, groups=4), nn.SiLU(),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "whole": (whole, 1),
    "squeezed": (lambda: Squeezed(12), 2),
    "concatenated": (Concatenated, 1),
    "changed": (Changed, 1),
    "grouped": (grouped, 1),
}


def program(model: nn.Module, x: Tensor) -> fx.GraphModule:
    with torch.no_grad():
        made = torch.export.export(
            model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False
        )
    module = exported_module(made)
    drop_idle(module)
    return module


def always(choice: ConvChoice) -> ConvChoice:
    return replace(choice, ms=0.0)


def opened(module: fx.GraphModule) -> Callable[[Sequence[Tensor]], Any]:
    """Every region sparse."""
    for region in (found := conv_sites(module)):
        assert conv_choices([vars(always(choose_convs(region, 2)))])
        put_convs(module, region, [always(choose_convs(region, 2))])
    assert found
    return finish(module)


@pytest.mark.parametrize("name", MODELS)
def test_networks_give_torchs_answers_at_any_batch_size(name: str) -> None:
    torch.manual_seed(0)
    make, count = MODELS[name]
    model, x = pruned(make()), torch.randn(2, 3, 40, 44)
    module = program(model, x)
    assert len(conv_sites(module)) == count
    compute = opened(module)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 40, 44)
        with torch.inference_mode():
            torch.testing.assert_close(compute([x])[0], model(x), rtol=1e-4, atol=1e-4)


def test_a_network_is_one_sequence_without_operators_of_torch_between() -> None:
    module = program(pruned(whole()), torch.randn(2, 3, 40, 44))
    (region,) = conv_sites(module)
    kinds = [s.kind for s in region.program.steps]
    assert kinds.count("conv") == 1 + 4 + 4 + 2
    assert kinds.count("sum") == 0  # residuals and activations went to convolutions
    assert kinds.count("depthwise") == 2  # the norm that stands alone is one of them
    assert (kinds.count("max"), kinds.count("average"), kinds.count("mean")) == (1, 1, 1)
    compute = opened(module)
    left = {str(n.target) for n in module.graph.nodes if n.op == "call_function"}
    assert not any("conv2d" in t or "batch_norm" in t or "relu" in t for t in left)
    assert len(compute([torch.randn(3, 3, 40, 44)])) == 1


def test_what_changes_in_place_what_others_read_is_left_to_torch() -> None:
    module = program(pruned(Changed()), torch.randn(2, 3, 9, 9))
    nodes = {n.name: n for n in module.graph.nodes}
    assert [n.name for n in conv_sites(module)[0].nodes][:2] == ["conv2d", "relu_"]
    nodes["add"].replace_input_with(nodes["relu_"], nodes["conv2d"])
    found = [n.name for region in conv_sites(module) for n in region.nodes]
    assert "conv2d" in found
    assert "relu_" not in found


def test_networks_without_zeros_have_no_region() -> None:
    assert conv_sites(program(whole().eval(), torch.randn(2, 3, 40, 44))) == []


def test_at_batch_sizes_where_torch_is_faster_torch_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = program(pruned(whole()), torch.randn(2, 3, 40, 44))
    (region,) = conv_sites(module)
    forms = choose_convs(region, 2).forms
    layer = convs.ConvLayers(region, [ConvChoice(1, forms, 1, 2), ConvChoice(9, forms, 2, 1)])
    seen: list[int] = []
    dense = convs.densely

    def watched(region: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
        seen.append(len(inputs[0]))
        return dense(region, inputs)

    monkeypatch.setattr(convs, "densely", watched)
    one, nine = (layer(torch.randn(b, 3, 40, 44)) for b in (2, 8))
    assert seen == [8]
    assert (len(one[0]), len(nine[0])) == (2, 8)


def test_an_artifact_opened_from_disk_gives_eagers_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convs, "BETTER", float("inf"))
    model, example = pruned(whole()), torch.randn(2, 3, 40, 44)
    builder = Builder(example, [], 1, (1, 4), tmp_path / "scratch", lambda text: None)
    found = builder.build("sparse", "pruned", model)
    assert found.row.refused is None
    assert "11 convolutions at once" in str(found.row)
    assert found.served is not None
    keep(tmp_path / "scratch/pruned/sparse", tmp_path / "kept/sparse", found.served.card)
    for served in (found.served, open_artifact(tmp_path / "kept/sparse")):
        for batch in (1, 3):
            x = torch.randn(batch, 3, 40, 44)
            with torch.inference_mode():
                torch.testing.assert_close(served(x), model(x), rtol=1e-4, atol=1e-4)
    table = tmp_path / "kept/sparse/model.json"
    body = json.loads(table.read_text())
    (name,) = body["layers"]
    body["layers"][name][0]["forms"].popitem()
    table.write_text(json.dumps(body))
    with pytest.raises(InputError, match="no form for"):
        find("sparse").open_(table.with_name("model.pt2"), threads=1)


@pytest.mark.parametrize("batch", [1, 3])
def test_every_form_of_a_convolution_gives_the_same(batch: int) -> None:
    model = pruned(nn.Sequential(nn.Conv2d(5, 9, 3, 1, 1), nn.ReLU(), nn.Conv2d(9, 4, 1)), 0.4)
    (region,) = conv_sites(program(model, torch.randn(2, 5, 17, 13)))
    x = torch.randn(batch, 5, 17, 13)
    steps = dict(zip(region.names, region.program.steps, strict=True))
    every = {
        name: convs.forms(region.weights[step.number], step, 13) for name, step in steps.items()
    }
    assert max(map(len, every.values())) > 4
    for i in range(max(map(len, every.values()))):
        chosen = {name: own[i % len(own)] for name, own in every.items()}
        with torch.no_grad():
            torch.testing.assert_close(prepared(region, chosen)(x)[0], model(x))


def test_a_table_that_lacks_a_form_or_has_an_impossible_one_is_refused() -> None:
    (region,) = conv_sites(program(pruned(nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 9, 9)))
    with pytest.raises(InputError, match="no form for"):
        prepared(region, {})
    for form in ((3, 1, 8, 4, 0), (1, 1, 0, 4, 0), (1, 1, 8, 10**6, 0)):
        with pytest.raises(InputError, match="not possible"):
            prepared(region, dict.fromkeys(region.names, form))
    with pytest.raises(ValueError, match="without a choice"):
        conv_choices([])
    with pytest.raises(ValueError, match="not enough values"):
        conv_choices([{"batch": 1, "forms": {"conv2d": [1, 2]}, "ms": 1, "dense_ms": 1}])
