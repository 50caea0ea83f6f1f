"""The optimizers of a training: found inside wrappers, taken together, and whether they stepped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any, TypeAlias, TypeVar

import torch
from torch.optim import Optimizer

from prunus._common.torch_internals import version_of
from prunus.errors import InputError

T = TypeVar("T")

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


class Together:
    """Several optimizers of one model as one: parameters in a row, state by place in that row.

    >>> import torch
    >>> first, second = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    >>> both = Together([torch.optim.SGD(m.parameters(), lr=1.0) for m in (first, second)])
    >>> [group["params"] for group in both.state_dict()["param_groups"]]
    [[0], [1]]
    """

    def __init__(self, every: Sequence[Optimizer]) -> None:
        self.every = tuple(every)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of all of them."""
        return [group for optimizer in self.every for group in optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """As of one optimizer."""
        state: dict[Any, Any] = {}
        groups: list[dict[str, Any]] = []
        for first, optimizer in zip(self._starts(), self.every, strict=True):
            own = optimizer.state_dict()
            state |= {first + i: entry for i, entry in own["state"].items()}
            groups += [_moved(group, first) for group in own["param_groups"]]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Return to what :meth:`state_dict` gave."""
        groups = list(saved["param_groups"])
        for first, optimizer in zip(self._starts(), self.every, strict=True):
            own = [_moved(group, -first) for group in groups[: len(optimizer.param_groups)]]
            del groups[: len(own)]
            count = sum(len(group["params"]) for group in own)
            places = range(first, first + count)
            state = {i - first: entry for i, entry in saved["state"].items() if i in places}
            optimizer.load_state_dict({"state": state, "param_groups": own})

    def _starts(self) -> list[int]:
        starts = [0]
        for optimizer in self.every:
            starts.append(starts[-1] + sum(len(g["params"]) for g in optimizer.param_groups))
        return starts[:-1]


AnyOptimizer: TypeAlias = Optimizer | Together


def _moved(group: Mapping[str, Any], by: int) -> dict[str, Any]:
    return {**group, "params": [i + by for i in group["params"]]}


def optimizer_of(given: object) -> AnyOptimizer:
    """What trains a model: an optimizer, or a list of them.

    Raises:
        InputError: for what is none or has no hooks, for an empty list, and for one that is named
            twice.
    """
    if not isinstance(given, (list, tuple)):
        return _with_hooks(real_optimizer(given))
    every = [_with_hooks(real_optimizer(one)) for one in given]
    if not every or len({id(one) for one in every}) < len(every):
        raise InputError(f"{len(every)} optimizers: pass one or more, each once")
    return every[0] if len(every) == 1 else Together(every)


def _with_hooks(optimizer: Optimizer) -> Optimizer:
    """torch puts the hooks around a class's step in ``Optimizer.__init__``, and notes it there."""
    if not getattr(type(optimizer).step, "hooked", False):
        raise InputError(
            f"{type(optimizer).__name__} does not call Optimizer.__init__, so that hooks on its "
            "steps never run: give the optimizer inside it, and name in copies what it keeps of "
            "the weights"
        )
    return optimizer


def each_of(optimizer: AnyOptimizer) -> tuple[Optimizer, ...]:
    """The optimizers that there are."""
    return optimizer.every if isinstance(optimizer, Together) else (optimizer,)


def uncompiled(hook: Callable[..., T]) -> Callable[..., T]:
    """A hook that runs as it is written in a step that the user compiles.

    ``torch.compile(optimizer.step)`` looks into the hooks of the step, and at what they call.

    >>> uncompiled(lambda optimizer: 1)(None)
    1
    """
    made: Callable[..., T] = torch.compiler.disable(hook)
    return made


def overflowed(optimizer: Optimizer) -> bool:
    """Whether a step that was just called did nothing, since a gradient was NaN or infinite.

    A gradient scaler asks a fused optimizer to skip inside its kernel: ``step`` runs, and its
    hooks fire. What the scaler found lies on the optimizer until ``step`` returns.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def is_inner_step(optimizer: Optimizer) -> bool:
    """Whether a hook runs in a step that another step of the same optimizer calls.

    A class of one's own that calls ``super().step()`` runs its hooks twice: torch puts them
    around the step of each class of which there was an object.
    """
    frame: FrameType | None = sys._getframe(1)
    around: CodeType | None = None
    steps = 0
    while frame is not None:
        if around is None and frame.f_globals.get("__name__") == Optimizer.__module__:
            around = frame.f_code
        if frame.f_code is around and frame.f_locals.get("self") is optimizer:
            steps += 1
        frame = frame.f_back
    return steps > 1


class Movement:
    """Whether the steps of an optimizer change what it trains.

    Torch's own do, except where a scaler tells them to skip (:func:`overflowed`). Others may skip
    a step inside of it, and the hooks run all the same: a norm that is too large, a NaN. The
    versions of tensors tell, or where none was counted up (``p.data.add_``) the bits of all.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._own = type(optimizer).step.__module__.startswith("torch.optim")
        self._counts_up = False
        self._versions: int | None = None
        self._bits: list[int] = []

    def before(self, optimizer: Optimizer) -> None:
        """A step begins."""
        if self._own or is_inner_step(optimizer):
            return
        self._versions = _versions(optimizer)
        self._bits = [] if self._counts_up else _bits(optimizer)

    def after(self, optimizer: Optimizer) -> bool:
        """It ends: whether anything was changed."""
        if self._own or self._versions is None:
            return True
        if _versions(optimizer) != self._versions:
            self._counts_up = True
            return True
        return not self._counts_up and _bits(optimizer) != self._bits


def _trained(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p.detach() for group in optimizer.param_groups for p in group["params"]]


def _versions(optimizer: Optimizer) -> int:
    return sum(map(version_of, _trained(optimizer)))


def _bits(optimizer: Optimizer) -> list[int]:
    sums = []
    for p in _trained(optimizer):
        dense = p if p.layout is torch.strided else p.to_dense()
        parts = torch.view_as_real(dense) if dense.is_complex() else dense
        sums.append(int(parts.view(_INTEGERS[parts.element_size()]).sum()))
    return sums


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def class_of(optimizer: AnyOptimizer) -> str:
    """What it is, for people and for records."""
    return " and ".join(type(one).__name__ for one in each_of(optimizer))


def parameters_of(optimizer: AnyOptimizer) -> set[int]:
    """The parameters that it trains, by ``id``."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def pace_of(optimizer: AnyOptimizer, scope: set[int]) -> Optimizer:
    """Whose steps count: of several, the last one that trains a weight in scope."""
    every = each_of(optimizer)
    return next((o for o in reversed(every) if scope & parameters_of(o)), every[-1])


def sole(optimizer: AnyOptimizer | None) -> Optimizer | None:
    """The one optimizer that there is; ``None`` for several."""
    return None if isinstance(optimizer, Together) else optimizer


def has_gradient(optimizer: AnyOptimizer) -> bool:
    """Whether a parameter that it trains has one."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
