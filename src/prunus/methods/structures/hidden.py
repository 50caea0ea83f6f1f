"""The hidden width: the indices that run through a model and that its norms count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge

from prunus._common.layers import Layer
from prunus.errors import InputError
from prunus.graph.analysis import Analysis
from prunus.graph.rotation import stream_of
from prunus.graph.units import Coupled
from prunus.methods.structures.channel import _groups, _in_scope
from prunus.types import Group

HIDDEN = True
ROTATES = "{rotate}"


def hidden(
    layers: Sequence[Layer],
    shapes: Mapping[str, tuple[int, ...]],
    analysis: Analysis,
    *,
    rotate: bool = False,
    multiple_of: Annotated[int, Ge(1)] = 1,
    least: Annotated[int, Ge(1)] = 1,
) -> list[Group]:
    """Hidden: indices of the width of a residual stream, and whatever else a norm counts.

    A removed index is zero wherever it is written; norms go on counting it:
    ``x / √(Σx² / D + eps)`` with D the old width, over the d indices that are left.

    With ``rotate`` the stream is turned before each cut, x → x·Q, to the principal directions of
    the calibration batches, those of most variance first, and the last ones go. Q is folded into
    whatever writes and reads the stream, so that the model is what it was before it is cut; that
    is exact under RMS norms alone.

    Args:
        layers: weights in scope; a unit must touch one of them and no excluded parameter.
        shapes: of all parameters.
        analysis: of the model, made from the example.
        rotate: to principal directions first; it needs ``calibration``, and takes the place of a
            criterion.
        multiple_of: the number of indices that stays is a multiple of this, where it can be.
        least: indices that stay of every width.

    Raises:
        InputError: if no norm counts anything that can be removed, or turning is not exact.

    Source: Ashkboos et al. 2024, arXiv:2401.15024; Muralidharan et al. 2024, arXiv:2407.14679.
    """
    kinds = [k for k in _in_scope(layers, shapes, analysis) if k.hidden]
    if not kinds:
        raise InputError(
            "no hidden width can be removed from this model: no norm counts an index that could "
            "go (prunus.units(model, example, hidden=True) shows what pins each dimension; a width "
            "that the model returns stays); structure: channel removes the rest"
        )
    if rotate:
        kinds = _turnable(kinds, analysis)
    return _groups(kinds, layers, shapes, analysis, multiple_of=multiple_of, least=least)


def _turnable(kinds: Sequence[Coupled], analysis: Analysis) -> list[Coupled]:
    """Those that can be turned; the others keep their width."""
    found = [(kind, stream_of(analysis, kind.classes)) for kind in kinds]
    if all(isinstance(stream, str) for _, stream in found):
        reasons = "; ".join(dict.fromkeys(str(stream) for _, stream in found))
        raise InputError(
            f"rotate: no hidden width of this model can be turned exactly: {reasons}; without "
            "rotate, indices are chosen by the criterion"
        )
    return [kind for kind, stream in found if not isinstance(stream, str)]
