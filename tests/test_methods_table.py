"""The table of methods: which arm stands where, and by what it is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.methods.catalog import from_file
from prunus.recipe.schema import Recipe

FOLDER = Path(__file__).parents[1] / "benchmarks"


def row(name: str, column: str, seed: int, test: float, *arms: tuple[str, float]) -> dict[str, Any]:
    controls = [
        {"name": arm, "steps": 9, "metric": metric, "pruned": test, "change": None}
        for arm, metric in arms
    ]
    return {"table": "mnist", "name": name, "column": column, "seed": seed, "test": test,
            "controls": controls, "machine": "a core"}  # fmt: skip


def test_dense_stands_in_every_column_and_differences_are_paired_by_seed() -> None:
    page = from_file(FOLDER / "methods.py", "page")
    made = [
        row("a", "95.0%", 0, 0.90, ("dense_longer", 0.95)),
        row("a", "95.0%", 1, 0.92, ("dense_longer", 0.96)),
        row("a", "98.0%", 0, 0.80),
        row("b", "95.0%", 1, 0.91),
    ]
    text = page({(r["table"], r["name"], r["column"], r["seed"]): r for r in made})
    assert "| a | 91.00 ± 1.00 (-4.50 ± 0.50) | 80.00 (-15.00) |" in text
    assert "| b | 91.00 (-5.00) |  |" in text
    assert "| dense, trained as long | 95.50 ± 0.50 | 95.50 ± 0.50 |" in text
    assert "- a, 95.0%, seed 0, against dense longer (9 steps): -5.00" in text


def test_every_row_is_a_recipe_and_has_a_folder_of_its_own() -> None:
    every = from_file(FOLDER / "methods.py", "rows")()
    for one in every:
        Recipe.load({**one.recipe, "controls": one.controls})
    folders = [one.folder(seed) for one in every for seed in one.seeds]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("size", [3, 8])
def test_sentences_of_like_length_come_together_and_none_twice(size: int) -> None:
    by_length = from_file(FOLDER / "encoder.py", "ByLength")
    torch.manual_seed(0)
    length = torch.randint(1, 7, (50,))
    tokens = (torch.arange(1, 8)[None] * (torch.arange(7)[None] < length[:, None])).long()
    batches = list(by_length(tokens, torch.arange(50), size=size, together=4))
    seen = torch.cat([names for _, names in batches])
    assert len(batches) == 50 // size
    assert len(seen.unique()) == len(seen) == size * (50 // size)
    for words, names in batches:
        assert words.shape == (size, int(length[names].max()))
        assert torch.equal((words != 0).sum(1), length[names])
