"""Whole units toward zero."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt

from prunus._common.units import numbers, unit_sums
from prunus.methods.regularizers import Pull


def group_lasso(pull: Pull, *, strength: Annotated[float, Gt(0)] = 1e-4) -> None:
    """Group lasso: w_u ← w_u · max(1 − η λ √p / ‖w_u‖, 0) of every unit u of p weights.

    The proximal step of λ Σ_u √p ‖w_u‖ over all coupled weights of a unit; of single weights it is
    ``proximal``. One rate for each group, that of its first weight.

    Args:
        pull: weights and groups.
        strength: λ.

    Source: Yuan & Lin 2006; Wen, Wu, Wang, Chen, Li 2016, arXiv:1608.03665.

    >>> import torch
    >>> from prunus.types import Group, Member
    >>> w = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    >>> rows = Member("w", (torch.arange(2)[:, None],))
    >>> units = Group("w", 2, (rows,), (2, 2), 0, sizes=torch.tensor([2, 2]))
    >>> group_lasso(Pull({"w": w}, {}, {"w": 0.5}, [units], {}, 1), strength=2.0)
    >>> w  # ‖w_u‖ is 5 and 0.5, η λ √p is √2
    tensor([[2.1515, 2.8686],
            [0.0000, 0.0000]])
    """
    factors = []
    for group in pull.groups:
        names = [m.name for m in group.members if m.scored]
        if all(name in pull.weights for name in names):
            norm = unit_sums(group, lambda n: pull.weights[n].double().square()).sqrt()
            root = 1.0 if group.sizes is None else group.sizes.to(norm.device).double().sqrt()
            less = pull.rates[names[0]] * strength * root / norm.clamp(min=1e-300)
            factors.append((group, (1 - less).clamp(min=0)))
    for group, factor in factors:
        for member in group.members:
            if member.scored:
                weight = pull.weights[member.name]
                number = numbers(member)
                if number is None:
                    weight.mul_(factor.view(weight.shape))
                else:
                    number = number.to(weight.device)
                    own = factor[number.clamp(min=0)].masked_fill(number < 0, 1.0)
                    weight.mul_(own.to(weight.dtype))
