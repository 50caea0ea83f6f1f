"""Bytes at the peak of one forward pass."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.inputs import Inputs, called
from prunus._common.nested import tensors_of
from prunus._common.torch_internals import TorchDispatchMode, storage_key
from prunus.costs.bytes_ import bytes_


@dataclass(frozen=True)
class Memory:
    """What one forward pass holds and writes.

    Attributes:
        peak_bytes: parameters and buffers, inputs, and the activations alive together at the
            worst moment. On CUDA the activations come from torch's own counters, temporary
            space of kernels included; elsewhere they are the tensors that operators returned,
            each storage once (a view costs nothing) for as long as something holds it, without
            what a kernel allocates and frees inside.
        written_bytes: all that operators wrote into new storages during the pass.
    """

    peak_bytes: int
    written_bytes: int


def memory(model: nn.Module, inputs: Inputs) -> Memory:
    """The memory of one forward pass without autograd; in the mode in which the model is.

    On CUDA this resets torch's peak counters of the devices that are used.

    Args:
        model: any model; it runs once, on CUDA twice.
        inputs: positional and keyword arguments.

    >>> both = nn.Sequential(nn.Linear(4, 8), nn.ReLU())  # 40 numbers, 4 read, 8 + 8 written
    >>> memory(both, ((torch.ones(1, 4),), {}))
    Memory(peak_bytes=240, written_bytes=64)
    """
    given = tensors_of(inputs)
    there = [*model.parameters(), *model.buffers(), *given]
    seen = _Seen(there)
    with torch.no_grad(), seen:
        called(model, inputs)
    devices = {t.device for t in there if t.is_cuda}
    peak = _peak_on_cuda(model, inputs, devices) if devices else seen.peak
    storages = {storage_key(s): s.nbytes() for t in given if (s := _storage(t)) is not None}
    return Memory(bytes_(model) + sum(storages.values()) + peak, seen.written)


def _peak_on_cuda(model: nn.Module, inputs: Inputs, devices: set[torch.device]) -> int:
    """Bytes above those that were allocated before the pass."""
    before = {}
    for device in devices:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before[device] = torch.cuda.memory_allocated(device)
    with torch.no_grad():
        called(model, inputs)
    return sum(torch.cuda.max_memory_allocated(d) - before[d] for d in devices)


class _Seen(TorchDispatchMode):
    """Follows the storages that operators make, from their first tensor to their end."""

    def __init__(self, there: list[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = self.written = 0
        self._known = {storage_key(s) for t in there if (s := _storage(t)) is not None}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tensors_of(found):
            self._note(_storage(tensor))
        return found

    def _note(self, storage: torch.UntypedStorage | None) -> None:
        if storage is None or storage_key(storage) in self._known:
            return
        key, size = storage_key(storage), storage.nbytes()
        self._known.add(key)
        self.live += size
        self.written += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size).atexit = False

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)  # its number may be given to another
        self.live -= size


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    """``None`` for tensors without one, such as sparse ones."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None
