"""Where the blocks of a model are while they wait: here, all in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

Part = Callable[[str, Tensor], Tensor]
"""What is left of a block's tensor, by its name within the block."""


class Source(Protocol):
    """A model whose blocks come into memory one at a time.

    Attributes:
        model: its blocks compute inside :meth:`hold` alone.
        scratch: a folder for what does not fit into memory; ``None``: everything does.
        whole: the same model, none of its blocks passed over.
    """

    model: nn.Module
    scratch: Path | None

    @property
    def whole(self) -> Source:
        """Itself, where every block computes."""
        ...

    def hold(self, name: str) -> AbstractContextManager[nn.Module]:
        """A block with its weights in memory."""
        ...

    def note(self, name: str) -> None:
        """The block is about to change."""
        ...

    def keep(self, name: str, part: Part) -> None:
        """The block as it is now, inside :meth:`hold`, is the result; so much of its tensors."""
        ...

    def reset(self, name: str) -> None:
        """The block is again as it was given."""
        ...


class InMemory:
    """A model at hand, pruned in place."""

    scratch: Path | None = None

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._before: dict[str, list[Tensor]] = {}
        self.whole: Source = self

    @contextmanager
    def hold(self, name: str) -> Iterator[nn.Module]:
        """The block."""
        yield self.model.get_submodule(name)

    def keep(self, name: str, part: Part) -> None:
        """It is where it is."""

    def note(self, name: str) -> None:
        """Remember a block before it changes."""
        parameters = self.model.get_submodule(name).parameters()
        self._before.setdefault(name, [p.detach().clone() for p in parameters])

    @torch.no_grad()
    def reset(self, name: str) -> None:
        """Put the weights of a block back."""
        parameters = self.model.get_submodule(name).parameters()
        for parameter, before in zip(parameters, self._before.get(name, ()), strict=False):
            parameter.copy_(before)

    def undo(self) -> None:
        """Put all weights back."""
        for name in self._before:
            self.reset(name)
