"""What comes to a block, batch by batch: in memory, or in a file where it does not fit."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from prunus._common.files import disk_error, disk_errors, write_json


class Flow(Sequence[Tensor]):
    """Tensors in their order, written once and read often.

    Args:
        tensors: one after the other; each is let go before the next one is made.
        path: of a file that holds them; by default they are in memory.

    Raises:
        RunError: if the disk is full.

    >>> flow = Flow([torch.ones(2), torch.zeros(1, 3)])
    >>> [tuple(t.shape) for t in flow]
    [(2,), (1, 3)]
    """

    def __init__(self, tensors: Iterable[Tensor], path: Path | None = None) -> None:
        self.path = path
        self._held: list[Tensor] = []
        self._places: list[tuple[torch.dtype, torch.Size, int]] = []
        if path is None:
            self._held = [t.detach() for t in tensors]
            return
        try:
            path.unlink(missing_ok=True)  # what lies there may have another name elsewhere
            with path.open("xb") as file:
                for tensor in tensors:
                    plain = tensor.detach().contiguous()
                    self._places.append((plain.dtype, plain.shape, file.tell()))
                    file.write(plain.view(-1).view(torch.uint8).numpy().data)
        except OSError as error:
            raise disk_error(path, error) from error

    def seal(self) -> str:
        """Have the file on the disk for :meth:`opened`; its name."""
        assert self.path is not None
        with disk_errors(self.path), self.path.open("rb+") as file:
            os.fsync(file.fileno())
        places = [(str(d).removeprefix("torch."), list(s), at) for d, s, at in self._places]
        write_json(_beside(self.path), places)
        return self.path.name

    @classmethod
    def opened(cls, path: Path) -> Flow:
        """What an earlier process wrote and sealed.

        Raises:
            OSError, ValueError, KeyError: if it is not there whole.
        """
        flow = cls([])
        flow.path = path
        for dtype, shape, start in json.loads(_beside(path).read_text(encoding="utf-8")):
            flow._places.append((getattr(torch, dtype), torch.Size(shape), start))
        return flow

    def __len__(self) -> int:
        return len(self._places) if self.path is not None else len(self._held)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if self.path is None:
            return self._held[index]
        dtype, shape, start = self._places[index]
        with self.path.open("rb") as file:
            file.seek(start)
            data = bytearray(shape.numel() * dtype.itemsize)
            file.readinto(data)
        return torch.frombuffer(data, dtype=dtype).view(shape) if data else torch.empty(shape)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def drop(self) -> None:
        """Let the file go."""
        if self.path is not None:
            _beside(self.path).unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def mapped(path: Path) -> mmap.mmap:
    """A file as memory that is read from the disk when it is asked for, and never written to."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
