"""The loss of a model whose blocks have been computed already, a slice of its answers at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus._common.inputs import arguments
from prunus.blocks.walk import Passage, called, relayed, through

SLICE = 16384
"""Words whose logits are held at a time."""

Loss = Callable[[nn.Module, Any], Tensor]


class Judge:
    """Says what a model's answers are worth.

    Args:
        loss: ``(model, batch) -> scalar``; by default that of the next token, in nats.
    """

    def __init__(self, loss: Loss | None = None) -> None:
        self.loss = loss

    def __call__(
        self, model: nn.Module, batches: Sequence[Any], passages: Sequence[Passage]
    ) -> float:
        """The mean loss on batches whose blocks gave ``passages``; NaN if there is none."""
        total, count = 0.0, 0
        for number, batch in enumerate(batches):
            with relayed(model, through(passages, number)):
                if self.loss is not None:
                    total, count = total + float(self.loss(model, batch)), count + 1
                    continue
                found = token_losses(model, batch)
            if found is None:
                return math.nan
            total, count = total + float(found.double().sum()), count + found.numel()
        return total / max(1, count)


def token_losses(model: nn.Module, batch: Any) -> Tensor | None:
    """−ln p of each token that follows another; ``None`` where a model says nothing of tokens.

    Tokens that the batch's ``attention_mask`` hides are left out.
    """
    known = targets_of(batch)
    if known is None:
        return None
    targets, counted = known
    top: Tensor | None = None
    log_normalizer: Tensor | None = None
    start = 0
    for logits in slices(model, batch):
        if logits.shape[:2] != (targets.shape[0], targets.shape[1] + 1):
            return None
        logits = logits[:, :-1].float()
        part = logits.logsumexp(-1)
        log_normalizer = part if log_normalizer is None else log_normalizer.logaddexp(part)
        inside = (targets >= start) & (targets < start + logits.shape[-1])
        at = (targets - start).clamp(0, logits.shape[-1] - 1)
        value = logits.gather(-1, at[..., None])[..., 0]
        top = torch.where(inside, value, torch.zeros_like(value) if top is None else top)
        start += logits.shape[-1]
    if log_normalizer is None or top is None or int(targets.max()) >= start:
        return None
    return (log_normalizer - top)[counted]


def targets_of(batch: Any) -> tuple[Tensor, Tensor] | None:
    """The tokens to be told of a batch of token ids, ``[items, length − 1]``, and which count."""
    args, kwargs = arguments(batch)
    ids = kwargs.get("input_ids", args[0] if args else None)
    written = kwargs.get("decoder_input_ids")  # where there is an encoder, its decoder is judged
    ids = kwargs.get("labels", ids) if written is None else written
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dim() != 2:
        return None
    if ids.shape[1] < 2:
        return None
    mask = kwargs.get("attention_mask" if written is None else "decoder_attention_mask")
    counted = torch.ones_like(ids, dtype=torch.bool)
    if isinstance(mask, Tensor) and mask.shape == ids.shape:
        counted = mask.bool()
    counted = counted & (ids >= 0)  # −100 says that a label does not count
    return ids[:, 1:].clamp(min=0), counted[:, 1:] & counted[:, :-1]


def slices(model: nn.Module, batch: Any) -> Iterator[Tensor]:
    """A model's logits ``[items, length, words]``, so many words at a time.

    The layer that gives them computes some of its rows at a time; what the model does to them
    afterwards (a cap, a factor) must be word by word.
    """
    name = head_of(model)
    if name is None:
        found = _logits(called(model, batch))
        if found is not None:
            yield found
        return
    head: Any = model.get_submodule(name)
    weight, bias = head.weight, head.bias
    for start in range(0, len(weight), SLICE):
        rows = slice(start, start + SLICE)

        def part(x: Tensor, rows: slice = rows) -> Tensor:
            own = None if bias is None else bias[rows].to(x.dtype)
            return functional.linear(x, weight[rows].to(x.dtype), own)

        with relayed(model, {name: part}):
            found = _logits(called(model, batch))
        if found is None:
            return
        yield found


def head_of(model: nn.Module) -> str | None:
    """The name of a large linear layer that gives a model's answers."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    if not isinstance(head, nn.Linear) or head.weight.shape[0] <= SLICE:
        return None
    return next((name for name, module in model.named_modules() if module is head), None)


def _logits(answer: Any) -> Tensor | None:
    found = getattr(answer, "logits", None)
    if found is None:
        found = answer[0] if isinstance(answer, (tuple, list)) and answer else answer
    good = isinstance(found, Tensor) and found.dim() == 3 and found.is_floating_point()
    return found if good else None
