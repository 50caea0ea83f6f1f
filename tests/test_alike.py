"""Modules that are built alike are traced once, and each keeps its own tensors and numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import helpers
import prunus
from prunus.compaction.case import Case
from prunus.compaction.rewriting import alike as rewriting_alike
from prunus.compaction.rewriting.alike import alike
from prunus.graph import exporting
from prunus.pruning.masks import apply


class Attention(nn.Module):
    """Its code divides a width that stays by a number of heads that does not."""

    def __init__(self, width: int, heads: int, scale: float = 1.0) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = (self.scale * q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.attention = Attention(12, 3, scale)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x)


def pruned(scales: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Any]]:
    """A network of which every attention loses a head, and the modules that were traced."""
    traced, real = [], rewriting_alike.trace

    def counted(module: nn.Module, *args: Any, **named: Any) -> Any:
        traced.append(module)
        return real(module, *args, **named)

    monkeypatch.setattr(rewriting_alike, "trace", counted)
    model = nn.Sequential(nn.Linear(4, 12), *map(Block, scales), nn.Linear(12, 2)).eval()
    masks = {}
    for i in range(1, len(scales) + 1):
        keep = torch.arange(12) // 4 != i % 3
        masks[f"{i}.attention.qkv.weight"] = keep.repeat(3)[:, None]
        masks[f"{i}.attention.qkv.bias"] = keep.repeat(3)
        masks[f"{i}.attention.out.weight"] = keep[None]
    small = prunus.compact(model, masks, torch.randn(2, 5, 4), heads="whole")
    apply(model, masks)
    return (model, small), traced


@pytest.mark.parametrize(("scales", "traces"), [((1.0, 1.0, 1.0), 1), ((1.0, 0.5, 1.0), 2)])
def test_layers_that_differ_in_their_weights_alone_are_traced_once(
    scales: tuple[float, ...], traces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model, small), traced = pruned(scales, monkeypatch)
    assert small.route == "modules"
    assert len(traced) == traces
    for shape in ((2, 5, 4), (3, 7, 4), (1, 2, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(small.model(x), model(x))
    own = {id(p) for p in small.model.parameters()}
    assert len(own) == 4 + 4 * len(scales)  # no layer holds another's


class Plain(nn.Linear):
    note: Any = None


def different(change: Any) -> nn.Module:
    module = nn.Sequential(Plain(2, 2), nn.BatchNorm1d(2))
    change(module)
    return module


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.eval(),
        lambda m: setattr(m[0], "note", 1),
        lambda m: setattr(m[0], "note", torch.ones(1)),
        lambda m: setattr(m[0], "note", {"a": 1}),
        lambda m: setattr(m[0], "forward", lambda x: x),
        lambda m: setattr(m[1], "eps", 1e-3),
        lambda m: m[0].register_forward_hook(lambda *_: None),
        lambda m: m.double(),
        lambda m: m[0].weight.requires_grad_(False),
        lambda m: setattr(m[0], "weight", nn.Parameter(torch.ones(2, 2).t())),
        lambda m: setattr(m[1], "bias", m[0].bias),
        lambda m: m.append(nn.ReLU()),
        lambda m: setattr(m, "0", nn.Linear(2, 2)),
    ],
)
def test_what_differs_in_anything_but_values_is_not_alike(change: Any) -> None:
    plain = different(lambda m: None)
    assert alike(plain, different(lambda m: m[0].weight.data.add_(1)))
    assert not alike(plain, different(change))


class Stubborn(nn.Module):
    """Adds to its input what a hidden layer of the width in its code gives."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.up(x))
        assert hidden.shape[-1] == 8
        return x + self.down(hidden)


def test_a_module_that_fails_by_itself_is_not_put_back_into_the_model_to_see_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes, real = [], Case.check

    def counted(self: Case, model: nn.Module) -> Any:
        passes.append(model)
        return real(self, model)

    monkeypatch.setattr(Case, "check", counted)
    model = nn.Sequential(*[Stubborn() for _ in range(4)], nn.Linear(6, 3))
    recipe = {"structure": "channel", "target": 0.4, "compact": "end", "allocation": "uniform"}
    result = prunus.prune(model, recipe, example=torch.randn(2, 6))
    assert result.compaction is not None
    assert "became graphs: 0, 1, 2, 3" in result.compaction.notes
    assert len(passes) == 5  # one for each way tried, none for each module


class Windows(nn.Module):
    """Cuts its input's rows into pairs."""

    def __init__(self, width: int, *, turned: bool = False) -> None:
        super().__init__()
        self.width, self.turned, self.layer = width, turned, nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.shape[1] // 2
        y = self.layer(x[:, : 2 * pairs]).reshape(x.shape[0], pairs, 2, self.width)
        return y.flip(2) if self.turned else y


def test_a_class_whose_sizes_become_too_involved_is_not_tried_with_all_of_them_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    real = exporting.export

    def counted(model: nn.Module, args: Any, kwargs: Any, shapes: Any = None) -> Any:
        asked.append(sum(len(s or ()) for s in (shapes or {}).values()))
        return real(model, args, kwargs, shapes)

    monkeypatch.setattr(exporting, "export", counted)
    monkeypatch.setattr(exporting, "_INVOLVED", 1)
    traces = rewriting_alike.Traces()

    def opened(module: nn.Module, width: int) -> list[int]:
        asked.clear()
        x = torch.randn(2, 6, width)
        traced = traces.trace(module, ((x,), {}), dynamic=True, closed=[], training=False)
        assert traced.takes(((x[:1],), {})) or traced.takes(((torch.cat([x, x]),), {}))
        if len(asked) > 1 and not traced.involved:
            helpers.older_than("2.10", "torch.export refuses these sizes before they are involved")
        return list(asked)

    assert opened(Windows(4), 4) == [3, 1]
    assert opened(Windows(8), 8) == [1]
    assert opened(Windows(8, turned=True), 8) == [3, 1]  # other code
