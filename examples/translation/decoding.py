"""Decoding with a cache: the likeliest token each time, or the best of several beams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.methods.catalog import module_at

TEXT = module_at(Path(__file__).with_name("text.py"))
NONE, BEGIN, END, LENGTH = TEXT.NONE, TEXT.BEGIN, TEXT.END, TEXT.LENGTH


def most_tokens(source: Tensor) -> int:
    """How long a translation may become: half as long again as its source, and ten."""
    return min(LENGTH, source.shape[1] * 3 // 2 + 10)


@torch.no_grad()
def greedy(model: Any, source: Tensor) -> Tensor:
    """The likeliest token each time: ``[b, n]`` to ``[b, m]``, ``NONE`` behind the end."""
    cache = model.start(source)
    tokens = torch.full((len(source),), BEGIN)
    done = torch.zeros(len(source), dtype=torch.bool)
    said = []
    for place in range(most_tokens(source)):
        scores, cache = model.step(tokens, place, cache)
        tokens = scores.argmax(1).masked_fill(done, NONE)
        said.append(tokens)
        done |= tokens == END
        if bool(done.all()):
            break
    return torch.stack(said, 1)


@torch.no_grad()
def beam(model: Any, source: Tensor, *, width: int = 4) -> Tensor:
    """The best of ``width`` beams: ``[b, n]`` to ``[b, m]``.

    What ended is ranked by its mean log-probability per token, its end counted (a penalty of the
    length with α = 1).

    Source: Graves 2012, arXiv:1211.3711; Wu et al. 2016, arXiv:1609.08144, for the penalty.
    """
    count, most = len(source), most_tokens(source)
    rows = torch.arange(count).repeat_interleave(width)
    cache = model.start(source).rows(rows)
    tokens = torch.full((count * width,), BEGIN)
    total = torch.full((count, width), -torch.inf)
    total[:, 0] = 0  # the beams are one until the first word
    said = torch.full((count, width, most), NONE)
    best = torch.full((count,), -torch.inf)
    answer = torch.full((count, most), NONE)
    for place in range(most):
        scores, cache = model.step(tokens, place, cache)
        each = total[:, :, None] + scores.log_softmax(1).view(count, width, -1)
        if place == most - 1:  # whatever it is, it ends here
            each = torch.full_like(each, -torch.inf).scatter(
                2, torch.full((count, width, 1), END), each[:, :, END : END + 1]
            )
        ended = each[:, :, END] / (place + 1)
        found, which = ended.max(1)
        better = found > best
        best = torch.where(better, found, best)
        full = said[torch.arange(count), which].clone()
        full[:, place] = END
        answer[better] = full[better]
        each[:, :, END] = -torch.inf
        total, flat = each.flatten(1).topk(width, dim=1)
        before, word = flat // scores.shape[1], flat % scores.shape[1]
        said = said.gather(1, before[:, :, None].expand(-1, -1, most)).clone()
        said[:, :, place] = word
        if bool((total.max(1).values / (place + 2) < best).all()):
            break
        cache = cache.rows((torch.arange(count)[:, None] * width + before).flatten())
        tokens = word.flatten()
    return answer


def texts(tokenizer: Any, tokens: Tensor) -> list[str]:
    """The sentences of ``[b, m]``, each up to its end."""
    rows = [row[: row.index(END)] if END in row else row for row in tokens.tolist()]
    plain = [[t for t in row if t > END] for row in rows]
    return [text.strip() for text in tokenizer.decode_batch(plain)]
