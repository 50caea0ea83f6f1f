"""Attention heads that can be taken out of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge

from prunus._common.layers import Layer
from prunus.errors import InputError
from prunus.graph.analysis import Analysis
from prunus.methods.structures.channel import _groups, _in_scope
from prunus.types import Group


def head(
    layers: Sequence[Layer],
    shapes: Mapping[str, tuple[int, ...]],
    analysis: Analysis,
    *,
    least: Annotated[int, Ge(1)] = 1,
) -> list[Group]:
    """Head: whole attention heads; with grouped queries a key head and the queries it serves.

    Args:
        layers: weights in scope.
        shapes: of all parameters.
        analysis: of the model, made from the example.
        least: heads that stay in every layer.

    Raises:
        InputError: if the model has no attention head that can be removed.

    Source: Michel, Levy, Neubig 2019, arXiv:1905.10650; Voita et al. 2019, arXiv:1905.09418.
    """
    kinds = [k for k in _in_scope(layers, shapes, analysis) if k.head]
    if not kinds:
        raise InputError(
            "no attention head can be removed from this model (none was found before a softmax, "
            "or all are pinned: prunus units shows why); structure: channel removes the rest"
        )
    return _groups(kinds, layers, shapes, analysis, multiple_of=1, least=least)
