"""The hidden width: the indices that run through a model and that its norms count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge

from prunus._common.layers import Layer
from prunus.errors import InputError
from prunus.graph.analysis import Analysis
from prunus.methods.structures.channel import _groups, _in_scope
from prunus.types import Group

HIDDEN = True


def hidden(
    layers: Sequence[Layer],
    shapes: Mapping[str, tuple[int, ...]],
    analysis: Analysis,
    *,
    multiple_of: Annotated[int, Ge(1)] = 1,
    least: Annotated[int, Ge(1)] = 1,
) -> list[Group]:
    """Hidden: indices of the width of a residual stream, and whatever else a norm counts.

    A removed index is zero wherever it is written; norms go on counting it:
    ``x / √(Σx² / D + eps)`` with D the old width, over the d indices that are left.

    Args:
        layers: weights in scope; a unit must touch one of them and no excluded parameter.
        shapes: of all parameters.
        analysis: of the model, made from the example.
        multiple_of: the number of indices that stays is a multiple of this, where it can be.
        least: indices that stay of every width.

    Raises:
        InputError: if no norm counts anything that can be removed.

    Source: Ashkboos et al. 2024, arXiv:2401.15024; Muralidharan et al. 2024, arXiv:2407.14679.
    """
    kinds = [k for k in _in_scope(layers, shapes, analysis) if k.hidden]
    if not kinds:
        raise InputError(
            "no hidden width can be removed from this model: no norm counts an index that could "
            "go (prunus.units(model, example, hidden=True) shows what pins each dimension; a width "
            "that the model returns stays); structure: channel removes the rest"
        )
    return _groups(kinds, layers, shapes, analysis, multiple_of=multiple_of, least=least)
