"""Work that has nothing to do with the types in which its caller computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

KINDS = ("cpu", "cuda", "xpu", "mps")


@contextmanager
def without_autocast() -> Iterator[None]:
    """Operators compute in the types of what they are given, whatever the caller is inside of.

    >>> with torch.autocast("cpu", dtype=torch.bfloat16), without_autocast():
    ...     torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype
    torch.float32
    """
    with ExitStack() as stack:
        for kind in KINDS:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
