"""What is left of a block's matrices, fitted to what the dense block's give of the dense stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus._common.activations import FarEnough
from prunus.blocks.matrices import Matrix, listening
from prunus.blocks.walk import Call, given_by
from prunus.errors import RunError

RIDGE = 1e-3
"""The pull toward the present weights, as a part of the mean of the moments' diagonal."""


@dataclass(frozen=True)
class Way:
    """Batches that come to a block.

    Attributes:
        flow: what it reads.
        calls: its other arguments.
    """

    flow: Sequence[Tensor]
    calls: Sequence[Call]


def fit(
    block: nn.Module, before: nn.Module, ways: tuple[Way, Way], masks: Mapping[str, Tensor]
) -> None:
    """min Σ_t ‖V·u_t + c − W·x_t − b‖² + λ‖[V c] − [V₀ c₀]‖², over what stays of each matrix V.

    x_t is what a matrix W of the dense block multiplies when dense data come to it, u_t what V does
    in the cut one on its own data, V₀ what V is now. They are fitted in the order of a pass, so
    that u_t is what those before give that are fitted already. Matrices that read the same are
    fitted together. Stacks of experts, which choose their rows, and matrices that multiply
    something else than one row for each place stay as they are.

    Args:
        block: with zeros, in place.
        before: the dense one.
        ways: batches that come to ``block`` and, the same ones, to ``before``.
        masks: of parameters, True = kept, broadcastable.

    Raises:
        RunError: if what is multiplied is not finite.

    Source: He, Zhang, Sun 2017, arXiv:1707.06168, who fit to the dense model's answers as well.
    """
    own = dict(block.named_parameters())
    for group in _order(block, ways[0]):
        matrices = [m for m in group if own[m.name].dim() == 2 and m.name in masks]
        found = _moments(block, before, ways, group[0]) if matrices else None
        for matrix in matrices if found is not None else ():
            assert found is not None
            _solve(matrix, block, before, found, masks[matrix.name])


def _order(block: nn.Module, way: Way) -> list[list[Matrix]]:
    """Matrices in the order of a pass; those that read the same values beside each other."""
    groups: list[list[Matrix]] = []
    reads: list[Tensor] = []  # held, so that no memory is given to another one

    def hear(matrix: Matrix, read: Tensor) -> None:
        if any(matrix in group for group in groups):
            return
        same = bool(reads) and reads[-1].data_ptr() == read.data_ptr()
        if same and reads[-1].shape == read.shape:
            groups[-1].append(matrix)
        else:
            groups.append([matrix])
            reads.append(read)

    with listening(block, hear):
        given_by(block, way.flow[0], way.calls[0])
    return groups


def _moments(
    block: nn.Module, before: nn.Module, ways: tuple[Way, Way], matrix: Matrix
) -> tuple[Tensor, Tensor] | None:
    """The means of u·uᵀ and x·uᵀ, a one behind each; ``None``: not one row for each place."""
    size = matrix.shape[1] + 1
    own, cross, count = torch.zeros(size, size), torch.zeros(size, size), 0
    own, cross = own.double(), cross.double()
    for number in range(len(ways[0].flow)):
        read = [
            _read(module, way, number, matrix)
            for module, way in zip((block, before), ways, strict=True)
        ]
        places = ways[0].flow[number].shape[:-1].numel()
        if any(one is None or len(one) != places for one in read):
            return None
        u, x = (torch.cat([one, one.new_ones(places, 1)], 1) for one in read if one is not None)
        own += (u.T @ u).double().cpu()
        cross += (x.T @ u).double().cpu()
        count += places
    if not bool(own.isfinite().all() and cross.isfinite().all()):
        raise RunError(f"multiplies NaN or infinity with '{matrix.name}' on the calibration data")
    return own / max(1, count), cross / max(1, count)


def _read(module: nn.Module, way: Way, number: int, matrix: Matrix) -> Tensor | None:
    """What a matrix multiplies in the pass of a batch."""
    found: list[Tensor] = []

    def hear(heard: Matrix, read: Tensor) -> None:
        if heard == matrix:
            found.append(read if read.dtype == torch.float64 else read.float())
            raise FarEnough

    with listening(module, hear), suppress(FarEnough):
        given_by(module, way.flow[number], way.calls[number])
    return found[0] if found else None


def _solve(
    matrix: Matrix,
    block: nn.Module,
    before: nn.Module,
    moments: tuple[Tensor, Tensor],
    mask: Tensor,
) -> None:
    """Fit one matrix and the bias of its module."""
    path, _, key = matrix.name.rpartition(".")
    bias = f"{path}.{key.replace('weight', 'bias')}".lstrip(".")
    now, then = dict(block.named_parameters()), dict(before.named_parameters())
    place = matrix.of(now[matrix.name].detach())
    stays = matrix.of(mask.to(place.device).expand(now[matrix.name].shape).clone())
    beside = now.get(bias) if bias != matrix.name else None
    if beside is not None and beside.shape != (matrix.shape[0],):
        beside = None
    rows, columns = stays.any(1), stays.any(0).cpu()
    used = torch.cat([columns, torch.tensor([beside is not None])])
    start = _with(place, beside).cpu()[:, used]
    wanted = _with(
        matrix.of(then[matrix.name].detach()), then.get(bias) if beside is not None else None
    )
    own = moments[0][used][:, used]
    missing = wanted.cpu() @ moments[1][:, used] - start @ own
    scale = max(float(own.diagonal().mean()), 1e-300)  # nothing but zeros may be read
    ridge = RIDGE * scale * torch.eye(len(own), dtype=torch.float64)
    factor = torch.linalg.cholesky(own + ridge)
    made = start + torch.cholesky_solve(missing.T, factor).T
    whole = torch.zeros(matrix.shape[0], matrix.shape[1] + 1, dtype=torch.float64)
    whole[:, used] = made
    place.copy_((whole[:, :-1].to(place.device) * stays).to(place.dtype))
    if beside is not None:
        beside.data.copy_((whole[:, -1].to(place.device) * rows).to(beside.dtype))


def _with(weight: Tensor, bias: Tensor | None) -> Tensor:
    """A matrix and its bias side by side, in float64; without one, nothing is added."""
    last = weight.new_zeros(len(weight)) if bias is None else bias.detach()
    return torch.cat([weight.double(), last.double()[:, None]], 1)
