"""Calls of torch's functions, some of which are answered in another way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode


class Instead(TorchFunctionMode):
    """While it is entered, calls of torch's functions are passed on unless :meth:`found` answers.

    >>> import torch
    >>> class Zeros(Instead):
    ...     def found(self, func, args, kwargs):
    ...         return torch.zeros(2) if func is torch.ones else None
    >>> with Zeros():
    ...     torch.ones(2), torch.full((2,), 3.0)
    (tensor([0., 0.]), tensor([3., 3.]))
    """

    def found(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """The answer to a call; ``None``: torch's own."""
        raise NotImplementedError  # each kind of call has its own

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """A call, as torch hands it over."""
        kwargs = kwargs or {}
        made = self.found(func, args, kwargs)
        return func(*args, **kwargs) if made is None else made
