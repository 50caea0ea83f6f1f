"""Tensors in safetensors files that are larger than memory: mapped to read, streamed to write."""

from __future__ import annotations

import json
import math
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus._common.files import disk_error
from prunus.blocks.flow import mapped
from prunus.compaction.files.pretrained import FILE
from prunus.errors import InputError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_LONGEST = 100 * 2**20
"""Bytes of a header, as the format has it."""
_PIECE = 64 * 2**20
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


@dataclass(frozen=True)
class Stored:
    """Where a tensor is.

    Attributes:
        path: of the file.
        dtype: of its numbers.
        shape: of it.
        start: byte of the file at which it begins.
    """

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Shards:
    """The tensors of a folder of transformers, by name. None is read before it is asked for.

    Args:
        folder: with ``model.safetensors``, or shards and their index.
        files: in it; by default those that the index names.

    Raises:
        InputError: if a file is missing, damaged or of a type that is not known.
    """

    def __init__(self, folder: Path, files: Sequence[Path] | None = None) -> None:
        self.tensors: dict[str, Stored] = {}
        for path in _files_of(folder) if files is None else files:
            self.tensors.update(_places(path))
        self._maps: dict[Path, Any] = {}

    @classmethod
    def of(cls, path: Path) -> Shards:
        """Of one file."""
        return cls(path.parent, [path])

    @staticmethod
    def metadata(path: Path) -> dict[str, str]:
        """What else a file says."""
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            found = json.loads(file.read(length)).get("__metadata__", {})
        return {str(key): str(value) for key, value in found.items()}

    def __getitem__(self, name: str) -> Tensor:
        """A tensor as the file has it: it can be read, and is read from the disk when it is."""
        stored = self.tensors[name]
        if not math.prod(stored.shape):
            return torch.empty(stored.shape, dtype=stored.dtype)
        if stored.path not in self._maps:
            self._maps[stored.path] = mapped(stored.path)
        with warnings.catch_warnings():  # that it must not be written to, which nothing here does
            warnings.simplefilter("ignore", UserWarning)
            flat = torch.frombuffer(
                self._maps[stored.path], dtype=stored.dtype, count=math.prod(stored.shape),
                offset=stored.start,
            )  # fmt: skip
        return flat.view(stored.shape)


def _files_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"'{folder}' is no folder: give one that save_pretrained wrote")
    index = folder / INDEX
    if not index.is_file():
        for single in (folder / SINGLE, folder / FILE):
            if single.is_file():
                return [single]
        other = next((p.name for p in folder.glob("*.bin")), None)
        more = "" if other is None else (
            f"; '{other}' is a pickle, which is not opened: save the model as safetensors first"
        )  # fmt: skip
        raise InputError(f"'{folder}' has neither {SINGLE} nor {INDEX}{more}")
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({str(name) for name in named.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{index}' is damaged: {error}") from error
    wrong = [name for name in files if Path(name).name != name]
    if wrong:
        raise InputError(f"'{index}' names {wrong[0]!r:.100}, which is outside of the folder")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"'{folder}' lacks {len(missing)} of {len(files)} shards: {', '.join(missing[:3])}"
        )
    lacking = set(named) - {key for name in files for key in _places(folder / name)}
    if lacking:
        raise InputError(
            f"the shards of '{folder}' lack {min(lacking)!r:.100}, which {INDEX} names"
        )
    return [folder / name for name in files]


def _places(path: Path) -> dict[str, Stored]:
    """The header of a file, believed after every number in it has been checked."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LONGEST, size - 8):
                raise ValueError(f"its header claims {length} bytes of {size}")
            header = json.loads(file.read(length))
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            shape = tuple(int(n) for n in entry["shape"])
            if entry["dtype"] not in _TYPES:
                raise ValueError(f"{name[:80]!r} is of the type {entry['dtype']!r:.20}")
            stored = Stored(path, _TYPES[entry["dtype"]], shape, 8 + length + start)
            inside = 0 <= start <= end and stored.start + stored.size <= size
            if min(shape, default=0) < 0 or end - start != stored.size or not inside:
                raise ValueError(f"{name[:80]!r} is not where it should be")
            found[name] = stored
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{path}' is damaged: {str(error)[:200]}") from error
    return found


def write_shard(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a file, a piece at a time: what is mapped does not come into memory.

    The file is whole or not there.

    Args:
        path: of the file.
        tensors: by name.
        metadata: what else it says; by default that they are torch's.

    Raises:
        RunError: if the disk is full or refuses.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * tensors[name].dtype.itemsize
        header[name] = {"dtype": _NAMES[tensors[name].dtype], "shape": list(tensors[name].shape),
                        "data_offsets": [start, end]}  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for name in order:
                    for piece in _pieces(tensors[name]):
                        file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise disk_error(path, error) from error


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    if not tensor.numel():
        return
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    for start in range(0, len(flat), _PIECE):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield flat[start : start + _PIECE].numpy().data
