"""2:4 on an NVIDIA GPU: its sparse tensor cores skip two zeros of every four weights.

The file is a ``.pt2`` with the weights as they are, zeros included: it opens on any machine, and
the linear layers are packed when it is opened here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from prunus.runtimes import BuildRequest, Facts, Session
from prunus.runtimes._exported import exported, write_pt2
from prunus.runtimes.torch_export import computing

FACTS = Facts(
    needs=("torch",), devices=("cuda",), tolerance=1e-2,  # of half precision
    skips_zeros=True, multiple_of=64,
)  # fmt: skip

CAPABILITY = (8, 0)
"""NVIDIA's Ampere, the first with sparse tensor cores."""
KINDS = (torch.float16, torch.bfloat16)
ROWS, COLUMNS = 32, 64
"""A weight's sizes must be multiples of these for both of torch's backends."""


def refuses(order: BuildRequest) -> str | None:
    """Machines without such a GPU, models of another precision, weights that are not 2:4."""
    needs = "it needs an NVIDIA GPU of compute capability 8.0 (Ampere) or newer"
    if not torch.cuda.is_available():
        return f"{needs}, and torch finds none here: deploy on a machine with one"
    found = torch.cuda.get_device_capability()
    if found < CAPABILITY:
        return f"{needs}; this one has {found[0]}.{found[1]}"
    kinds = {p.dtype for p in order.model.parameters() if p.is_floating_point()}
    if not kinds <= set(KINDS):
        odd = sorted(str(k) for k in kinds - set(KINDS))
        return f"it takes float16 and bfloat16 weights, not {odd[0]}: call model.half() first"
    if not any(is_packable(m.weight) for m in order.model.modules() if isinstance(m, nn.Linear)):
        return (
            f"no linear layer has 2:4 weights with rows a multiple of {ROWS} and columns of "
            f"{COLUMNS}: prune with structure: '2:4' (prunus run two_four task=…)"
        )
    return None


def build(order: BuildRequest) -> Session:
    """Export, write, and open with packed weights.

    Raises:
        InputError: if torch.export cannot trace the model.
    """
    made = exported(order)
    path = write_pt2(order, made.program)
    opened = open_(path, threads=order.threads)
    return opened.as_made(made, *opened.notes)


def open_(path: Path, *, threads: int) -> Session:
    """Open the ``.pt2`` and pack every linear weight that is 2:4."""
    module = torch.export.load(path).module()
    assert isinstance(module, fx.GraphModule)
    names = list(_linear_weights(module))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its class a prototype
        for name in names:
            _pack(module, name)
    return Session(computing(module), path, notes=(f"{len(names)} weights packed as 2:4",))


def is_packable(weight: Tensor) -> bool:
    """Whether at most two of every four consecutive inputs are not zero, and the sizes fit.

    >>> is_packable(torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat(32, 16))
    True
    """
    if weight.dim() != 2 or weight.shape[0] % ROWS or weight.shape[1] % COLUMNS:
        return False
    return bool((weight.detach().reshape(-1, 4) != 0).sum(1).le(2).all())


def _linear_weights(module: fx.GraphModule) -> Iterator[str]:
    """Packable parameters that nothing but linear layers reads."""
    linear = torch.ops.aten.linear.default
    for node in module.graph.nodes:
        if node.op != "get_attr" or not node.users:
            continue
        value = dict(module.named_parameters(remove_duplicate=False)).get(str(node.target))
        alone = all(u.target == linear and u.args[1] is node for u in node.users)
        if value is not None and alone and is_packable(value):
            yield str(node.target)


def _pack(module: fx.GraphModule, name: str) -> None:
    """cuSPARSELt where torch has it, else CUTLASS."""
    from torch.sparse import (
        SparseSemiStructuredTensorCUSPARSELT,
        SparseSemiStructuredTensorCUTLASS,
    )

    fast = torch.backends.cusparselt.is_available()
    kind = SparseSemiStructuredTensorCUSPARSELT if fast else SparseSemiStructuredTensorCUTLASS
    parent, _, last = name.rpartition(".")
    packed = kind.from_dense(module.get_parameter(name).detach().contiguous())
    setattr(module.get_submodule(parent), last, nn.Parameter(packed, requires_grad=False))
