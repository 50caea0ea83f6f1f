"""What it costs to take inputs of a matrix away, and what the rest becomes then."""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.01
"""What is added to H's diagonal, as a part of its mean; as SparseGPT does."""
DEAD = 1e-9
"""What the diagonal is of inputs that are always zero, as a part of its mean."""


def damped(hessian: Tensor) -> Tensor:
    """H + λI in float64, which has an inverse: inputs that are always zero cost next to nothing.

    >>> [round(float(v), 3) for v in damped(torch.tensor([[2.0, 0.0], [0.0, 0.0]])).diagonal()]
    [2.01, 0.0]
    """
    made = hessian.double().clone()
    mean = float(made.diagonal().mean()) or 1.0
    dead = made.diagonal() <= 0
    made.diagonal().add_(DAMPING * mean)
    made.diagonal()[dead] = DEAD * mean
    return made


def costs(weight: Tensor, hessian: Tensor, unit_of: Tensor, units: int) -> Tensor:
    """What ‖(W − Ŵ) x‖² grows by when all inputs of a unit go and the others make it good.

    With S the inputs of a unit it is tr(W_S ([H⁻¹]_SS)⁻¹ W_Sᵀ), float64 ``[units]``.

    Args:
        weight: W, ``[out, in]``.
        hessian: the mean of x xᵀ with damping, ``[in, in]``.
        unit_of: of each input, the number of its unit; −1: of none.
        units: how many there are.

    Source: Hassibi & Stork 1992, Optimal brain surgeon; of whole structures Kurtic et al. 2023,
    ZipLM, arXiv:2302.04089.

    >>> costs(torch.tensor([[1.0, 2.0]]), torch.eye(2), torch.tensor([0, 1]), 2)
    tensor([1., 4.], dtype=torch.float64)
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian.double()))
    exact = weight.double()
    found = torch.zeros(units, dtype=torch.float64, device=weight.device)
    used = unit_of >= 0
    if len(torch.unique(unit_of[used])) == int(used.sum()):  # one input each
        own = exact[:, used].square().sum(0) / inverse.diagonal()[used]
        return found.index_add_(0, unit_of[used].to(found.device), own)
    for unit in range(units):
        of = torch.nonzero(unit_of == unit)[:, 0].to(weight.device)
        part = exact[:, of]
        found[unit] = (torch.linalg.solve(inverse[of][:, of], part.T) * part.T).sum()
    return found


def refit(weight: Tensor, hessian: Tensor, stays: Tensor) -> Tensor:
    """What of a matrix makes up best for the inputs that go: W_K + W_S H_SK (H_KK)⁻¹.

    It is the least-squares solution min ‖W x − Ŵ x_K‖² of the damped moments.

    Args:
        weight: W, ``[out, in]``.
        hessian: the mean of x xᵀ with damping, ``[in, in]``.
        stays: bool, ``[in]``.

    Returns:
        The matrix in its own shape and type, zero where an input is gone.

    >>> x = torch.tensor([[1.0, 1.0], [1.0, 1.001]])  # two inputs that are almost the same
    >>> w = refit(torch.tensor([[1.0, 2.0]]), x.T @ x / 2, torch.tensor([True, False]))
    >>> [round(float(v), 2) for v in w[0]]
    [3.0, 0.0]
    """
    h, exact = hessian.double(), weight.double()
    lost = exact[:, ~stays] @ h[~stays][:, stays]
    factor = torch.linalg.cholesky(h[stays][:, stays])
    made = torch.zeros_like(exact)
    made[:, stays] = exact[:, stays] + torch.cholesky_solve(lost.T, factor).T
    return made.to(weight.dtype)
