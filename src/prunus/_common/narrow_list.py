"""A list of modules of which some were taken out."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from torch import nn

from prunus.errors import InputError


class NarrowList(nn.ModuleList):
    """What is left of an ``nn.ModuleList``: counted from 0 without gaps, under the names it had.

    Code that counts, indexes and iterates sees a list of fewer modules; parameters keep their
    names, so that masks, optimizers and files speak of the same ones before and behind.

    Args:
        modules: what is left, by the keys in the list that it comes from.

    Raises:
        InputError: on adding or removing modules, whose names would be others' or others would
            have theirs.

    >>> left = NarrowList({"0": nn.Identity(), "3": nn.Linear(1, 1, bias=False)})
    >>> len(left), left[1], [name for name, _ in left.named_parameters()]
    (2, Linear(in_features=1, out_features=1, bias=False), ['3.weight'])
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for key, module in modules.items():
            self.add_module(key, module)

    def __getitem__(self, idx: Any) -> Any:
        left = list(self._modules.values())
        return nn.ModuleList(left[idx]) if isinstance(idx, slice) else left[operator.index(idx)]

    def __setitem__(self, idx: int, module: nn.Module) -> None:
        self.add_module(list(self._modules)[operator.index(idx)], module)

    def __delitem__(self, idx: int | slice) -> NoReturn:
        self._refuse()

    def insert(self, index: int, module: nn.Module) -> NoReturn:
        """Refused."""
        self._refuse()

    def append(self, module: nn.Module) -> NoReturn:
        """Refused."""
        self._refuse()

    def extend(self, modules: Iterable[nn.Module]) -> NoReturn:
        """Refused."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(
            f"entries of this list were taken out, and its {len(self)} others keep their names "
            f"({', '.join(self._modules)}): make a new list first, nn.ModuleList([*this])"
        )
