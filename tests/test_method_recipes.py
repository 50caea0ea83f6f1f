"""The recipes by the methods' names run from the shell as they are, on less training."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from prunus.cli.main import cli
from prunus.recipe.schema import Recipe

SHORT = {"dense": "2it", "retrain": "4it", "last_retrain": "2it", "rounds": "2"}
RECIPES = ("snip", "grasp", "synflow", "movement", "woodfisher", "obert", "taylor", "fpgm", "rigl",
           "set", "top_kast", "acdc", "dsd", "slimming", "greg", "gmp", "imp")  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_method_is_a_recipe_that_runs_by_its_name(name: str) -> None:
    recipe = Recipe.load(name)
    given = {k: v for k, v in SHORT.items() if k in recipe.to_dict()}
    if not recipe.in_rounds or recipe.rounds == 1:
        given.pop("rounds", None)
    if recipe.trait("restore", "REWINDS_TO") is not None:
        given["dense"] = given["retrain"]  # the rate of round 0 is repeated
    if recipe.regrow is not None:
        given["regrow.every"] = "1it"
    words = [f"{key}={value}" for key, value in given.items()]
    done = CliRunner().invoke(cli, ["run", name, *words, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.output.splitlines()[-1])
    target = recipe.target
    assert target is not None
    if target.bound is None:
        assert result["sparsity"] == pytest.approx(recipe.sparsity, abs=0.06)  # whole channels
    else:
        assert 0 < result["sparsity"] < 1


def test_the_recipe_for_a_latency_is_one() -> None:
    """What a machine takes for a network as small as the digits' is no test's affair."""
    recipe = Recipe.load("halp")
    assert recipe.target is not None
    assert recipe.target.max_latency_ms == 0.8
    assert recipe.deploy is not None
    assert recipe.deploy.runtime == "onnxruntime"


def test_the_shell_lists_them_with_when_to_use_them() -> None:
    listed = CliRunner().invoke(cli, ["list", "recipes"]).output
    for name in (*RECIPES, "halp"):
        (line,) = [row for row in listed.splitlines() if row.startswith(f"  {name}:")]
        assert len(line) > 40
