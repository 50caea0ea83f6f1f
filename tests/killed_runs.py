"""Kills a recipe's run at chosen write points and resumes it; prints what became of each, as JSON.

``random COUNT SEED [NAME …]`` kills at random points; ``full COUNT SEED [NAME …]`` lets the disk be
full from a random point on, and then has room again. Both say how many ended with other bits. One
process imports torch and forks a child for every run, so that many kills are affordable.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import prunus
from prunus._common import files
from prunus.recipe.schema import Recipe
from prunus.tasks.base import Batches, Task
from prunus.tasks.digits import digits

COMMON = ["dense=1ep", "retrain=1ep", "snapshot=3it", "task=digits"]
RECIPES = {
    "rounds": ["iterative", "rounds=3", "criterion=fisher_running", "guard={max_drop: 0.01}"],
    "gradual": ["gradual", "retrain=2ep", "schedule={name: cubic, end: 0.7, every: 3it}"],
    "rewind": ["lottery_ticket", "rounds=2", "restore={name: rewind, k: 4it}"],
    "compact": [
        "iterative",
        "rounds=2",
        "structure=channel",
        "target={max_macs: 0.3}",
        "schedule=linear",
        "compact=every_round",
        "allocation=per_cost",
        "guard={max_drop: 0.1}",
    ],
    "serving": [
        "iterative",
        "rounds=1",
        "structure=channel",
        "target={max_macs: 0.5}",
        "compact=end",
        "deploy=eager",
    ],
    "revive": ["iterative", "rounds=3", "restore={name: revive, values: cut, when: after}"],
}
MORE = {
    "acdc": ["acdc", "rounds=2", "last_retrain=2ep"],
    "rigl": ["rigl", "retrain=2ep", "regrow={name: rigl, every: 3it}"],
    "top_kast": ["top_kast", "retrain=2ep"],
    "pulled": ["greg", "retrain=3ep", "regularize={name: greg, every: 2, during: retrain}"],
    "scan": ["iterative", "rounds=2", "allocation=measured", "keep=front", "guard={max_drop: 0.2}"],
    "adapt": [
        "iterative",
        "rounds=null",
        "schedule=linear",
        "structure=channel",
        "compact=every_round",
        "target={adapt: true}",
        "guard={max_drop: 0.05}",
        "limit=8ep",
    ],
    "teacher": [
        "iterative",
        "rounds=2",
        "teacher={model: dense, hidden: ['2']}",
        "repair=least_squares",
    ],
    "controls": [
        "iterative",
        "rounds=1",
        "structure=channel",
        "compact=end",
        "controls=[dense_longer, same_shape_from_scratch, random_choice]",
    ],
}
"""Killed at random points alone."""
EACH_KIND = "rounds"
"""The recipe that is killed at every kind of point, too."""


class Points:
    """Counts the moments at which a crash may fall between two effects on the disk."""

    def __init__(self, kill_at: int | None, full_from: int | None = None) -> None:
        self.kill_at, self.full_from = kill_at, full_from
        self.kinds: list[str] = []

    def __call__(self, kind: str) -> None:
        self.kinds.append(kind)
        if len(self.kinds) - 1 == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.full_from is not None and len(self.kinds) > self.full_from:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Watched:
    """The module os as what writes files sees it, with a point before and after each effect."""

    def __init__(self, points: Points) -> None:
        self._points = points
        self._files: dict[int, str] = {}
        self._half: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        kind = "journal" if flags & os.O_APPEND else "file" if flags & os.O_CREAT else ""
        if kind:
            self._points(f"{kind} not opened")
        made = os.open(path, flags, mode)
        self._files[made] = kind
        return made

    def write(self, descriptor: int, data: memoryview) -> int:
        """Half of it first, as the system may; the caller goes on with the rest."""
        kind = self._files[descriptor]
        self._points(f"{kind} half written" if descriptor in self._half else f"{kind} empty")
        self._half ^= {descriptor}
        return os.write(descriptor, data[: len(data) // 2] if descriptor in self._half else data)

    def fsync(self, descriptor: int) -> None:
        self._points(f"{self._files.get(descriptor) or 'folder'} not flushed")
        os.fsync(descriptor)

    def replace(self, *paths: Any) -> None:
        self._points("file not renamed")
        os.replace(*paths)
        if self._points.full_from is None:  # what is renamed is renamed
            self._points("file renamed")

    def close(self, descriptor: int) -> None:
        self._half.discard(descriptor)
        os.close(descriptor)


def watch_writes(points: Points) -> None:
    """The package's writes, with points between their effects."""
    files.os = Watched(points)  # type: ignore[assignment]


def few_digits() -> Task:
    """Six batches of digits, on which a run is short."""

    def few(data: Any, count: int = 64) -> Batches:
        tensors = (t[:count] for t in data.tensors)
        return Batches(*tensors, size=32, shuffle=data.shuffle)

    task = digits(rate=0.1)
    judged = {n: few(getattr(task, n)) for n in ("validation", "test", "train_sample")}
    return replace(task, train=few(task.train, 192), **judged)


def run(recipe: str, folder: Path, *others: str) -> None:
    """One run, with nothing written by the report."""
    name, *changes = (RECIPES | MORE)[recipe]
    chosen = Recipe.load(name, [*COMMON, *changes, *others])
    prunus.prune(few_digits(), chosen, folder=folder)


def sweep(_: str, folder: Path) -> None:
    """A sweep of two trials in its folder."""
    changes = ["rounds=1", "target=0.5,0.8"]
    prunus.sweep.sweep("iterative", [*COMMON, *changes], task=few_digits(), folder=folder)


