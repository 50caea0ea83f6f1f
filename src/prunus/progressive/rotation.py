"""Before a cut: hidden widths turned to their principal directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from prunus.compaction.rotating import rotate
from prunus.deployment.calibration import passes_of
from prunus.errors import InputError, RunError
from prunus.graph.rotation import Stream, stream_of
from prunus.graph.units import coupled_units
from prunus.progressive.engine import PruningEngine
from prunus.progressive.state import RunContext, RunState
from prunus.pruning.decide import kept_units
from prunus.pruning.masks import apply
from prunus.pruning.optimizers import each_of
from prunus.types import Group


def refuse_rotation(engine: PruningEngine, train: Callable[..., Any] | None) -> None:
    """What a rotation cannot go with, before work starts.

    Raises:
        InputError: with the reason.
    """
    if not engine.recipe.trait("structure", "ROTATES") or train is None:
        return
    if not engine.recipe.in_rounds:
        raise InputError(
            "structure: rotate turns all weights before a cut, and gradual pruning cuts between "
            "the steps of an optimizer, whose state would not turn: set rounds"
        )
    for _, stream in _streams(engine, scalars=False):
        if isinstance(stream, str):
            raise InputError(f"rotate: {stream}; training would make that scale differ by index")
    calibration = engine.selector.calibration
    if iter(calibration or ()) is not calibration:  # one that can be read again
        _rotated(engine, trial=True)


def turned(job: RunContext, at: RunState) -> dict[Group, Tensor]:
    """Turn the streams of the model as it stands: the variance along each unit, by group.

    The optimizer starts anew, because its state belongs to the weights before.

    Raises:
        RunError: if they can be turned no longer.
    """
    engine = job.engine
    if not engine.recipe.trait("structure", "ROTATES"):
        return {}
    stays = _others(engine)
    if not engine.space.groups and not stays:  # every width is down to its last index
        return {}
    widths, variances, error = _rotated(engine)
    apply(engine.model, engine.masks)
    at.optimizer = {}
    if engine.optimizer is not None:
        for optimizer in each_of(engine.optimizer):
            optimizer.state.clear()
    job.journal.write("rotated", widths=widths, error=error, stays=stays)
    return variances


def _rotated(
    engine: PruningEngine, *, trial: bool = False
) -> tuple[dict[str, int], dict[Group, Tensor], float]:
    """The widths that were turned, the variances along their units, and the error."""
    streams = []
    found = [*_streams(engine)]
    for _, stream in found:
        if isinstance(stream, str):
            raise RunError(f"rotate: {stream}")
        streams.append(stream)
    if not streams:
        raise RunError(f"rotate: no hidden width can be turned: {'; '.join(_others(engine))}")
    alive = [_alive(engine, group) for group, _ in found]
    selector = engine.selector
    batches = passes_of(engine.model, selector.loss, selector.calibration or ())
    done = rotate(engine.model, streams, alive, engine.example, batches, trial=trial)
    widths = {g.name: int(a.sum()) for (g, _), a in zip(found, alive, strict=True)}
    variances = {g: v for (g, _), v in zip(found, done.variances, strict=True)}
    return widths, variances, done.error


def _others(engine: PruningEngine) -> list[str]:
    """Hidden widths that cannot be turned, and so stay, each with the reason."""
    analysis = engine.space.analysis
    assert analysis is not None
    known = {c for group in engine.space.groups for c in group.classes or ()}
    names = [n for n, _ in engine.model.named_parameters()]
    kinds = [k for k in coupled_units(analysis, names) if k.hidden and len(k) > 1]
    return [
        f"{kind.name} ({found})"
        for kind in kinds
        if known.isdisjoint(kind.classes.tolist())
        and isinstance(found := stream_of(analysis, kind.classes), str)
    ]


def rotation_notes(job: RunContext) -> tuple[str, ...]:
    """What a result says of it."""
    events = [e for e in job.journal.events if e["event"] == "rotated"]
    if not events:
        return ()
    stays = dict.fromkeys(name for e in events for name in e["stays"])
    more = (f"rotate: what cannot be turned stays: {'; '.join(stays)}",) if stays else ()
    return (
        "rotate: the hidden width was turned to principal directions before each cut, equal to the "
        f"model before within {max(e['error'] for e in events):.1e} in float64; masks and kept "
        "indices are those of the turned model",
        *more,
    )


def _alive(engine: PruningEngine, group: Group) -> Tensor:
    shapes = {n: tuple(p.shape) for n, p in engine.model.named_parameters()}
    found = kept_units([group], engine.masks, shapes)[group]
    return torch.ones(group.units, dtype=torch.bool) if found is None else found.cpu()


def _streams(
    engine: PruningEngine, *, scalars: bool = True
) -> Iterator[tuple[Group, Stream | str]]:
    analysis = engine.space.analysis
    assert analysis is not None
    for group in engine.space.groups:
        classes = torch.tensor(group.classes).numpy()
        alive = _alive(engine, group).numpy()
        yield group, stream_of(analysis, classes, alive=alive, scalars=scalars)
