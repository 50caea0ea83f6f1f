"""Ever harder on the weights that will go, so that their going changes nothing."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt

from prunus.methods.regularizers import Pull

GOING = True


def greg(
    pull: Pull,
    *,
    growth: Annotated[float, Gt(0)] = 1e-2,
    every: Annotated[int, Ge(1)] = 5,
    most: Annotated[float, Gt(0)] = 1.0,
) -> None:
    """GReg-1: w ← w (1 − η λ) of what will go, with λ = min(most, growth · ⌊t / every⌋).

    What will go is what criterion, allocation and target say when a training begins and after each
    cut; so it needs steps before a cut: ``schedule.start`` above 0, or ``during: dense``.

    Args:
        pull: weights, and which will go.
        growth: by how much λ grows at a time, δ.
        every: steps t between two of these.
        most: the largest λ.

    Source: Wang, Qin, Zhang, Fu 2021 (GReg-1), arXiv:2012.09243.

    >>> import torch
    >>> w, going = torch.tensor([2.0, 2.0]), torch.tensor([True, False])
    >>> greg(Pull({"w": w}, {}, {"w": 0.5}, (), {"w": going}, 10), growth=0.25)  # λ = 0.5
    >>> w
    tensor([1.5000, 2.0000])
    """
    weight_of_penalty = min(most, growth * (pull.step // every))
    for name, going in pull.going.items():
        factor = 1 - min(1.0, pull.rates[name] * weight_of_penalty)
        pull.weights[name].mul_(going.to(pull.weights[name]).mul_(factor - 1).add_(1))
