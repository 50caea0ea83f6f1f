"""An artifact's folder, replaced as a whole: a crash leaves the old one or the new one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from prunus._common.files import refuse_links
from prunus.deployment.manifest import MANIFEST, Manifest
from prunus.errors import InputError, RunError


def prepare(folder: Path, names: Sequence[str]) -> None:
    """Make the folder ready for artifacts of these names, before any work.

    A kill between the two renames of :func:`keep` left the old artifact under another name; it
    comes back.

    Raises:
        InputError: if it cannot be written, or other files lie where an artifact would.
    """
    own = [(folder / name, _fresh(folder / name), _old(folder / name)) for name in names]
    refuse_links(folder, [path.name for paths in own for path in paths])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            target, old = folder / name, _old(folder / name)
            if old.exists() and not target.exists():
                old.rename(target)
            if target.exists() and not (target / MANIFEST).is_file():
                if target.is_dir() and not any(target.iterdir()):
                    continue
                raise InputError(
                    f"'{target}' is not an artifact (it has no {MANIFEST}) and would be replaced: "
                    "choose another folder"
                )
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"no permission to write into {folder}")
    except OSError as error:
        raise InputError(f"folder: '{folder}' cannot be written: {error}") from error


def keep(source: Path, target: Path, card: Manifest) -> None:
    """Copy an artifact to its folder; what was there before goes once the new one is complete.

    Args:
        source: folder of the new artifact, which stays.
        target: where it shall lie.
        card: of the artifact, written last.

    Raises:
        RunError: if the disk refuses; what was there before is there still.
    """
    fresh, old = _fresh(target), _old(target)
    try:
        _remove(fresh)
        shutil.copytree(source, fresh)
        _flush(fresh)
        card.write(fresh)
        _remove(old)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    except BaseException as error:
        if old.exists() and not target.exists():
            old.rename(target)
        with contextlib.suppress(OSError):
            _remove(fresh)
        if isinstance(error, OSError):
            raise RunError(
                f"the artifact could not be written to '{target}': {error}; what was there before "
                "is kept"
            ) from error
        raise
    with contextlib.suppress(OSError):
        _remove(old)


def _fresh(target: Path) -> Path:
    return target.with_name(f".{target.name}.new")


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _flush(folder: Path) -> None:
    """Files to the disk, before the card says that they are there."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
