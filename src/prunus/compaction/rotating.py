"""A stream turned to the principal directions of its activations: the model stays what it is.

With Q orthogonal, whatever writes x writes x·Q, whatever reads it reads x·Q with w·Q, and a norm
without a scale does the same to both: ‖x·Q‖ = ‖x‖. Its scale goes into the layers behind it first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunus._common.distributed import total
from prunus._common.inputs import Inputs, every_example
from prunus._common.modules import shared_copy
from prunus._common.rng import preserve_rng
from prunus._common.torch_internals import TorchDispatchMode
from prunus.compaction.verifying.everywhere import Everywhere
from prunus.compaction.verifying.uses import Use
from prunus.compaction.verifying.values import State, random_like
from prunus.compaction.verifying.verify import (
    FLOAT64,
    Comparison,
    Double,
    compare,
    outputs,
    wide,
)
from prunus.errors import RunError, first_line
from prunus.graph.call import operator_name
from prunus.graph.rotation import Stream
from prunus.graph.trace import analysis_mode

FACTORS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2),
           "convolution": (0, 1), "_grouped_mm": (0, 1)}  # fmt: skip
"""Operators that sum over products, and the places of both factors among their arguments."""


@dataclass(frozen=True)
class Rotation:
    """What a rotation did.

    Attributes:
        variances: of each stream, the part of its variance along each index. ``[D]`` each.
        error: largest difference from the model before in float64, relative to its outputs.
    """

    variances: tuple[Tensor, ...]
    error: float


def rotate(
    model: nn.Module,
    streams: Sequence[Stream],
    alive: Sequence[Tensor],
    example: Any,
    batches: Sequence[Inputs],
    *,
    trial: bool = False,
) -> Rotation:
    """Turn streams to their principal directions, in place; the model computes what it did.

    C = Σ x·xᵀ / ‖x‖² over what the layers behind the norms read, C = Q·Λ·Qᵀ, largest first; what
    was along axis i is then of the variance λᵢ / Σλ. All is computed in float64, and compared there
    with the model as it was before any of its numbers changes.

    Args:
        model: with these streams.
        streams: found in its analysis.
        alive: of each, the indices that are not removed, which alone turn. ``[D]`` bool each.
        example: for the comparison.
        batches: arguments of calls, for the activations.
        trial: whether only to see that it can be done.

    Raises:
        RunError: if the turned model does not equal the one before, which is then as it was.

    Source: Ashkboos et al. 2024, arXiv:2401.15024.
    """
    dense = {n: wide(t.detach()) for n, t in (*model.named_parameters(), *model.named_buffers())}
    state = dict(dense)
    for stream, left in zip(streams, alive, strict=True):
        _fold(state, stream, left)
    covariances = _covariances(model, state, streams, batches)
    variances = []
    for stream, left, covariance in zip(streams, alive, covariances, strict=True):
        matrix, found = directions(covariance, left)
        variances.append(found)
        for name, d in stream.places:
            turned = state[name].movedim(d, -1) @ matrix.to(state[name].device)
            state[name] = turned.movedim(-1, d)
    compared = _compared(model, dense, state, example, batches)
    if not compared.equal:
        what = compared.problem or f"they differ by {compared.error:.2g}"
        raise RunError(
            f"rotate: the turned model does not equal the one before ({what}), so nothing was "
            "changed; leave rotate out, and indices are chosen by the criterion"
        )
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, value in state.items():
            if value is not dense[name] and not trial:
                own[name].copy_(value)
    return Rotation(tuple(variances), compared.error)


def directions(covariance: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """Principal directions as columns, the largest first, and the part of the variance of each.

    Removed indices stay where they are.

    >>> matrix, variances = directions(torch.diag(torch.tensor([1.0, 3.0])), torch.ones(2) > 0)
    >>> matrix.abs().tolist(), variances.tolist()
    ([[0.0, 1.0], [1.0, 0.0]], [0.75, 0.25])
    """
    left = alive.to(covariance.device).nonzero().flatten()
    values, vectors = torch.linalg.eigh(covariance[left][:, left])
    matrix = torch.eye(len(alive), dtype=covariance.dtype, device=covariance.device)
    matrix[left[:, None], left] = vectors.flip(1)
    variances = torch.zeros_like(covariance[0])
    variances[left] = values.flip(0).clamp(min=0)
    return matrix, variances / variances.sum().clamp(min=1e-300)


def _fold(state: dict[str, Tensor], stream: Stream, alive: Tensor) -> None:
    """Scales of norms into what reads behind them; the scales become one."""
    before = dict(state)  # the scales are read from it
    with torch.no_grad(), Double():
        for (name, d), node in stream.folds.items():
            scale = stream.constants.value(node, before).flatten()[: len(stream.classes)]
            shape = [-1 if i == d else 1 for i in range(state[name].dim())]
            state[name] = state[name] * scale.view(shape)
        for name, number in stream.units.items():
            kept = alive.to(state[name].device).view(state[name].shape)
            state[name] = torch.where(kept, torch.full_like(state[name], number), 0.0)


# --- activations


def _covariances(
    model: nn.Module, state: State, streams: Sequence[Stream], batches: Iterable[Inputs]
) -> list[Tensor]:
    """Of each stream, Σ x·xᵀ over what its readers multiply with, every call of the same weight."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {n: t.to(own[n].dtype) for n, t in state.items()}
    log = _Readers(values, streams)
    twin = shared_copy(model)
    with preserve_rng(), torch.no_grad(), analysis_mode(twin), log:
        for args, kwargs in batches:
            functional_call(twin, values, args, kwargs)
    total(log.sums)
    if any(float(s.diagonal().sum()) == 0 for s in log.sums):
        raise RunError(
            "rotate: none of the layers that read the stream was seen to run on the calibration "
            "batches, so it has no principal directions; leave rotate out"
        )
    if not all(bool(s.isfinite().all()) for s in log.sums):
        raise RunError("rotate: the calibration batches give activations that are not finite")
    return log.sums


