"""An example's run on a slice of its data: whole, and again, killed in the middle and resumed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from fresh import Child, Pythons
from prunus.cli.main import cli

COMMAND = "import prunus.report.page as page; page.PICTURES = {}\n"
COMMAND += "from prunus.cli.entry import main; main()"
PATIENCE = 120.0


def whole_and_resumed(
    recipe: str, words: Sequence[str], place: Path, python: Pythons
) -> dict[str, Any]:
    """The result of a run, which one that was killed and resumed has to the last bit.

    Args:
        recipe: its name, or the example's folder.
        words: changes; a snapshot is written every step.
        place: an empty folder; the data is named by ``PRUNUS_DATA``.
        python: starts the process that is killed.
    """
    whole, broken = place / "whole", place / "broken"
    words = [recipe, *words, "snapshot=1it"]
    undeployed = [*words, "deploy=null", "quantize=none"]  # what serves it changes no bit of it
    done = CliRunner().invoke(cli, ["run", *undeployed, "--folder", str(whole)])
    assert done.exit_code == 0, done.output
    killed = python.start(COMMAND, "run", *words, "--folder", str(broken))
    _kill_in_round_one(killed, broken / "journal.jsonl")
    assert not (broken / "result.json").exists()
    done = CliRunner().invoke(cli, ["resume", str(broken)])
    assert done.exit_code == 0, done.output
    for file in ("model.safetensors", "masks.safetensors"):
        first, second = (hashlib.sha256((f / file).read_bytes()).digest() for f in (whole, broken))
        assert first == second, file
    result: dict[str, Any] = json.loads((broken / "result.json").read_text())
    return result


def _kill_in_round_one(run: Child, journal: Path) -> None:
    """Once the dense network was judged and a later step is kept."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        text = journal.read_text() if journal.exists() else ""
        if '"snapshot"' in text.partition('"event": "round"')[2]:
            break
        try:
            os.kill(run.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.005)
    with suppress(ProcessLookupError):
        os.kill(run.pid, signal.SIGKILL)
    ended = run.wait()
    assert ended.returncode == -signal.SIGKILL, f"it ended before it was killed: {ended.stderr}"
