"""What a smaller language model learns from the dense one: its likeliest words, and its stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.blocks.judge import SLICE, head_of, slices
from prunus.blocks.walk import called, passed_on, relayed


class Lesson:
    """The loss of a batch by a teacher's answers; it has gradients of the learner's parameters.

    KL(p ‖ q) + ‖h − t‖² / ‖t‖², the mean over tokens. Of many words, p and q are those of the
    teacher's ``top`` likeliest ones at each place, and of the words of the batch, renormalized. h
    and t are what the last block gives, where both are as wide.

    Args:
        teacher: the dense model.
        learner: the smaller one.
        last: the names of the last block of both.
        top: words at each place.

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531; the stream as Muralidharan et al. 2024,
    Minitron, arXiv:2407.14679.
    """

    def __init__(
        self, teacher: nn.Module, learner: nn.Module, last: tuple[str, str], top: int
    ) -> None:
        self.teacher, self.learner, self.last, self.top = teacher, learner, last, top

    def __call__(self, batch: Mapping[str, Any]) -> Tensor:
        """A scalar."""
        with torch.no_grad(), _heard(self.teacher, self.last[0]) as states:
            words = self._words(batch)
            wanted = _logits(self.teacher, batch, words)
            there = states[-1]
        with _heard(self.learner, self.last[1]) as states:
            found = _logits(self.learner, batch, words)
            here = states[-1]
        shares = wanted.float().log_softmax(-1)
        apart = functional.kl_div(
            found.float().log_softmax(-1), shares, reduction="none", log_target=True
        )
        loss = apart.sum(-1).mean()
        if here.shape == there.shape:
            far = (here.float() - there.float()).square().sum(-1)
            loss = loss + (far / there.float().square().sum(-1).clamp(min=1e-12)).mean()
        return loss

    def _words(self, batch: Mapping[str, Any]) -> Tensor | None:
        """The words at each place, ``[items, length, k]``; ``None``: all of them."""
        if head_of(self.teacher) is None:
            return None
        best: Tensor | None = None
        which: Tensor | None = None
        start = 0
        for part in slices(self.teacher, batch):
            value, index = part.topk(min(self.top, part.shape[-1]), dim=-1)
            index = index + start
            if best is not None and which is not None:
                value, index = torch.cat([best, value], -1), torch.cat([which, index], -1)
                value, order = value.topk(self.top, dim=-1)
                index = index.gather(-1, order)
            best, which = value, index
            start += part.shape[-1]
        assert which is not None
        ids = batch.get("decoder_input_ids", batch["input_ids"])
        shared = torch.unique(ids)[: SLICE // 4]
        return torch.cat([which, shared.expand(*which.shape[:2], -1)], -1)


def _logits(model: nn.Module, batch: Mapping[str, Any], words: Tensor | None) -> Tensor:
    """A model's logits of these words."""
    name = head_of(model)
    if words is None or name is None:
        found: Tensor = called(model, batch).logits
        return found
    head: Any = model.get_submodule(name)

    def of_words(x: Tensor) -> Tensor:
        made = [
            torch.einsum("ld,lkd->lk", states, head.weight[own])
            for states, own in zip(x, words, strict=True)
        ]
        logits = torch.stack(made)
        return logits if head.bias is None else logits + head.bias[words]

    with relayed(model, {name: of_words}):
        answer: Tensor = called(model, batch).logits
    return answer


@contextmanager
def _heard(model: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """What a block gives."""
    states: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(
        lambda _, args, out: states.append(passed_on(out))
    )
    try:
        yield states
    finally:
        hook.remove()
