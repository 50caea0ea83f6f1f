"""Takes channels out of the stream of one block after the other; they are zeros meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.activations import FarEnough
from prunus._common.files import write_json
from prunus._common.modules import evaluating, joined
from prunus._common.rng import preserve_rng
from prunus.blocks.hidden import Narrow
from prunus.blocks.judge import SLICE
from prunus.blocks.powers import READS, checked, roles_of
from prunus.blocks.recipe import BlockRecipe
from prunus.blocks.solving import Heard, Solving
from prunus.blocks.source import Part, Source
from prunus.blocks.turning import Turned, shown
from prunus.blocks.walk import Call, called, relayed, through
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
        self.statistic, self.narrow = "", narrow
        self.turns = narrow.turn is not None

    @contextmanager
    def hearing(self, block: nn.Module, statistic: str | None = None) -> Iterator[Heard]:
        """Nothing: the channels are known."""
        yield Heard("")

    def entering(self, stream: str, x: Tensor) -> Tensor:
        """What comes to the first block: turned, and without the channels that go."""
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
        if self._keep:
            self.masks.update({joined(name, inner): mask for inner, mask in masks.items()})
        return masks

    def settled(self, name: str, block: nn.Module, x: Tensor, call: Call) -> Part:
        """The narrower block's tensors, after it has answered as the masked one, in float64.

        Raises:
            RunError: if it answers otherwise.
        """
        self.gate = max(self.gate, checked(self.narrow, name, block, x, call))
        return lambda inner, tensor: self.narrow.of(joined(name, inner), tensor)


def chosen(
    job: Any, narrow: Narrow, calibration: Sequence[Any], saved: Path | None = None
) -> Tensor:
    """The channels that stay: those that what reads the stream would miss most.

    A channel's score is Σ_W ‖W_:j‖²·E[x_j²] ÷ Σ_j ‖W_:j‖²·E[x_j²] over all matrices that read the
    stream, the head among them; x is what they multiply.

    Args:
        job: a walk through the dense model.
        narrow: how many stay, and what reads them.
        calibration: batches.
        saved: a file that says what was found, or will.
    """
    if saved is not None and saved.is_file():
        return torch.tensor(json.loads(saved.read_text(encoding="utf-8")))
    with preserve_rng(), evaluating(job.model), torch.no_grad():
        scores = torch.zeros(narrow.width, dtype=torch.float64)
        passages: list[Any] = []
        for name, block, heard, passage in job.heard():
            scores += _of_block(narrow, name, block, heard)
            passages = [*(p for p in passages if p is not passage), passage]
        scores += _of_head(job.model, narrow, calibration, passages)
    kept = scores.argsort(descending=True, stable=True)[: len(narrow.kept)].sort().values
    if saved is not None:
        write_json(saved, kept.tolist())
    return kept


def _of_block(narrow: Narrow, name: str, block: nn.Module, heard: Heard) -> Tensor:
    own = dict(block.named_parameters())
    roles = roles_of(block, narrow, name)
    costs: dict[str, Tensor] = {}
    for matrix, squares in heard.sums.items():
        if roles.get(matrix.name) == READS and matrix.shape[1] == narrow.width:
            weight = matrix.of(own[matrix.name].detach()).double().square().sum(0)
            costs[matrix.name] = costs.get(matrix.name, 0) + (weight * squares).cpu()
    return sum((c / c.sum().clamp(min=1e-300) for c in costs.values()), torch.zeros(narrow.width))


def _of_head(
    model: Any, narrow: Narrow, calibration: Sequence[Any], passages: Sequence[Any]
) -> Tensor:
    """The share of each channel in what the head multiplies."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    name = next((n for n, m in model.named_modules() if m is head), None)
    if head is None or name is None or head.weight.shape[1] != narrow.width:
        return torch.zeros(narrow.width, dtype=torch.float64)
    squares = torch.zeros(narrow.width, dtype=torch.float64)

    def here(x: Tensor) -> Tensor:
        squares.add_(x.double().flatten(0, -2).square().sum(0).cpu())
        raise FarEnough

    for number, batch in enumerate(calibration):
        forwards = {**through(passages, number), name: here}
        with relayed(model, forwards), suppress(FarEnough):
            called(model, batch)
    rows = head.weight.detach()
    weight = sum(
        (rows[i : i + SLICE].double().square().sum(0).cpu() for i in range(0, len(rows), SLICE)),
        torch.zeros(narrow.width, dtype=torch.float64),
    )
    cost = weight * squares
    return cost / cost.sum().clamp(min=1e-300)