class _Readers(TorchDispatchMode):
    """Sums x·xᵀ over what is multiplied with the weights that read a stream."""

    def __init__(self, values: State, streams: Sequence[Stream]) -> None:
        super().__init__()
        self.sums = []
        self._of: dict[int, int] = {}
        self._values = values  # alive, so that no other tensor gets its memory
        for number, stream in enumerate(streams):
            size = len(stream.classes)
            reader = next(iter(stream.reads))[0]
            self.sums.append(torch.zeros(size, size, dtype=torch.float64,
                                         device=values[reader].device))  # fmt: skip
            for name, _ in stream.reads:
                self._of[values[name].untyped_storage().data_ptr()] = number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operator_name(func)
        for own, other in _pairs(FACTORS.get(name)):
            weight, x = args[own], args[other]
            number = self._of.get(weight.untyped_storage().data_ptr())
            if number is not None:
                side = 1 if name == "convolution" else x.dim() - 1 if other < own else x.dim() - 2
                self._add(number, x.movedim(side, -1))
        return func(*args, **(kwargs or {}))

    def _add(self, number: int, x: Tensor) -> None:
        size = len(self.sums[number])
        if x.shape[-1] != size:
            return
        rows = x.reshape(-1, size).to(self.sums[number])
        rows = rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-300)
        self.sums[number] += rows.T @ rows


def _pairs(places: tuple[int, int] | None) -> Iterable[tuple[int, int]]:
    return () if places is None else (places, places[::-1])


# --- the gate


def _compared(
    model: nn.Module, dense: State, state: State, example: Any, batches: Sequence[Inputs]
) -> Comparison:
    """The turned model against the one before, in every use that it has."""
    given = every_example(example)
    for drawn in (True, False):
        inputs = [random_like(one, integers=drawn) for one in (*given, *batches[:1])]
        try:
            expected = outputs(model, dense, inputs[0])
            break
        except Exception as error:  # of the model's code: ids that it has no pictures for
            if not drawn:
                raise RunError(
                    f"rotate: the model does not run in float64 ({first_line(error)}), where the "
                    "turned one would have to be shown to be equal; leave rotate out"
                ) from error
    known = compare((expected, {}), model, state, Use("", inputs[0]), FLOAT64)
    examples = [random_like(one, own_type=True, integers=drawn) for one in given]
    return Everywhere(model, dense, [*examples, *batches[:1]], FLOAT64).check(model, state, known)
