"""A task and a recipe to start from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from prunus._common.files import write_atomically
from prunus.errors import InputError

TASK = '''"""My task: replace model and data by your own; everything else can stay."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunus import Task


def load_data():
    """Inputs and classes. Here: scikit-learn's digits; read your own files instead."""
    from sklearn.datasets import load_digits

    data = load_digits()
    inputs = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return inputs, torch.tensor(data.target)


def model():
    """The model, freshly initialized; or load a trained one and set dense: 0 in the recipe."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10),
    )


def loss(model, batch):
    inputs, classes = batch
    return nn.functional.cross_entropy(model(inputs), classes)


def accuracy(model, batches):
    """Right or wrong, item by item; the metric is the mean. In eval mode, without gradients."""
    return torch.cat([model(inputs).argmax(1) == classes for inputs, classes in batches])


def task():
    inputs, classes = load_data()
    everything = TensorDataset(inputs, classes)
    split = torch.Generator().manual_seed(0)  # the same split every time
    train, validation, test = torch.utils.data.random_split(everything, [0.7, 0.15, 0.15], split)
    return Task(
        model=model,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        loss=loss,
        metric=accuracy,
        train=DataLoader(train, batch_size=64, shuffle=True),
        validation=DataLoader(validation, batch_size=256),
        test=DataLoader(test, batch_size=256),
        example=inputs[:1],
        calibration=DataLoader(train, batch_size=64),
    )
'''

RECIPE = """# How to prune. `prunus list` names every criterion, allocation, schedule and structure.
version: 2                 # with batch norms: repair: batch_norm after each cut
name: {name}
task: task.py              # beside this file
dense: 10ep                # training before the first cut; 0 if the model is trained already
criterion: magnitude       # what a weight is worth
allocation: global         # all layers compete; or uniform, erk, per_neuron
schedule: geometric        # the same share of the rest in every round
rounds: 5                  # prune, retrain, judge; leave out to prune gradually inside training
retrain: 5ep               # after each cut
target: 0.9                # or: guard, as far as the guard allows
# A round may lose this much against dense; more is rolled back. For an error: better: lower
guard: {{better: higher, max_drop: 0.02}}
learning_rate: hold_decay
# Single zeros make no ordinary runtime faster. For a model that is really smaller:
# structure: channel
# allocation: per_cost
# target: {{max_macs: 0.5}}
# compact: every_round     # the model shrinks while it trains
# deploy: auto             # ends with an artifact in the fastest runtime installed
"""


def write_template(folder: Path) -> list[Path]:
    """Write ``task.py`` and ``recipe.yaml``.

    Raises:
        InputError: if one of them exists, or the folder cannot be written.
    """
    task = folder / "task.py"
    texts = {task: TASK, folder / "recipe.yaml": RECIPE.format(name=_name_of(folder))}
    for path, text in texts.items():  # the first one as it is: this was stopped before the second
        if path.exists() and (path != task or path.read_bytes() != text.encode()):
            raise InputError(f"'{path}' exists; name another folder: prunus init my_project")
    return write_texts(folder, texts)


def write_texts(folder: Path, texts: Mapping[Path, str]) -> list[Path]:
    """Write a project's files into its folder, which is made where it is not there.

    Raises:
        InputError: if the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"'{folder}' cannot be created: {error.strerror}") from None
    for path, text in texts.items():
        write_atomically(path, text.encode())
    return [*texts]


def _name_of(folder: Path) -> str:
    """The project's, as YAML: runs are called so."""
    words = re.sub(r"[^\w -]+", "-", folder.resolve().name).strip("- ")
    return json.dumps(words[:100] or "project", ensure_ascii=False)
