"""What a walk over a folder's blocks will take, from its configuration alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunus._common import numbers
from prunus._common.tables import Table
from prunus.blocks.folder import skeleton
from prunus.blocks.recipe import BlockRecipe
from prunus.blocks.walk import stacks_of
from prunus.errors import InputError
from prunus.methods.solvers import statistic_of
from prunus.recipe.resolve import bind


@dataclass(frozen=True)
class BlockPlan:
    """What is known of a block before it is read.

    Attributes:
        name: of the block.
        weights: numbers in its matrices.
        goes: how many of them are to go.
        memory: bytes while it is worked on: its weights, and what its matrices multiply.
        seconds: of this machine, estimated from one product of matrices timed here.
    """

    name: str
    weights: int
    goes: int
    memory: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What a walk will take.

    Attributes:
        blocks: in their order.
        parameters: of the whole model.
        activations: bytes on their way, on the disk.
    """

    blocks: list[BlockPlan]
    parameters: int
    activations: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "parameters": self.parameters,
            "activations": self.activations,
            "blocks": [vars(block) for block in self.blocks],
        }

    def text(self) -> str:
        """A row for each block, and the sum."""
        rows = [(b.name, numbers.count(b.weights), numbers.count(b.goes), numbers.size(b.memory),
                 f"{b.seconds:.0f} s") for b in self.blocks]  # fmt: skip
        goes, seconds = sum(b.goes for b in self.blocks), sum(b.seconds for b in self.blocks)
        table = Table(("block", "weights", "go", "memory", "time"), rows)
        every, went = numbers.count(self.parameters), numbers.count(goes)
        return (
            f"{table}\n\n{every} parameters, of which {went} go; activations "
            f"{numbers.size(self.activations)} on disk; about {seconds / 60:.0f} minutes on one "
            "thread of this machine (estimated)"
        )


def plan_of(folder: Path, how: BlockRecipe) -> Plan:
    """What :func:`prunus.prune_blocks` will do to a folder; its ``config.json`` is all it needs.

    Raises:
        InputError: if transformers makes no model of it, it has no blocks, or the recipe takes
            whole units out.
    """
    if how.parts:
        raise InputError(
            f"a plan is for zeros: what structure {', '.join(how.parts)} takes out is known when "
            "the first batch has passed; what cannot be is refused then, before anything is written"
        )
    model = skeleton(folder)
    tokens = how.text.windows * how.text.length
    held = how.text.held * how.text.length
    statistic = statistic_of(bind("solvers", how.solver))
    speed, found, width = _speed(), [], 0
    for name in (name for stack in stacks_of(model, how.blocks) for name in stack):
        parameters = list(model.get_submodule(name).named_parameters())
        matrices = [p for _, p in parameters if p.dim() > 1]
        weights = sum(p.numel() for p in matrices)
        every = sum(p.numel() for _, p in parameters)
        sides = {p.shape[-1] for p in matrices}
        width = max(width, min(max(p.shape[-2:]) for p in matrices)) if matrices else width
        squares = sum(n * n for n in sides)
        extra = 8 * squares if statistic == "hessian" else 8 * sum(sides)
        work = 4.0 * weights * (tokens + held)
        if statistic == "hessian":
            work += 2.0 * squares * tokens + sum(4.0 * p.numel() * p.shape[-1] for p in matrices)
        if how.repair is not None:
            batch = min(tokens, 2048)
            work += 6.0 * weights * batch * how.repair.steps + 2.0 * weights * tokens
        found.append(BlockPlan(name, weights, round(how.asked * weights), 4 * every + extra,
                               work / speed))  # fmt: skip
    streams = 2 * tokens * (2 if how.repair is not None else 1) + 2 * held
    total = sum(p.numel() for p in model.parameters())
    return Plan(found, total, 4 * width * streams)


def _speed() -> float:
    """Operations a second in a product of matrices, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, b = torch.ones(512, 1024), torch.ones(1024, 1024)
        a @ b
        began = time.perf_counter()
        for _ in range(4):
            a @ b
        return 4 * 2 * 512 * 1024 * 1024 / max(time.perf_counter() - began, 1e-9)
    finally:
        torch.set_num_threads(threads)
