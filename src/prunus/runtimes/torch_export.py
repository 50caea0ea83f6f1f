"""A ``.pt2`` program of torch.export: opens in PyTorch, ExecuTorch and what reads ATen graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus._common.nested import tensors_of
from prunus.runtimes import Answers, BuildRequest, Compute, Facts, Session
from prunus.runtimes._exported import exported, write_pt2
from prunus.runtimes._silent import silent

FACTS = Facts(needs=("torch",), devices=("cpu", "cuda"))


def refuses(order: BuildRequest) -> str | None:
    """Nothing in advance; what cannot be traced says so when it is built."""
    return None


def build(order: BuildRequest) -> Session:
    """Export, write and open.

    Raises:
        InputError: if torch.export cannot trace the model.
    """
    made = exported(order)
    path = write_pt2(order, made.program)
    return open_(path, threads=order.threads).as_made(made)


def open_(path: Path, *, threads: int) -> Session:
    """Open a ``.pt2``. What is written here has no pickle, but torch reads others that have."""
    with silent():  # torch 2.6 warns of the graph that it puts together
        module = torch.export.load(path).module()
    return Session(computing(module), path)


def computing(module: Any) -> Compute:
    """Tensors in, tensors out, by the program's own structure of arguments."""
    from prunus._common.torch_internals import pytree

    spec = module._in_spec

    def compute(inputs: Sequence[Tensor]) -> Answers:
        args, kwargs = pytree.tree_unflatten(list(inputs), spec)
        with torch.inference_mode():
            return tensors_of(module(*args, **kwargs))

    return compute
