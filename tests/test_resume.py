"""A run that is killed and resumed ends like one that was not."""

from __future__ import annotations

import json
from typing import Any

import pytest

import killed_runs
from fresh import Pythons

RECIPES = [name for name in killed_runs.RECIPES if name != "serving"]


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory, python: Pythons) -> dict[str, Any]:
    """What became of each recipe's runs (``killed_runs.py``)."""
    place = tmp_path_factory.mktemp("killed")
    done = python.script(killed_runs.__file__, str(place), "3", *RECIPES)
    assert done.returncode == 0, done.stderr
    return {trial["recipe"]: trial for trial in json.loads(done.stdout)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_killed_run_resumes_to_the_same_bits_wherever_it_was_killed(
    trials: dict[str, Any], recipe: str
) -> None:
    trial = trials[recipe]
    kills = trial["kills"]
    assert all(kill["signal"] == 9 for kill in kills)
    assert [kill for kill in kills if not kill["same"]] == []
    assert len(kills) >= 4
    assert sum(kill["after_snapshot"] for kill in kills) >= 3
    if recipe == killed_runs.EACH_KIND:
        assert {kill["kind"] for kill in kills} == set(trial["kinds"])
