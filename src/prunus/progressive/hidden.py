"""Hidden states of a model beside those of its teacher, through widths that were cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.names import each_meant, module_paths, unwrapped
from prunus._common.nested import tensors_of
from prunus.errors import InputError
from prunus.types import Kept

ALL = "all"
"""Stands for every block: the children of the outermost sequences of modules."""


def hidden_modules(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The modules whose outputs are compared, by their names without wrappers.

    Args:
        model: that has them.
        patterns: names of modules, with ``*``; ``all`` for the children of the outermost
            ``ModuleList`` or ``Sequential`` of two or more, but the last one of the model.

    Raises:
        InputError: for a pattern that no module matches.

    >>> hidden_modules(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), ["all"])
    ['0', '1']
    """
    names = {name: name for name in module_paths(unwrapped(model)) if name}
    found: list[str] = []
    for pattern in patterns:
        blocks = _blocks(unwrapped(model)) if pattern == ALL else []
        said = "teacher.hidden: no module is called …"
        own = blocks or each_meant([pattern], names, said, around=False)[pattern]
        depth = min(name.count(".") for name in own)
        found += blocks or [name for name in own if name.count(".") == depth]
    return list(dict.fromkeys(found))


def _blocks(model: nn.Module, path: str = "") -> list[str]:
    sequence = isinstance(model, (nn.ModuleList, nn.Sequential)) and len(model) > 1
    found = []
    for name, child in model.named_children():
        child = unwrapped(child)
        inner = f"{path}.{name}".lstrip(".")
        found += [inner] if sequence else _blocks(child, inner)
    return found[:-1] if sequence and not path else found


@contextmanager
def hidden_states(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What modules give in the first pass inside: of several tensors the first."""
    states: dict[str, Tensor] = {}
    inner = unwrapped(model)
    paths = module_paths(inner)
    with ExitStack() as hooks:
        for name in names:

            def note(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                real = (t for t in tensors_of(output) if t.is_floating_point() and t.dim())
                first = next(real, None)
                if first is not None:
                    states.setdefault(name, first)

            try:
                module = inner.get_submodule(paths[name])
            except KeyError:
                raise InputError(
                    f"teacher.hidden: the teacher has no module '{name}': its hidden states are "
                    "compared by the names of the modules"
                ) from None
            hooks.callback(module.register_forward_hook(note).remove)
        yield states


def states_apart(
    model: nn.Module, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], kept: Kept
) -> Tensor:
    """How far hidden states are from the teacher's, the mean over modules of

    .. math:: \\frac{\\|h - t\\|^2}{\\|t\\|^2}

    where t is what is left of the teacher's state: of a width that was cut the kept indices.

    Args:
        model: that learns.
        found: its states by the name of a module.
        wanted: the teacher's.
        kept: of the tensors of the model as it was given, the indices that are left.

    Raises:
        InputError: for a state of which it is not known what is left.
    """
    parts = []
    for name, state in found.items():
        goal = _left(unwrapped(model), name, state, wanted[name], kept)
        parts.append((state - goal).square().sum() / goal.square().sum().clamp(min=1e-12))
    if not parts:
        raise InputError("teacher.hidden: none of these modules gives a tensor of real numbers")
    return torch.stack(parts).mean()


def _left(model: nn.Module, name: str, state: Tensor, goal: Tensor, kept: Kept) -> Tensor:
    if state.shape == goal.shape:
        return goal
    differ = [d for d, (a, b) in enumerate(zip(state.shape, goal.shape, strict=False)) if a != b]
    if state.dim() == goal.dim() and len(differ) == 1:
        width = state.shape[differ[0]]
        whole = module_paths(model)[name]
        for inner in reversed([n for n, _ in model.get_submodule(whole).named_modules()]):
            path = ".".join(part for part in (whole, inner, "weight") if part)
            indices = (kept.get(path) or (None,))[0]  # what a layer gives, and a norm
            if indices is not None and len(indices) == width:
                return goal.index_select(differ[0], indices.to(goal.device))
    raise InputError(
        f"teacher.hidden: '{name}' gives {tuple(state.shape)} and the teacher {tuple(goal.shape)}, "
        "and it is not known which of its channels these are: name a layer or a norm whose weight "
        "was cut, or a module whose output keeps its width"
    )
