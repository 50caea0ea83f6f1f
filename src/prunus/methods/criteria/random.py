"""The floor that every criterion should beat."""

from __future__ import annotations

from torch import Tensor


def random(noise: Tensor) -> Tensor:
    """Random: scores uniform in [0, 1), drawn from the recipe's seed and the parameter's name.

    Args:
        noise: ``[...]``, uniform.

    Source: the baseline of Gale, Elsen, Hooker 2019, arXiv:1902.09574.

    >>> import torch
    >>> random(torch.tensor([0.25, 0.75]))
    tensor([0.2500, 0.7500])
    """
    return noise
