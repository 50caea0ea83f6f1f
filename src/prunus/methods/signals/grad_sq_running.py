"""Running mean of squared gradients, collected at every optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from prunus._common.distributed import mean
from prunus.errors import InputError
from prunus.methods.signals import SignalContext

RUNNING = True

DECAY = 0.99
"""Weight of the past in the running mean: the last hundred steps count."""


def grad_sq_running(context: SignalContext) -> Mapping[str, Tensor]:
    """Exponential mean of g² over the optimizer steps so far, and over the ranks.

    Raises:
        InputError: if no step was taken yet, or none gave some weight in scope a gradient: a mean
            of nothing is not zero, and zeros would remove that weight first.
    """
    if not context.running:
        raise InputError(
            "this criterion reads gradients from the training before the cut, but there was none: "
            "train first (dense: 1ep, or schedule.start above 0), or use fisher with calibration"
        )
    lacking = [name for name in context.parameters if name not in context.running]
    if lacking:
        raise InputError(_without(lacking, "had no gradient in the training before the cut"))
    return mean({name: context.running[name] for name in context.parameters})


def refuse_frozen(parameters: Mapping[str, nn.Parameter]) -> None:
    """What can be known before training: a frozen weight has no gradient.

    Raises:
        InputError: naming the weights in scope that are frozen.

    >>> layer = nn.Linear(1, 1)
    >>> refuse_frozen(dict(layer.named_parameters()))
    >>> _ = layer.weight.requires_grad_(False)
    >>> refuse_frozen(dict(layer.named_parameters()))
    Traceback (most recent call last):
    ...
    prunus.errors.InputError: this criterion reads the gradients of training, and 'weight' is \
frozen (requires_grad=False): leave it out with scope.exclude, or use fisher with calibration
    """
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    if frozen:
        raise InputError(_without(frozen, "is frozen (requires_grad=False)"))


def _without(names: Sequence[str], what: str) -> str:
    others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return (
        f"this criterion reads the gradients of training, and '{names[0]}'{others} {what}: leave "
        "it out with scope.exclude, or use fisher with calibration"
    )
