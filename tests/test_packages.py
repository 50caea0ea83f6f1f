"""The core does with seven packages; what an extra brings is asked for by name, and only then."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from fresh import Pythons
from prunus._common import packages

Lacking = Callable[..., CompletedProcess[str]]

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MODULES = {  # jinja2 is left out: torch brings it
    "cli": ("click", "rich"),
    "report": ("matplotlib",),
    "tasks": ("sklearn", "PIL"),
    "text": ("tokenizers",),
    "sweep": ("optuna",),
    "tensorboard": ("tensorboard",),
    "runtimes": ("onnx", "onnxscript", "onnxruntime", "openvino", "torchao"),
    "edge": ("MNN", "executorch"),
    "hf": ("transformers", "accelerate"),
    "lightning": ("lightning", "pytorch_lightning"),
}
REFUSE = """
import importlib.machinery, importlib.metadata, sys
class Lacking(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        lacks = name.partition(".")[0] in {modules}
        return None if lacks else super().find_spec(name, path, target)
sys.meta_path = [Lacking if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
version = importlib.metadata.version
def refuse(name):
    if name.replace("scikit-learn", "sklearn").replace("pillow", "PIL") in {modules}:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = refuse
"""
PRUNE = """
import torch, prunus
from torch import nn
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
x, y = torch.randn(64, 4), torch.arange(64) % 2
def train(model, run):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.attach(optimizer)
    for inputs, classes in run.batches([(x, y)]):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), classes).backward()
        optimizer.step()
def accuracy(model):
    return float((model(x).argmax(1) == y).float().mean())
print(prunus.units(model, x))
result = prunus.prune(model, {"structure": "channel", "target": 0.4, "rounds": 2, "retrain": "1ep",
    "schedule": "linear"}, train=train, evaluate=accuracy, example=x, folder="run")
small = prunus.compact(result.model, result.masks, x)
small.save("small.safetensors")
prunus.load("small.safetensors", model=nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
masks = prunus.prune(model, {"target": 0.5}).masks
prunus.enforce(model, masks, torch.optim.SGD(model.parameters(), lr=0.1))
print("done")
"""


@pytest.fixture
def lacking(python: Pythons) -> Lacking:
    """Runs code where the packages of some extras are missing."""

    def run(code: str, *without: str) -> CompletedProcess[str]:
        modules = {module for extra in without for module in MODULES[extra]}
        return python(REFUSE.format(modules=modules) + code)

    return run


def command(words: str) -> str:
    """Code that is a command, as its process runs it."""
    code = f"import sys; sys.argv = ['prunus', *{words.split()!r}]\n"
    return code + "from prunus.cli.entry import main; main()"


SHORT = "run iterative dense=1ep retrain=1it rounds=1 guard=null target=0.5"


def test_the_core_prunes_compacts_and_enforces_without_any_extra(lacking: Lacking) -> None:
    done = lacking(PRUNE, *MODULES)
    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout
    assert Path("run/result.json").exists()


@pytest.mark.parametrize(
    ("words", "extra", "what"),
    [
        ("--help", "cli", "click is not installed: pip install click"),
        (SHORT, "cli", "click is not installed"),
        (SHORT, "tasks", "task digits: scikit-learn is not installed: pip install scikit-learn"),
        ("report run", "report", "matplotlib is not installed: pip install matplotlib"),
        ("sweep iterative target=0.5,0.6", "sweep", "optuna is not installed"),
        (f"{SHORT} --tensorboard", "tensorboard", "tensorboard is not installed"),
    ],
)
def test_a_command_says_which_extra_it_needs(
    words: str, extra: str, what: str, lacking: Lacking
) -> None:
    done = lacking(command(words), extra)
    assert done.returncode not in (0, None)
    assert what in done.stderr
    assert f"or install prunus with its extra '{extra}'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_without_the_report_extra_ends_with_a_note(lacking: Lacking) -> None:
    done = lacking(command(f"{SHORT} --folder run"), "report")
    assert done.returncode == 0, done.stderr
    assert "no report: matplotlib is not installed" in done.stderr
    assert "test accuracy" in done.stdout
    assert Path("run/result.json").exists()
    assert not Path("run/report.html").exists()


def test_every_dependency_is_justified_where_it_is_named() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    body = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    lines = [line for line in body.splitlines() if re.match(r'\s+"[a-z]', line)]
    assert len(lines) > 20
    assert [line for line in lines if "#" not in line and "prunus[" not in line] == []


def test_messages_name_extras_that_exist() -> None:
    assert set(EXTRAS) == {*MODULES, "all", "dev", "docs"}
    for _, extra in packages._OPTIONAL.values():
        assert extra in EXTRAS
