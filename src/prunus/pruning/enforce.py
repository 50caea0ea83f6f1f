"""Removed weights stay zero while an optimizer trains: weights and gradients, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from prunus._common.kernels import keeper
from prunus.errors import InputError
from prunus.pruning.masks import apply, match_names
from prunus.types import Masks

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SHELLS = ("accelerate", "lightning", "pytorch_lightning")
_REFUSED = {
    "LBFGS": "it evaluates the loss several times a step and keeps its own copy of the weights",
    "DeepSpeedZeroOptimizer": "it keeps master copies of the weights",
    "FP16_Optimizer": "it keeps master copies of the weights",
    "ZeroRedundancyOptimizer": "each rank holds a part of its state, which could not be saved",
}


def real_optimizer(optimizer: object) -> Optimizer:
    """The torch optimizer inside wrappers such as accelerate's.

    Raises:
        InputError: for optimizers that keep the weights elsewhere, by name.
    """
    while hasattr(optimizer, "optimizer") and _is_shell(optimizer):
        optimizer = optimizer.optimizer
    name = type(optimizer).__name__
    if name in _REFUSED:
        raise InputError(f"{name} cannot be used while pruning: {_REFUSED[name]}; use SGD or Adam")
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"'{name}' is not a torch.optim.Optimizer")
    return optimizer


def _is_shell(optimizer: object) -> bool:
    """Whether it only passes calls on; one with a step of its own (Lookahead) is no shell."""
    if not isinstance(optimizer, Optimizer):
        return True
    return any(c.__module__.partition(".")[0] in _SHELLS for c in type(optimizer).__mro__)


class Enforcer:
    """Keeps removed weights at zero while an optimizer trains.

    Weights after every step (the optimizer's public post-step hook), gradients as they
    accumulate, so that clipping never sees those of removed weights. What is removed is cleared
    bit by bit: exact zeros without a sign, from NaN too.
    """

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._made: dict[nn.Parameter, Callable[[Tensor], None]] | None = None
        self._copies: list[nn.Module] = []
        self._masks: Masks = {}
        self._handles: list[RemovableHandle] = []

    def set(self, model: nn.Module, masks: Masks) -> None:
        """Take new masks; the hooks that are installed use them from now on."""
        self._model, self._masks, self._made = model, dict(masks), None

    @property
    def _zero(self) -> dict[nn.Parameter, Callable[[Tensor], None]]:
        """What zeroes each masked parameter: made when the first step needs it."""
        if self._made is None:
            own = {} if self._model is None else dict(self._model.named_parameters())
            self._made = {own[name]: _zeroer(own[name], m) for name, m in self._masks.items()}
        return self._made

    def install(
        self, optimizer: Optimizer, model: nn.Module, copies: Iterable[nn.Module] = ()
    ) -> None:
        """Hook the optimizer's steps and the parameters' gradients."""
        self._copies = list(copies)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                if weight in self._zero and id(weight) not in held:
                    raise InputError(
                        f"'{name}' is pruned and trainable, but the optimizer does not have it: "
                        "build the optimizer from the parameters of this model"
                    )
                hook = weight.register_post_accumulate_grad_hook(self._mask_gradient)
                self._handles.append(hook)
        self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def _after_step(self, *_: object) -> None:
        """Zero removed weights, in the model and its copies."""
        for weight, zero in self._zero.items():
            zero(weight.data)
        for copy in self._copies:
            apply(copy, self._masks)

    def _mask_gradient(self, weight: Tensor) -> None:
        zero = self._zero.get(weight)  # type: ignore[call-overload]
        if zero is not None and weight.grad is not None:
            if weight.grad.is_sparse:
                raise InputError("sparse gradients cannot be masked: set sparse=False on the layer")
            zero(weight.grad)


def _zeroer(weight: nn.Parameter, mask: Tensor) -> Callable[[Tensor], None]:
    """What zeroes the removed weights of a tensor shaped like ``weight``, in place.

    The compiled kernel where it applies; else one bitwise AND with integers of the weight's
    width that have all bits set or none.
    """
    mask = mask.to(weight.device)
    native = keeper(weight, mask)
    if native is not None:
        return native
    integer = _INTEGERS[weight.element_size()]
    bits = mask.to(integer).neg_()
    if bits.shape == weight.shape and not weight.is_contiguous():
        bits = torch.empty_like(weight, dtype=integer).copy_(bits)

    def zero(values: Tensor) -> None:
        values.view(integer).bitwise_and_(bits)

    return zero


def enforce(
    model: nn.Module, masks: Masks, optimizer: object, *, copies: Iterable[nn.Module] = ()
) -> Callable[[], None]:
    """Go on training a pruned model: removed weights stay zero from now on.

    Args:
        model: whose weights the masks belong to; they are applied at once.
        masks: parameter name to bool, True = kept (``Result.masks``).
        optimizer: that trains ``model``.
        copies: other modules to keep masked, such as an EMA of the model.

    Returns:
        A function that takes the hooks off again.

    Raises:
        InputError: if a mask fits no parameter, or for an optimizer that keeps weights elsewhere.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    >>> stop = enforce(model, {"weight": torch.tensor([[True, False]])}, optimizer)
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    >>> model.weight[0, 1].item()
    0.0
    >>> stop()
    """
    matched = match_names(model, masks)
    apply(model, matched)
    for copy in copies:
        apply(copy, matched)
    enforcer = Enforcer()
    enforcer.set(model, matched)
    enforcer.install(real_optimizer(optimizer), model, copies)
    return enforcer.remove
