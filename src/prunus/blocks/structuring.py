"""Takes units out of one block after the other, and shows each smaller block to be equal."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunus._common.modules import joined
from prunus.blocks.fewer import PassedOver
from prunus.blocks.gate import checked
from prunus.blocks.matrices import Matrix, listening
from prunus.blocks.recipe import EXPERT, BlockRecipe
from prunus.blocks.routed import Routed, listening_to
from prunus.blocks.sizes import Sizes
from prunus.blocks.solving import Heard, Solving
from prunus.blocks.source import Part
from prunus.blocks.surgeon import costs, damped, refit
from prunus.blocks.uneven import Changes, changes_of
from prunus.blocks.units import Cut, Kind, cut_of, taken
from prunus.blocks.walk import Call
from prunus.errors import RunError
from prunus.types import Kept


class Structuring(Solving):
    """Takes whole units out of one block after the other.

    While the walk goes on they are zeros, and the matrices that read them are fitted anew; what is
    kept of a block is what is left without them.

    Attributes:
        sizes: what can go.
        kept: by block, the indices that stay of its tensors.
        used: by block, the rate at which it lost units; ``None``: it is whole.
    """

    def __init__(self, model: nn.Module, how: BlockRecipe, sizes: Sizes, *, masks: bool) -> None:
        super().__init__(model, how, masks=masks)
        self.statistic = "hessian"
        self.sizes, self._model = sizes, model
        self.kept: dict[str, Kept] = {}
        self.used: dict[str, float | None] = {}
        self._cut = Cut({}, {}, [])
        self._routed: dict[int, Routed] = {}

    @contextmanager
    def hearing(self, block: nn.Module, statistic: str | None = None) -> Iterator[Heard]:
        """What the matrices that read units multiply."""
        heard = Heard(self.statistic if statistic is None else statistic)
        name = next((n for n in self.sizes.kinds if self._model.get_submodule(n) is block), "")
        kinds = self.sizes.kinds.get(name, [])
        own = dict(block.named_parameters())
        readers: dict[Matrix, bool] = {}

        def hear(matrix: Matrix, read: Tensor) -> None:
            if matrix not in readers:
                readers[matrix] = any(kind.columns(matrix, own) is not None for kind in kinds)
            if readers[matrix]:
                heard(matrix, read)

        if isinstance(block, PassedOver):
            block.gone = False  # until it goes, as what others lose is still there
        with listening(block, hear), listening_to(block, kinds) as self._routed:
            yield heard

    def solve(
        self, name: str, block: nn.Module, heard: Heard, rate: float | None
    ) -> dict[str, Tensor]:
        """Set units of a block to zero, and make it good in what reads them."""
        own = dict(block.named_parameters())
        if isinstance(block, PassedOver):
            block.gone = True
            self.weights[name] = self.zeros[name] = sum(p.numel() for p in own.values())
            self.kept[name] = {}
            return {}
        rows = dict(heard.rows)
        moments: dict[Matrix, Tensor] = {}
        for matrix in rows if rate is not None else ():
            try:
                moments[matrix] = damped(heard.of(matrix))
            except RunError as error:
                raise RunError(f"'{joined(name, matrix.name)}' {error}") from None
        gone = [
            (
                kind,
                self._routed[id(kind)].scores(kind.units).argsort(stable=True)[:count]
                if kind.part == EXPERT
                else _cheapest(kind, count, own, moments, rows),
            )
            for kind, count in self.sizes.gone(name, rate)
        ]
        for matrix, hessian in moments.items():
            stays = torch.ones(matrix.shape[1], dtype=torch.bool)
            for kind, units in gone:
                columns = kind.columns(matrix, own)
                if columns is not None:
                    stays &= ~torch.isin(columns, units)
            place = matrix.of(own[matrix.name].detach())
            place.copy_(refit(place, hessian, stays.to(place.device)))
        self._cut = cut_of(gone, own)
        masks, kept = dict(self._cut.masks), self._cut.kept
        for inner, mask in masks.items():
            own[inner].data.masked_fill_(~mask.to(own[inner].device), 0)
        self.kept[name], self.used[name] = kept, rate
        self.weights[name] = sum(p.numel() for p in own.values())
        self.zeros[name] = self.weights[name] - sum(
            taken(p.detach(), kept.get(n, ())).numel() for n, p in own.items()
        )
        self._keep_masks(name, masks)
        return masks

    def small(self, name: str, block: nn.Module) -> nn.Module:
        """What computes as the smaller block does: where experts are gone, that one itself."""
        if not any(kind.router for kind, _ in self._cut.gone) or isinstance(block, PassedOver):
            return block
        fresh = self.sizes.at(self.used[name]).fresh
        assert fresh is not None
        made = copy.deepcopy(fresh.get_submodule(self.sizes.names[name]))
        kept = self.kept[name]
        state = {n: taken(t, kept.get(n, ())) for n, t in block.state_dict().items()}
        made.load_state_dict(state, assign=True)
        return made.train(block.training)

    def settled(self, name: str, block: nn.Module, x: Tensor, call: Call) -> Part:
        """What stays of a block, after its smaller one has answered as it does, in float64.

        Raises:
            RunError: if it answers otherwise.
        """
        if name in self.sizes.names and (made := self.sizes.at(self.used[name])).fresh is not None:
            fresh = made.fresh.get_submodule(self.sizes.names[name])
            masked = replace(self._cut, masks={})  # which it is already
            self.gate = max(self.gate, checked(name, block, fresh, masked, x, call))
        kept = self.kept[name]
        return lambda inner, tensor: taken(tensor, kept.get(inner, ()))

    def even(self) -> nn.Module | None:
        """The smaller model, its weights on the meta device, where one configuration says all."""
        made = {id(m): m for rate in self.used.values() for m in (self.sizes.at(rate),)}
        made = made or {0: self.sizes.whole}
        return next(iter(made.values())).fresh if len(made) == 1 else None

    def changes(self, name: str) -> tuple[str, Changes]:
        """The configuration of a model whose blocks are all like this one; its numbers.

        Raises:
            RunError: if there is none.
        """
        made = self.sizes.at(self.used[name])
        if made.fresh is None:
            raise RunError(f"'{name}': no configuration says the sizes that are left: {made.why}")
        return made.said, changes_of(self.sizes.model, made.fresh, self.sizes.names[name])

    def reached(self, name: str) -> float:
        """The rate at which a block lost units."""
        return self.used.get(name) or 0.0


def _cheapest(
    kind: Kind,
    count: int,
    own: Mapping[str, Tensor],
    moments: Mapping[Matrix, Tensor],
    rows: Mapping[Matrix, int],
) -> Tensor:
    """The units that cost least, of all that reads them."""
    total = torch.zeros(kind.units, dtype=torch.float64)
    for matrix, hessian in moments.items():
        columns = kind.columns(matrix, own)
        if columns is not None:
            weight = matrix.of(own[matrix.name].detach())
            total += rows[matrix] * costs(weight, hessian, columns, kind.units).cpu()
    return total.argsort(stable=True)[:count]
