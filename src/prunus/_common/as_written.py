"""Code that ``torch.compile`` made runs as it was written, whoever else does so meanwhile."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from prunus._common.inputs import Inputs, called


class _Stance:
    """Torch has one for all threads: the first to come takes it, the last to go gives it back."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._taken: AbstractContextManager[None] | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """While anybody is inside, nothing is compiled, nor is what was compiled used."""
        with self._lock:
            if self._taken is None and "torch._dynamo" in sys.modules:  # else nothing is compiled
                self._taken = torch.compiler.set_stance("force_eager")
                self._taken.__enter__()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside and self._taken is not None:
                    self._taken.__exit__(None, None, None)
                    self._taken = None


_STANCE = _Stance()


def as_written() -> AbstractContextManager[None]:
    """Inside, whatever ``torch.compile`` made runs as it was written, in all threads.

    >>> compiled = torch.compile(lambda x: torch.compiler.is_compiling(), backend="eager")
    >>> with as_written():
    ...     compiled(torch.ones(1))
    False
    """
    return _STANCE.held()


def looked_into(model: Callable[..., Any], inputs: Inputs) -> Any:
    """What a model answers while somebody looks at its layers, and changes them between passes.

    Code that was compiled runs as it was written: hooks inside of it are not called else. Inside
    ``torch.autocast``, weights are taken as they are now: it keeps those of a pass before.
    """
    torch.clear_autocast_cache()
    with as_written():
        return called(model, inputs)
