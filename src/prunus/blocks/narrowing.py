"""Takes channels out of the stream of one block after the other; they are zeros meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prunus._common.modules import joined
from prunus.blocks.counted import outer
from prunus.blocks.hidden import Narrow
from prunus.blocks.powers import checked
from prunus.blocks.recipe import BlockRecipe
from prunus.blocks.solving import Heard, Solving
from prunus.blocks.source import Part, Source
from prunus.blocks.turning import Turned, shown
from prunus.blocks.walk import Call
from prunus.compaction.verifying.verify import wide

DENSE = "dense"
ENTERS = ("calibration", "held")
"""Streams that lose channels; those of the dense model do not."""


class Narrowing(Solving):
    """Sets channels to zero in one block after the other.

    Args:
        model: that has them.
        how: the recipe.
        narrow: what goes.
        masks: whether they are kept.
    """

    def __init__(self, model: nn.Module, how: BlockRecipe, narrow: Narrow, *, masks: bool) -> None:
        super().__init__(model, how, masks=masks)
        self.statistic, self.narrow, self._model = "", narrow, model
        self.turns = narrow.turn is not None

    @contextmanager
    def hearing(self, block: nn.Module, statistic: str | None = None) -> Iterator[Heard]:
        """Nothing: the channels are known."""
        yield Heard("")

    @contextmanager
    def around(self, stream: str) -> Iterator[None]:
        """Where norms outside of the blocks count channels, these are gone for streams without."""
        if self.narrow.fresh is not None or stream not in ENTERS:
            yield
            return
        whole = {n: p.data for n, p in outer(self._model, self.narrow).items()}
        own = dict(self._model.named_parameters())
        try:
            for name, tensor in whole.items():
                own[name].data = self.narrow.masked(name, tensor)
            yield
        finally:
            for name, tensor in whole.items():
                own[name].data = tensor

    def entering(self, stream: str, x: Tensor, first: str) -> Tensor:
        """What comes to the first block: turned, and without the channels that go."""
        if not any(name.startswith(f"{first}.") for name in self.narrow.places):
            return x  # another stream, which stays as wide as it is
        if stream in (*ENTERS, DENSE) and self.narrow.turn is not None:
            x = (wide(x) @ self.narrow.turn.to(x.device)).to(x.dtype)
        return x * self.narrow.mask().to(x) if stream in ENTERS else x

    def leaving(self, x: Tensor) -> Tensor:
        """What the last block gives, turned back."""
        assert self.narrow.turn is not None
        back: Tensor = wide(x) @ self.narrow.turn.T.to(x.device)
        return back.to(x.dtype)

    def begun(self, name: str, block: nn.Module, source: Source, x: Tensor, call: Call) -> None:
        """See that the turned block answers as the one before, in float64.

        Raises:
            RunError: if it does not.
        """
        if isinstance(source, Turned) and source.before:
            error = shown(self.narrow, name, block, source.before, (x, call))
            self.gate = max(self.gate, error)

    def solve(
        self, name: str, block: nn.Module, heard: Heard, rate: float | None
    ) -> dict[str, Tensor]:
        """Set what reads and writes them to zero."""
        masks = {}
        self.weights[name] = self.zeros[name] = 0
        for inner, parameter in block.named_parameters():
            full = joined(name, inner)
            self.weights[name] += parameter.numel()
            if full in self.narrow.places:
                masks[inner] = self.narrow.mask_of(full, parameter)
                parameter.data.masked_fill_(~masks[inner].to(parameter.device), 0)
                shape = torch.broadcast_shapes(masks[inner].shape, parameter.shape)
                kept = masks[inner].count_nonzero() * (shape.numel() // masks[inner].numel())
                self.zeros[name] += parameter.numel() - int(kept)
        self._keep_masks(name, masks)
        return masks

    def settled(self, name: str, block: nn.Module, x: Tensor, call: Call) -> Part:
        """The narrower block's tensors, after it has answered as the masked one, in float64.

        Raises:
            RunError: if it answers otherwise.
        """
        if self.narrow.fresh is None:  # the whole model is compared in the end
            return lambda inner, tensor: tensor
        self.gate = max(self.gate, checked(self.narrow, name, block, x, call))
        return lambda inner, tensor: self.narrow.of(joined(name, inner), tensor)
