"""What README and docs show is true: snippets run, commands load, links lead to files."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import inspect
import re
import shlex
import symtable
from pathlib import Path

import pytest

import prunus
from prunus.compaction.compact import Compact
from prunus.deployment.table import Deployment
from prunus.progressive.phase import Run
from prunus.progressive.pruner import Pruner
from prunus.progressive.result import Result
from prunus.recipe.schema import Recipe
from prunus.sweep import Sweep

ROOT = Path(__file__).parents[1]
PLACES = ("*.md", "docs/**/*.md", "examples/*/*.md", "benchmarks/*.md")
PAGES = sorted(path for place in PLACES for path in ROOT.glob(place))
TEXTS = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in PAGES}
_FLAGS = re.MULTILINE | re.DOTALL
_BLOCK = re.compile(r"^(?:<!-- (theirs|elsewhere: .+) -->\n)?```python\n(.*?)^```", _FLAGS)


def blocks(text: str) -> list[tuple[str, str]]:
    """Every block of Python, whose: ``ours``, ``theirs``, or ours to run ``elsewhere``."""
    return [((mark or "ours").partition(":")[0], code) for mark, code in _BLOCK.findall(text)]


SNIPPETS = [
    pytest.param(code, id=f"{name}-{i}")
    for name, text in TEXTS.items()
    for i, (kind, code) in enumerate(blocks(text))
    if kind != "theirs"
]
VALUES = {
    "result": Result, "pruner": Pruner, "made": Deployment, "small": Compact, "done": Sweep,
    "run": Run,
}  # fmt: skip
"""What the snippets call such a value."""


def chain(node: ast.expr) -> list[str]:
    """The names of ``a.b.c``; empty where it does not begin with a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return [node.id, *parts] if isinstance(node, ast.Name) else []


def resolve(names: list[str]) -> None:
    """Follow a chain from a module down, through modules and attributes."""
    value, path = importlib.import_module(names[0]), names[0]
    for name in names[1:]:
        path = f"{path}.{name}"
        if not hasattr(value, name):
            assert inspect.ismodule(value), f"{path} is not there"
            importlib.import_module(path)
        value = getattr(value, name)


def has(kind: type, name: str) -> bool:
    """Whether values of a class have such an attribute."""
    own = [c for c in kind.__mro__ if c.__module__.startswith("prunus")]
    noted = {key for c in own for key in vars(c).get("__annotations__", {})}
    return hasattr(kind, name) or name in noted or any(
        re.search(rf"self\.{name}\b.*=", inspect.getsource(c)) for c in own
    )  # fmt: skip


def free(code: str) -> set[str]:
    """Names that a snippet uses and does not make."""
    top = symtable.symtable(code, "snippet", "exec")
    made = {x.get_name() for x in top.get_symbols()
            if x.is_assigned() or x.is_imported() or x.is_namespace()}  # fmt: skip
    used = {x.get_name() for x in top.get_symbols() if x.is_referenced()}
    inner = list(top.get_children())
    while inner:
        table = inner.pop()
        used |= {x.get_name() for x in table.get_symbols() if x.is_global()}
        inner += table.get_children()
    return used - made - set(dir(builtins))


def not_ours(tree: ast.Module) -> set[str]:
    """Names that a snippet gives to what other packages' calls return."""
    calls = [
        n for n in ast.walk(tree) if isinstance(n, ast.Assign) and isinstance(n.value, ast.Call)
    ]
    return {t.id for n in calls for t in n.targets if isinstance(t, ast.Name)
            if not {"prunus", "Pruner", "sweep"} & set(chain(n.value.func)[:1])}  # fmt: skip


def lacking(tree: ast.Module) -> str | None:
    """What a snippet imports that is not installed here."""
    names = {(n.module or "") if isinstance(n, ast.ImportFrom) else n.names[0].name
             for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))}  # fmt: skip
    needs = {NEEDS.get(name, name).partition(".")[0] for name in names}
    return next((n for n in sorted(needs) if importlib.util.find_spec(n) is None), None)


NEEDS = {"prunus.hf": "transformers", "prunus.lightning": "lightning",
         "prunus.tensorboard": "tensorboard"}  # fmt: skip


@pytest.mark.parametrize("code", SNIPPETS)
def test_a_snippet_names_only_what_is_there(code: str) -> None:
    tree = ast.parse(code)
    foreign = not_ours(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prunus"):
            for alias in node.names:
                resolve([*str(node.module).split("."), alias.name])
        if isinstance(node, ast.Attribute) and (names := chain(node)):
            if names[0] == "prunus":  # after `import prunus`, without importing more
                value = prunus
                for name in names[1:]:
                    value = getattr(value, name)
            elif names[0] in VALUES.keys() - foreign:
                assert has(VALUES[names[0]], names[1]), f"{'.'.join(names)} is not there"


def test_the_first_snippet_of_the_readme_is_one_that_runs() -> None:
    first = next(p for p in SNIPPETS if p.id == "README.md-0")
    assert free(str(first.values[0])) == set()


@pytest.mark.parametrize("page", TEXTS)
def test_names_in_the_text_are_there(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    for name in re.findall(r"`(prunus(?:\.\w+)+)[`(]", text):
        if not name.endswith((".safetensors", ".yaml")):
            resolve(name.split("."))


@pytest.mark.parametrize("page", TEXTS)
def test_commands_name_recipes_and_keys_that_there_are(page: str) -> None:
    for line in re.findall(r"^    (?:\$ )?prunus run (.*)$", TEXTS[page], re.MULTILINE):
        name, *words = shlex.split(line, comments=True)
        changes = [w for w in words if "=" in w and not w.startswith("-")]
        if "/" not in name:
            Recipe.load(name, [c for c in changes if "/" not in c])


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_files(page: str) -> None:
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", TEXTS[page]):
        if "://" not in link:
            assert (folder / link).exists(), link


def test_every_page_is_reached_from_the_site_s_first() -> None:
    """Without building it: a page that no table of contents names is a warning, and an error."""
    found = {"docs/index.md"}
    left = ["docs/index.md"]
    while left:
        page = left.pop()
        for listed in re.findall(r"^```\{toctree\}\n(.*?)^```", TEXTS.get(page, ""), _FLAGS):
            names = [x for x in listed.splitlines() if x and not x.startswith(":")]
            paths = [(ROOT / page).parent.joinpath(name).resolve() for name in names]
            new = {f"{path.relative_to(ROOT)}.md" for path in paths} - found
            found |= new
            left += sorted(new)
    assert set(TEXTS) <= found


def test_no_page_and_no_message_installs_prunus_from_an_index() -> None:
    sources = [*ROOT.glob("src/**/*.py"), *PAGES]
    wrong = [p.name for p in sources if re.search(r"pip install '?\"?prunus(?!\[all\] @)",
                                                  p.read_text(encoding="utf-8"))]  # fmt: skip
    assert wrong == []


def test_contributing_fits_on_a_screen_and_names_folders_that_exist() -> None:
    text = TEXTS["CONTRIBUTING.md"]
    assert len(text.splitlines()) <= 45
    for path in re.findall(r"`([\w/]+)/<name>\.(?:py|yaml)`", text):
        assert (ROOT / "src/prunus" / path).is_dir(), path
