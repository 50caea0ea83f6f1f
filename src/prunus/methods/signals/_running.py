"""What signals of the training share: the refusals, and the mean over the ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from prunus._common.distributed import mean
from prunus.errors import InputError
from prunus.methods.signals import SignalContext


def collected(context: SignalContext) -> Mapping[str, Tensor]:
    """What the training before a cut left, the mean over the ranks.

    Raises:
        InputError: if there is nothing, of all weights in scope or of some.
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
