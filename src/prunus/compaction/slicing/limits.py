"""What a smaller model does not take, said when it is called so.

Its code is the dense model's and would answer any call. A flag that no example sets may ask for
features that lost their indices, and a module that no example visits reads as many as it always
did: hooks refuse both with a sentence.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from prunus._common.inputs import by_name, positional_names
from prunus._common.torch_internals import (
    AnyBatchNorm,
    AnyConv,
    AnyTransposedConv,
    drop_pre_hooks,
    pre_hooks,
)
from prunus.errors import InputError

WAY_OUT = "Give an example of every kind of call when you prune or compact: example=[first, second]"


@dataclass(frozen=True)
class Limits:
    """What a smaller model refuses.

    Attributes:
        flags: arguments of ``forward``, and the value with which it would answer otherwise than
            the masked model.
        unread: modules that no pass visits: whether what they read was cut is seen when they run.
    """

    flags: Mapping[str, bool] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def apply(self, model: nn.Module) -> None:
        """Let a model refuse this too.

        >>> class Net(nn.Linear):
        ...     def forward(self, x, features=False):
        ...         return x if features else super().forward(x)
        >>> import torch
        >>> model = Net(2, 1)
        >>> Limits({"features": True}).apply(model)
        >>> model(torch.ones(2), features=True)
        Traceback (most recent call last):
        ...
        prunus.errors.InputError: the compact Net does not answer with features=True as the...
        """
        flags = {**limits_of(model).flags, **self.flags}
        drop_pre_hooks(model, _Flags)
        if flags:
            names = tuple(positional_names(model))
            model.register_forward_pre_hook(_Flags(flags, names), with_kwargs=True)
        for path in self.unread:
            module = model.get_submodule(path)
            drop_pre_hooks(module, _Unread)
            module.register_forward_pre_hook(_Unread(path))

    def __bool__(self) -> bool:
        return bool(self.flags or self.unread)

    def to_plain(self) -> dict[str, Any]:
        """For a file."""
        return {"flags": dict(self.flags), "unread": list(self.unread)}

    @classmethod
    def from_plain(cls, model: nn.Module, given: Any, replaced: Iterable[str]) -> Limits:
        """Read :meth:`to_plain` back, from anyone.

        Raises:
            InputError: if it is damaged, or does not fit the model.
        """
        if given == {}:
            return cls()
        there = {name for name, _ in model.named_modules()} - {"", *replaced}
        flags, unread = (given.get(key) for key in ("flags", "unread"))
        good = set(given) == {"flags", "unread"} and isinstance(flags, dict)
        good = (
            good and all(isinstance(v, bool) for v in flags.values()) and isinstance(unread, list)
        )
        if not good or not all(isinstance(n, str) and n in there for n in unread):
            raise InputError(
                f"the file does not fit this {type(model).__name__}, or is damaged: limits is "
                f"{reprlib.repr(given)}"
            )
        return cls(flags, tuple(unread))

    def take_back(self, model: nn.Module) -> None:
        """Let a model that is as it was take everything again."""
        left = {n: v for n, v in limits_of(model).flags.items() if n not in self.flags}
        drop_pre_hooks(model, _Flags)
        for path in self.unread:
            drop_pre_hooks(model.get_submodule(path), _Unread)
        Limits(left).apply(model)


def limits_of(model: nn.Module) -> Limits:
    """What a model refuses."""
    flags = [h.flags for h in pre_hooks(model) if isinstance(h, _Flags)]
    unread = [
        name
        for name, m in model.named_modules()
        if any(isinstance(h, _Unread) for h in pre_hooks(m))
    ]
    return Limits(flags[0] if flags else {}, tuple(unread))


def unread(model: nn.Module, names: Mapping[str, str], known: Iterable[str]) -> tuple[str, ...]:
    """The layers of which no pass reads a tensor.

    Args:
        model: dense.
        names: every name of a tensor to its first one.
        known: the first names of the tensors that some pass reads, or whose reading is inferred.
    """
    known = set(known)
    found = []
    for path, module in model.named_modules():
        own = [key for key, p in module._parameters.items() if p is not None]
        firsts = {names.get(f"{path}.{key}" if path else key) for key in own}
        if path and own and not firsts & known and _width(module) is not None:
            found.append(path)
    return tuple(found)


def _width(module: nn.Module) -> tuple[int, int] | None:
    """The dimension, counted from the last, over whose features a layer runs, and their number."""
    if isinstance(module, nn.Linear):
        return -1, module.in_features
    if isinstance(module, (AnyConv, AnyTransposedConv)):
        return -1 - len(module.kernel_size), module.in_channels
    if isinstance(module, nn.LayerNorm):
        return -1, module.normalized_shape[-1]
    return (1, module.num_features) if isinstance(module, AnyBatchNorm) else None


@dataclass(frozen=True)
class _Flags:
    """A hook in front of a model's forward."""

    flags: Mapping[str, bool]
    names: tuple[str, ...]

    def __call__(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        given = by_name(self.names, (args, kwargs))
        for name, value in self.flags.items():
            asked = given.get(name)
            if asked is not None and not isinstance(asked, Tensor) and bool(asked) is value:
                raise InputError(
                    f"the compact {type(model).__name__} does not answer with {name}={value} as "
                    f"the masked model does, since no example covers it. {WAY_OUT}"
                )


@dataclass(frozen=True)
class _Unread:
    """A hook in front of a layer that no pass visits."""

    path: str

    def __call__(self, module: nn.Module, args: Any) -> None:
        found = _width(module)
        if found is None or not args or not isinstance(args[0], Tensor):
            return
        dim, width = found
        sizes = args[0].shape
        if -len(sizes) <= dim < len(sizes) and sizes[dim] != width:
            raise InputError(
                f"'{self.path}' reads {width} features and is given {sizes[dim]}: no example "
                f"visited it when the model became smaller. {WAY_OUT}"
            )
