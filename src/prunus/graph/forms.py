"""Arguments and answers of any form, plain while a model is traced."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from prunus._common.inputs import Inputs, by_name, positional_names
from prunus._common.nested import CONSTANTS, in_form, leaves_of, map_tensors, plain
from prunus._common.torch_internals import pytree


class Forms:
    """What a copy of a model takes and gives while it is traced.

    Attributes:
        answer: the form of its answers, with ``None`` for each tensor; ``None`` where they are
            plain as they are.
    """

    def __init__(self, model: nn.Module, given: Inputs) -> None:
        self.answer: Any = None
        self._given = given
        self._names = positional_names(model)
        self._written: list[str] = []

    @classmethod
    def between(cls, model: nn.Module, given: Inputs) -> Forms:
        """Let a copy of a model take the leaves of these inputs, and give a plain answer.

        Args:
            model: a copy, whose ``forward`` is replaced.
            given: positional and keyword arguments as its code takes them.
        """
        forms = cls(model, given)
        outer = vars(model).get("forward")  # one of its own, that its class does not have
        of_class: Callable[..., Any] = type(model).forward
        objects = plain(given) is not given

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if objects:
                args, kwargs = forms._as_given(args, kwargs)
            before = _parts(forms._names, (args, kwargs)) if objects else {}
            found = outer(*args, **kwargs) if outer else of_class(self, *args, **kwargs)
            forms._note_written(before, (args, kwargs))
            return forms._plain(found)

        first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        known = inspect.signature(model.forward)
        vars(forward)["__signature__"] = known.replace(
            parameters=[first, *known.parameters.values()]
        )
        vars(model)["forward"] = types.MethodType(forward, model)
        return forms

    def written(self) -> tuple[str, ...]:
        """Arguments whose parts the model's code replaced."""
        return tuple(dict.fromkeys(self._written))

    def _as_given(self, args: Any, kwargs: Any) -> Inputs:
        forms = by_name(self._names, self._given)
        named = by_name(self._names, (args, kwargs))
        made = {
            name: in_form(forms[name], pytree.tree_leaves(value)) if name in forms else value
            for name, value in named.items()
        }
        values = list(made.values())
        return tuple(values[: len(args)]), {name: made[name] for name in kwargs}

    def _note_written(self, before: dict[str, int], inputs: Inputs) -> None:
        after = _parts(self._names, inputs) if before else {}
        changed = [
            path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
        ]
        for path in sorted(changed):
            self._written.append(path)

    def _plain(self, found: Any) -> Any:
        made = plain(found)
        held = pytree.tree_map(lambda v: None if isinstance(v, CONSTANTS) else v, made)
        constants = any(isinstance(v, CONSTANTS) for v in pytree.tree_leaves(made))
        if made is not found or constants:
            self.answer = map_tensors(lambda _: None, found)
        return held if constants else made


def _parts(names: Sequence[str], inputs: Inputs) -> dict[str, int]:
    """Which value lies at each place among arguments."""
    return {
        name + path: id(leaf) if isinstance(leaf, Tensor) else hash(repr(leaf))
        for name, value in by_name(names, inputs).items()
        for path, leaf in leaves_of(value)
    }
