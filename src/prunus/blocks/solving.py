"""The matrices of one block: what they multiply, and what of them stays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.modules import joined
from prunus._common.names import each_meant, plain_names
from prunus.blocks.matrices import Matrix, listening
from prunus.blocks.recipe import BlockRecipe
from prunus.blocks.source import Part, Source
from prunus.blocks.walk import Call
from prunus.errors import RunError
from prunus.methods.solvers import statistic_of
from prunus.recipe.resolve import bind

OUTLIER = 5.0
"""Times the mean of a matrix's \\|w\\| ‖x‖."""


@dataclass
class Heard:
    """What the matrices of a block multiply, batch by batch.

    Attributes:
        statistic: ``squares``, ``hessian`` or empty.
        sums: of each matrix.
        rows: how many it multiplied.
    """

    statistic: str
    sums: dict[Matrix, Tensor] = field(default_factory=dict)
    rows: dict[Matrix, int] = field(default_factory=dict)
    _batch: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, matrix: Matrix, read: Tensor) -> None:
        """Add what a matrix multiplies; matrices that read the same share the work."""
        key = (read.data_ptr(), read.shape, read.stride(), read._version)
        if key not in self._batch:
            self._batch[key] = (read, self._of(read))
        made = self._batch[key][1]
        self.rows[matrix] = self.rows.get(matrix, 0) + len(read)
        if matrix in self.sums:
            self.sums[matrix].add_(made)
        else:
            self.sums[matrix] = made.to(torch.float64, copy=True)

    def _of(self, read: Tensor) -> Tensor:
        if not self.statistic:
            return read.new_zeros(())
        if self.statistic == "squares":
            norms: Tensor = torch.linalg.vector_norm(read, dim=0, dtype=torch.float64)
            return norms.square()
        exact = read if read.dtype == torch.float64 else read.float()
        return exact.T @ exact

    def batch_ends(self) -> None:
        """Forget which values were the same: their memory is given to others."""
        self._batch.clear()

    def of(self, matrix: Matrix) -> Tensor:
        """The mean over the rows, in float64; it is not kept.

        Raises:
            RunError: if it is not finite.
        """
        mean = self.sums.pop(matrix).div_(self.rows[matrix])
        if not bool(torch.isfinite(mean).all()):
            raise RunError("is multiplied by NaN or infinity on the calibration data")
        return mean


