"""What a run has done: an append-only journal, and snapshots that it names."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import safetensors

from prunus._common.distributed import on_rank_zero
from prunus._common.files import (
    append_line,
    digest,
    duplicate,
    freeze,
    has_another_name,
    refuse_links,
    remove_temporaries,
    thaw,
    write_atomically,
)
from prunus.errors import InputError, RunError
from prunus.progressive.contents import STORED, is_event

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are not kept apart there
    fcntl = None  # type: ignore[assignment]

JOURNAL, LOCK, SNAPSHOTS = "journal.jsonl", ".lock", "snapshots"
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
            self.events, self.damaged = on_rank_zero(lambda: self._open(folder))

    def _open(self, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
        refuse_links(folder)
        try:
            (folder / SNAPSHOTS).mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
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
        if hasattr(os, "register_at_fork"):  # a loader's worker that outlives us is no run
            os.register_at_fork(after_in_child=functools.partial(_let_go, weakref.ref(self)))
        remove_temporaries(folder / SNAPSHOTS, STORED)
        return _mended(folder)

    def close(self) -> None:
        """Let others use the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write(self, event: str, **values: Any) -> None:
        """Add a line; it is on the disk when this returns."""
        entry = {"n": self._next, "event": event, **values}
        self.events.append(on_rank_zero(lambda: self._add(entry)))

    @property
    def _next(self) -> int:
        """The number of the next line: lines that were lost keep theirs."""
        return self.events[-1]["n"] + 1 if self.events else 0

    def _add(self, entry: dict[str, Any]) -> dict[str, Any]:
        if self.folder is not None:
            append_line(self.folder / JOURNAL, json.dumps(entry))
        return entry

    def store(self, name: str, tree: Any) -> dict[str, str]:
        """Save values under a name; returns what the journal needs to find them again."""
        name = f"{self._next:06d}-{name}"
        if self.folder is None:
            self._memory[name] = duplicate(tree)
            return {"name": name, "digest": ""}
        path = self.folder / SNAPSHOTS / name
        return {"name": name, "digest": on_rank_zero(lambda: _written(path, tree))}

    def fetch(self, entry: dict[str, str]) -> Any:
        """Stored values.

        Raises:
            RunError: if the file is missing or damaged.
        """
        if self.folder is None:
            return duplicate(self._memory[entry["name"]])
        path = self.folder / SNAPSHOTS / entry["name"]
        data = on_rank_zero(lambda: _read(path, entry["digest"]))
        try:
            return thaw(data)
        except (safetensors.SafetensorError, ValueError, LookupError, TypeError) as error:
            raise RunError(f"snapshot '{path}' is no snapshot: {error}") from error

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
        for path in (folder / SNAPSHOTS).iterdir():
            if path.name not in needed and re.fullmatch(STORED, path.name):
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
                self.damaged.append(f"{error}; the last good one before it is used")
        return None


def _let_go(journal: weakref.ref[Journal]) -> None:
    held = journal()
    if held is not None:
        held.close()


def _written(path: Path, tree: Any) -> str:
    data = freeze(tree)
    write_atomically(path, data)
    return digest(data)


def _read(path: Path, expected: str) -> bytes:
    if not re.fullmatch(STORED, path.name):
        raise RunError(f"the journal names a snapshot {path.name[:80]!r}, which is no name of one")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"snapshot '{path}' cannot be read: {error.strerror}") from error
    if digest(data) != expected:
        raise RunError(f"snapshot '{path}' is damaged: its digest is not the journal's")
    return data


class _Lines(NamedTuple):
    good: list[tuple[dict[str, Any], bytes]]
    bad: list[int]
    """Numbers of lines that are none; not of one that a crash cut short at the end."""
    torn: bool


def _lines(data: bytes) -> _Lines:
    *whole, rest = data.split(b"\n")
    good: list[tuple[dict[str, Any], bytes]] = []
    bad = []
    for number, line in enumerate(whole, 1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if is_event(event) and (not good or event["n"] > good[-1][0]["n"]):
            good.append((event, line))
        else:
            bad.append(number)
    return _Lines(good, bad, torn=bool(rest))


def _contents(folder: Path) -> bytes:
    try:
        path = folder / JOURNAL
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}") from None


def read_events(folder: Path) -> list[dict[str, Any]]:
    """What the journal's lines say; lines that are damaged are left out.

    Raises:
        InputError: if the file cannot be read.
    """
    return [event for event, _ in _lines(_contents(folder)).good]


def _mended(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The same, and what is lost; afterwards the file holds the good lines alone.

    The file with damaged lines stays beside it under another name. Only for the one that holds
    the folder's lock.
    """
    data, path = _contents(folder), folder / JOURNAL
    found, lost = _lines(data), []
    if found.bad:
        beside = (path.with_name(f"{JOURNAL}.{i}") for i in itertools.count(1))
        old = next(p for p in beside if not p.exists())
        write_atomically(old, data)
        which = ", ".join(map(str, found.bad[:5])) + (", …" if len(found.bad) > 5 else "")
        lost = [f"'{path}' has damaged lines, which are left out: {which} ({old.name} has them)"]
    if found.bad or found.torn or has_another_name(path):  # lines are added in place
        write_atomically(path, b"".join(line + b"\n" for _, line in found.good))
    return [event for event, _ in found.good], lost
