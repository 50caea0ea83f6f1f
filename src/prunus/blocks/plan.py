"""What a walk over a folder's blocks will take, from its configuration alone."""

from __future__ import annotations

import math
import mmap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common import numbers
from prunus._common.memory import LARGE, lasting
from prunus._common.modules import joined
from prunus._common.tables import Table
from prunus.blocks.depth import count_of
from prunus.blocks.folder import place, skeleton
from prunus.blocks.hidden import configured
from prunus.blocks.recipe import BLOCK, HIDDEN, BlockRecipe
from prunus.blocks.sizes import Sizes, structure_of
from prunus.blocks.source import Part, Source
from prunus.blocks.units import kept_of
from prunus.blocks.walk import stacks_of
from prunus.errors import InputError
from prunus.methods.block_rates import facts_of
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
        dropped: blocks that go as a whole; which ones, the calibration text says.
        choosing: seconds that this takes, estimated.
    """

    blocks: list[BlockPlan]
    parameters: int
    activations: int
    dropped: int = 0
    choosing: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "parameters": self.parameters,
            "activations": self.activations,
            "dropped": self.dropped,
            "blocks": [vars(block) for block in self.blocks],
        }

    def text(self) -> str:
        """A row for each block, and the sum."""
        rows = [(b.name, numbers.count(b.weights), numbers.count(b.goes), numbers.size(b.memory),
                 f"{b.seconds:.0f} s") for b in self.blocks]  # fmt: skip
        goes = sum(b.goes for b in self.blocks)
        seconds = self.choosing + sum(b.seconds for b in self.blocks)
        table = Table(("block", "weights", "go", "memory", "time"), rows)
        every, went = numbers.count(self.parameters), numbers.count(goes)
        whole = (
            f"; beside them {self.dropped} of {len(self.blocks)} blocks as a whole, those that the "
            "calibration text misses least" if self.dropped else ""
        )  # fmt: skip
        return (
            f"{table}\n\n{every} parameters, of which {went} go{whole}; activations "
            f"{numbers.size(self.activations)} on disk; about {seconds / 60:.0f} minutes on one "
            "thread of this machine (estimated)"
        )


def plan_of(folder: Path, how: BlockRecipe) -> Plan:
    """What :func:`prunus.prune_blocks` will do to a folder; its ``config.json`` is all it needs.

    Raises:
        InputError: if transformers makes no model of it, it has no blocks, or no configuration says
            the sizes that would be left.
    """
    model = skeleton(folder)
    tokens = how.text.windows * how.text.length
    held = how.text.held * how.text.length
    narrow = configured(model, how.parts[HIDDEN], how.multiple_of) if HIDDEN in how.parts else None
    sizes, dropped = (None, 0) if not how.parts or narrow else _sizes(model, how)
    statistic = "hessian" if sizes is not None else statistic_of(bind("solvers", how.solver))
    statistic = "squares" if narrow is not None else statistic
    names = [name for stack in stacks_of(model, how.blocks) for name in stack]
    rates = dict(zip(names, _rates(model, how, names), strict=True))
    speed, found, width = _speed(), [], 0
    for name in names:
        parameters = dict(model.get_submodule(name).named_parameters())
        matrices = {n: p for n, p in parameters.items() if p.dim() > 1}
        weights = sum(p.numel() for p in matrices.values())
        every = sum(p.numel() for p in parameters.values())
        most = max((max(p.shape[-2:]) for p in matrices.values()), default=width)
        width = max(width, min(most, *(max(p.shape[-2:]) for p in matrices.values())))
        goes, worked = round(rates[name] * weights), matrices
        if sizes is not None:
            gone = sizes.gone(name, rates[name])
            kept = kept_of([(kind, torch.arange(n)) for kind, n in gone])
            goes = every - sum(_left(p, kept.get(n, ())) for n, p in parameters.items())
            readers = {m for kind, _ in gone for m, _, _ in kind.members}
            worked = {n: p for n, p in matrices.items() if n in readers}
        if narrow is not None:
            cut = {n: narrow.indices(joined(name, n)) for n in parameters}
            goes = every - sum(_left(p, cut[n]) for n, p in parameters.items())
        sides = {p.shape[-1] for p in worked.values()}
        squares = sum(n * n for n in sides)
        extra = 8 * squares if statistic == "hessian" else 8 * sum(sides)
        work = 4.0 * weights * (tokens + held)
        if statistic == "hessian":
            work += 2.0 * squares * tokens + sum(
                4.0 * p.numel() * p.shape[-1] for p in worked.values()
            )
        if how.repair is not None:
            batch = min(tokens, 2048)
            passes = 10.0 if how.repair.apart else 6.0  # those of the dense block as well, by part
            work += passes * weights * batch * how.repair.steps + 2.0 * weights * tokens
            if how.repair.steps:  # nine looks at an eighth; gradients, Adam's two, and the best
                work += 9 / 8 * passes / 3 * weights * tokens
                extra = max(extra, 16 * every)
            extra += 4 * every if how.repair.apart or how.repair.fit else 0
            if how.repair.fit:  # about four inputs, half of a pass each, of both models
                work += 8.0 * weights * tokens + 4.0 * sum(n * n for n in sides) * tokens
                extra += 16 * max(sides) ** 2
        found.append(BlockPlan(name, weights, goes, 4 * every + extra, work / speed))
    streams = 2 * tokens * (2 if how.repair is not None else 1) + 2 * held
    total = sum(p.numel() for p in model.parameters())
    passes = dropped * len(found) / 2  # each without one block, from there on
    choosing = passes * sum(2.0 * b.weights * tokens for b in found) / speed
    return Plan(found, total, 4 * width * streams, dropped, choosing)


def _left(tensor: Tensor, kept: Sequence[Tensor | None]) -> int:
    """Numbers that stay of a tensor."""
    shape = list(tensor.shape)
    for dim, index in enumerate(kept):
        if index is not None:
            shape[dim] = len(index)
    return math.prod(shape)


def _rates(model: nn.Module, how: BlockRecipe, names: Sequence[str]) -> list[float]:
    """How much of each block, where a rule does not ask what only a pass can say."""
    rule = bind("block_rates", how.rates)
    weights = [
        sum(p.numel() for p in model.get_submodule(name).parameters() if p.dim() > 1)
        for name in names
    ]
    return [how.asked] * len(names) if facts_of(rule) else rule(how.asked, weights)


def _sizes(model: nn.Module, how: BlockRecipe) -> tuple[Sizes, int]:
    """What goes of each block as a whole, and how many blocks."""
    blank = Blank(model)
    batch = blank.batch()
    dropped = 0 if BLOCK not in how.parts else count_of(blank, how, [batch])
    sizes = structure_of(blank, how, [batch], prove=False)
    if sizes.whole.fresh is None:
        raise InputError(
            f"no config.json says the sizes that would be left ({sizes.whole.why}): open the model "
            "and give it to prunus.prune_blocks"
        )
    return sizes, dropped


def _zeros(shape: torch.Size) -> Tensor:
    """Zeros that the system gives, without memory of their own, where they are large."""
    large = shape.numel() * 4 >= LARGE and hasattr(mmap, "MAP_ANONYMOUS")
    return lasting(shape, torch.float32) if large else torch.zeros(shape)


class Blank:
    """A model without weights: zeros stand in their place, which take no memory until read.

    Args:
        model: on the meta device; what is in no block gets its zeros here.
    """

    scratch: Path | None = None

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.whole: Source = self
        inside = tuple(f"{name}." for stack in stacks_of(model) for name in stack)
        for name, parameter in list(model.named_parameters()):
            if not name.startswith(inside):
                place(model, name, _zeros(parameter.shape))
        tie: Any = getattr(model, "tie_weights", None)
        if tie is not None:
            tie()

    def batch(self) -> dict[str, Tensor]:
        """What the model can be called with."""
        words = getattr(self.model.config.get_text_config(), "vocab_size", 2)
        return {
            n: t.clamp(max=words - 1) if not t.is_floating_point() else t
            for n, t in self.model.dummy_inputs.items()
        }

    @contextmanager
    def hold(self, name: str) -> Iterator[nn.Module]:
        """A block with zeros."""
        block = self.model.get_submodule(name)
        shapes = {name: parameter.shape for name, parameter in block.named_parameters()}
        for inner, shape in shapes.items():
            place(block, inner, _zeros(shape))
        try:
            yield block
        finally:
            for inner, shape in shapes.items():
                place(block, inner, torch.empty(shape, device="meta"))

    def note(self, name: str) -> None:
        """Nothing changes."""

    def keep(self, name: str, part: Part) -> None:
        """Nothing is kept."""

    def reset(self, name: str) -> None:
        """Nothing has changed."""


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
