"""What a call drops, another call may read: it is no unit, unless it is read elsewhere too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from helpers import pruned_both
from prunus.graph.analysis import analyze


class Drops(nn.Module):
    def __init__(self, end: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(6, 16), nn.Linear(16, 8)
        self.end = end

    def forward(self, x: Tensor, some: bool = True) -> Tensor:
        return self.end(self.out(torch.relu(self.first(x))), some)


ENDS: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "a slice": lambda y, some: y[:, :3] if some else y,
    "behind an activation": lambda y, some: y.relu()[:, :3] if some else y,
    "a part of several": lambda y, some: y.chunk(2, 1)[0] if some else y,
    "a selection": lambda y, some: y[:, 2] if some else y,
    "of a view": lambda y, some: y.view(-1, 2, 4)[:, 0] if some else y,
    "through a transpose": lambda y, some: y.t()[:3] if some else y,
}


@pytest.mark.parametrize("name", ENDS)
def test_what_only_another_call_reads_stays(name: str) -> None:
    model = Drops(ENDS[name]).eval()
    found = analyze(model, torch.randn(2, 6))
    assert not found.solved.free(found.tensors["out.weight"].dims[0]).any()  # type: ignore[arg-type]
    assert found.solved.free(found.tensors["first.weight"].dims[0]).all()  # type: ignore[arg-type]
    recipe = {"structure": "channel", "target": 0.4}
    masked, result = pruned_both(model, recipe, torch.randn(2, 6))
    x = torch.randn(3, 6)
    for some in (True, False):
        torch.testing.assert_close(result.model(x, some), masked(x, some))


def test_what_is_dropped_here_and_read_there_can_go() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.out, self.last = nn.Linear(6, 8), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.out(y[:, :4]) + self.last(y.relu()[:, 4:])

    found = analyze(Both(), torch.randn(2, 6))
    assert found.solved.free(found.tensors["first.weight"].dims[0]).all()  # type: ignore[arg-type]
