"""What the processes of a training do as one; in a process of its own, nothing but the work.

Every rank must come to these calls in the same order: none stands behind a condition that another
rank might not meet. The ranks are those of the default group of ``torch.distributed``.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prunus._common.files import tensors_digest
from prunus.errors import InputError, RunError

T = TypeVar("T")

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def world_size() -> int:
    """How many processes train together.

    >>> world_size()
    1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one."""
    return dist.get_rank() if world_size() > 1 else 0


def release() -> None:
    """Free what trainings left behind: wrappers such as DistributedDataParallel lie in cycles, and
    hold the group. One that is still held when the process ends may abort it.
    """
    if world_size() > 1:
        gc.collect()


def gather(value: T) -> list[T]:
    """The values of all ranks, in their order.

    >>> gather("mine")
    ['mine']
    """
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def on_rank_zero(work: Callable[[], T]) -> T:
    """Work of rank 0 alone: what it returns, or its error, comes to every rank.

    No rank goes on before it is done. The work must not itself wait for other ranks.

    >>> on_rank_zero(lambda: 2 + 2)
    4
    """
    if world_size() == 1:
        return work()
    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            told[0] = work()
        except Exception as error:  # of the work, to be raised on every rank
            told[1] = error
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return cast(T, told[0])


def any_rank(flag: bool) -> bool:
    """Whether it is true on some rank."""
    if world_size() == 1:
        return flag
    seen = torch.tensor(int(flag), device=_wire())
    dist.all_reduce(seen, dist.ReduceOp.MAX)
    return bool(seen)


def shared_stop(stop: Callable[[], bool] | None) -> Callable[[], bool]:
    """A stop that all ranks follow, whichever is asked; ranks need not all be given one."""
    if not any_rank(stop is not None):
        return lambda: False
    own = stop or (lambda: False)
    return lambda: any_rank(bool(own()))


def number(own: float | None, name: str) -> float | None:
    """The mean of the ranks' numbers; of equal ones that very number.

    Raises:
        InputError: if some ranks have one and others none.
    """
    every = gather(own)
    missing = [r for r, value in enumerate(every) if value is None]
    if len(missing) == len(every):
        return None
    if missing:
        raise InputError(
            f"{name} gave no number on rank {missing[0]} but did on others: pass it on every rank"
        )
    values = [value for value in every if value is not None]
    if len(set(values)) == 1:
        return values[0]
    return math.fsum(values) / len(values)


def total(tensors: Sequence[Tensor]) -> None:
    """Sum over the ranks, in place, tensor by tensor; the same bits on all ranks."""
    if world_size() == 1:
        return
    for tensor in tensors:
        sent = tensor.to(_wire())
        dist.all_reduce(sent)
        tensor.copy_(sent)


def mean(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Mean over the ranks, in float64: of equal tensors those very bits.

    >>> mean({"w": torch.tensor([0.1])})["w"].item() == torch.tensor(0.1).item()
    True
    """
    if world_size() == 1:
        return tensors
    found = {}
    for name, tensor in tensors.items():
        wide = tensor.detach().double()
        total([wide])
        found[name] = wide.div_(world_size()).to(tensor.dtype)
    return found


def assert_same(tensors: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """Tensors that are the same on all ranks, bit for bit, by their digests.

    Args:
        tensors: by the name of a parameter.
        what: they are, for the message.

    Raises:
        RunError: on every rank, naming the first that differs.
    """
    if world_size() == 1:
        return tensors
    every = gather({name: tensors_digest({"": t}) for name, t in tensors.items()})
    for name in dict.fromkeys(name for digests in every for name in digests):
        found = [digests.get(name) for digests in every]
        other = next((r for r, digest in enumerate(found) if digest != found[0]), None)
        if other is not None:
            raise RunError(
                f"{what}: '{name}' differs between rank 0 and rank {other}. All ranks must start "
                "from the same weights (the same seed or file) and train the model inside "
                "DistributedDataParallel"
            )
    return tensors


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Rank 0's buffers on every rank, as DistributedDataParallel does before a forward pass."""
    if world_size() == 1:
        return
    for buffer in model.buffers():
        if buffer.numel():
            sent = buffer.detach().reshape(-1).to(_wire(), copy=True)
            dist.broadcast(sent.view(torch.uint8), src=0)
            buffer.copy_(sent.view(buffer.shape))


def synchronize(model: nn.Module, when: str) -> None:
    """Rank 0's buffers on every rank, and weights that are the same already.

    Raises:
        RunError: if they are not, naming the first that differs.
    """
    assert_same(dict(model.named_parameters()), f"weights {when}")
    share_buffers(model)


def refuse_sharded(model: nn.Module) -> None:
    """Models of which each rank holds a part only.

    Recognized by parameters that are a ``DTensor`` (FSDP2, tensor parallel) and by modules that
    are a ``FullyShardedDataParallel`` (FSDP1).

    Raises:
        InputError: naming what was found.
    """
    # A class that nobody imported has no instances.
    tensors = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())
    wrappers = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", ())
    found = next((n for n, p in model.named_parameters() if isinstance(p, tensors)), None)
    what = f"'{found}' is a DTensor" if found is not None else ""
    if any(isinstance(m, wrappers) for m in model.modules()):
        what = "the model is inside FullyShardedDataParallel"
    if what:
        raise InputError(
            f"{what}, so each rank holds only part of the weights; sharded models cannot be "
            "pruned yet: prune under DistributedDataParallel, or before sharding"
        )


def _wire() -> torch.device:
    """Where the default group's backend takes tensors: gloo and MPI on the processor."""
    if dist.get_backend() in ("gloo", "mpi", "undefined"):
        return torch.device("cpu")
    device = torch.accelerator.current_accelerator()
    assert device is not None
    return torch.device(device.type, torch.accelerator.current_device_index())
