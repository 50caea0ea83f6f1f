"""A narrower stream of a model at hand whose norms go on counting the width that it had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.modules import evaluating
from prunus._common.rng import preserve_rng
from prunus.blocks.hidden import Narrow
from prunus.blocks.recipe import HIDDEN, BlockRecipe
from prunus.blocks.source import Source
from prunus.blocks.walk import stacks_of
from prunus.compaction.reopening import is_pretrained
from prunus.errors import InputError
from prunus.graph.analysis import Analysis, analyze
from prunus.graph.labels import Fixed
from prunus.graph.units import Coupled, coupled_units


def counts(model: nn.Module) -> bool:
    """Whether a model at hand is narrowed by norms that count: no configuration says it smaller."""
    return not is_pretrained(model) or any(isinstance(m, nn.LayerNorm) for m in model.modules())


def counted(source: Source, how: BlockRecipe, calibration: Sequence[Any]) -> Narrow:
    """What goes of the stream, by the analysis of the whole model; its channels are not chosen yet.

    Args:
        source: of a model at hand.
        how: the recipe.
        calibration: batches, of which the first one is an example.

    Raises:
        InputError: if the stream cannot become narrower.
    """
    model = source.model
    with preserve_rng(), evaluating(model), torch.no_grad():
        analysis = analyze(model, calibration[0], hidden=True)
    blocks = [name for stack in stacks_of(model, how.blocks) for name in stack]
    inside = tuple(f"{name}." for name in blocks)
    streams = [
        kind for kind in coupled_units(analysis, [n for n, _ in model.named_parameters()])
        if kind.hidden and any(n.startswith(inside) for n, _ in kind.places)
    ]  # fmt: skip
    if not streams:
        raise InputError(
            "structure: hidden: no width that norms count runs through the blocks and can go "
            "(prunus.units(model, example, hidden=True) shows what pins it; one that the model "
            "returns stays: let a layer stand behind it)"
        )
    width = len(max(streams, key=lambda kind: len(kind.places)))
    left = round(width * (1 - how.parts[HIDDEN]) / how.multiple_of) * how.multiple_of
    if not 0 < left < width:
        raise InputError(f"structure: hidden: {left} of {width} channels would stay")
    places: dict[str, tuple[int, ...]] = {}
    for kind in streams:
        if len(kind) == width:
            for name, dim in kind.places:
                _refuse_other(analysis, kind, name, dim)
                places[name] = (*places.get(name, ()), dim)
    names = {name: name for name in blocks}
    return Narrow(width, None, None, places, torch.arange(left), names=names)


def _refuse_other(analysis: Analysis, kind: Coupled, name: str, dim: int) -> None:
    """See that a dimension is the stream's channels, one after the other."""
    found = analysis.tensors[name].dims[dim]
    same = not isinstance(found, Fixed) and analysis.solved.of(found).tolist() == list(kind.classes)
    if not same:
        raise InputError(
            f"structure: hidden: '{name}' holds the stream's channels in another order, or others "
            "beside them: prunus.prune with structure: hidden is for such models"
        )


def outer(model: nn.Module, narrow: Narrow) -> dict[str, Tensor]:
    """The tensors in no block that the stream runs along."""
    inside = tuple(f"{name}." for name in narrow.names)
    own = dict(model.named_parameters())
    return {n: own[n] for n in narrow.places if n in own and not n.startswith(inside)}
