"""What a rejected round teaches: the groups that were cut too far go on in smaller steps."""

from __future__ import annotations

from collections.abc import Mapping

from prunus.progressive.engine import PruningEngine
from prunus.progressive.state import RunContext, RunState
from prunus.pruning.decide import kept_units

ENOUGH = 0.5
"""The part of the damage that the groups together have done which are held back."""
RELEASE = 0.25
"""Of what is left of a group that is held back, the part that an accepted round gives free."""


def kept_of(engine: PruningEngine) -> dict[str, int]:
    """Units that are left of each group."""
    shapes = {n: tuple(p.shape) for n, p in engine.model.named_parameters()}
    alive = kept_units(engine.space.groups, engine.masks, shapes)
    return {g.name: g.units if a is None else int(a.sum()) for g, a in alive.items()}


def hold_back(job: RunContext, at: RunState, rejected: Mapping[str, int]) -> None:
    """After a rollback: let the groups that cost most go half of the way that was too far.

    Each group is cut alone as the rejected round had cut it, and the rise of the loss on the
    calibration data is its share of the damage. Those with the largest shares, which make up half
    of the whole, may go half as far; the others are free to give more.

    Args:
        job: its engine back at the last accepted round.
        at: is told of the largest part of each group that may be gone.
        rejected: units that the rejected round had kept of each group.
    """
    engine = job.engine
    kept, groups = kept_of(engine), {g.name: g for g in engine.space.groups}
    fewer = {name: count for name, count in rejected.items() if count < kept.get(name, 0)}
    shares = engine.selector.shares(
        engine.model, engine.space, engine.masks, engine.running.tensors, fewer
    )
    whole = sum(shares.values())
    blamed = 0.0
    for name in sorted(shares, key=lambda n: -shares[n]):
        if blamed >= ENOUGH * whole and blamed:
            break
        blamed += shares[name]
        dense = groups[name].dense_units or groups[name].units
        middle = 1 - (kept[name] + fewer[name]) / 2 / dense
        at.most[name] = min(at.most.get(name, 1.0), middle)
    _told(job, at)


def let_go(job: RunContext, at: RunState) -> None:
    """After an accepted round: what was held back may be asked for more, once it has recovered."""
    for name, most in list(at.most.items()):
        at.most[name] = most + RELEASE * (1 - most)
        if at.most[name] > 1 - RELEASE**3:
            del at.most[name]
    _told(job, at)


def _told(job: RunContext, at: RunState) -> None:
    job.engine.most = dict(at.most)
    job.journal.write("held_back", most={name: round(part, 6) for name, part in at.most.items()})
