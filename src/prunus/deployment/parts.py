"""A batch of any size through an artifact that takes one size alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunus.runtimes import Answers, Session


def in_parts(session: Session, inputs: Sequence[Tensor], *, count: int, size: int) -> Answers:
    """Answers to ``count`` inputs, ``size`` at a time; the last part is padded.

    Answers whose leading size is not the batch's cannot be put together so: whoever builds an
    artifact compares it at several batch sizes.
    """
    parts = []
    for start in range(0, count, size):
        piece = [_piece(t, start=start, size=size, count=count) for t in inputs]
        left = min(size, count - start)
        found = session.compute(piece)
        parts.append([t[:left] if t.dim() and len(t) == size else t for t in found])
    return [torch.cat(ts) if ts[0].dim() else ts[0] for ts in map(list, zip(*parts, strict=True))]


def _piece(tensor: Tensor, *, start: int, size: int, count: int) -> Tensor:
    if not tensor.dim() or len(tensor) != count:
        return tensor
    part = tensor[start : start + size]
    lacking = size - len(part)
    return torch.cat([part, part[-1:].expand(lacking, *part.shape[1:])]) if lacking else part
