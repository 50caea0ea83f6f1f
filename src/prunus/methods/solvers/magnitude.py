"""The largest weights of a matrix stay, as they are."""

from __future__ import annotations

from torch import Tensor

from prunus._common.memory import absolute
from prunus.methods.solvers import Pattern, keep_highest, masked


def magnitude(weight: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Magnitude: the largest \\|w\\| of the matrix stay; what the layer reads does not count.

    Source: Han et al. 2015, arXiv:1506.02626.

    >>> import torch
    >>> w = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    >>> magnitude(w, Pattern(0.5))[1]
    tensor([[ 0., -2.],
            [ 3.,  0.]])
    """
    mask = keep_highest(absolute(weight), pattern, by_row=False)
    return mask, masked(weight, mask)
