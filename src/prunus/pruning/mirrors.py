"""State of an optimizer that is a second copy of the weights, and must be as sparse as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

ALIKE = 0.7
"""Cosine between weights and a tensor of the state above which it mirrors them: schedule-free's
``z``, Lookahead's slow weights, an average. Momenta have one near 0."""
SIZES = (0.5, 2.0)
"""How much smaller or larger than the weights a mirror may be."""
LOOKED_AT = 100_000
"""Values of a weight that are compared, about."""


def mirrored(optimizer: Optimizer, weights: Sequence[tuple[Tensor, Tensor]]) -> set[str]:
    """The keys of an optimizer's state under which copies of the weights lie.

    Args:
        optimizer: after a step, so that it has state.
        weights: each with its mask; what is kept is compared, over all of them together.
    """
    sums: dict[str, Tensor] = {}
    for weight, mask in weights:
        for key, value in _like(optimizer, weight):
            rows = max(1, LOOKED_AT * len(weight) // max(1, weight.numel()))
            kept = mask.expand(weight.shape)[:rows].to(weight.device)
            a, b = (t.detach()[:rows].to(weight.device)[kept].double() for t in (weight, value))
            now = torch.stack([a @ b, a @ a, b @ b]).cpu()
            sums[key] = sums[key] + now if key in sums else now
    found = set()
    for key, total in sums.items():
        both, own, other = total.tolist()
        size = (other / own) ** 0.5 if own > 0 else 0.0
        if SIZES[0] <= size <= SIZES[1] and both > ALIKE * (own * other) ** 0.5:
            found.add(key)
    return found


def zero_mirrors(optimizer: Optimizer, weight: Tensor, mask: Tensor, keys: set[str]) -> None:
    """Clear what is removed of a weight in its mirrors, too."""
    for key, value in _like(optimizer, weight):
        if key in keys:
            value.masked_fill_(~mask.to(value.device), 0)


def _like(optimizer: Optimizer, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the state of a weight that have its shape."""
    entry = optimizer.state.get(weight)
    for key, value in entry.items() if isinstance(entry, Mapping) else ():
        alike = isinstance(value, Tensor) and value.shape == weight.shape
        if alike and value.is_floating_point() and value.data_ptr() != weight.data_ptr():
            yield str(key), value
