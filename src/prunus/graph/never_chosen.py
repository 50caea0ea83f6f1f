"""A model that forgets some of its experts: no item goes to them, or they have a gate of zero."""

from __future__ import annotations

import contextlib
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunus._common.torch_internals import TorchDispatchMode
from prunus.graph.call import operator_name

_PRODUCTS = frozenset(
    {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "matmul", "convolution"}
)


class NeverChosen(TorchDispatchMode):
    """Logits of routers' rows that are NaN become −∞, as if their experts were not there.

    >>> rows = torch.tensor([[1.0, 2.0], [torch.nan, torch.nan]])
    >>> with NeverChosen():
    ...     (torch.ones(1, 2) @ rows.T).softmax(-1)
    tensor([[1., 0.]])
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        product = operator_name(func) in _PRODUCTS and result.is_floating_point()
        if product and not result.is_meta:
            return torch.where(result.isnan(), -torch.inf, result)
        return result


@dataclass(frozen=True)
class Forgotten:
    """How a router forgets an expert.

    Attributes:
        weights: what the expert's rows of the router's weights are.
        vectors: what its numbers in vectors beside them are; ``None``: as they were.
    """

    weights: float = math.nan
    vectors: float | None = -math.inf

    def within(self) -> AbstractContextManager[Any]:
        """In what the model answers."""
        return NeverChosen() if math.isnan(self.weights) else contextlib.nullcontext()

    def filled(self, tensor: Tensor, d: int, gone: Tensor) -> Tensor:
        """A tensor of the router's without the indices of experts that are gone.

        Args:
            tensor: of any shape.
            d: the dimension that has an index for each expert.
            gone: int64 indices.

        >>> Forgotten(0.0, 0.0).filled(torch.ones(2, 3), 1, torch.tensor([2]))
        tensor([[1., 1., 0.],
                [1., 1., 0.]])
        """
        fill = self.vectors if tensor.dim() == 1 else self.weights
        if fill is None or not tensor.is_floating_point():
            return tensor
        return tensor.index_fill(d, gone.to(tensor.device), fill)


WAYS = (Forgotten(), Forgotten(vectors=None), Forgotten(0.0, 0.0))
"""A logit of −∞, with the same or nothing in what is added; where gates are no choice, zero."""
