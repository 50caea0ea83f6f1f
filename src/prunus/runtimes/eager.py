"""PyTorch as it is, operator by operator: the answers that every other runtime must give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.inputs import called
from prunus._common.modules import detached_copy
from prunus._common.nested import tensors_of, with_tensors
from prunus.compaction.files.artifact import save
from prunus.errors import InputError
from prunus.runtimes import Answers, BuildRequest, Compute, Facts, Session

FACTS = Facts(needs=("torch",), devices=("cpu", "cuda", "mps"), tolerance=1e-6, safe=True)
NEEDS_MODEL = True


def refuses(order: BuildRequest) -> str | None:
    """Never: any model that runs, runs here."""
    return None


def build(order: BuildRequest) -> Session:
    """A copy of the model: what trains on later does not change what was deployed."""
    path = save(order.model, order.folder / "model.safetensors")
    return Session(computing(detached_copy(order.model).eval(), order.call), path, any_shape=True)


def open_(path: Path, *, threads: int) -> Session:
    """Never: the file holds tensors, and the code that they belong to is the user's."""
    raise InputError(
        f"'{path}' contains a model's tensors: open it with prunus.load('{path}', model=…)"
    )


def computing(model: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Compute:
    """Tensors in, tensors out: other arguments stay those of the example."""

    def compute(inputs: Sequence[Tensor]) -> Answers:
        with torch.inference_mode():
            return tensors_of(called(model, with_tensors(call, inputs)))

    return compute
