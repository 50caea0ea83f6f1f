"""A run that is killed and resumed ends like one that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("killed_runs.py")


def test_a_killed_run_resumes_to_the_same_bits_wherever_it_was_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "4"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    trials = json.loads(done.stdout)
    kills = [kill for trial in trials for kill in trial["kills"]]
    assert all(kill["signal"] == 9 for kill in kills)
    assert [kill for kill in kills if not kill["same"]] == []
    assert len(kills) >= 20
    assert sum(kill["after_snapshot"] for kill in kills) >= 15
    assert {kill["kind"] for kill in trials[0]["kills"]} == set(trials[0]["kinds"])