WORK: dict[str, Callable[[str, Path], None]] = {
    **dict.fromkeys(RECIPES | MORE, run),
    "sweep": sweep,
}


def in_child(work: Callable[[], Any]) -> tuple[int, Any]:
    """Run in a fork; its signal (0 if none) and what it returned."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            with os.fdopen(writing, "w") as pipe:
                json.dump(work(), pipe)
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status), None
    assert os.WEXITSTATUS(status) == 0, "the child failed"
    return 0, json.loads(text)


def outcome(folder: Path) -> dict[str, Any]:
    """What must be the same, bit for bit: weights, masks, metrics; times left out."""
    if (folder / "sweep.json").exists():
        names = sorted(p.parent.name for p in folder.glob("*/result.json"))
        return {name: outcome(folder / name) for name in names}
    result = json.loads((folder / "result.json").read_text())
    for row in result["rounds"]:
        row.pop("seconds")
        row.pop("latency")
    served = result.pop("deployment")
    names = ["model.safetensors", "masks.safetensors"]
    if served is not None:
        names.append("deployed/eager/model.safetensors")
    digests = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names}
    return {**digests, "result": result}


def spread(kinds: list[str], first: int, count: int, *, each: bool) -> list[int]:
    """Points to kill at: spread evenly after ``first``, one before it, one of each kind."""
    step = (len(kinds) - first) / count
    chosen = {first // 2} | {first + int(i * step) for i in range(count)}
    if each:
        chosen |= {max(i for i, k in enumerate(kinds) if k == kind) for kind in set(kinds)}
    return sorted(chosen)


def trial(recipe: str, place: Path, count: int) -> dict[str, Any]:
    """Kill one recipe's run at many points and compare each resumed end with an unbroken one."""

    def whole() -> list[str]:
        points = Points(None)
        watch_writes(points)
        run(recipe, place / "whole")
        return points.kinds

    _, kinds = in_child(whole)
    expected = outcome(place / "whole")
    lines = (place / "whole" / "journal.jsonl").read_text().splitlines()
    before = next(i for i, x in enumerate(lines) if json.loads(x)["event"] == "snapshot")
    ends = [i for i, kind in enumerate(kinds) if kind == "journal not flushed"]
    first = ends[before]
    kills = []
    for point in spread(kinds, first, count, each=recipe == EACH_KIND):
        folder = place / f"killed-{point}"

        def killed(point: int = point, folder: Path = folder) -> None:
            watch_writes(Points(point))
            run(recipe, folder)

        died, _ = in_child(killed)
        in_child(lambda folder=folder: run(recipe, folder))
        kills.append({
            "point": point,
            "kind": kinds[point],
            "signal": died,
            "after_snapshot": point >= first,
            "same": outcome(folder) == expected,
        })  # fmt: skip
    return {"recipe": recipe, "kinds": sorted(set(kinds)), "kills": kills}


def randomly(
    count: int, seed: int, place: Path, names: Sequence[str] = (), *, full: bool = False
) -> bool:
    """Stop at random points, every third run twice; whether all ended with the same bits.

    Args:
        count: of runs.
        seed: of the points.
        place: an empty folder.
        names: of the runs that are drawn from, by default all.
        full: the disk is full from that point on; by default the process is killed there.
    """
    chance = random.Random(seed)
    expected: dict[str, dict[str, Any]] = {}
    kinds: dict[str, int] = {}
    other = 0
    for turn in range(count):
        name = chance.choice([*(names or WORK)])
        if name not in kinds:
            _, kinds[name] = in_child(partial(_whole, name, place / name, full=full))
            expected[name] = outcome(place / name)
        folder = place / f"{turn}"
        early = chance.random() < 0.25
        for _ in range(1 + (turn % 3 == 0)):
            point = chance.randrange(20 if early else kinds[name])
            in_child(partial(_out_of_space if full else _killed, name, folder, point))
            other += full and any(folder.rglob("*.tmp"))
        in_child(partial(WORK[name], name, folder))
        same = outcome(folder) == expected[name]
        other += not same
        if same:
            shutil.rmtree(folder)
        print(f"{turn + 1}/{count} {name}: {'the same' if same else f'OTHER BITS in {folder}'}",
              flush=True)  # fmt: skip
    print(f"{count} runs {'out of space' if full else 'killed'}, {other} ended otherwise")
    return other == 0


def _whole(name: str, folder: Path, *, full: bool) -> int:
    """The points of an unbroken run."""
    points = Points(None, 10**9 if full else None)
    watch_writes(points)
    WORK[name](name, folder)
    return len(points.kinds)


def _killed(name: str, folder: Path, point: int) -> None:
    watch_writes(Points(point))
    WORK[name](name, folder)


def _out_of_space(name: str, folder: Path, point: int) -> None:
    """It ends in words of ours, unless it was over already."""
    watch_writes(Points(None, point))
    with contextlib.suppress(prunus.PrunusError):
        WORK[name](name, folder)


def warm() -> None:
    """Import here, once, what every child would: a run that shrinks a model brings it all."""
    with tempfile.TemporaryDirectory() as place:
        run("compact", Path(place, "run"), "rounds=1")
    gc.freeze()  # or each child copies the memory in which it looks for garbage


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # type: ignore[assignment]  # the power stays on
    warm()
    if sys.argv[1] in ("random", "full"):
        way, times, first, *some = sys.argv[1:]
        with tempfile.TemporaryDirectory() as place:
            good = randomly(int(times), int(first), Path(place), some, full=way == "full")
        sys.exit(not good)
    place, count, *recipes = sys.argv[1:]
    print(json.dumps([trial(recipe, Path(place, recipe), int(count)) for recipe in recipes]))
