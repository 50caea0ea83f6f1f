"""Running mean of squared gradients, collected at every optimizer step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunus.errors import InputError
from prunus.signals import Look

DECAY = 0.99
"""Weight of the past in the running mean: the last hundred steps count."""


def grad_sq_running(look: Look) -> Mapping[str, Tensor]:
    """Exponential mean of g² over the optimizer steps so far.

    Raises:
        InputError: if no step was taken yet.
    """
    if not look.running:
        raise InputError(
            "this criterion reads gradients of the training before the cut, and there was none: "
            "train first (dense: 1ep, or schedule.start above 0), or use fisher with calibration"
        )
    return look.running
