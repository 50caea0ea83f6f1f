"""torch.export's programs of a model: of the example's sizes, or of open ones."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.fx.config
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from prunus._common.inputs import by_name, positional_names
from prunus._common.modules import set_forward, shared_copy
from prunus._common.nested import own_containers
from prunus._common.torch_internals import parts_of, pytree


def export(
    model: nn.Module, args: Any, kwargs: Any, shapes: Any = None
) -> ExportedProgram | Exception:
    """torch.export's program, or why it refuses; without the graph that it prints then.

    With autograd on, so that what the model's code does under ``no_grad`` is a part of its own.
    """
    for grad in (True, False):
        quiet = contextlib.redirect_stderr(io.StringIO())
        with quiet, torch.set_grad_enabled(grad), _without_stack_traces():
            try:
                args, kwargs = own_containers((args, kwargs))
                return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
            except Exception as error:  # export's or the model's code's: they have no common type
                refused = error
        if not any(word in str(refused) for word in _ABOUT_GRADIENTS):
            break
    return refused


@contextlib.contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Operators do not note the lines that they come from: a tenth of an export, and not read."""
    name = "do_not_emit_stack_traces"  # new in torch 2.13
    before = getattr(torch.fx.config, name, None)
    if before is None:
        yield
        return
    setattr(torch.fx.config, name, True)
    try:
        yield
    finally:
        setattr(torch.fx.config, name, before)


_ABOUT_GRADIENTS = ("requires grad", "requires_grad", "nference tensor", "set_grad_enabled")
"""In errors of code that only runs under ``no_grad``: it writes to a parameter, say."""


def open_exports(
    model: nn.Module, args: Any, kwargs: Any, closed: Sequence[Collection[int]]
) -> Iterator[ExportedProgram | TooInvolvedError]:
    """With open sizes of every dimension, then of the first one; many refuse.

    Where sizes become too involved, that comes in the place of a program.

    Args:
        model: in the mode in which it is traced.
        args: positional ones of its call.
        kwargs: arguments by name.
        closed: of each tensor among them, dimensions that are not open even then.
    """
    model = shared_copy(model)
    names = _spell_out(model, args, kwargs)

    def shapes(most: int) -> Any:
        these = iter(closed)

        def one(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return None
            fixed = next(these, ())
            return {
                d: torch.export.Dim.AUTO
                for d in range(min(most, value.dim()))
                if value.shape[d] > 1 and d not in fixed
            }

        by_position = pytree.tree_map(one, args)
        by_name = pytree.tree_map(one, kwargs)
        return dict(zip(names, (*by_position, *by_name.values()), strict=True))

    tried = []
    for most in (8, 1):
        try:
            wanted = shapes(most)
        except AttributeError:  # of a PackedSequence, which looks at what it is made of
            return
        if wanted not in tried:
            tried.append(wanted)
            program = export(model, args, kwargs, wanted)
            if isinstance(program, (ExportedProgram, TooInvolvedError)):
                yield program  # code that branches on sizes refuses otherwise


def _spell_out(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Let a copy's ``forward`` name every argument: export mixes up those under ``**kwargs``."""
    forward = model.forward
    names = list(by_name(positional_names(model), (args, kwargs)))

    def plain(*given: Any, **named: Any) -> Any:
        with _Simple():
            return forward(*given, **named)

    set_forward(model, plain, names)
    return names


class _Simple(TorchFunctionMode):
    """Ends a pass whose open sizes become so involved that each operator takes export seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and any(parts_of(n) > _INVOLVED for n in found.shape):
            raise TooInvolvedError
        return found


_INVOLVED = 16
"""Parts of a size: a picture through AlexNet has 11, cut into windows of 7 pixels 50."""


class TooInvolvedError(RuntimeError):
    """Of open sizes with which operators would take export seconds."""
