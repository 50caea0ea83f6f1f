"""What experts give to the tokens that a router sends to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.inputs import Inputs, by_name, positional_names
from prunus.blocks.recipe import EXPERT
from prunus.blocks.units import Kind
from prunus.errors import InputError


class Routed:
    """The sums of gate × ‖output‖ over the tokens of each expert, and their counts.

    Args:
        experts: how many there are.

    Source: Lasby et al. 2025, REAP the experts, arXiv:2510.13999.
    """

    def __init__(self, experts: int) -> None:
        self.sums = torch.zeros(experts, dtype=torch.float64)
        self.counts = torch.zeros(experts, dtype=torch.float64)

    def add(self, module: nn.Module, inputs: Inputs) -> None:
        """One call of the module that holds all experts: tokens, their experts and gates.

        Raises:
            InputError: if it is called otherwise.
        """
        names = positional_names(module)
        given = by_name(names, inputs)
        args = [given.pop(name) for name in names if name in given] + [*given.values()]
        good = len(args) == 3 and all(isinstance(a, Tensor) for a in args)
        if not good or args[1].shape != args[2].shape or args[1].is_floating_point():
            raise InputError(
                f"structure: expert: {type(module).__name__} is not called with tokens, the "
                "experts of each and their gates"
            )
        tokens, chosen, gates = args
        for slot in range(chosen.shape[-1]):
            own, gate = chosen[:, slot : slot + 1], gates[:, slot : slot + 1]
            size = module.forward(tokens, own, torch.ones_like(gate)).double().norm(dim=-1)
            index = own[:, 0].cpu()
            self.sums.index_add_(0, index, (gate[:, 0].double() * size).cpu())
            self.counts.index_add_(0, index, torch.ones(len(index), dtype=torch.float64))

    def scores(self, units: int) -> Tensor:
        """The mean over an expert's tokens; of experts that go together, the sum.

        >>> found = Routed(2)
        >>> found.sums += torch.tensor([4.0, 0.0])
        >>> found.counts += torch.tensor([2.0, 0.0])
        >>> found.scores(2).tolist()
        [2.0, 0.0]
        """
        mean = self.sums / self.counts.clamp(min=1)
        return mean.view(-1, units).sum(0)


@contextmanager
def listening_to(block: nn.Module, kinds: Sequence[Kind]) -> Iterator[dict[int, Routed]]:
    """What goes through the experts of a block; by the identity of their kind."""
    found: dict[int, Routed] = {}
    with ExitStack() as hooks:
        for kind in kinds:
            if kind.part == EXPERT:
                owner = block.get_submodule(kind.members[0][0].rpartition(".")[0])
                routed = found[id(kind)] = Routed(len(kind.members[0][2]))

                def hook(module: nn.Module, *inputs: Any, routed: Routed = routed) -> None:
                    routed.add(module, inputs)

                handle = owner.register_forward_pre_hook(hook, with_kwargs=True)
                hooks.callback(handle.remove)
        yield found
