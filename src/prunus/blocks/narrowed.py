"""Which channels go: those of the lowest scores, or the last ones of a turned stream."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.activations import FarEnough
from prunus._common.files import write_json
from prunus._common.modules import evaluating
from prunus._common.rng import preserve_rng
from prunus.blocks.ends import behind
from prunus.blocks.folding import see, turn
from prunus.blocks.hidden import Narrow
from prunus.blocks.job import Job
from prunus.blocks.judge import SLICE, Judge
from prunus.blocks.looking import heard
from prunus.blocks.powers import READS, narrow_of, roles_of
from prunus.blocks.recipe import BlockRecipe
from prunus.blocks.solving import Heard
from prunus.blocks.source import Source
from prunus.blocks.turning import Turned
from prunus.blocks.walk import called, passed_stacks, relayed, through


def narrow_for(source: Source, how: BlockRecipe, calibration: Sequence[Any]) -> Narrow:
    """The narrower model, before its channels are chosen.

    Raises:
        InputError: if no configuration says it, or it does not turn where it should.
    """
    found = narrow_of(source, how, calibration)
    if how.rotate:
        see(source, how, found, calibration)
    return found


def narrowed(
    source: Source, how: BlockRecipe, narrow: Narrow, calibration: Sequence[Any]
) -> Source:
    """Choose channels; what is to be walked through then.

    Args:
        source: has the dense model; what is found is kept in its folder, where it has one.
        how: the recipe.
        narrow: gets the channels that stay.
        calibration: batches.

    Raises:
        InputError: for a stream that does not turn, where it should.
        RunError: if what stands behind the blocks would answer otherwise.
    """
    place = source.scratch
    job = Job(source, how, calibration, [], Judge(), lambda *_: None)
    if not how.rotate:
        saved = None if place is None else place / "hidden.json"
        narrow.kept = chosen(job, narrow, calibration, saved)
        return source
    turn(job, narrow, None if place is None else place / "turn.safetensors")
    with preserve_rng(), evaluating(source.model), torch.no_grad():
        passages = passed_stacks(source.model, job.stacks, calibration[:1], source.hold)[0]
        behind(source.model, narrow, passages, calibration[0])
    return Turned(source, narrow)


def chosen(
    job: Job, narrow: Narrow, calibration: Sequence[Any], saved: Path | None = None
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
        for name, block, listened, passage in heard(job):
            scores += _of_block(narrow, name, block, listened)
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
