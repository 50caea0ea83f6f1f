"""The random state that training depends on, saved, restored and kept apart."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from prunus._common.distributed import rank
from prunus._common.kinds import given_number

State = TypeVar("State")


def state() -> dict[str, Any]:
    """The state of the generators of torch (CPU and CUDA), numpy and Python."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": (
            kind,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            position,
            has_gauss,
            gauss,
        ),
        "python": random.getstate(),
    }


def set_state(saved: dict[str, Any]) -> None:
    """Return to a state."""
    torch.set_rng_state(saved["torch"])
    if saved["cuda"]:
        torch.cuda.set_rng_state_all(saved["cuda"])
    kind, keys, *rest = saved["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, inner, gauss = saved["python"]
    random.setstate((version, tuple(inner), gauss))


def of_this_rank(states: Sequence[State]) -> State:
    """This rank's among those of all ranks; the first where it had none."""
    return states[rank()] if rank() < len(states) else states[0]


def seed(*parts: int) -> None:
    """Seed all generators from integers, the same on every machine."""
    high, low = words(*parts)
    value = high << 32 | low
    if torch.accelerator.is_available():
        torch.manual_seed(value % 2**63)
    else:  # that would note a stack of calls for devices that are not there: most of its time
        torch.default_generator.manual_seed(value % 2**63)
    np.random.seed(high)
    random.seed(value)


def words(*parts: int) -> tuple[int, int]:
    """Two numbers of 32 bits from integers, the same on every machine.

    Raises:
        InputError: for a seed that is no whole number from 0 on.
    """
    for part in parts:
        given_number(part, "seed", least=0, whole=True)
    high, low = np.random.SeedSequence(parts).generate_state(2)
    return int(high), int(low)


def is_as_seeded(*parts: int) -> bool:
    """Whether nothing was drawn from any of them since :func:`seed`.

    >>> with preserve_rng():
    ...     seed(0)
    ...     before, _ = is_as_seeded(0), torch.rand(1)
    ...     before, is_as_seeded(0)
    (True, False)
    """
    now = state()
    seed(*parts)
    seeded = state()
    set_state(now)
    tensors = [now["torch"], now["numpy"][1], *now["cuda"]]
    others = [seeded["torch"], seeded["numpy"][1], *seeded["cuda"]]
    same = len(tensors) == len(others) and all(map(torch.equal, tensors, others))
    rest = ("numpy", 2), ("numpy", 3), ("numpy", 4)
    return (
        same
        and now["python"] == seeded["python"]
        and all(now[key][i] == seeded[key][i] for key, i in rest)
    )


@contextlib.contextmanager
def preserve_rng() -> Iterator[None]:
    """Whatever happens inside, the generators go on as if it had not."""
    before = state()
    try:
        yield
    finally:
        set_state(before)
