"""What a criterion reads of the training itself, taken in at every optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunus.compaction.cut import take
from prunus.progressive.selector import Selector
from prunus.pruning.masks import beside
from prunus.pruning.optimizers import AnyOptimizer, each_of, parameters_of, uncompiled
from prunus.types import Kept

Parameters = Callable[[], Mapping[str, nn.Parameter]]


class Running:
    """Tensors by parameter name, which grow with the steps of an optimizer.

    Args:
        selector: whose criterion says what it reads.
        parameters: that are scored, as they are now.

    Attributes:
        tensors: so far.
    """

    def __init__(self, selector: Selector, parameters: Parameters) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._parameters, self._updates = parameters, selector.updates
        self._reads = selector.recipe.trait("criterion", "BEFORE")
        self._before: dict[str, Tensor] = {}

    def attach(self, optimizer: AnyOptimizer, hooks: ExitStack) -> None:
        """Keep weights from before each step, where they are read, until the hooks are closed."""
        for one in each_of(optimizer) if self._reads else ():
            hooks.callback(one.register_step_pre_hook(uncompiled(self._keep)).remove)

    @torch.no_grad()
    def _keep(self, optimizer: Optimizer, *_: object) -> None:
        if self._reads == "first" and self.tensors:
            return
        trained = parameters_of(optimizer)
        scored = self._parameters().items()
        self._before |= {n: p.detach().clone() for n, p in scored if id(p) in trained}

    def after_step(self) -> None:
        """Take in a step that changed the weights."""
        for update in self._updates:
            update(self.tensors, self._parameters(), self._before)
        self._before = {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Return to what they were."""
        self.tensors = beside(self._parameters(), tensors)

    def follow(self, kept: Kept) -> None:
        """Of a model that became smaller."""
        self.tensors = {n: take(t, kept[n]) if n in kept else t for n, t in self.tensors.items()}
