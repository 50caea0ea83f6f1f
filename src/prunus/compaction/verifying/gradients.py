"""Gradients of the masked and the smaller model compared.

A module of the user's keeps its own rules of differentiation. A graph has the operators of a pass:
what a ``torch.autograd.Function``, a hook or ``.data`` made of the gradients is not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx, nn

from prunus.compaction.verifying.uses import Use
from prunus.compaction.verifying.values import Lazy, State
from prunus.compaction.verifying.verify import (
    Answers,
    Gate,
    answers,
    as_answers,
    dense,
    passed,
    values_of,
)

TOLERANCE = 1e-6
"""Largest difference of gradients in float64, relative to the largest of their tensor."""

NEGLIGIBLE = 1e-6
"""Size of a tensor's gradients, relative to the largest of all, below which they are rounding: a
bias before a batch norm has a gradient of zero."""


def has_graphs(model: nn.Module) -> bool:
    """Whether some of a model runs as a graph."""
    return any(isinstance(module, fx.GraphModule) for module in model.modules())


def gradients(model: nn.Module, state: State, use: Use, gate: Gate) -> State | None:
    """With respect to each parameter that learns: of a weighted sum of a model's answers.

    .. math:: \\nabla_w \\sum_{i} c_i \\, y_i(w), \\quad c_i \\text{ fixed random numbers}

    Args:
        model: is not changed.
        state: its values.
        use: with autograd on.
        gate: in which type.

    Returns:
        A tensor of the parameter's shape for each name, zero where the answers do not depend on
        it; ``None`` for a model of which not all values are held.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> use = Use("", ((torch.tensor([[3.0, 4.0]]),), {}), gradient=True)
    >>> state = {"weight": layer.weight.detach().double()}
    >>> found = gradients(layer, state, use, Gate())
    >>> round(float(found["weight"][0, 0] / found["weight"][0, 1]), 6)
    0.75
    """
    own = values_of(model, state, use, gate)
    if any(isinstance(t, Lazy) for t in own.values()):
        return None
    leaves = _leaves(model, own)
    return passed(model, {**own, **leaves}, use, gate, lambda given: _backward(given, leaves))


def answers_and_gradients(
    model: nn.Module, state: State, use: Use, gate: Gate
) -> tuple[Answers, State | None]:
    """What :func:`answers` and :func:`gradients` give, from one pass.

    The gradients are ``None`` where there are none, or no such pass: they are to be had apart then,
    or it is known why not.

    Raises:
        Exception: what :func:`answers` raises.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> use = Use("", ((torch.tensor([[3.0, 4.0]]),), {}), gradient=True)
    >>> state = {"weight": torch.ones(1, 2, dtype=torch.float64)}
    >>> (answered, _), found = answers_and_gradients(layer, state, use, Gate())
    >>> apart = gradients(layer, state, use, Gate())
    >>> float(answered[0]), torch.equal(found["weight"], apart["weight"])
    (7.0, True)
    """
    own = values_of(model, state, use, gate)
    if any(isinstance(t, Lazy) for t in own.values()):
        return answers(model, state, use, gate), None
    leaves = _leaves(model, own)

    def both(given: list[Tensor]) -> tuple[list[Tensor], State | None]:
        found = [dense(t) for t in given]
        try:
            return found, _backward(given, leaves)
        except Exception:  # of operators that autograd refuses
            return found, None

    try:
        found, slopes = passed(model, {**own, **leaves}, use, gate, both)
    except Exception:  # of code that writes to its parameters, or a graph that never learns
        return answers(model, state, use, gate), None
    return as_answers(model, found, own, use), slopes


def _leaves(model: nn.Module, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values of parameters that learn, as what gradients are of."""
    learning = [n for n, p in model.named_parameters() if p.requires_grad and n in own]
    return {n: own[n].detach().clone().requires_grad_() for n in learning}


def _backward(answered: list[Tensor], leaves: Mapping[str, Tensor]) -> State:
    generator = torch.Generator().manual_seed(0)
    terms = [_weighted(t, generator) for t in answered if t.requires_grad]
    if not terms or not leaves:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(terms, [*leaves.values()], allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    return {n: torch.zeros_like(leaf) if g is None else g for (n, leaf), g in pairs}


def _weighted(answer: Tensor, generator: torch.Generator) -> Tensor:
    """A sum of an answer's numbers, each with a weight of its own."""
    real = torch.view_as_real(answer) if answer.is_complex() else answer
    weights = torch.randn(real.shape, generator=generator, dtype=torch.float64)
    return (real * weights.to(real.device, real.dtype)).sum()


def differing(
    expected: Callable[[], State | None],
    model: nn.Module,
    state: State,
    use: Use,
    gate: Gate,
    known: State | None = None,
) -> str:
    """A parameter whose gradient in a smaller model is not what the masked model has for it.

    Args:
        expected: gives the masked model's gradients of what is left.
        model: the smaller one, known to answer alike.
        state: its values.
        use: with autograd on.
        gate: in which type.
        known: its gradients, where they are known.

    Returns:
        Its name; empty where all agree, or where the masked model has none to compare.
    """
    try:
        wanted = expected()
    except Exception:  # of the model's code: this use has no backward pass, so nothing trains in it
        return ""
    if not wanted:
        return ""
    try:
        found = known or gradients(model, state, use, gate) or {}
    except Exception:  # of operators of the graph that autograd refuses
        return next(iter(wanted))
    tolerance = TOLERANCE if gate.wide else _OWN_TYPE
    largest = max((_largest(g) for g in wanted.values()), default=0.0)
    for name in (n for n in wanted if n in found):
        real = wanted[name].isfinite()  # the square root of a removed feature's zero has none
        gap = (wanted[name] - found[name])[real].abs()
        allowed = tolerance * max(_largest(wanted[name]), NEGLIGIBLE * largest)
        if not bool((gap <= allowed).all()):
            return name
    return ""


_OWN_TYPE = 1e-2


def _largest(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
