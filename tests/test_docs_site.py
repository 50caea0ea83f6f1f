"""The site: it builds without a warning, its tables follow the types, the translation follows."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import prunus
from prunus.methods.catalog import module_at, names
from prunus.recipe.fields import AXIS, RecipeFields
from prunus.recipe.schema import Recipe
from prunus.tasks.base import Task
from test_docs import ROOT, TEXTS

KEYS = module_at(ROOT / "docs/keys.py")
BUILDS = ("sphinx", "myst_parser", "furo", "latex2mathml")


def test_every_key_of_a_task_and_a_recipe_is_in_the_tables_and_explained() -> None:
    page = KEYS.page()
    for owner, fields in ((Task, Task.__dataclass_fields__), (Recipe, RecipeFields.model_fields)):
        assert KEYS.arguments(owner).keys() == fields.keys()
        assert [name for name in fields if f"| `{name}` |" not in page] == []
    inside = KEYS.nested(RecipeFields)
    assert {"target", "guard", "scope", "schedule", "dense", "deploy"} <= inside.keys()
    for name, model in inside.items():
        missing = [k for k in model.model_fields if f"| `{name}.{k}` |" not in page]
        assert missing in ([], ["name"])  # of a method the name itself
    for axis in AXIS.values():
        assert [name for name in names(axis) if f"| `{name}` |" not in page] == []


def test_the_tables_say_what_is_allowed() -> None:
    page = KEYS.page()
    assert re.search(r"^\| `guard.better` \| `higher`, `lower` \| `higher` \|$", page, re.MULTILINE)
    assert re.search(r"^\| `rounds` \| a whole number.* \| none \|", page, re.MULTILINE)
    assert not re.search(r"typing|NoneType|pydantic|<class", page)  # types that have no words yet


def test_the_reference_has_every_public_name() -> None:
    page = (ROOT / "docs/api.rst").read_text(encoding="utf-8")
    for kind in ("function", "class", "exception"):
        assert f".. public-names:: {kind}" in page
    for module in ("sweep", "hf", "lightning", "tensorboard"):
        assert f"prunus.{module}\n---" in page
    assert all(getattr(prunus, name).__doc__ for name in prunus.__all__)


def outline(page: str) -> list[int]:
    """The levels of a page's headings."""
    text = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    return [len(level) for level in re.findall(r"^(#+) ", text, re.MULTILINE)]


def code(page: str) -> list[str]:
    """A page's code, without comments: what fences hold, and indented lines."""
    fences = re.compile(r"^```(\w+\n.*?)^```", re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^    (?=\S).*$", fences.sub("", TEXTS[page]), re.MULTILINE)
    found = [*fences.findall(TEXTS[page]), *lines]
    plain = [re.sub(r"\s*#.*$", "", text, flags=re.MULTILINE) for text in found]
    return [re.sub(r"<.*?>", "<>", text) for text in plain]


def test_the_chinese_readme_is_in_step() -> None:
    there, here = "README.md", "README.zh-CN.md"
    assert outline(here) == outline(there)
    assert code(here) == code(there)
    links = [set(re.findall(r"\]\(([^)\s]+)\)", TEXTS[page])) for page in (there, here)]
    assert links[0] - links[1] <= {here}


@pytest.mark.parametrize("page", TEXTS)
def test_anchors_of_links_are_headings(page: str) -> None:
    for link, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", TEXTS[page]):
        target = (ROOT / page).parent / link if link else ROOT / page
        found = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in found}


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in BUILDS),
    reason="what builds the site is not installed: pip install '.[docs]'",
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-c", "docs", ".", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/docs/api.html").read_text(encoding="utf-8")
    assert [name for name in prunus.__all__ if f'id="prunus.{name}"' not in page] == []
    keys = (tmp_path / "site/docs/recipe_keys.html").read_text(encoding="utf-8")
    assert [k for k in RecipeFields.model_fields if f">{k}</span>" not in keys] == []
    assert "<math " in page
    for text in (page, keys):
        assert not re.search(r'(?:src|href)="https?://(?:cdn|fonts|unpkg)', text)
