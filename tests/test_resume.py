"""A run that is killed and resumed ends like one that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import killed_runs

SCRIPT = Path(__file__).with_name("killed_runs.py")


@pytest.mark.parametrize("recipe", [r for r in killed_runs.RECIPES if r != "serving"])
def test_a_killed_run_resumes_to_the_same_bits_wherever_it_was_killed(
    tmp_path: Path, recipe: str
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), recipe, str(tmp_path), "4"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    trial = json.loads(done.stdout)
    kills = trial["kills"]
    assert all(kill["signal"] == 9 for kill in kills)
    assert [kill for kill in kills if not kill["same"]] == []
    assert len(kills) >= 4
    assert sum(kill["after_snapshot"] for kill in kills) >= 3
    if recipe == killed_runs.EACH_KIND:
        assert {kill["kind"] for kill in kills} == set(trial["kinds"])
