"""Whole blocks that go: which are missed least, and the configuration that says so many."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus._common.files import write_json
from prunus._common.modules import evaluating
from prunus._common.nested import tensors_of
from prunus._common.rng import preserve_rng
from prunus.blocks.bound import Bound
from prunus.blocks.fewer import PassedOver, renamed, shallow_config
from prunus.blocks.job import Job
from prunus.blocks.judge import Judge
from prunus.blocks.looking import missed
from prunus.blocks.recipe import BLOCK, SINGLE, SPAN, BlockRecipe
from prunus.blocks.solving import excluded
from prunus.blocks.source import Part, Source
from prunus.blocks.walk import Passage, passage_of, passed_stacks, stacks_of
from prunus.compaction.reopening import built, is_pretrained
from prunus.errors import InputError, first_line

FEWEST = 2
"""Blocks that stay."""
TRIES = 3
"""Blocks that a guard lets be tried, one in place of the other, before it is enough."""


class Shallow:
    """A model some of whose blocks are passed over.

    Args:
        source: has the model.
        gone: names of blocks.
    """

    def __init__(self, source: Source, gone: Sequence[str]) -> None:
        self.source, self.gone = source, set(gone)
        self.model, self.scratch, self.whole = source.model, source.scratch, source

    @contextmanager
    def hold(self, name: str) -> Iterator[nn.Module]:
        """A block, or what stands for one that is gone."""
        with self.source.hold(name) as block:
            yield PassedOver(block) if name in self.gone else block

    def note(self, name: str) -> None:
        """The block is about to change."""
        if name not in self.gone:
            self.source.note(name)

    def keep(self, name: str, part: Part) -> None:
        """The block is the result; one that is gone is in none."""
        if name not in self.gone:
            self.source.keep(name, part)

    def reset(self, name: str) -> None:
        """The block is again as it was given."""
        if name not in self.gone:
            self.source.reset(name)


def shallower(
    source: Source,
    how: BlockRecipe,
    calibration: Sequence[Any],
    *,
    held: Sequence[Any] = (),
    judge: Judge | None = None,
    saved: Path | None = None,
) -> list[str]:
    """The blocks that are missed least: one after the other, or next to each other.

    By the loss of the next token on the calibration data, which choose, without them. Where the
    model gives none, single blocks are missed by one minus the cosine between what they read and
    give. With a guard, what costs too much on the held-out data stays: of single blocks the next
    ones are tried, of a span the half of it. A block that holds something excluded stays.

    Args:
        source: has the model.
        how: the recipe.
        calibration: batches.
        held: others, by which a guard judges.
        judge: how.
        saved: a file that says what was found, or will.

    Raises:
        InputError: if no configuration says that blocks are gone, or spans are asked of a model
            that gives no loss.
    """
    if saved is not None and saved.is_file():
        return list(json.loads(saved.read_text(encoding="utf-8")))
    found: list[tuple[float, list[str]]] = []

    def walk(gone: Sequence[str]) -> Job:
        return _job(source, how, calibration, gone, held, judge)

    with preserve_rng(), evaluating(source.model), torch.no_grad():
        passage, bound = _passage(source, how, calibration), Bound(how, walk)
        if how.depth != SPAN:
            found.append(_singly(source, how, calibration, passage, bound))
        if how.depth != SINGLE:
            found.append(_span(source, how, calibration, passage, bound))
    gone = min(found, key=lambda one: (-len(one[1]), one[0]))[1]
    if saved is not None:
        write_json(saved, gone)
    return gone


def _singly(
    source: Source,
    how: BlockRecipe,
    calibration: Sequence[Any],
    passage: Passage,
    bound: Bound,
) -> tuple[float, list[str]]:
    """Blocks one after the other, each by what the loss is without it and those before it."""
    gone: list[str] = []
    loss = 0.0
    free = _free(source, how, passage)
    for _ in range(_count(passage, how, free)):
        without = missed(_job(source, how, calibration, gone))
        left = sorted((n for n in free if n not in gone), key=without.__getitem__)
        whys, costly = [], 0
        for name in left:
            more = costly < TRIES  # to see what can be said builds a model
            why = _unsaid(source, passage, [*gone, name], calibration) if more else ""
            if not why and more and bound.allows([*gone, name]):
                gone.append(name)
                loss = without[name]
                break
            costly += not why
            whys += [why] if why else []
        else:
            if costly:
                break
            raise InputError(f"structure: block: {whys[0]}")
    return loss, gone


def _span(
    source: Source,
    how: BlockRecipe,
    calibration: Sequence[Any],
    passage: Passage,
    bound: Bound,
) -> tuple[float, list[str]]:
    """Blocks next to each other, by what the loss is without all of them."""
    count = _count(passage, how, _free(source, how, passage))
    while count:
        loss, gone = _of_length(source, how, calibration, passage, count)
        if bound.allows(gone):
            return loss, gone
        count //= 2
    return 0.0, []


def _of_length(
    source: Source,
    how: BlockRecipe,
    calibration: Sequence[Any],
    passage: Passage,
    count: int,
) -> tuple[float, list[str]]:
    """The span of so many blocks that is missed least, and the loss without it."""
    without = missed(_job(source, how, calibration, []), count)
    if any(map(math.isnan, without.values())):
        raise InputError("depth: spans go by the loss, and the model gives none: depth: single")
    whys, free = [], _free(source, how, passage)
    for name in sorted(without, key=without.__getitem__):
        start = passage.blocks.index(name)
        gone = passage.blocks[start : start + count]
        stays = next((n for n in gone if n not in free), None)
        why = (f"exclude keeps {stays}, which every span of {count} has: depth: single"
               if stays else _unsaid(source, passage, gone, calibration))  # fmt: skip
        if not why:
            return without[name], gone
        whys.append(why)
    raise InputError(f"structure: block: {whys[0]}")


def _job(
    source: Source,
    how: BlockRecipe,
    calibration: Sequence[Any],
    gone: Sequence[str],
    held: Sequence[Any] = (),
    judge: Judge | None = None,
) -> Job:
    walked = Shallow(source, gone)
    return Job(walked, how, calibration, held, judge or Judge(), lambda *_: None)


def refuse_depth(source: Source, how: BlockRecipe, calibration: Sequence[Any]) -> None:
    """See that some blocks can go, before anything is written.

    Raises:
        InputError: if none can.
    """
    with preserve_rng(), evaluating(source.model), torch.no_grad():
        passage = _passage(source, how, calibration)
        _count(passage, how, _free(source, how, passage))
        why = _unsaid(source, passage, passage.blocks[-1:], calibration)
    if why:
        raise InputError(f"structure: block: {why}")


def count_of(source: Source, how: BlockRecipe, calibration: Sequence[Any]) -> int:
    """How many blocks go as a whole.

    Raises:
        InputError: if none can.
    """
    with preserve_rng(), evaluating(source.model), torch.no_grad():
        passage = _passage(source, how, calibration)
        return _count(passage, how, _free(source, how, passage))


def _passage(source: Source, how: BlockRecipe, calibration: Sequence[Any]) -> Passage:
    if not is_pretrained(source.model):
        raise InputError(
            f"structure: block: {type(source.model).__name__} has no configuration of transformers "
            "that says how many blocks it has"
        )
    stacks = stacks_of(source.model, how.blocks)
    passages, _ = passed_stacks(source.model, stacks, calibration[:1], source.hold)
    if len(passages) > 1:
        raise InputError(
            "structure: block: the model has several lists of blocks, and no configuration is "
            "looked for that says fewer of one: name it in blocks, or take out heads and neurons"
        )
    return passages[0]


def _free(source: Source, how: BlockRecipe, passage: Passage) -> list[str]:
    """Blocks that hold nothing that is excluded."""
    whole = excluded(source.model, how)
    return [b for b in passage.blocks if not any(n.startswith(f"{b}.") for n in whole)]


def _count(passage: Passage, how: BlockRecipe, free: Sequence[str]) -> int:
    count = round(how.parts[BLOCK] * len(passage.blocks))
    most = min(len(passage.blocks) - FEWEST, len(free))
    if not 0 < count <= most:
        kept = len(passage.blocks) - len(free)
        raise InputError(
            f"structure: block: {count} of {len(passage.blocks)} would go at "
            f"{how.parts['block']:g}; {f'1 to {most} can' if most else 'none can'}"
            + (f" ({kept} hold what exclude names)" if kept else "")
        )
    return count


def _unsaid(
    source: Source, passage: Passage, gone: Sequence[str], calibration: Sequence[Any]
) -> str:
    """Why no configuration says that these are gone, if none does.

    What it says must make blocks of the shapes that stay, and call each of them as it is called
    now: with the same mask and positions.
    """
    model: Any = source.model
    names = renamed(passage.blocks, gone)
    try:
        fresh: Any = built(model, shallow_config(model.config, passage.blocks, gone))
        inside = tuple(f"{name}." for name in passage.blocks)
        rest = {n: t for n, t in model.state_dict().items() if not n.startswith(inside)}
        wanted = {n: t.shape for n, t in rest.items()}
        for old, new in names.items():
            own = model.get_submodule(old).state_dict()
            wanted |= {f"{new}.{n}": t.shape for n, t in own.items()}
        made = {n: t.shape for n, t in fresh.state_dict().items()}
        if made != wanted:
            wrong = min(n for n in {*made, *wanted} if made.get(n) != wanted.get(n))
            return f"the configuration makes '{wrong}' otherwise when {gone[-1]} is gone"
        fresh.load_state_dict(rest, strict=False, assign=True)
        fresh.tie_weights()
        found = passage_of(fresh, list(names.values()), calibration[:1],
                           hold=_lent(source, fresh, names))  # fmt: skip
    except Exception as error:  # of transformers, on numbers that do not go together
        return first_line(error)
    for i, name in enumerate(names):
        before = tensors_of(passage.calls[passage.blocks.index(name)][0])
        after = tensors_of(found.calls[i][0])
        alike = len(before) == len(after)
        if not alike or not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            return f"a model without {gone[-1]} calls '{name}' otherwise"
    return ""


def _lent(source: Source, fresh: nn.Module, names: dict[str, str]) -> Any:
    """A block of a model without weights has those of the block that it comes from."""
    olds = {new: old for old, new in names.items()}

    @contextmanager
    def hold(name: str) -> Iterator[nn.Module]:
        own = fresh.get_submodule(name)
        with source.hold(olds[name]) as block:
            own.load_state_dict(block.state_dict(), assign=True)
            yield own
        own.to("meta")

    return hold
