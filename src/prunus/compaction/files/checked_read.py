"""Reading a safetensors file from anyone: what is checked before anything in it is believed.

The safetensors library verifies the header's form (JSON in UTF-8, at most 128 deep, sizes that are
not negative) and the tensors' places (no gap, no overlap, each as long as its type and shape say,
all of them together as long as the file), and allocates nothing before. Here is added what it lets
pass: a giant header, names that stand twice, shapes that torch cannot hold, bytes that are no bool.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunus.compaction.files.unpack import is_shape
from prunus.errors import InputError

LONGEST_HEADER = 32 * 2**20
"""Bytes; 100,000 tensors and the graph of a large model need about half of it."""


_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How files begin that torch.save and pickle write."""


def read(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """The manifest, not yet looked at, and the stored tensors of a file.

    Raises:
        InputError: if the file cannot be read, is damaged, or is not one that prunus wrote.
    """
    try:
        length = _header_length(path)
        with safe_open(path, framework="pt") as file:
            text = _metadata(path, length).get("prunus")
            if text is None:
                raise InputError(f"'{path}' is a safetensors file, but prunus did not write it")
            manifest = json.loads(text, object_pairs_hook=_once)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        _check_bools(tensors)
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        # RuntimeError: torch's, and Python's own where lists in the manifest are too deep
        raise InputError(f"'{path}' cannot be read: {str(error)[:300]}") from error
    return manifest, tensors


def header_fits(data: bytes) -> bool:
    """Whether a file that is to be written will be read again."""
    return int.from_bytes(data[:8], "little") <= LONGEST_HEADER


def _header_length(path: Path) -> int:
    if path.exists() and not path.is_file():  # a pipe would wait forever
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        start, first = file.read(8), file.read(1)
    # the length of a header may begin as a pickle does; what it is the length of begins with {
    if start.startswith(_PICKLES) and not (header_fits(start) and first == b"{"):
        raise InputError(
            f"'{path}' was written by torch.save: opening it can run code, so prunus does not. "
            "Where you trust it, load it into the model that it was written from, "
            "model.load_state_dict(torch.load(path, weights_only=True)), and write that one with "
            "prunus.save(model, 'model.safetensors'), which keeps the sizes of a smaller model"
        )
    if not header_fits(start):
        length = int.from_bytes(start, "little")
        raise ValueError(f"its header claims {length} bytes; at most {LONGEST_HEADER} are allowed")
    return int.from_bytes(start, "little")


def _metadata(path: Path, length: int) -> dict[str, str]:
    """The header's free texts; every name once, and every shape one that torch can hold."""
    with path.open("rb") as file:
        file.seek(8)
        header = json.loads(file.read(length), object_pairs_hook=_once)
    metadata: dict[str, str] = header.pop("__metadata__", None) or {}
    for name, entry in header.items():
        if not is_shape(entry["shape"]):
            raise ValueError(f"the tensor {name[:80]!r} has an impossible shape")
    return metadata


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of two equal names one reader takes the first, another the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{twice[:80]!r} appears twice")
    return found


def _check_bools(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
            raise ValueError(f"the tensor {name[:80]!r} is declared bool but is not")
