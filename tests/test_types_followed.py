"""A graph in another type than the one it was traced in answers as its code would."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


class Typed(nn.Module):
    """Types taken from what it is given, and some that are written in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(8, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu().view(-1, x.shape[1], 32)  # 32 is written in the code
        size = h.float().square().mean(1, keepdim=True)
        h = h / (1 + size).to(h.dtype) * torch.arange(5, dtype=x.dtype)[None, :, None]
        total = torch.zeros(len(h), 32, dtype=h.dtype)
        total = total.index_add(0, torch.arange(len(h)), h.mean(1))
        turned = torch.fft.rfft(x.float()).to(torch.complex64).real.mean((1, 2))
        return self.out(total) + turned.to(x.dtype)[:, None]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, prunus.Compact]:
    torch.manual_seed(0)
    model = Typed().eval()
    recipe: dict[str, Any] = {"structure": "channel", "target": 0.5}
    masks = prunus.prune(copy.deepcopy(model), recipe, example=X).masks
    small = prunus.compact(model, masks, X)
    assert small.route == "graph"
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model, small


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("opened", [False, True])
def test_types_that_the_code_takes_from_its_inputs_follow_them(
    pair: tuple[nn.Module, prunus.Compact], dtype: torch.dtype, opened: bool, tmp_path: Path
) -> None:
    small = prunus.load(pair[1].save(tmp_path / "m.safetensors")) if opened else pair[1].model
    masked, small = (copy.deepcopy(m).to(dtype) for m in (pair[0], small))
    for x in (X, X + 1):
        wanted, found = masked(x.to(dtype)), small(x.to(dtype))
        assert found.dtype is wanted.dtype is dtype
        near = {torch.float64: 1e-7, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
        assert (found - wanted).abs().max() <= near * wanted.abs().max()


class Summed(nn.Module):
    """Sums into a tensor of the type that its layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu().view(x.shape[0], 5, 16)  # 16 is written in the code
        total = torch.zeros(x.shape[0], 2, 16, dtype=h.dtype)
        return self.out(total.index_add(1, torch.tensor([0, 0, 1, 1, 0]), h))  # type: ignore[no-any-return]


def test_types_that_autocast_alone_would_change_are_refused_with_a_way_out() -> None:
    model = Summed().eval()
    recipe = {"structure": "channel", "target": 0.5, "compact": "end"}
    small = prunus.prune(copy.deepcopy(model), recipe, example=X).model
    with torch.autocast("cpu", torch.bfloat16):
        model(X)
        with pytest.raises(prunus.InputError, match=r"not torch\.autocast .*model\.to\(torch"):
            small(X)
    assert small.to(torch.bfloat16)(X.bfloat16()).dtype is torch.bfloat16
