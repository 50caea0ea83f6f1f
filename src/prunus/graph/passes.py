"""The passes of a model that an analysis follows: every example, and training where it differs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.given import not_taken
from prunus._common.inputs import Inputs, called, every_example
from prunus._common.modules import detached_copy, named_tensors, put_attribute
from prunus._common.nested import leaves_of, map_tensors, tensors_of
from prunus._common.put_back import PutBack
from prunus._common.rng import preserve_rng, seed
from prunus._common.torch_internals import TorchDispatchMode, below_autograd
from prunus.errors import first_line
from prunus.graph.call import operator_name
from prunus.graph.flags import TRAINING_FLAGS
from prunus.graph.trace import Traced, analysis_mode, trace

_COUNTER = "num_batches_tracked"


def trace_all(model: nn.Module, example: Any) -> tuple[Traced, ...]:
    """Every pass that the analysis of a model joins: of each example, and of training.

    A pass in train mode is traced where it runs other operators than the one in eval mode:
    auxiliary heads, sampling, teacher forcing.

    Args:
        model: on any device, meta too.
        example: an input, a tuple of inputs, a mapping of keyword arguments, or a list of these.

    Raises:
        InputError: if the model cannot be traced.
    """
    found: list[Traced] = []
    for inputs in every_example(example):
        found.append(trace(model, None, inputs=inputs))
        modes = Modes.of(model, inputs)
        if modes.problem is None and modes.structure:
            found.append(trace(model, None, inputs=inputs, training=True))
    return apart(model, found)


def apart(model: nn.Module, passes: Sequence[Traced]) -> tuple[Traced, ...]:
    """Passes of one model whose constants have names that no other pass has."""
    own = {name for name, _, _ in named_tensors(model)}
    for number, traced in enumerate(passes[1:], 1):
        for node in traced.module.graph.nodes:
            tensor = traced.tensor(node) if node.op == "get_attr" else None
            if tensor is not None and str(node.target) not in own:
                name = f"_pass{number}_{str(node.target).replace('.', '_')}"
                put_attribute(traced.module, name, tensor)
                node.target = name
        traced.module.recompile()
    return tuple(passes)


@dataclass(frozen=True)
class Modes:
    """How a pass in train mode differs from the one in eval mode.

    Attributes:
        structure: it runs other operators, or on other sizes.
        numbers: it gives them other numbers, beside the flags that say train or eval.
        problem: why the model cannot run in train mode.
    """

    structure: bool = False
    numbers: bool = False
    problem: str | None = None

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs) -> Modes:
        """Run a copy of the model in both modes and compare the operators."""
        try:
            eval_log = _log(model, inputs, training=False)
        except Exception as error:  # of the model's code: tracing looks at sizes, not at all types
            raise not_taken(model, inputs, error) from error
        try:
            train_log = _log(model, inputs, training=True)
        except Exception as error:  # of the model's code: targets that are missing, one item
            return cls(problem=first_line(error))
        structure = _structure(eval_log) != _structure(train_log)
        if structure:
            again = _log(model, inputs, training=True, chance=1)
            if _structure(again) != _structure(train_log):
                return cls(problem="which operators it runs in train mode is left to chance")
        return cls(structure, structure or eval_log != train_log)


@dataclass(frozen=True)
class _Line:
    """An operator that ran: its name, the tensors that it read, and the numbers."""

    name: str
    operands: tuple[Any, ...]
    numbers: tuple[Any, ...]


def _structure(log: list[_Line]) -> list[Any]:
    return [(line.name, line.operands) for line in log]


def _log(model: nn.Module, inputs: Inputs, *, training: bool, chance: int = 0) -> list[_Line]:
    """The operators of a pass, whose effects stay in a copy."""
    twin = detached_copy(model, {id(p): p for p in model.parameters()})
    names = {id(t): n for n, t in (*twin.named_parameters(), *twin.named_buffers())}
    log = _Log(names)
    inputs = map_tensors(Tensor.clone, inputs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(preserve_rng())
        seed(chance)
        stack.enter_context(analysis_mode(twin, training=training))
        stack.enter_context(torch.no_grad())
        stack.enter_context(below_autograd())
        stack.enter_context(PutBack(twin.parameters()))
        stack.enter_context(log)
        called(twin, inputs)
    return log.lines


class _Log(TorchDispatchMode):
    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self._names = names
        self.lines: list[_Line] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = operator_name(func)
        operands = tensors_of((args, kwargs))
        if not any(self._names.get(id(t), "").endswith(_COUNTER) for t in operands):
            flag = TRAINING_FLAGS.get(name)
            rest = [a for i, a in enumerate(args) if i != flag]
            numbers = tuple(repr(v) for _, v in leaves_of((rest, kwargs)) if _is_number(v))
            read = tuple(self._names.get(id(t), tuple(t.shape)) for t in operands)
            self.lines.append(_Line(name, read, numbers))
        return func(*args, **kwargs)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, str)) or value is None
