"""Arguments by name; the sizes in which inputs differ; calibration as the example has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunus._common.inputs import arguments, by_name, positional_names
from prunus._common.nested import tensors_of
from prunus.errors import InputError
from prunus.runtimes import BuildRequest
from prunus.runtimes._sizes import Sizes


def named(order: BuildRequest) -> dict[str, Any]:
    """The example's arguments by name, in the order in which it gives them."""
    return by_name(positional_names(order.model), order.call)


def variants(order: BuildRequest) -> list[list[Tensor]]:
    """The tensors of the example and of the inputs like it, flattened."""
    return [order.tensors, *(tensors_of(arguments(other)) for other in order.others)]


def batched(order: BuildRequest) -> list[bool]:
    """Of each tensor whether its leading size is the batch's in all of these inputs."""
    every = variants(order)
    counts = [_items(tensors) for tensors in every]
    return [
        all(t.dim() > 0 and len(t) == n for t, n in zip(same, counts, strict=True))
        for same in zip(*every, strict=True)
    ]


def open_dims(order: BuildRequest) -> list[frozenset[int]]:
    """Of each tensor the dimensions in which these inputs differ, but the batch's; those too in
    which the inputs for calibration do."""
    own = _kinds(order.tensors)
    fitting = [tensors for tensors in calibrating(order) if _kinds(tensors) == own]
    found: list[frozenset[int]] = []
    for number, (first, items) in enumerate(zip(order.tensors, batched(order), strict=True)):
        shapes = [tensors[number].shape for tensors in variants(order)]
        more = [first.shape, *(tensors[number].shape for tensors in fitting)]
        differ = {d for d in range(int(items), first.dim()) if len({s[d] for s in shapes}) > 1}
        differ |= {d for d in range(1, first.dim()) if len({s[d] for s in more}) > 1}
        found.append(frozenset(differ))
    return found


def _kinds(tensors: Sequence[Tensor]) -> list[tuple[torch.dtype, int]]:
    return [(t.dtype, t.dim()) for t in tensors]


def _items(tensors: Sequence[Tensor]) -> int:
    return next((len(t) for t in tensors if t.dim()), 1)


def calibrating(order: BuildRequest) -> list[list[Tensor]]:
    """The tensors of each calibration input, of whatever sizes, in the example's order.

    Arguments that the example lacks, such as labels, are left out.

    Raises:
        InputError: if an input lacks what the example has.
    """
    wanted = {k: v for k, v in named(order).items() if tensors_of(v)}
    known = positional_names(order.model)
    found: list[list[Tensor]] = []
    for number, item in enumerate(order.calibration):
        given = by_name(known, arguments(item))
        lacking = [name for name in wanted if not tensors_of(given.get(name))]
        if lacking:
            raise InputError(
                f"calibration: input {number} lacks '{lacking[0]}', which the example has"
            )
        found.append(tensors_of([given[name] for name in wanted]))
    return found


def calibration_of(order: BuildRequest, sizes: Sizes) -> list[list[Tensor]]:
    """Those of the calibration inputs that go into what was built.

    Raises:
        InputError: if an input lacks what the example has, or none is of sizes that go in.
    """
    found = calibrating(order)
    fitting = [tensors for tensors in found if _fits(tensors, order.tensors, sizes)]
    if found and not fitting:
        have, want = ([str(tuple(t.shape)) for t in ts] for ts in (found[0], order.tensors))
        raise InputError(
            f"calibration: its inputs are {', '.join(have)}, the example's {', '.join(want)}: pass "
            "inputs of the same types and, except for the batch, the same sizes"
        )
    return fitting


def _fits(tensors: Sequence[Tensor], built: Sequence[Tensor], sizes: Sizes) -> bool:
    if [t.dtype for t in tensors] != [t.dtype for t in built]:
        return False
    batch, count = _items(built), _items(tensors)
    shapes, old = ([tuple(t.shape) for t in ts] for ts in (tensors, built))
    return sizes.problem(shapes, old, batch=batch, count=count) is None
