"""What the engines of phones promise beyond the laws of every runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fresh import Pythons
from prunus._common import packages
from prunus._common.inputs import arguments
from prunus._common.nested import tensors_of
from prunus._common.random_inputs import random_inputs
from prunus.errors import InputError
from prunus.runtimes import BuildRequest, error, find, missing
from prunus.runtimes.eager import computing
from test_runtimes import (
    Branching,
    Odd,
    builder,
    odd_call,
    pruned,
    reopened,
)


def needs(name: str) -> None:
    if missing(name):
        pytest.skip(f"{name}: {packages.pip_line(missing(name))}")


@pytest.mark.parametrize("network", ["cnn", "gru"])
def test_executorch_opened_from_disk_gives_eagers_answers_to_any_batch(
    network: str, tmp_path: Path
) -> None:
    needs("executorch")
    model, example = pruned(network, small=True)
    found = builder(example, [], tmp_path).build("executorch", "compact", model)
    served = reopened(found, tmp_path, "compact")
    assert served.session.dynamic
    assert "one input at a time" in found.row.notes
    (plan,) = (note for note in found.row.notes if "bytes of memory planned" in note)
    assert int(plan.split()[0].replace(",", "")) >= 4 * (
        example[:1].numel() + right_count(model, example)
    )
    right = computing(model, arguments(example))
    for batch in (1, 2, 5):
        inputs = tensors_of(random_inputs(example, batch=batch, seed=batch))
        assert error(served.compute(inputs), right(inputs), how="max") < 1e-5


def test_executorch_puts_scalars_flags_and_constants_in_their_places(tmp_path: Path) -> None:
    needs("executorch")
    model = Odd().eval()
    found = builder(odd_call(2), [], tmp_path).build("executorch", "odd", model)
    served = reopened(found, tmp_path, "odd")
    for batch in (1, 2, 5):
        call = odd_call(batch)
        assert error(tensors_of(served(**call)), tensors_of(model(**call)), how="max") < 1e-5


def test_executorch_answers_a_model_of_one_batch_size_in_parts(tmp_path: Path) -> None:
    needs("executorch")
    model, x = Branching().eval(), torch.randn(5, 4)
    served = reopened(
        builder(torch.randn(2, 4), [], tmp_path).build("executorch", "parts", model),
        tmp_path, "parts",
    )  # fmt: skip
    assert error(tensors_of(served(x)), tensors_of(model(x)), how="max") < 1e-5


@pytest.mark.parametrize(("name", "file"), [("executorch", "model.pte"), ("mnn", "model.mnn")])
def test_a_damaged_file_is_refused_in_words(name: str, file: str, tmp_path: Path) -> None:
    needs(name)
    (tmp_path / file).write_bytes(b"no program of any kind, but long enough for a header" * 4)
    with pytest.raises(InputError, match=f"cannot read '{file}'"):
        find(name).open_(tmp_path / file, threads=1)


class Strange(nn.Module):
    """What no engine of a phone has."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


@pytest.mark.parametrize("name", ["executorch", "mnn"])
def test_an_operator_that_is_lacking_is_said(name: str, tmp_path: Path) -> None:
    needs(name)
    with pytest.raises(InputError, match=r"cannot express it: .*bessel_j0"):
        find(name).build(BuildRequest(Strange().eval(), torch.ones(2, 2), tmp_path))


@pytest.mark.parametrize("name", ["executorch", "executorch_int8", "mnn"])
def test_half_precision_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    needs(name)
    order: Any = BuildRequest(nn.Linear(4, 4).half(), torch.randn(2, 4).half(), tmp_path)
    assert "call model.float()" in str(find(name).refuses(order))


def test_executorch_in_int8_is_a_quarter_of_the_file_and_answers_nearly_as_eager(
    tmp_path: Path,
) -> None:
    needs("executorch_int8")
    model, example = pruned("cnn", small=True)
    wide = nn.Sequential(
        model.get_submodule("first"),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LazyLinear(256),
        nn.ReLU(),
        nn.Linear(256, 256),
    ).eval()
    wide(example)
    inputs = [torch.randn(5, *example.shape[1:]) for _ in range(4)]
    found = {}
    for name in ("executorch", "executorch_int8"):
        place = tmp_path / name
        place.mkdir()
        order = BuildRequest(wide, example, place, calibration=inputs)
        assert find(name).refuses(order) is None
        session = find(name).build(order)
        found[name] = (place / "model.pte").stat().st_size
        far = error(session.compute([inputs[0]]), [wide(inputs[0])], how="norm")
        assert far < (1e-5 if name == "executorch" else 0.1)
        assert name == "executorch" or far > 0
    assert found["executorch_int8"] < 0.4 * found["executorch"]


def test_executorch_in_int8_asks_for_calibration_before_any_work(tmp_path: Path) -> None:
    needs("executorch_int8")
    order = BuildRequest(nn.Linear(4, 4), torch.ones(2, 4), tmp_path)
    assert "pass calibration" in str(find("executorch_int8").refuses(order))


def right_count(model: nn.Module, example: Tensor) -> int:
    """Numbers in the answer to one input."""
    return int(model(example[:1]).numel())


QUIET = """
import sys, torch
from pathlib import Path
from prunus.runtimes import BuildRequest, find

model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()).eval()
made = find("mnn").build(BuildRequest(model, torch.ones(2, 4), Path("."), threads=1))
made.compute([torch.ones(3, 4)])
print("said")
"""


def test_mnn_writes_nothing_between_the_lines_of_a_command(python: Pythons) -> None:
    needs("mnn")
    done = python(QUIET)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["said"]
