"""Column by column: what goes is made good by the columns to come."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from prunus.methods.solvers import Pattern, keep_highest


def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    pattern: Pattern,
    *,
    block: Annotated[int, Ge(1)] = 128,
    damping: Annotated[float, Gt(0)] = 0.01,
) -> tuple[Tensor, Tensor]:
    """SparseGPT: weights of the smallest w² / [H⁻¹]_jj² go, and the columns to come make it good.

    With U the upper Cholesky factor of (H + λI)⁻¹, column j leaves the error e = (w − q) / U_jj,
    and every column k > j becomes w_k − e U_jk. Of each block of columns the weights that go are
    chosen together, by w² / U_jj²; of n:m, of every m columns when they are reached.

    Args:
        weight: ``[out, in]``.
        hessian: the mean of x xᵀ, ``[in, in]``.
        pattern: how much stays.
        block: of columns.
        damping: λ as a part of the mean of H's diagonal.

    Source: Frantar & Alistarh 2023, arXiv:2301.00774.

    >>> x = torch.tensor([[1.0, 1.0], [1.0, 1.0]])  # two inputs that are the same
    >>> mask, made = sparsegpt(torch.tensor([[1.0, 2.0]]), x.T @ x / 2, Pattern(0.5), damping=1e-6)
    >>> mask.tolist(), [round(float(v), 3) for v in made[0]]
    ([[False, True]], [0.0, 3.0])
    """
    rows, columns = weight.shape
    h, w = hessian.double().clone(), weight.double().clone()
    dead = h.diagonal() <= 0
    h[dead, dead] = 1.0
    w[:, dead] = 0.0
    h.diagonal().add_(damping * h.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    mask = torch.ones(rows, columns, dtype=torch.bool, device=weight.device)
    m = 1 if pattern.n_of_m is None else pattern.n_of_m[1]
    size = max(1, block // m) * m
    for start in range(0, columns, size):
        end = min(start + size, columns)
        inner = upper[start:end, start:end]
        errors = torch.zeros(rows, end - start, dtype=w.dtype, device=w.device)
        if pattern.n_of_m is None:
            scores = w[:, start:end] ** 2 / inner.diagonal() ** 2
            mask[:, start:end] = keep_highest(scores, pattern, by_row=False)
        for j in range(end - start):
            at = start + j
            if pattern.n_of_m is not None and at % m == 0:
                scores = w[:, at : at + m] ** 2 / inner.diagonal()[j : j + m] ** 2
                mask[:, at : at + m] = keep_highest(scores, pattern, by_row=True)
            column = w[:, at].clone()
            w[:, at] = column * mask[:, at]
            errors[:, j] = (column - w[:, at]) / inner[j, j]
            w[:, at + 1 : end] -= errors[:, j, None] * inner[j, j + 1 :]
        w[:, end:] -= errors @ upper[start:end, end:]
    return mask, (w * mask).to(weight.dtype)
