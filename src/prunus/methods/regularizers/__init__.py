"""What pulls weights toward zero while they train: ``(pull) -> None``, in place.

One file, one regularizer: a function of the file's name, called after every optimizer step with
weights, learning rates and units. It acts beside the gradient (as decoupled weight decay does), so
that it is the same in any loop, under gradient scaling and clipping, and for any optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from prunus.types import Group


@dataclass(frozen=True)
class Pull:
    """What a regularizer works on.

    Attributes:
        weights: the scored weights that train, to be changed in place.
        scales: of the batch norms behind the units, likewise.
        rates: the learning rate of each of them.
        groups: the units.
        going: of the weights that the target will take, True where one will go.
        step: optimizer steps of this training so far, this one included.
    """

    weights: Mapping[str, Tensor]
    scales: Mapping[str, Tensor]
    rates: Mapping[str, float]
    groups: Sequence[Group]
    going: Mapping[str, Tensor]
    step: int
