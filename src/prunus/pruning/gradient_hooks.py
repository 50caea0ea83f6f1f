"""Hooks on the gradients of a model's parameters, each put on once and again where it was lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunus._common.torch_internals import renew_gradient_hooks


class GradientHooks:
    """One hook on every parameter that can be trained, frozen ones too.

    The parameters are held, so that no other gets the ``id`` of one that is gone.

    >>> model, seen, hooks = nn.Linear(1, 1, bias=False), [], GradientHooks()
    >>> hooks.put_on(model, lambda weight: seen.append(weight.grad.item()))
    >>> model(nn.Parameter(model.weight.detach() * 0 + 3)).sum().backward()
    >>> seen, hooks.may_be_lost()
    ([3.0], False)
    """

    def __init__(self) -> None:
        self._on: dict[int, _Hooked] = {}

    def put_on(
        self, model: nn.Module, hook: Callable[[Tensor], None], *, anew: bool = False
    ) -> None:
        """On what has none.

        Args:
            model: whose parameters.
            hook: called with a parameter when its gradient is whole.
            anew: on all again, where something else may be in them by now.
        """
        for weight in model.parameters():
            known = self._on.get(id(weight))
            if known is None and _can_train(weight):
                self._on[id(weight)] = _Hooked(weight, _hooked(weight, hook), _address(weight))
            elif known is not None and (anew or known.is_moved()):
                renew_gradient_hooks(weight)
                self._on[id(weight)] = known._replace(address=_address(weight))

    def may_be_lost(self) -> bool:
        """Whether a parameter was moved: torch may have swapped what is in it for another's."""
        return any(one.is_moved() for one in self._on.values())

    def remove(self) -> None:
        """Take all off."""
        for one in self._on.values():
            one.handle.remove()
        self._on = {}


class _Hooked(NamedTuple):
    weight: Tensor
    handle: RemovableHandle
    address: int

    def is_moved(self) -> bool:
        return _address(self.weight) != self.address


def _hooked(weight: Tensor, hook: Callable[[Tensor], None]) -> RemovableHandle:
    frozen = not weight.requires_grad
    if frozen:  # torch takes the hook of what can be trained
        weight.requires_grad_(True)
    handle: RemovableHandle = weight.register_post_accumulate_grad_hook(hook)
    if frozen:
        weight.requires_grad_(False)
    return handle


def _address(weight: Tensor) -> int:
    """Of its values; of a class of tensors that may have none, 0."""
    return weight.data_ptr() if type(weight) is nn.Parameter else 0


def _can_train(weight: Tensor) -> bool:
    return weight.is_leaf and weight.is_floating_point() and not weight.is_inference()
