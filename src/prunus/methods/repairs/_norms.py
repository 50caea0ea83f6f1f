"""Batch norms whose statistics are estimated by forward passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prunus._common.modules import trains
from prunus._common.torch_internals import AnyBatchNorm
from prunus.errors import InputError

ALONE = "more than 1 value per channel"
"""In torch's message about a batch that has no variance."""
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def norms_of(model: nn.Module) -> list[AnyBatchNorm]:
    """The batch norms that are not frozen."""
    every: list[AnyBatchNorm] = [m for m in model.modules() if isinstance(m, _NORMS)]
    training = trains(model)
    return [m for m in every if m.track_running_stats and (m.training or not training)]


@contextmanager
def averaging(norms: Iterable[AnyBatchNorm], momentum: float | None = None) -> Iterator[None]:
    """Norms that go by the statistics of each batch inside, and remember their means.

    Args:
        norms: their number of batches stays what it was.
        momentum: 0 to remember nothing.
    """
    before = [(norm, norm.momentum, norm.get_buffer("num_batches_tracked").clone())
              for norm in norms]  # fmt: skip
    try:
        for norm, *_ in before:
            norm.momentum = momentum
            norm.train()
        yield
    finally:
        for norm, old, seen in before:
            norm.momentum = old
            norm.eval()
            norm.get_buffer("num_batches_tracked").copy_(seen)


@contextmanager
def kept_on_error(norms: Iterable[AnyBatchNorm]) -> Iterator[None]:
    """The statistics as they were, if something fails inside.

    Raises:
        InputError: if a batch has one value for each channel.
    """
    before: list[tuple[Tensor, Tensor]] = [(b, b.clone()) for m in norms for b in m.buffers()]
    try:
        yield
    except BaseException as error:
        with torch.no_grad():
            for buffer, old in before:
                buffer.copy_(old)
        if isinstance(error, ValueError) and ALONE in str(error):
            raise InputError(
                "repair: batch_norm needs calibration batches of several items: one value has no "
                "variance"
            ) from error
        raise
