"""All weights toward zero at the same speed, and small ones to zero itself."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Gt

from prunus.methods.regularizers import Pull

OF = "{of}"


def proximal(
    pull: Pull,
    *,
    strength: Annotated[float, Gt(0)] = 1e-4,
    of: Literal["weights", "norms"] = "weights",
) -> None:
    """Proximal L1: w ← sign(w) · max(|w| − η λ, 0), which stops at zero.

    Args:
        pull: weights, and the scales of batch norms.
        strength: λ.
        of: ``norms`` pulls the scales γ of the batch norms behind the units.

    Source: Daubechies, Defrise, De Mol 2004, arXiv:math/0307152; Parikh & Boyd 2014.

    >>> import torch
    >>> w = torch.tensor([-3.0, 0.5, 0.125])
    >>> proximal(Pull({"w": w}, {}, {"w": 0.5}, (), {}, 1), strength=0.5)
    >>> w
    tensor([-2.7500,  0.2500,  0.0000])
    """
    for name, weight in (pull.weights if of == "weights" else pull.scales).items():
        less = (weight.abs() - pull.rates[name] * strength).clamp_(min=0)
        weight.copy_(less * weight.sign())
