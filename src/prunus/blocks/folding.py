"""How a stream can be turned: its principal directions, and where scales of norms go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.activations import read_by
from prunus._common.modules import evaluating, joined
from prunus._common.rng import preserve_rng
from prunus.blocks.hidden import Narrow
from prunus.blocks.job import Job
from prunus.blocks.looking import heard
from prunus.blocks.matrices import Matrix, listening
from prunus.blocks.powers import NORM, READS, roles_of
from prunus.blocks.recipe import BlockRecipe
from prunus.blocks.shards import Shards, write_shard
from prunus.blocks.source import Source
from prunus.blocks.turning import WHY, shown
from prunus.blocks.walk import Call, given_by, passed_stacks, stacks_of
from prunus.compaction.rotating import directions
from prunus.compaction.verifying.verify import wide
from prunus.errors import InputError, RunError


def turn(job: Job, narrow: Narrow, saved: Path | None = None) -> None:
    """Find Q, and which norm's scale goes into which tensor.

    C = Σ x·xᵀ / ‖x‖² over what the norms of all blocks read, C = Q·Λ·Qᵀ, largest first.

    Args:
        job: a walk through the dense model.
        narrow: gets them.
        saved: a file that holds Q, or will.

    Raises:
        InputError: for a stream that does not turn.

    Source: Ashkboos et al. 2024, arXiv:2401.15024.
    """
    moments = torch.zeros(narrow.width, narrow.width, dtype=torch.float64)

    def around(name: str, block: nn.Module) -> Any:
        return _watching(narrow, name, block, moments)

    with preserve_rng(), evaluating(job.model), torch.no_grad():
        for name, block, _, _ in heard(job, around):
            _norms(narrow, name, block)
    _behind(job.model, narrow)
    if saved is not None and saved.is_file():
        narrow.turn = Shards.of(saved)["turn"].clone()
    else:
        narrow.turn = directions(moments, torch.ones(narrow.width, dtype=torch.bool))[0]
        if saved is not None:
            write_shard(saved, {"turn": narrow.turn})
    narrow.kept = torch.arange(len(narrow.kept))


def see(source: Source, how: BlockRecipe, narrow: Narrow, calibration: Sequence[Any]) -> None:
    """See that the stream turns, by any orthogonal matrix, before anything is written.

    Raises:
        InputError: if it does not.
    """
    model: Any = source.model
    head = model.get_output_embeddings()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        raise InputError(WHY.format("the head is tied to the embedding, and would be freed"))
    with preserve_rng(), evaluating(model), torch.no_grad():
        stacks = stacks_of(model, how.blocks)
        passages, _ = passed_stacks(model, stacks, calibration[:1], source.hold)
        if len(passages) > 1:
            raise InputError(WHY.format("the model has several lists of blocks"))
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(narrow.width, narrow.width, generator=generator, dtype=torch.float64)
        trial = replace(narrow, turn=torch.linalg.qr(drawn).Q, folded={}, norms={})
        passage, seen = passages[0], set()
        for i, name in enumerate(passage.blocks):
            block = model.get_submodule(name)
            key = type(block), tuple(tuple(t.shape) for t in block.state_dict().values())
            if key not in seen:
                seen.add(key)
                with source.hold(name) as held:
                    _one(trial, name, held, passage.first[0], passage.calls[i][0])


def _one(narrow: Narrow, name: str, block: nn.Module, x: Tensor, call: Call) -> None:
    moments = torch.zeros(narrow.width, narrow.width, dtype=torch.float64)
    with _watching(narrow, name, block, moments):
        given_by(block, x, call)
    _norms(narrow, name, block)
    before = {n: p.detach() for n, p in block.named_parameters()}
    assert narrow.turn is not None
    try:
        shown(narrow, name, block, before, (wide(x) @ narrow.turn, call))
    except RunError as error:
        raise InputError(str(error)) from None


def _norms(narrow: Narrow, name: str, block: nn.Module) -> None:
    """The norms of a block, whose scales go into what reads behind them."""
    for inner, role in roles_of(block, narrow, name).items():
        full = joined(name, inner)
        if role == READS and full not in narrow.folded:
            raise InputError(WHY.format(f"'{full}' reads it without a norm"))
        if role == NORM:
            narrow.norms[full] = narrow.powers[full]


@contextmanager
def _watching(narrow: Narrow, name: str, block: nn.Module, moments: Tensor) -> Iterator[None]:
    """What norms read, and which matrices multiply what they give."""
    roles = roles_of(block, narrow, name)
    given: dict[str, Tensor] = {}

    def hook(full: str) -> Any:
        def given_out(module: nn.Module, args: Any, kwargs: Any, out: Tensor) -> None:
            rows = wide(read_by(args, kwargs)).reshape(-1, narrow.width)
            rows = rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-300)
            moments.add_((rows.T @ rows).cpu())
            given.pop(full, None)
            given[full] = out

        return given_out

    def hear(matrix: Matrix, read: Tensor) -> None:
        if roles.get(matrix.name) == READS and joined(name, matrix.name) not in narrow.folded:
            same = [norm for norm, out in given.items() if out.data_ptr() == read.data_ptr()]
            for norm in same or [*given][-1:]:  # of rows that were gathered, the last one
                narrow.folded[joined(name, matrix.name)] = norm

    with ExitStack() as stack:
        for inner, role in roles.items():
            if role == NORM:
                module = block.get_submodule(inner.rpartition(".")[0])
                heard = hook(joined(name, inner))
                stack.callback(module.register_forward_hook(heard, with_kwargs=True).remove)
        stack.enter_context(listening(block, hear))
        yield


def _behind(model: Any, narrow: Narrow) -> None:
    """The head reads what the last norm gives."""
    inside = tuple(f"{name}." for name in narrow.names)
    rest = [n for n in narrow.places if not n.startswith(inside)]
    norms = [n for n in rest if len(model.state_dict()[n].shape) == 1]
    find = model.get_output_embeddings()
    head = next((f"{n}.weight" for n, m in model.named_modules() if m is find), None)
    narrow.norms |= {n: narrow.powers[n] for n in norms}
    if head is not None and head in narrow.places:
        if len(norms) != 1:
            raise InputError(WHY.format(f"{len(norms)} norms stand behind the blocks"))
        narrow.folded[head] = norms[0]
