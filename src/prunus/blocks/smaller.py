"""The smaller model, of one at hand whose blocks have lost units."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from prunus._common.modules import detached_copy, trains
from prunus.blocks.hidden import Narrow
from prunus.blocks.sizes import Sizes
from prunus.blocks.solving import Solving
from prunus.blocks.structuring import Structuring
from prunus.blocks.units import taken
from prunus.compaction.compact import compact
from prunus.compaction.files.placing import changes
from prunus.compaction.slicing.surgery import Surgery
from prunus.types import Kept


def smaller(model: nn.Module, solving: Solving, example: Any) -> nn.Module:
    """A model without the units that a walk has set to zero.

    Of a class that opens itself it is made of the configuration that says the sizes which are left.
    Where each block's are said by another one, the numbers that its modules remember become those
    of a model all of whose blocks are like it. Any other is made by :func:`prunus.compact`.

    Args:
        model: with zeros.
        solving: that has set them.
        example: a batch.

    Raises:
        RunError: if the smaller model does not answer as the given one.
    """
    assert isinstance(solving, Structuring)
    fresh: Any = solving.even()
    sizes = solving.sizes
    kept = {f"{block}.{n}": i for block, cut in solving.kept.items() for n, i in cut.items()}
    if fresh is None and all(sizes.at(r).fresh is not None for r in solving.used.values()):
        given = [list(one) for name in solving.used for one in solving.changes(name)[1]]
        shallow = copy.deepcopy(sizes.model) if sizes.dropped else None
        twin = detached_copy(model) if shallow is None else _filled(shallow, model, sizes, {})
        dims = {n: t.dim() for n, t in twin.state_dict().items()}
        named = {_named(n, sizes): i for n, i in kept.items()}
        whole = {n: (*i, *(None,) * (dims[n] - len(i))) for n, i in named.items()}
        Surgery(whole, tuple(changes(twin, given))).apply(twin)
        return twin
    if fresh is None and not solving.masks:  # a guard let nothing go
        return detached_copy(model)
    if fresh is None:
        found = compact(model, solving.masks, example)
        solving.gate = found.error
        return found.model
    return _filled(fresh, model, sizes, kept)


def _filled(fresh: Any, model: nn.Module, sizes: Sizes, kept: Kept) -> nn.Module:
    """A model that a configuration made, with what is left of another one's tensors."""
    buffers = {n: b for n, b in model.named_buffers() if n not in model.state_dict()}
    names = {n: new for n in model.state_dict() if (new := _named(n, sizes))}
    state = {names[n]: taken(t, kept.get(n, ())).clone() for n, t in model.state_dict().items()
             if n in names}  # fmt: skip
    fresh.load_state_dict(state, assign=True)
    fresh.tie_weights()
    for name, buffer in fresh.named_buffers():
        if name in buffers and buffers[name].shape == buffer.shape:
            _put(fresh, name, buffers[name].clone())
    learns = {names[n]: p.requires_grad for n, p in model.named_parameters(remove_duplicate=False)
              if n in names}  # fmt: skip
    for name, parameter in fresh.named_parameters():
        parameter.requires_grad_(learns[name])
    if getattr(model, "generation_config", None) is not None:
        fresh.generation_config = model.generation_config
    return fresh.train(trains(model))  # type: ignore[no-any-return]


def narrower(model: nn.Module, narrow: Narrow, state: Mapping[str, Tensor]) -> nn.Module:
    """A model without the channels that a walk has set to zero in its blocks.

    Args:
        model: with zeros in its blocks.
        narrow: what goes.
        state: its tensors, all of them turned where the stream is.
    """
    buffers = {n for n, _ in model.named_buffers()} - set(model.state_dict())
    fresh: Any = copy.deepcopy(narrow.fresh)
    fresh.load_state_dict({n: narrow.of(n, t) for n, t in state.items()}, assign=True)
    fresh.tie_weights()
    own = dict(model.named_buffers())
    for name, buffer in fresh.named_buffers():
        if name in buffers and own[name].shape == buffer.shape and name not in narrow.powers:
            _put(fresh, name, buffer.to(own[name]))
    learns = {n: p.requires_grad for n, p in model.named_parameters(remove_duplicate=False)}
    for name, parameter in fresh.named_parameters():
        parameter.requires_grad_(learns[name])
    if getattr(model, "generation_config", None) is not None:
        fresh.generation_config = model.generation_config
    return fresh.train(trains(model))  # type: ignore[no-any-return]


def _named(name: str, sizes: Sizes) -> str:
    """What a tensor is called in the smaller model; empty: it is gone with its block."""
    for block, new in (*sizes.names.items(), *((block, "") for block in sizes.dropped)):
        if name.startswith(f"{block}."):
            return new and new + name[len(block) :]
    return name


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, key = name.rpartition(".")
    model.get_submodule(path)._buffers[key] = value