class Solving:
    """Chooses in one block after the other.

    Attributes:
        turns: whether streams inside of the blocks are not as the model reads them.
        masks: by full parameter name, where they are kept.
        stayed: matrices that stay whole, and why.
        zeros, weights: of the matrices of each block that were pruned.
        gate: the largest difference of a smaller block's answer so far, where it becomes smaller.
    """

    turns = False

    def __init__(self, model: nn.Module, how: BlockRecipe, *, masks: bool) -> None:
        self.how = how
        self.solver = bind("solvers", how.solver)
        self.statistic = statistic_of(self.solver)
        self.masks: dict[str, Tensor] = {}
        self.stayed: dict[str, str] = {}
        self.zeros: dict[str, int] = {}
        self.weights: dict[str, int] = {}
        self.gate = 0.0
        self._keep, self._spared = masks, excluded(model, how)
        names: dict[int, int] = {}
        for _, p in model.named_parameters(remove_duplicate=False):
            names[id(p)] = names.get(id(p), 0) + 1
        self._shared = {
            n for n, p in model.named_parameters(remove_duplicate=False) if names[id(p)] > 1
        }

    def take(self, at: Any) -> None:
        """Go on from what was noted."""
        self.zeros, self.weights, self.stayed, self.gate = at.zeros, at.weights, at.stayed, at.gate

    @contextmanager
    def hearing(self, block: nn.Module, statistic: str | None = None) -> Iterator[Heard]:
        """What the block's matrices multiply inside."""
        heard = Heard(self.statistic if statistic is None else statistic)
        with listening(block, heard):
            yield heard

    def solve(
        self, name: str, block: nn.Module, heard: Heard, rate: float | None
    ) -> dict[str, Tensor]:
        """Set to zero in a block what its rate asks for; ``None``: it stays whole.

        Returns:
            Masks by the parameter's name within the block.

        Raises:
            RunError: if what a matrix multiplies is not finite.
        """
        own = dict(block.named_parameters())
        masks: dict[str, Tensor] = {}
        solved: set[str] = set()
        self.zeros[name] = self.weights[name] = 0
        for matrix in list(heard.rows):
            full = joined(name, matrix.name)
            why = self._whole(full, matrix)
            if why:
                self.stayed[full] = why
                heard.sums.pop(matrix)
                continue
            solved.add(matrix.name)
            self.weights[name] += math.prod(matrix.shape)
            if rate is None:
                continue
            try:
                kept = self._one(matrix, own[matrix.name], heard, rate)
            except RunError as error:
                raise RunError(f"'{full}' {error}") from None
            if self._keep or self.how.repair is not None:
                whole = torch.ones_like(own[matrix.name], dtype=torch.bool)
                matrix.of(masks.setdefault(matrix.name, whole)).copy_(kept)
            self.zeros[name] += int((~kept).sum())
        for inner, parameter in own.items():
            full = joined(name, inner)
            if parameter.dim() > 1 and inner not in solved and full not in self.stayed:
                self.stayed[full] = "nothing is multiplied with it on the calibration data"
        self._keep_masks(name, masks)
        return masks

    def _keep_masks(self, name: str, masks: Mapping[str, Tensor]) -> None:
        """Those of a block, in the place of an earlier try's."""
        if self._keep:
            rest = {n: m for n, m in self.masks.items() if not n.startswith(f"{name}.")}
            self.masks = rest | {joined(name, inner): mask for inner, mask in masks.items()}

    def small(self, name: str, block: nn.Module) -> nn.Module:
        """What computes as the block does from now on: the block, here."""
        return block

    @contextmanager
    def around(self, stream: str) -> Iterator[None]:
        """While the model computes for a stream what is in no block: as it is, here."""
        yield

    def entering(self, stream: str, x: Tensor, first: str) -> Tensor:
        """What comes to the first block of a stack: what the model gives, here."""
        return x

    def leaving(self, x: Tensor) -> Tensor:
        """What the last block gives, as the model reads it."""
        return x

    def begun(self, name: str, block: nn.Module, source: Source, x: Tensor, call: Call) -> None:
        """A block is there, and nothing has been chosen."""

    def settled(self, name: str, block: nn.Module, x: Tensor, call: Call) -> Part:
        """What is left of a block's tensors: all of them, here."""
        return lambda inner, tensor: tensor

    def reached(self, name: str) -> float:
        """The rate that a block came to."""
        return self.zeros[name] / max(1, self.weights[name])

    def _one(self, matrix: Matrix, parameter: Tensor, heard: Heard, rate: float) -> Tensor:
        place = matrix.of(parameter.detach())
        given = {self.statistic: heard.of(matrix)} if self.statistic else {}
        exact = place if place.dtype == torch.float64 else place.float()
        mask, made = self.solver(weight=exact, pattern=self.how.pattern(rate), **given)
        place.copy_(made.to(place.dtype))
        return mask  # type: ignore[no-any-return]

    def _whole(self, full: str, matrix: Matrix) -> str:
        """Why a matrix stays whole, if it does."""
        if full in self._spared:
            return "excluded"
        if full in self._shared:
            return "its weight is used elsewhere"
        inputs = matrix.shape[1]
        if self.how.n_of_m is not None and inputs % self.how.n_of_m[1]:
            return f"{inputs} inputs are no multiple of {self.how.n_of_m[1]}"
        return ""


def excluded(model: nn.Module, how: BlockRecipe) -> set[str]:
    """The parameters that a recipe excludes."""
    said = "exclude: … matches no parameter"
    named = each_meant(how.exclude, plain_names(model), said).values()
    return {name for own in named for name in own}


def outliers(block: nn.Module, heard: Heard) -> float:
    """The part of a block's \\|w_ij\\| ‖x_j‖ that are above five times the mean of their matrix.

    Source: Yin et al. 2024, arXiv:2310.05175.
    """
    own, above, every = dict(block.named_parameters()), 0, 0
    for matrix, squares in heard.sums.items():
        norms = (squares / heard.rows[matrix]).sqrt().to(own[matrix.name])
        scores = matrix.of(own[matrix.name].detach()).abs() * norms
        above += int((scores > OUTLIER * scores.mean()).sum())
        every += scores.numel()
    return above / max(1, every)
