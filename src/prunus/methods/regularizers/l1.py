"""All weights toward zero at the same speed."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Gt

from prunus.methods.regularizers import Pull

OF = "{of}"


def l1(
    pull: Pull,
    *,
    strength: Annotated[float, Gt(0)] = 1e-4,
    of: Literal["weights", "norms"] = "weights",
) -> None:
    """L1: w ← w − η λ sign(w), the step of the penalty λ Σ |w|.

    Args:
        pull: weights, and the scales of batch norms.
        strength: λ.
        of: ``norms`` pulls the scales γ of the batch norms behind the units (network slimming).

    Source: Tibshirani 1996; of norms: Liu, Li, Shen et al. 2017, arXiv:1708.06519.

    >>> import torch
    >>> w = torch.tensor([-3.0, 0.5, 0.0])
    >>> l1(Pull({"w": w}, {}, {"w": 0.5}, (), {}, 1), strength=0.5)
    >>> w
    tensor([-2.7500,  0.2500,  0.0000])
    """
    for name, weight in (pull.weights if of == "weights" else pull.scales).items():
        weight.sub_(weight.sign(), alpha=pull.rates[name] * strength)
