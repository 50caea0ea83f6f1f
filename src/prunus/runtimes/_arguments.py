"""Arguments by name, and calibration inputs as the example has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from prunus._common.inputs import arguments, by_name, positional_names, tensors_of
from prunus.errors import InputError
from prunus.runtimes import BuildRequest


def named(order: BuildRequest) -> dict[str, Any]:
    """The example's arguments by name, in the order in which it gives them."""
    return by_name(positional_names(order.model), order.call)


def calibration_of(order: BuildRequest) -> list[list[Tensor]]:
    """The tensors of each calibration input, as the example has them.

    Arguments that the example lacks, such as labels, are left out; so are inputs of other sizes,
    such as texts of another length, unless all are.

    Raises:
        InputError: if an input lacks what the example has, or none is of the example's sizes.
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
    fitting = [f for f in found if _kinds(f) == _kinds(order.tensors)]
    if found and not fitting:
        have, want = ([str(tuple(t.shape)) for t in ts] for ts in (found[0], order.tensors))
        raise InputError(
            f"calibration: its inputs are {', '.join(have)}, the example's {', '.join(want)}: pass "
            "inputs of the same types and, except for the batch, the same sizes"
        )
    return fitting


def _kinds(tensors: Sequence[Tensor]) -> list[Any]:
    return [(t.dtype, t.dim(), t.shape[1:]) for t in tensors]
