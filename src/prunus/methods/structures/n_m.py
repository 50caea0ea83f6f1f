"""n kept of every m consecutive weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge

from prunus._common.layers import Layer
from prunus.errors import InputError
from prunus.methods.structures._index import numbering
from prunus.types import Group, Member

N_OF_M = ("{n}", "{m}")
SHORT = r"\s*(?P<n>\d+):(?P<m>\d+)\s*"


def n_m(
    layers: Sequence[Layer],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    n: Annotated[int, Ge(1)] = 2,
    m: Annotated[int, Ge(2)] = 4,
) -> list[Group]:
    """n:m: n kept of every m weights along the input channels, at a fixed kernel position.

    Layers whose input width m does not divide stay dense.

    Raises:
        InputError: if n ≥ m, or if no layer is left.

    Source: Mishra et al. 2021, arXiv:2104.08378.
    """
    if n >= m:
        raise InputError(f"structure {n}:{m} keeps everything: n must be below m, as in 2:4")
    fits = [layer for layer in layers if layer.shape[layer.in_dim] % m == 0]
    if not fits:
        widths = ", ".join(f"{la.name} has {la.shape[la.in_dim]}" for la in layers)
        raise InputError(
            f"structure {n}:{m}: no layer in scope has an input width divisible by {m} ({widths})"
        )
    return [_group(layer, m) for layer in fits]


def _group(layer: Layer, m: int) -> Group:
    ends = (layer.in_dim, layer.out_dim, *layer.stack)
    kernel = [d for d in range(len(layer.shape)) if d not in ends]
    order = [layer.in_dim, *reversed(kernel), *ends[1:]]
    vectors, count = numbering(layer.shape, order)
    stored = order == list(reversed(range(len(layer.shape))))
    member = Member(layer.name, None if stored else tuple(vectors))
    return Group(layer.name, count, (member,), layer.matrix, m, balanced=True)
