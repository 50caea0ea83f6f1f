"""What ``import prunus`` offers: the public names, found when they are asked for."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import prunus
from fresh import Pythons

MODULES = {"hf", "lightning", "tensorboard", "sweep"}


def test_every_public_name_is_there() -> None:
    for name in prunus.__all__:
        assert getattr(prunus, name).__name__ == name


def test_dir_lists_the_public_names_and_modules_alone() -> None:
    assert set(dir(prunus)) == {*prunus.__all__, *MODULES}
    assert dir(prunus) == sorted(dir(prunus))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = prunus.prun
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("prunus.prun")


@pytest.mark.parametrize("name", ["hf", "lightning", "tensorboard"])
def test_a_short_name_is_the_same_module(name: str) -> None:
    module = getattr(prunus, name)
    assert module is importlib.import_module(f"prunus.{name}")
    assert module is importlib.import_module(f"prunus.integrations.{name}")
    assert module.__name__ == module.__spec__.name == f"prunus.integrations.{name}"


def test_a_fresh_python_finds_them(python: Pythons) -> None:
    codes = [
        "import prunus, sys; assert prunus.sweep.sweep",
        "from prunus.hf import PruneCallback",
        "from prunus.lightning import PruneCallback",
        "from prunus.tensorboard import writer",
    ]
    code = f"""
import importlib, os, sys
for name in "transformers.trainer_callback", "lightning.pytorch":  # seconds, and not of prunus
    importlib.import_module(name)
for code in {codes!r}:
    assert not any(name.startswith("prunus") for name in sys.modules)
    child = os.fork()
    if not child:
        exec(code)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, code
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_a_look_at_them_imports_no_torch() -> None:
    code = "import prunus, sys; dir(prunus); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
