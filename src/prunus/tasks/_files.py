"""Where the tasks find their data."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from prunus.errors import InputError


def find_folder(task: str, folder: Path | None, name: str, holds: str) -> Path:
    """The folder of a task's data: the one given, or ``$PRUNUS_DATA/name``.

    Args:
        task: that asks, for messages.
        folder: given by the user, or ``None``.
        name: of the folder below ``$PRUNUS_DATA``.
        holds: what it must hold, in words.

    Raises:
        InputError: if there is none, with what to do.
    """
    data = os.environ.get("PRUNUS_DATA")
    if folder is None and data is None:
        raise InputError(
            f"task {task} needs {holds}: name their folder with task.folder=PATH, or set "
            f"PRUNUS_DATA (or --data) to the folder above {name}/"
        )
    place = folder if folder is not None else Path(data or "") / name
    if not place.is_dir():
        raise InputError(f"task {task}: there is no folder '{place}'; it should hold {holds}")
    return place


def open_zip(task: str, path: Path) -> zipfile.ZipFile:
    """An archive.

    Raises:
        InputError: if it is missing or is no archive.
    """
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise InputError(f"task {task}: there is no '{path}'") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"task {task}: '{path}' is not a zip archive: {error}") from None


def read_text(task: str, path: Path, encoding: str = "utf-8") -> str:
    """A text, gzipped or not (``path`` without ``.gz``).

    Raises:
        InputError: if there is none, or it cannot be read.
    """
    zipped = path.with_name(path.name + ".gz")
    try:
        if zipped.is_file():
            with gzip.open(zipped) as file:
                return io.TextIOWrapper(file, encoding=encoding).read()
        return path.read_text(encoding=encoding)
    except FileNotFoundError:
        raise InputError(f"task {task}: there is no '{zipped}' or '{path.name}'") from None
    except (OSError, EOFError, UnicodeError) as error:
        raise InputError(f"task {task}: '{path}' cannot be read: {error}") from None


def read_image(where: str, content: bytes) -> Any:
    """An image in red, green and blue.

    Args:
        where: it lies, for messages.
        content: of its file.

    Raises:
        InputError: if it is none, or damaged.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(content)).convert("RGB")
    except UnidentifiedImageError:
        raise InputError(f"{where} cannot be read: it is no image") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{where} cannot be read: {error}") from None


def load_weights(task: str, model: nn.Module, path: Path) -> nn.Module:
    """The model with the weights of a safetensors file; only counters of batches may lack.

    Raises:
        InputError: if there is no such file, or it is of another model.
    """
    if not path.is_file():
        raise InputError(
            f"task {task}: there are no weights '{path}'; task.weights=null starts from scratch"
        )
    try:
        lacking, unknown = model.load_state_dict(load_file(path), strict=False)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise InputError(f"task {task}: '{path}' does not fit its model: {error}") from None
    lacking = [k for k in lacking if not k.endswith("num_batches_tracked")]
    if lacking or unknown:
        raise InputError(f"task {task}: '{path}' lacks {lacking} and has unknown {unknown}")
    return model
