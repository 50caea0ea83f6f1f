"""The gallery: each row is a command that can be run, its page says what was kept of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from prunus.recipe.schema import Recipe
from prunus.recipe.specs import Spec
from prunus.tasks.find import find_task
from stand_ins import EXAMPLES, MAKERS, each_of, example, make_all

BENCHMARKS = EXAMPLES.parent / "benchmarks"
FILES = ("gallery", "gallery_examples", "gallery_page", "gallery_pictures", "gallery_rows")


@pytest.fixture(scope="module")
def gallery() -> Iterator[dict[str, ModuleType]]:
    """The benchmark's files; forgotten afterwards, since others import them anew."""
    import importlib
    import sys

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield {name: importlib.import_module(name) for name in FILES}
    for name in FILES:
        sys.modules.pop(name, None)


def test_every_row_is_a_recipe_and_settings_that_its_task_has(gallery: Any) -> None:
    rows = gallery["gallery_rows"].ROWS
    assert len({row.name for row in rows}) == len(rows)
    fields = {row.name for row in rows if row.part == "field"}
    tasks: dict[str, set[str]] = {}
    for row in rows:
        recipe = Recipe.load(row.words[0], list(row.words[1:]))
        assert recipe.task is not None
        known = getattr(example(recipe.task.name), recipe.task.name).__kwdefaults__
        assert set(recipe.task.settings) <= set(known)
        tasks.setdefault(row.part, set()).add(recipe.task.name)
        assert (row.part in ("seed", "data")) == bool(row.field)
        assert not row.field or row.field in fields
        assert row.part != "field" or set(recipe.controls) >= {"dense_longer"}
        assert row.part != "data" or recipe.guard is None
    assert tasks["data"] == tasks["field"] == set(MAKERS)


def test_the_page_shows_intervals_controls_seeds_parts_and_what_a_run_took(
    gallery: Any, tmp_path: Path
) -> None:
    lines = (BENCHMARKS / "gallery.jsonl").read_text(encoding="utf-8").splitlines()
    kept = {found["name"]: found for found in map(json.loads, lines)}
    arm = {"name": "dense_longer", "steps": 714, "metric": 0.95, "pruned": 0.962,
           "change": [0.012, 0.004, 0.021]}  # fmt: skip
    mine = {**kept["two_senses"], "controls": {"arms": [arm], "worth": ""}, "picture": "p.png",
            "words": ["two_senses", "x={a: 1}"]}  # fmt: skip
    part = {**kept["part_0.1"], "name": "two_senses_part_0.1"}
    rows = {row.name: row for row in gallery["gallery_rows"].ROWS}
    found = [(rows["two_senses"], mine), (rows["two_senses_seed_1"], mine),
             (rows["two_senses_part_0.1"], part)]  # fmt: skip
    gallery["gallery_page"].write(found, tmp_path / "gallery.md", tmp_path / "gallery")
    page = (tmp_path / "gallery.md").read_text(encoding="utf-8")
    assert "| 94.9 % | 96.2 % (95.3 to 97.1) | +1.3 (+0.6 to +2.2) |" in page
    assert "| dense longer | 714 | 95.0 % | +1.2 (+0.4 to +2.1) |" in page
    assert "    prunus run two_senses 'x={a: 1}'" in page
    assert "](gallery/p.png)" in page
    assert page.count("| two_senses | 0 |") == page.count("| two_senses | 1 |") == 1
    assert "### two_senses, by the part of its data" in page
    assert "4 minutes of one processor core" in page
    assert (tmp_path / "gallery/data_two_senses.png").is_file()


def test_gaps_are_above_zero_where_training_data_are_answered_better(gallery: Any) -> None:
    rounds = [{"sparsity": 0.0, "metric": 2.0, "train_metric": 1.5, "verdict": "dense"}]
    gap = gallery["gallery_pictures"].gap
    assert gap({"metric_name": "word error rate", "rounds": rounds}) == [(0.0, 0.5)]
    assert gap({"metric_name": "BLEU", "rounds": rounds}) == [(0.0, -0.5)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all(tmp_path_factory.mktemp("data"))


SMALL: dict[str, dict[str, Any]] = {
    "cifar10": {"weights": None},
    "translation": {"vocabulary": 300, "width": 32},
    "detection": {"width": 4},
    "shakespeare": {"layers": 1, "width": 16, "heads": 2},
}
CORE = ("driving",)


@pytest.mark.parametrize("name", each_of(MAKERS, core=CORE))
def test_examples_of_each_field_are_shown_as_both_networks_see_them(
    name: str, data: Path, gallery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_DATA", str(data))
    made = gallery["gallery_examples"]
    networks: list[dict[str, Any]] = [{"network": n} for n in made.OF_EDGE if name == "edge"]
    for settings in networks or [{}]:
        task = find_task(Spec(name=name, **SMALL.get(name, {}), **settings))
        how = made.OF_EDGE[settings["network"]] if settings else made.OF_TASK[name]
        torch.manual_seed(0)
        with torch.no_grad():
            found = how(made.Pair(task, task.model().eval(), task.model().eval()))
        assert bool(found.text) != bool(found.picture)
        assert "pruned" in found.text or found.picture[:2] in (b"\x89P", b"\xff\xd8")


def test_items_that_differ_are_shown_first_and_the_others_lie_evenly(gallery: Any) -> None:
    pick = gallery["gallery_examples"].pick
    assert pick(torch.tensor([False] * 9 + [True]), 4) == [9, 0, 3, 6]
    assert pick(torch.tensor([True] * 5), 4) == [0, 1, 2, 3]
    assert pick(torch.tensor([False] * 3), 8) == [0, 1, 2]
