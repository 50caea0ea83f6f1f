"""What else holds a model's weights, at the end of a training: held, or told of."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable, Sequence

from torch import nn

from prunus.progressive.engine import PruningEngine
from prunus.pruning.copies import leave_mark
from prunus.pruning.followers import Followers, owner_of
from prunus.types import Masks


def hold(engine: PruningEngine) -> None:
    """Zero what is removed, in the model and its copies, and warn of what was not."""
    names = engine.enforcer.hold()
    if names:
        warnings.warn(
            f"removed weights of {_listed(names)} were not zero: something wrote to them outside "
            "optimizer.step() (an average that was copied back, a loaded state, an optimizer that "
            "swaps weights). They are zero now; to keep such a copy as sparse as the model, pass "
            "it to copies=[…]",
            stacklevel=3,
        )


def followers_of(engine: PruningEngine) -> Followers:
    """What there is before a training, so that :func:`finish` can tell what follows the model."""
    weights = [engine.model.get_parameter(layer.name) for layer in engine.space.layers]
    return Followers(weight.shape for weight in weights)


def finish(engine: PruningEngine, followers: Followers) -> None:
    """Warn of averages that are not as sparse as the model, and let it know its masks.

    Args:
        engine: of the loop.
        followers: from the beginning of the training.
    """
    told = _dense_copies(engine, followers, engine.enforcer.masks)
    if told:
        warnings.warn(f"{told}: pass such copies to copies=[…], and {_STAY}", stacklevel=3)
    leave_mark(engine.model, dict(engine.enforcer.masks))


_STAY = "they stay as sparse as the model"


def note_of_copies(
    engine: PruningEngine, followers: Followers, own: Iterable[nn.Module | None]
) -> str:
    """What a run's training holds that is not as sparse as the model; empty for nothing.

    Args:
        engine: at the end.
        followers: from when training began.
        own: models that prunus keeps beside it.
    """
    told = _dense_copies(engine, followers, engine.masks, own)
    return f"{told}: give a module to run.attach(optimizer, ema=…), and {_STAY}" if told else ""


def _dense_copies(
    engine: PruningEngine,
    followers: Followers,
    masks: Masks,
    own: Iterable[nn.Module | None] = (),
) -> str:
    known = engine.enforcer.known_tensors() | {id(t) for t in engine.running.tensors.values()}
    known |= {id(p) for model in own if model is not None for p in model.parameters()}
    if not followers.dense(engine.model, masks, known):
        return ""
    gc.collect()  # what nobody holds any more, such as the model of an earlier try, is no average
    found = followers.dense(engine.model, masks, known)
    if not found:
        return ""
    owners = dict.fromkeys(owner_of(t) for t in found.values())
    return (
        f"{' and '.join(owners)} holds copies of {_listed(list(found))} that were written to "
        "while the model was pruned (an average?) and have values where weights were removed"
    )


def _listed(names: Sequence[str]) -> str:
    return f"'{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
