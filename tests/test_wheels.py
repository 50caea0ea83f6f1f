"""The configuration of wheels: which Pythons and processors they are built for, and from what."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return found


def sets() -> dict[str, dict[str, list[str]]]:
    """The instruction sets that setup.py compiles for, by the processor's family."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (value,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SETS"
    ]
    found: dict[str, dict[str, list[str]]] = ast.literal_eval(value)
    return found


def test_wheels_are_built_for_every_python_that_the_package_takes(config: dict[str, Any]) -> None:
    wanted = config["tool"]["cibuildwheel"]["build"].split()
    assert wanted == [f"cp{version.replace('.', '')}-*" for version in PYTHONS]
    assert config["project"]["requires-python"] == f">={PYTHONS[0]}"


def test_wheels_for_linux_are_those_of_the_processors_that_have_kernels(
    config: dict[str, Any],
) -> None:
    linux = config["tool"]["cibuildwheel"]["linux"]
    assert set(linux["archs"]) == set(sets()) == {"x86_64", "aarch64"}
    for arch in linux["archs"]:
        assert linux[f"manylinux-{arch}-image"] == "manylinux_2_28"
    skipped = config["tool"]["cibuildwheel"]["skip"].split()
    assert {"*-musllinux_*", "*-win*"} <= set(skipped)  # torch, or the compiler, is not there


def test_each_familys_instruction_sets_are_those_that_the_loader_knows() -> None:
    from prunus.kernels.native import SETS

    every = {name for of_family in sets().values() for name in of_family} | {"portable"}
    assert every == set(SETS)


def test_a_wheel_is_tested_by_a_file_that_there_is_with_all_that_it_imports(
    config: dict[str, Any],
) -> None:
    given = config["tool"]["cibuildwheel"]
    (path,) = re.findall(r"\{project\}/(\S+)", given["test-command"])
    text = (ROOT / path).read_text(encoding="utf-8")
    needed = set(re.findall(r"^(?:from|import) (pytest|hypothesis)", text, re.MULTILINE))
    assert needed <= set(given["test-requires"].split())


def test_the_sources_of_the_kernels_are_in_what_is_published(config: dict[str, Any]) -> None:
    patterns = config["tool"]["setuptools"]["package-data"]["prunus"]
    package = ROOT / "src" / "prunus"
    held = {p for pattern in patterns for p in package.glob(pattern)}
    native = package / "kernels" / "native"
    assert {*native.glob("*.cpp"), *native.glob("*.h")} <= held
