"""Files that are whole or not there: nested values as safetensors with typed JSON, no pickle."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from prunus.errors import InputError, RunError

_PLAIN = (str, int, float, bool, type(None))
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has no such flag
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.tmp")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a temporary file, flush it to the disk, rename it: a crash leaves old or new.

    The temporary file has a random name and is opened exclusively, so that nothing that somebody
    laid there before is written to.

    Raises:
        RunError: if the disk is full or refuses.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        try:
            with _opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
                _write_out(file, data)
            os.replace(temporary, path)
        except BaseException:  # a full disk, or Ctrl-C in the middle: raised again
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | _NO_LINK | getattr(os, "O_BINARY", 0), 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_out(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)


def is_temporary(path: Path, names: str) -> bool:
    """Whether this is what a killed writer of such a file left behind.

    Args:
        path: of anything.
        names: a pattern of the names of the files that were to be written.
    """
    made = _TEMPORARY.fullmatch(path.name)
    return bool(made and re.fullmatch(names, made["name"])) and stat.S_ISREG(path.lstat().st_mode)


def remove_temporaries(folder: Path, names: str) -> None:
    """Take away what killed writers of such files left in a folder that nobody else writes to."""
    for path in folder.iterdir():
        if is_temporary(path, names):
            with contextlib.suppress(OSError):
                path.unlink()


def refuse_links(folder: Path, names: Collection[str] | None = None) -> None:
    """Refuse a folder of ours with a link in it: what is written there would land elsewhere.

    So is what is neither file nor folder: whoever reads a pipe waits for ever. The folder itself
    may be reached through links.

    Args:
        folder: of a run, a sweep or an artifact; it need not be there.
        names: what of it is ours; by default all.

    Raises:
        InputError: naming the first one.
    """
    for place, folders, files in os.walk(folder):
        if names is not None and place == str(folder):
            folders[:] = [name for name in folders if name in names]
            files = [name for name in files if name in names]
        for path in (Path(place, name) for name in (*folders, *files)):
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # another process has removed its own meanwhile
                continue
            if not (stat.S_ISLNK(mode) or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise InputError(
                    f"'{path}' is no file, but a pipe, a socket or a device: remove it if you made "
                    "it; if not, do not trust this folder"
                )
            if stat.S_ISLNK(mode):
                raise InputError(
                    f"'{path}' is a link to {str(path.readlink())!r:.200}, and what is written "
                    "there would land elsewhere: remove the link if you made it; if not, do not "
                    "trust this folder"
                )


def has_another_name(path: Path) -> bool:
    """Whether a file is there under another name too (a hard link): to write to it changes both."""
    try:
        return path.lstat().st_nlink > 1
    except OSError:
        return False


@contextlib.contextmanager
def placed(folder: Path, scratch: Path | None = None) -> Iterator[Path]:
    """An empty folder for code that writes files where it is told; behind it each is renamed into
    its place, so that nothing is written through a link that lies there.

    Args:
        folder: where the files are to be, also those in folders inside.
        scratch: where the empty folder is made, on the same disk; by default in ``folder``.
    """
    with tempfile.TemporaryDirectory(prefix=".prunus-", dir=scratch or folder) as name:
        place = Path(name)
        yield place
        for path in sorted(p for p in place.rglob("*") if p.is_file()):
            target = folder / path.relative_to(place)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)


def write_json(path: Path, value: object) -> None:
    """Write plain values as JSON, in the same way."""
    write_atomically(path, json.dumps(value, indent=1).encode())


def append_line(path: Path, line: str) -> None:
    """Add one line and flush it to the disk.

    Raises:
        RunError: if the disk is full or refuses.
    """
    try:
        with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as file:
            _write_out(file, line.encode() + b"\n")
    except OSError as error:
        raise disk_error(path, error) from error


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the disk refuses inside is said in words, as of this path.

    Raises:
        RunError: if the disk is full or refuses.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> RunError:
    """What to say when the disk refuses."""
    if not path.parent.is_dir():
        return RunError(
            f"'{path}' could not be written: there is no folder '{path.parent}': make it first"
        )
    what = "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror or error)
    run = next((p for p in list(path.parents)[:2] if (p / "recipe.yaml").is_file()), None)
    more = "" if run is None else (
        f". Everything finished so far is kept: fix this, then run: prunus resume {run}"
    )  # fmt: skip
    return RunError(f"'{path}' could not be written: {what}{more}")


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def freeze(tree: Any) -> bytes:
    """Nested dicts, lists, tuples, numbers, strings and tensors as one safetensors file.

    Strides of tensors that are not in the usual order (channels_last) are kept.

    Raises:
        RunError: for a value of any other type, by its place.
    """
    tensors: dict[str, Tensor] = {}

    def pack(value: Any, where: str) -> Any:
        if isinstance(value, Tensor):
            key = f"t{len(tensors)}"
            plain = value.detach().cpu()
            order = None if plain.is_contiguous() else _dim_order(plain)
            tensors[key] = plain.permute(order).contiguous().clone() if order else plain.clone()
            return {"tensor": key, "order": order}
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, (list, tuple)):
            items = [pack(v, f"{where}[{i}]") for i, v in enumerate(value)]
            return {"tuple": items} if isinstance(value, tuple) else items
        if isinstance(value, dict):
            items = [[pack(k, where), pack(v, f"{where}[{k!r}]")] for k, v in value.items()]
            return {"dict": items}
        raise _no_file(value, where)

    packed = json.dumps(pack(tree, "state"))
    return safetensors.torch.save(tensors, {"tree": packed})


def duplicate(tree: Any, where: str = "state") -> Any:
    """What :func:`thaw` would give of :func:`freeze`, without bytes in between.

    Raises:
        RunError: for a value that could not be saved, by its place.

    >>> tree = {"a": (1, torch.ones(1))}
    >>> duplicate(tree), duplicate(tree)["a"][1] is tree["a"][1]
    ({'a': (1, tensor([1.]))}, False)
    """
    if isinstance(tree, Tensor):
        return tree.detach().cpu().clone()
    if isinstance(tree, _PLAIN):
        return tree
    if isinstance(tree, (list, tuple)):
        items = [duplicate(v, f"{where}[{i}]") for i, v in enumerate(tree)]
        return tuple(items) if isinstance(tree, tuple) else items
    if isinstance(tree, dict):
        return {duplicate(k, where): duplicate(v, f"{where}[{k!r}]") for k, v in tree.items()}
    raise _no_file(tree, where)


def _no_file(value: Any, where: str) -> RunError:
    return RunError(
        f"the state at {where} is a {type(value).__name__}, which cannot be saved without "
        "pickle: pass objects whose state_dict() contains only tensors, numbers and strings"
    )


def thaw(data: bytes) -> Any:
    """What :func:`freeze` packed.

    >>> thaw(freeze({"a": (1, [None, 0.5]), 2: torch.ones(2)}))
    {'a': (1, [None, 0.5]), 2: tensor([1., 1.])}
    """
    tensors = safetensors.torch.load(data)
    length = int.from_bytes(data[:8], "little")
    packed = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["tree"])

    def unpack(value: Any) -> Any:
        if isinstance(value, list):
            return [unpack(v) for v in value]
        if not isinstance(value, dict):
            return value
        if "tensor" in value:
            tensor, order = tensors[value["tensor"]], value["order"]
            return tensor if order is None else tensor.permute(_inverse(order))
        if "tuple" in value:
            return tuple(unpack(v) for v in value["tuple"])
        return {unpack(k): unpack(v) for k, v in value["dict"]}

    return unpack(packed)


def _dim_order(tensor: Tensor) -> list[int] | None:
    order = sorted(range(tensor.dim()), key=lambda d: (-tensor.stride()[d], d))
    return order if tensor.permute(order).is_contiguous() else list(range(tensor.dim()))


def _inverse(order: list[int]) -> list[int]:
    return [order.index(d) for d in range(len(order))]


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    whole = hashlib.sha256()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        whole.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        if plain.numel():
            whole.update(plain.flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()


def save_tensors(tensors: dict[str, Tensor]) -> bytes:
    """A plain safetensors file: contiguous copies, tied tensors under each of their names."""
    return safetensors.torch.save(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    )
