"""The rule P(W) = {w : |w| ≤ θ·C(W)}, literal and normalized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from annotated_types import Ge

from prunus.errors import InputError
from prunus.methods.allocations._shares import keep_by_share
from prunus.types import Counts, Group, Limits, Units

COUPLED = False


def threshold(
    units: Units,
    cost: Callable[[Counts], float],
    target: float,
    limits: Mapping[Group, Limits],
    *,
    theta: Annotated[float, Ge(0)],
    form: Literal["literal", "mean"] = "literal",
    over: Literal["layer", "network"] = "layer",
    may_empty: bool = False,
) -> Counts:
    """Threshold: what scores at most θ·C goes, C = Σ|w| (literal) or mean|w| of what is left.

    The target bounds it: once it is reached, a smaller θ that just reaches it is used.
    In its literal form θ = 0.1 empties every real layer: about 1/n removes half of n weights,
    2/n nine tenths of them.

    Args:
        units: unit scores; with the criterion ``magnitude`` they are |w|.
        cost: exact sparsity of a choice.
        target: the sparsity not to be passed.
        limits: what must stay.
        theta: θ, 0 or more.
        form: ``literal``: θ·Σ|w|; ``mean``: θ·mean|w| over the weights not yet removed.
        over: C of each layer, or of the whole network.
        may_empty: let θ remove every weight of a layer.

    Raises:
        InputError: if θ would empty a layer and ``may_empty`` is not set.

    Source: the method's source text, formula P(W) and script (see docs/source_text.md).
    """
    size = {g: _size(s[s.isfinite()]) for g, s in units.items()}
    whole = (sum(s for s, _ in size.values()), sum(n for _, n in size.values()))
    cut = {}
    for group in units:
        total, count = whole if over == "network" else size[group]
        cut[group] = theta * (total if form == "literal" else total / max(count, 1))
    kept = {g: int(torch.count_nonzero(s > cut[g])) for g, s in units.items()}
    least = {g: 0 if limits[g].least <= g.least else limits[g].least for g in units}
    empty = [g for g in units if max(kept[g], least[g]) == 0 < limits[g].most and not g.may_empty]
    if empty and not may_empty:
        raise InputError(_report(theta, form, units, kept, empty))
    kept = {g: min(max(k, least[g]), limits[g].most) for g, k in kept.items()}
    counts: Counts = dict(kept)
    if cost(counts) <= target + 1e-12:
        return counts
    shares = {g: max(float(kept[g]), 1e-9) for g in units}
    capped = {g: Limits(max(limits[g].least, kept[g]), limits[g].most) for g in units}
    return keep_by_share(units, shares, cost, target, capped)


def _size(scores: torch.Tensor) -> tuple[float, int]:
    return float(scores.double().sum()), scores.numel()


def _report(
    theta: float, form: str, units: Units, kept: Mapping[Group, int], empty: list[Group]
) -> str:
    rows = [f"{g.name}: {g.units - kept[g]} of {g.units}" for g in units]
    n = max(g.units for g in empty)
    hint = (
        f"about {1 / n:.2g} removes half of {n} weights; or use form: mean, where 1 is the mean |w|"
        if form == "literal"
        else "a θ of 0.5 removes what is below half of the mean |w|"
    )
    return (
        f"θ = {theta:g} would remove all of {', '.join(g.name for g in empty)} "
        f"({'; '.join(rows)}). {hint[0].upper()}{hint[1:]}. "
        "To allow empty layers set may_empty: true"
    )
