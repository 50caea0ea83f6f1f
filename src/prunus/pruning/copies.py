"""Copies of a model that must be as sparse as it is: those that were named, and those that show."""

from __future__ import annotations

import contextlib
import functools
import warnings
import weakref
from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from prunus._common.names import matched, plain_names, unwrapped
from prunus._common.torch_internals import load_hooks
from prunus.errors import InputError
from prunus.pruning.masks import not_zero
from prunus.types import Masks

Copy: TypeAlias = nn.Module | MutableMapping[str, Tensor]
"""A module, or tensors by the names of the model's parameters."""


class Place(NamedTuple):
    """Where a tensor lies, so that another in its place is noticed."""

    name: str
    owner: MutableMapping[str, Any]
    key: str
    above: tuple[tuple[Any, str, nn.Module], ...] = ()

    @property
    def tensor(self) -> Tensor | None:
        """What lies there now."""
        own = self.owner  # of compiled code it has no get
        return own[self.key] if self.key in own else None  # noqa: SIM401

    def holds(self, tensor: Tensor) -> bool:
        """Whether that is this tensor, and every module around it is still where it was."""
        return self.tensor is tensor and all(
            key in modules and modules[key] is module for modules, key, module in self.above
        )


def places_in(copy: Copy, *, twice: bool = False) -> dict[str, Place]:
    """Every parameter and buffer of a module, or entry of a mapping, by name.

    Args:
        copy: of a model, or the model.
        twice: also under the further names of modules that have several.
    """
    if not isinstance(copy, nn.Module):
        return {name: Place(name, copy, name) for name in copy}
    found = {}
    above: dict[str, tuple[tuple[Any, str, nn.Module], ...]] = {}
    for path, module in copy.named_modules(remove_duplicate=not twice):
        outer, _, own = path.rpartition(".")
        over = copy if not outer else above[outer][-1][2]
        above[path] = (*above[outer], (over._modules, own, module)) if path else ()
        for owner in (module._parameters, module._buffers):
            for key, tensor in owner.items():
                name = f"{path}.{key}" if path else key
                if tensor is not None:
                    found[name] = Place(name, owner, key, above[path])
    return found


def places_of(copy: Copy, masks: Masks) -> list[tuple[Place, Tensor]]:
    """What the masks are for in a copy of the model, wrapped or not.

    Raises:
        InputError: if it lacks one of them, or has it in another shape.
    """
    if not isinstance(copy, (nn.Module, MutableMapping)):
        raise InputError(
            f"copies: {type(copy).__name__} is neither a module nor a mapping of the model's "
            "parameter names to tensors"
        )
    every = places_in(copy)
    names = plain_names(copy) if isinstance(copy, nn.Module) else {name: name for name in copy}
    found = []
    for name, own in matched(masks, names).items():
        place = None if own is None else every.get(own)
        tensor = None if place is None else place.tensor
        if place is None or tensor is None or not _fits(masks[name], tensor):
            what = "is missing" if tensor is None else f"is {tuple(tensor.shape)}"
            raise InputError(
                f"copies: {type(copy).__name__} is no copy of the model: '{name}' {what}"
            )
        found.append((place, masks[name]))
    return found


def _fits(mask: Tensor, tensor: Tensor) -> bool:
    sizes = zip(reversed(mask.shape), reversed(tensor.shape), strict=False)
    return mask.dim() <= tensor.dim() and all(n in (1, m) for n, m in sizes)


class Mark:
    """Lies on a model that is being pruned: knows its masks, and is copied along with it.

    It is a hook on ``load_state_dict``, which torch copies with a module and never saves in a
    state dict. A pickle of the model contains a function that does nothing in its place.
    """

    def __init__(
        self, model: nn.Module, masks: Callable[[], Masks], on_load: Callable[[], None]
    ) -> None:
        self.model, self.masks, self.on_load = weakref.ref(model), masks, on_load
        self.copies: list[weakref.ref[nn.Module]] = []
        self.finished, self.copied = False, False

    def __call__(self, module: nn.Module, keys: Any) -> None:
        """Weights were loaded."""
        self.on_load()

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        """Of a copy: the masks that the model has at the moment are those that it has for good."""
        model = self.model()
        copied = None if model is None else memo.get(id(model))
        if not isinstance(copied, nn.Module):
            return _nothing
        self.copies = [ref for ref in self.copies if ref() is not None]
        self.copies.append(weakref.ref(copied))
        masks = dict(self.masks())
        made = Mark(copied, lambda: masks, lambda: None)
        made.copied = True
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial, (contextlib.nullcontext.__exit__, None)


_nothing: Callable[..., None] = functools.partial(contextlib.nullcontext.__exit__, None)  # type: ignore[arg-type]


def mark(
    model: nn.Module, masks: Callable[[], Masks], on_load: Callable[[], None]
) -> tuple[Mark, Callable[[], None]]:
    """Mark a model; the second value takes the mark off. Of a copy, its own masks count now."""
    inner = unwrapped(model)
    for old in marks_on(inner):
        if old.copied:
            old.masks = dict
        elif old.finished:  # what was trained since then begins anew
            gone = written(inner, old.masks())
            old.masks = functools.partial(
                dict, {n: m for n, m in old.masks().items() if n not in gone}
            )
    made = Mark(inner, masks, on_load)
    return made, inner.register_load_state_dict_post_hook(made).remove


def leave_mark(model: nn.Module, masks: Masks) -> None:
    """Let a model that is finished know its masks, so that a file of it can be checked."""
    if isinstance(unwrapped(model), torch.jit.ScriptModule):  # takes no such hooks
        return
    for old in marks_on(model):
        if old.finished:
            old.masks = dict
    made, _ = mark(model, lambda: masks, lambda: None)
    made.finished = True


def marks_on(model: nn.Module) -> list[Mark]:
    """The marks on a model, or inside what wraps it."""
    return [m for m in load_hooks(unwrapped(model)) if isinstance(m, Mark)]


def written(model: nn.Module, masks: Masks) -> list[str]:
    """Parameters of which a removed weight is not zero; what has another shape by now is left out.

    Args:
        model: wrapped or not.
        masks: by its names, wrapped or not.
    """
    every, names = places_in(model), plain_names(model)
    found = []
    for name, own in matched(masks, names).items():
        tensor = None if own is None or own not in every else every[own].tensor
        if tensor is not None and _fits(masks[name], tensor) and not_zero(tensor, masks[name]):
            found.append(name)
    return found


def warn_of_written(model: nn.Module) -> None:
    """Warn of a model that was pruned, or copied from one, and has values where it has no weights.

    As far as it is marked: from when a pruner took it on, also after that has finished.
    """
    marks = marks_on(model)
    held = {name for own in marks if not own.finished for name in own.masks()}
    for own in marks:  # where pruning began anew, an older end says no more of these weights
        masks = own.masks()
        left = {n: m for n, m in masks.items() if not (own.finished and n in held)}
        names = written(model, left)
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            warnings.warn(
                f"the {type(unwrapped(model)).__name__} that is saved was pruned, and '{names[0]}'"
                f"{more} has values again where weights were removed: something wrote to them "
                "outside optimizer.step() (an average, a loaded state, another training); keep "
                "copies masked with copies=[…], or a training with prunus.enforce",
                stacklevel=3,
            )
