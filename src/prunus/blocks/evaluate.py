"""Two models of blocks on the same text: perplexity, divergence, agreement, questions."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from prunus._common.modules import evaluating
from prunus.blocks.flow import Flow
from prunus.blocks.judge import slices, targets_of, token_losses
from prunus.blocks.source import Source
from prunus.blocks.walk import Passage, given_by, passage_of, relayed, stacks_of, through
from prunus.errors import InputError


@dataclass(frozen=True)
class Estimate:
    """A mean over windows of text.

    Attributes:
        mean: of the windows' means.
        within: half of its 95 % interval (Student's t over windows); NaN of one window.
    """

    mean: float
    within: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Of the value of each window.

        >>> Estimate.of([1.0, 3.0]).mean
        2.0
        """
        numbers = torch.tensor(values, dtype=torch.float64)
        if len(values) < 2:
            return cls(float(numbers.mean()), math.nan)
        spread = float(numbers.std()) / math.sqrt(len(values))
        return cls(float(numbers.mean()), float(stats.t.ppf(0.975, len(values) - 1)) * spread)


@dataclass(frozen=True)
class Comparison:
    """What a smaller model says beside the dense one, window by window of the same text.

    Attributes:
        dense, small: losses in nats a token; e to it is the perplexity.
        apart: small − dense.
        divergence: KL (dense ‖ small), in nats a token.
        agreement: the part of tokens of which both hold the same next one most likely.
        tokens: that were judged.
    """

    dense: Estimate
    small: Estimate
    apart: Estimate
    divergence: Estimate
    agreement: Estimate
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        found = {k: v if isinstance(v, int) else vars(v) for k, v in vars(self).items()}
        return {**found, "perplexity": [math.exp(self.dense.mean), math.exp(self.small.mean)]}


def read_through(
    source: Source, batches: Sequence[Any], blocks: str | None = None
) -> list[Passage]:
    """Let batches through all blocks of a model, one block at a time in memory.

    Args:
        source: of the model.
        batches: what it is called with.
        blocks: the name of the list of blocks, if it is not the largest.
    """
    passages: list[Passage] = []
    files = itertools.count()

    def place() -> Path | None:
        scratch = source.scratch
        return None if scratch is None else scratch / f"read-{next(files)}-{id(source)}.bin"

    with torch.no_grad(), evaluating(source.model):
        for stack in stacks_of(source.model, blocks):
            passage = passage_of(source.model, stack, batches, before=passages, hold=source.hold)
            flow = Flow(passage.first, place())
            for i, name in enumerate(stack):
                with source.hold(name) as block:
                    onward = Flow(_outputs(block, passage, i, flow), place())
                flow.drop()
                flow = onward
            passage.last = flow
            passages.append(passage)
    return passages


def _outputs(block: nn.Module, passage: Passage, i: int, flow: Flow) -> Iterator[Tensor]:
    for call, x in zip(passage.calls[i], flow, strict=True):
        yield given_by(block, x, call)


def drop(passages: Sequence[Passage]) -> None:
    """Let the files of a reading go."""
    for passage in passages:
        if isinstance(passage.last, Flow):
            passage.last.drop()


def compare(dense: Source, small: Source, batches: Sequence[Any]) -> Comparison | None:
    """Both models on the same batches; ``None`` where they give no logits of tokens.

    Args:
        dense: one model.
        small: what was made of it.
        batches: of token ids.
    """
    sides = [(s.model, read_through(s, batches)) for s in (dense, small)]
    rows: list[list[float]] = []
    tokens = 0
    try:
        with torch.no_grad():
            for number, batch in enumerate(batches):
                found = _beside(sides, number, batch)
                if found is None:
                    return None
                tokens += int(found[4].sum())
                weight = found[4].double()
                each = [
                    (v.double() * weight).sum(1) / weight.sum(1).clamp(min=1) for v in found[:4]
                ]
                rows.extend(torch.stack(each, 1)[weight.sum(1) > 0].tolist())
    finally:
        for _, passages in sides:
            drop(passages)
    columns = list(zip(*rows, strict=True))
    apart = [b - a for a, b in zip(columns[0], columns[1], strict=True)]
    first, second, divergence, agreement = (Estimate.of(c) for c in columns)
    return Comparison(first, second, Estimate.of(apart), divergence, agreement, tokens)


def _beside(
    sides: Sequence[tuple[nn.Module, list[Passage]]], number: int, batch: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None:
    """Losses of both, divergence and agreement of each token, and which count."""
    known = targets_of(batch)
    if known is None:
        return None
    targets, counted = known
    ways = [_slices(model, passages, number, batch) for model, passages in sides]
    state = [_Running(targets), _Running(targets)]
    weighted = torch.zeros(targets.shape)
    start = 0
    for first, second in zip(*ways, strict=True):
        if first.shape[1] != targets.shape[1] + 1 or first.shape != second.shape:
            return None
        a, b = first[:, :-1].float(), second[:, :-1].float()
        before = state[0].top.clone()
        state[0].add(a, start)
        state[1].add(b, start)
        rescale = (before - state[0].top).exp()
        shares = (a - state[0].top[..., None]).exp_()
        weighted = weighted * rescale + (shares * (a - b)).sum(-1)
        start += a.shape[-1]
    if not start or int(targets.max()) >= start:
        return None
    one, other = state
    divergence = weighted / one.total - one.normalizer() + other.normalizer()
    agreement = (one.best == other.best).float()
    return one.loss(), other.loss(), divergence, agreement, counted


class _Running:
    """The normalizer, the likeliest word and the target's logit, slice by slice."""

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets
        self.top = torch.full(targets.shape, -math.inf)
        self.total = torch.zeros(targets.shape)
        self.best = torch.zeros_like(targets)
        self.value = torch.zeros(targets.shape)

    def add(self, logits: Tensor, start: int) -> None:
        """Take in the words from a place on."""
        most, where = logits.max(-1)
        self.best = torch.where(most > self.top, where + start, self.best)
        top = torch.maximum(self.top, most)
        self.total = self.total * (self.top - top).exp() + (logits - top[..., None]).exp().sum(-1)
        self.top = top
        inside = (self.targets >= start) & (self.targets < start + logits.shape[-1])
        at = (self.targets - start).clamp(0, logits.shape[-1] - 1)
        self.value = torch.where(inside, logits.gather(-1, at[..., None])[..., 0], self.value)

    def normalizer(self) -> Tensor:
        """ln Σ exp."""
        return self.top + self.total.log()

    def loss(self) -> Tensor:
        """−ln p of the target."""
        return self.normalizer() - self.value


def _slices(model: nn.Module, passages: list[Passage], number: int, batch: Any) -> Iterator[Tensor]:
    found = slices(model, batch)
    while True:
        with relayed(model, through(passages, number)):
            part = next(found, None)
        if part is None:
            return
        yield part


@dataclass(frozen=True)
class Question:
    """A question whose answer is one of several.

    Attributes:
        prompt: token ids.
        choices: token ids of each.
        answer: the place of the right one.
    """

    prompt: list[int]
    choices: list[list[int]]
    answer: int


def questions_of(path: Path, tokenizer: Any) -> list[Question]:
    """Questions of a ``.jsonl``: ``question``, ``choices`` and ``answer`` (a place) a line.

    Raises:
        InputError: for a line that is none, naming it.
    """
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' cannot be read: {error}") from error
    for number, line in enumerate(filter(str.strip, lines), 1):
        try:
            row = json.loads(line)
            prompt, choices, answer = row["question"], row["choices"], row["answer"]
            if not (isinstance(prompt, str) and isinstance(choices, list) and len(choices) > 1):
                raise ValueError("question is a text and choices are at least two")
            if not (isinstance(answer, int) and 0 <= answer < len(choices)):
                raise ValueError(f"answer is the place of a choice, 0 to {len(choices) - 1}")
            if not all(isinstance(c, str) and c for c in choices):
                raise ValueError("choices are texts")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"'{path}', line {number}: {error}") from error
        ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prompt, *choices)]
        start = getattr(tokenizer, "bos_token_id", None)
        found.append(Question(([] if start is None else [start]) + ids[0], ids[1:], answer))
    if not found:
        raise InputError(f"'{path}' holds no question")
    return found


def accuracy(source: Source, questions: Sequence[Question]) -> Estimate:
    """The part of questions of which the likeliest choice, by ln p a token, is the right one."""
    batches = [
        {"input_ids": torch.tensor([q.prompt + choice])} for q in questions for choice in q.choices
    ]
    passages = read_through(source, batches)
    means: list[float] = []
    try:
        with torch.no_grad():
            each = (choice for question in questions for choice in question.choices)
            for number, (batch, choice) in enumerate(zip(batches, each, strict=True)):
                with relayed(source.model, through(passages, number)):
                    losses = token_losses(source.model, batch)
                if losses is None:
                    raise InputError("the model gives no logits of tokens: it answers no question")
                means.append(float(losses.double()[-len(choice) :].mean()))
    finally:
        drop(passages)
    left, right = iter(means), []
    for question in questions:
        own = [next(left) for _ in question.choices]
        right.append(float(own.index(min(own)) == question.answer))
    return Estimate.of(right)
