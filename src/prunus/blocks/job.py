"""The walk: block after block is chosen from, made good, judged and kept."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunus._common.files import write_json
from prunus.blocks.allowance import allowed, comparable
from prunus.blocks.choosing import solving_of
from prunus.blocks.fewer import PassedOver
from prunus.blocks.fitting import Way
from prunus.blocks.flow import Flow
from prunus.blocks.hidden import Narrow
from prunus.blocks.judge import Judge
from prunus.blocks.mending import kept_for, mend
from prunus.blocks.recipe import BlockRecipe, BlockResult
from prunus.blocks.sizes import Sizes
from prunus.blocks.solving import outliers
from prunus.blocks.source import Source
from prunus.blocks.streams import Progress, Stream, file_of, gap
from prunus.blocks.walk import given_by, passage_of, passed_stacks, stacks_of
from prunus.errors import RunError
from prunus.methods.block_rates import MOST, facts_of
from prunus.recipe.resolve import bind

HALVINGS = 3
"""Rates that a guard tries before blocks stay whole: a half, a quarter, an eighth."""


class Job:
    """One walk through the blocks of a model."""

    def __init__(
        self,
        source: Source,
        how: BlockRecipe,
        calibration: Sequence[Any],
        held: Sequence[Any],
        judge: Judge,
        on_block: Callable[[str, float], None],
        sizes: Sizes | Narrow | None = None,
    ) -> None:
        self.source, self.how, self.judge, self.on_block = source, how, judge, on_block
        self.model = source.model
        self.gone = set(sizes.dropped) if isinstance(sizes, Sizes) else set()
        masks = source.scratch is None
        self.guard = None if isinstance(sizes, Narrow) else how.guard  # one width: see width.py
        self.solving = solving_of(self.model, how, sizes, masks=masks)
        self.facts = facts_of(bind("block_rates", how.rates))
        self.calibration, self.held = calibration, held
        self.stacks = stacks_of(self.model, how.blocks)
        self.at = Progress()
        self._files = itertools.count()

    def run(self, saved: Path | None = None) -> None:
        """Walk.

        Args:
            saved: a file that says where a walk is; one that is there is gone on from.
        """
        self.probe()
        streams = self._streams()
        if saved is not None and saved.is_file():
            self.at = Progress.read(saved)
            self.solving.take(self.at)
            self._files = itertools.count(self.at.files)
        else:
            self._survey()
        at, total = self.at, sum(self._sizes(name) for blocks in self.stacks for name in blocks)
        for number, blocks in enumerate(self.stacks):
            self._enter_all(streams, blocks, number)
            if number < at.stack:
                continue
            every = 1 if self.guard is None else self.guard.every
            for start in range(at.block, len(blocks), every):
                part = list(range(start, min(start + every, len(blocks))))
                at.spent += sum(self._sizes(blocks[i]) for i in part) / max(1, total)
                asked = {i: min(at.planned.get(blocks[i], 0.0) + at.debt, MOST) for i in part}
                if not self._part(streams, part, asked):
                    lost = sum((asked[i] - self.solving.reached(blocks[i])) * self._sizes(blocks[i])
                               for i in part)  # fmt: skip
                    left = total * (1 - at.spent)
                    at.debt = (at.debt * left + lost) / left if left > 0.5 else 0.0
                at.block = part[-1] + 1
                self._save(streams, saved)
                for i in part:
                    self.on_block(blocks[i], at.errors[blocks[i]])
            at.stack, at.block = number + 1, 0
            for stream in streams.values():
                stream.passage.last = self._leaving(stream)
        if at.loss is not None:
            at.loss = (at.loss[0], self.judged(streams["held"], None))

    def _enter_all(self, streams: dict[str, Stream], blocks: list[str], number: int) -> None:
        """All streams come to a stack, or to where they were in it."""
        for stream in streams.values():
            self.enter(stream, blocks)
            files = self.at.flows.get(stream.name, [])
            if number < len(files):
                assert self.source.scratch is not None
                stream.move(Flow.opened(self.source.scratch / files[number]))
                if number < self.at.stack:
                    stream.passage.last = stream.flow

    def _save(self, streams: dict[str, Stream], saved: Path | None) -> None:
        """Note where the walk is; files of what came before are let go."""
        if saved is not None:
            self.at.files = next(self._files)
            self.at.take(self.solving)
            self.at.flows = {
                name: [*(file_of(p.last) for p in stream.passages[:-1]), file_of(stream.flow)]
                for name, stream in streams.items()
            }
            write_json(saved, dataclasses.asdict(self.at))
        for stream in streams.values():
            stream.pin()

    def result(self, seconds: float, folder: Path | None = None) -> BlockResult:
        """What was done."""
        zeros, weights = sum(self.solving.zeros.values()), sum(self.solving.weights.values())
        loss = None if self.at.loss is None or math.isnan(self.at.loss[1]) else self.at.loss
        return BlockResult(
            self.solving.masks, self.at.errors, self.at.rates, zeros / max(1, weights), seconds,
            loss, self.solving.stayed, folder, gate=self.solving.gate if self.how.parts else None,
        )  # fmt: skip

    # The walk's parts

    def _part(self, streams: dict[str, Stream], part: list[int], asked: dict[int, float]) -> bool:
        """Prune some blocks, as far as the guard lets them; whether all went that was asked."""
        guard = self.guard
        blocks = streams["calibration"].passage.blocks
        for stream in streams.values():
            stream.pin()
        for number, tried in enumerate(levels := self._levels(blocks, asked)):
            whole = number == len(levels) - 1
            for i in part:
                self._block(streams, i, tried[i], whole=whole)
            if guard is None or whole or self._accepted(streams, part):
                break
            for i in part:
                self.source.reset(blocks[i])
            for stream in streams.values():
                stream.back()
        return number == 0

    def _levels(self, blocks: list[str], asked: dict[int, float]) -> list[dict[int, float]]:
        """Rates in the order in which they are tried; with the last ones blocks stay whole."""
        none = dict.fromkeys(asked, 0.0)
        if self.how.n_of_m is not None:
            return [asked, none]
        planned = {i: min(self.at.planned.get(blocks[i], 0.0), r) for i, r in asked.items()}
        halves = [{i: r * 0.5**n for i, r in planned.items()} for n in range(HALVINGS + 1)]
        more = [asked] if any(asked[i] > planned[i] + 1e-6 for i in asked) else []
        return [*more, *halves, none]

    def _accepted(self, streams: dict[str, Stream], part: list[int]) -> bool:
        guard, held = self.guard, streams.get("held")
        assert guard is not None
        blocks = streams["calibration"].passage.blocks
        errors = [self.at.errors[blocks[i]] for i in part if blocks[i] not in self.gone]
        if guard.max_error is not None and max(errors, default=0.0) > guard.max_error:
            return False
        may = allowed(self.how, self.at.spent)
        if may is None or held is None or self.at.loss is None:
            return True
        return self.judged(held, part[-1]) - self.at.loss[0] <= may

    def _block(self, streams: dict[str, Stream], i: int, rate: float, *, whole: bool) -> None:
        """Prune one block, and let all streams through it."""
        calibration = streams["calibration"]
        name = calibration.passage.blocks[i]
        self.source.note(name)
        with self.source.hold(name) as block:
            self.solving.begun(name, block, self.source, calibration.flow[0],
                               calibration.passage.calls[i][0])  # fmt: skip
            outs: dict[str, Flow] = {}
            with self.solving.hearing(block, "" if whole else None) as heard:
                outs["calibration"] = self.passed(block, calibration, i, heard.batch_ends)
            if "held" in streams:
                outs["held"] = self.passed(block, streams["held"], i)
            if "dense" in streams:
                onward = self.passed(block, streams["dense"], i)
            repair = None if whole or isinstance(block, PassedOver) else self.how.repair
            before = block if repair is None else kept_for(repair, block)
            masks = self.solving.solve(name, block, heard, None if whole else rate)
            del heard
            if repair is not None:
                ways = [Way(s.flow, s.passage.calls[i]) for s in (calibration, streams["dense"])]
                try:
                    mend(block, before, (ways[0], ways[1]), onward, masks, how=repair)
                except RunError as error:
                    raise RunError(f"'{name}' {error}") from None
            del before
            if "dense" in streams:
                streams["dense"].move(onward)
            part = self.solving.settled(
                name, block, calibration.flow[0], calibration.passage.calls[i][0]
            )
            errors, small = {}, self.solving.small(name, block)
            for stream in (s for key, s in streams.items() if key != "dense"):
                now = self.passed(small, stream, i)
                errors[stream.name] = gap(outs[stream.name], now)
                outs[stream.name].drop()
                stream.move(now)
            del small
            self.source.keep(name, part)
        self.at.errors[name] = errors.get("held", errors["calibration"])
        self.at.rates[name] = self.solving.zeros[name] / max(1, self.solving.weights[name])

    # Streams

    def _streams(self) -> dict[str, Stream]:
        streams = {"calibration": Stream("calibration", self.calibration)}
        if self.held:
            streams["held"] = Stream("held", self.held)
        if self.how.repair is not None:
            streams["dense"] = Stream("dense", self.calibration)
        return streams

    def enter(self, stream: Stream, blocks: list[str]) -> None:
        """Let a stream come to the first block of a stack."""
        with self.solving.around(stream.name):
            passage = passage_of(self.model, blocks, stream.batches, before=stream.passages,
                                 hold=self.source.hold)  # fmt: skip
        stream.passages.append(passage)
        first = (self.solving.entering(stream.name, x, blocks[0]) for x in passage.first)
        stream.flow, stream.pinned = Flow(first, self._file(stream.name)), None

    def _leaving(self, stream: Stream) -> Flow:
        """What a stack gives, as the model reads it."""
        if not self.solving.turns:
            return stream.flow
        made = (self.solving.leaving(x) for x in stream.flow)
        return Flow(made, self._file(stream.name))

    def passed(
        self, block: nn.Module, stream: Stream, i: int, after: Callable[[], None] | None = None
    ) -> Flow:
        """What a block gives for a stream, which stays where it is."""

        def outputs() -> Iterator[Tensor]:
            for call, x in zip(stream.passage.calls[i], stream.flow, strict=True):
                yield given_by(block, x, call)
                if after is not None:
                    after()

        return Flow(outputs(), self._file(stream.name))

    def _file(self, name: str) -> Path | None:
        scratch = self.source.scratch
        return None if scratch is None else scratch / f"{name}-{next(self._files)}.bin"

    # Before the walk, and its judge

    def probe(self) -> None:
        """See that batches pass the stacks, before anything is changed.

        A second stack that these batches do not come to (a picture's, of text) stays whole.
        """
        passages, stayed = passed_stacks(self.model, self.stacks, self.calibration[:1],
                                         self.source.hold)  # fmt: skip
        for name in stayed:
            self.solving.stayed[name] = "the calibration data do not pass it"
        self.stacks = [passage.blocks for passage in passages]

    def _survey(self) -> None:
        """How much of each block is to go; the loss of the dense model on the way."""
        names = [name for blocks in self.stacks for name in blocks if name not in self.gone]
        sizes = [self._sizes(name) for name in names]
        facts: dict[str, list[float]] = {"outliers": [], "damage": []}
        if self.held:
            walked, self.source = self.source, self.source.whole
            loss = self.judged(Stream("held", self.held), None)
            self.source = walked
            self.at.loss = (loss, loss)
            comparable(self.how, loss)
        if self.facts:
            stream = Stream("survey", self.calibration)
            for blocks in self.stacks:
                self.enter(stream, blocks)
                for i, name in enumerate(blocks):
                    if name not in self.gone:
                        self._look(stream, i, name, facts)
                stream.passage.last = stream.flow
        rule = bind("block_rates", self.how.rates)
        given = {name: facts[name] for name in self.facts}
        rates = rule(self.how.asked, sizes, **given)
        self.at.planned = dict(zip(names, rates, strict=True))

    def _look(self, stream: Stream, i: int, name: str, facts: dict[str, list[float]]) -> None:
        """What a rule of rates asks about a block; the block stays as it is."""
        self.source.note(name)
        with self.source.hold(name) as block:
            statistic = self.solving.statistic if "damage" in self.facts else "squares"
            with self.solving.hearing(block, statistic) as heard:
                dense = self.passed(block, stream, i, heard.batch_ends)
            if "outliers" in self.facts:
                facts["outliers"].append(outliers(block, heard))
            if "damage" in self.facts:
                self.solving.solve(name, block, heard, self.how.asked)
                now = self.passed(self.solving.small(name, block), stream, i)
                facts["damage"].append(gap(dense, now))
                now.drop()
        self.source.reset(name)
        stream.move(dense)

    def judged(self, stream: Stream, done: int | None) -> float:
        """The loss if everything behind a block stays as it is now.

        Args:
            stream: held-out data, in a stack or before the first one.
            done: the block that it has come through; ``None``: it begins, or the walk is through.
        """
        dense = done is None and not stream.passages
        with self.solving.around("" if dense else stream.name):
            return self._judged(stream, done)

    def _judged(self, stream: Stream, done: int | None) -> float:
        ahead = Stream("ahead", stream.batches, list(stream.passages))
        behind = len(self.stacks) if done is None and stream.passages else 0
        if done is not None:
            behind = len(stream.passages)
            ahead.passages[-1] = replace(stream.passage)
            ahead.flow = self._onward(ahead, stream.flow, done + 1)
        for blocks in self.stacks[behind:]:
            self.enter(ahead, blocks)
            ahead.flow = self._onward(ahead, ahead.flow, 0)
        loss = self.judge(self.model, stream.batches, ahead.passages)
        for passage in ahead.passages[len(stream.passages) - (done is not None) :]:
            if isinstance(passage.last, Flow) and passage.last is not stream.flow:
                passage.last.drop()
        return loss

    def _onward(self, ahead: Stream, flow: Flow, start: int) -> Flow:
        """What a stack gives in the end."""
        ahead.flow = ahead.pinned = flow
        for i in range(start, len(ahead.passage.blocks)):
            with self.source.hold(ahead.passage.blocks[i]) as block:
                ahead.move(self.passed(block, ahead, i))
        ahead.passage.last = ahead.flow
        return ahead.flow

    def _sizes(self, name: str) -> int:
        """Numbers in the matrices of a block that stays."""
        if name in self.gone:
            return 0
        return sum(p.numel() for p in self.model.get_submodule(name).parameters() if p.dim() > 1)
