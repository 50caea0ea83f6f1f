"""What a run has done: an append-only journal, and snapshots that it names."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from prunus._common.distributed import on_rank_zero
from prunus._common.files import (
    append_line,
    digest,
    disk_error,
    duplicate,
    freeze,
    thaw,
    write_atomically,
)
from prunus.errors import InputError, RunError

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are not kept apart there
    fcntl = None  # type: ignore[assignment]

KEPT = 3  # newest snapshots on disk: if the newest is damaged, the one before is used


class Journal:
    """The record of a run in its folder, or in memory when there is none.

    A snapshot counts once the journal names it with its digest; a crash at any point before
    leaves the previous one in force. Of several ranks the first alone reads and writes, and tells
    the others, which need no access to the folder; none goes on before a write is on the disk.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.events: list[dict[str, Any]] = []
        self.damaged: list[str] = []
        self._memory: dict[str, Any] = {}
        self._lock: int | None = None
        if folder is not None:
            self.events = on_rank_zero(lambda: self._open(folder))

    def _open(self, folder: Path) -> list[dict[str, Any]]:
        try:
            (folder / "snapshots").mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(
                f"'{folder}' cannot be written ({error.strerror}): choose another with --folder"
            ) from error
        if fcntl is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.close()
                raise InputError(
                    f"another run is using '{folder}': wait until it ends, or choose another folder"
                ) from None
        return read_events(folder, mend=True)

    def close(self) -> None:
        """Let others use the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write(self, event: str, **values: Any) -> None:
        """Add a line; it is on the disk when this returns."""
        entry = {"n": len(self.events), "event": event, **values}
        self.events.append(on_rank_zero(lambda: self._add(entry)))

    def _add(self, entry: dict[str, Any]) -> dict[str, Any]:
        if self.folder is not None:
            append_line(self.folder / "journal.jsonl", json.dumps(entry))
        return entry

    def store(self, name: str, tree: Any) -> dict[str, str]:
        """Save values under a name; returns what the journal needs to find them again."""
        name = f"{len(self.events):06d}-{name}"
        if self.folder is None:
            self._memory[name] = duplicate(tree)
            return {"name": name, "digest": ""}
        path = self.folder / "snapshots" / name
        return {"name": name, "digest": on_rank_zero(lambda: _written(path, tree))}

    def fetch(self, entry: dict[str, str]) -> Any:
        """Stored values.

        Raises:
            RunError: if the file is missing or damaged.
        """
        if self.folder is None:
            return duplicate(self._memory[entry["name"]])
        path = self.folder / "snapshots" / entry["name"]
        return thaw(on_rank_zero(lambda: _read(path, entry["digest"])))

    def snapshot(self, tree: Any, *, keep: tuple[str, ...] = (), **values: Any) -> None:
        """Store a point from which the run can go on, and forget older ones.

        Args:
            tree: the state.
            keep: names of stored values that must stay on disk.
            values: for the journal's line.
        """
        assert self.folder is not None
        folder, entry = self.folder, self.store("snapshot", tree)
        self.write("snapshot", **entry, keep=list(keep), **values)
        on_rank_zero(lambda: self._forget(folder))

    def forget(self, keep: tuple[str, ...]) -> None:
        """Let go of all that is held in memory but what is named."""
        self._memory = {name: data for name, data in self._memory.items() if name in keep}

    def _forget(self, folder: Path) -> None:
        snapshots = [e for e in self.events if e["event"] == "snapshot"][-KEPT:]
        needed = {e["name"] for e in snapshots} | {k for e in snapshots for k in e["keep"]}
        for path in (folder / "snapshots").iterdir():
            if path.name not in needed:
                with contextlib.suppress(OSError):
                    path.unlink()

    def latest(self) -> Any | None:
        """The newest snapshot that can be read with all that it refers to, or ``None``.

        What is damaged is listed in ``damaged``.
        """
        for event in reversed(self.events):
            if event["event"] != "snapshot":
                continue
            try:
                tree = self.fetch(event)
                for blob in tree["blobs"].values():
                    self.fetch(blob)
                return tree
            except (RunError, ValueError, KeyError, TypeError) as error:
                self.damaged.append(str(error))
        return None


def _written(path: Path, tree: Any) -> str:
    data = freeze(tree)
    write_atomically(path, data)
    return digest(data)


def _read(path: Path, expected: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"snapshot '{path}' cannot be read: {error.strerror}") from error
    if digest(data) != expected:
        raise RunError(f"snapshot '{path}' is damaged: its digest is not the journal's")
    return data


def read_events(folder: Path, *, mend: bool = False) -> list[dict[str, Any]]:
    """The journal's lines; one cut short by a crash ends it.

    Args:
        folder: of the run.
        mend: take a torn end off the file, so that the next line starts on its own; only for
            the one that holds the folder's lock.
    """
    path = folder / "journal.jsonl"
    if not path.exists():
        return []
    data = path.read_bytes()
    events, good = [], 0
    for line in data.split(b"\n")[:-1]:
        try:
            event = json.loads(line)
        except ValueError:
            break
        if not isinstance(event, dict) or "event" not in event:
            break
        events.append(event)
        good += len(line) + 1
    if mend and good < len(data):
        try:
            os.truncate(path, good)
        except OSError as error:
            raise disk_error(path, error) from error
    return events
