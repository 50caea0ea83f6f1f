"""The gate: masked and compact model compared in float64, on random inputs and values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from prunus._common.modules import shared_copy
from prunus._common.nested import map_tensors, own_containers, tensors_of
from prunus._common.put_back import PutBack, written_arguments
from prunus._common.rng import is_as_seeded, preserve_rng, seed
from prunus._common.torch_internals import FakeTensor, TorchDispatchMode, pytree
from prunus.compaction.rewriting.compact_graph import CompactGraph
from prunus.compaction.verifying.uses import Use, step_by_step
from prunus.compaction.verifying.values import Lazy, State
from prunus.errors import InputError, first_line
from prunus.graph.call import operator_name
from prunus.graph.trace import Traced, analysis_mode, trace

TOLERANCE = 1e-10
"""Largest difference in float64, relative to the largest output."""

TRAINING_TOLERANCE = 1e-7
"""The same in train mode, where statistics of a small batch divide by small numbers."""

T = TypeVar("T")

Answers = tuple[list[Tensor], dict[str, Tensor]]
"""Outputs of a model, and its buffers after a pass in train mode."""


_WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}
_WIDE_VALUES = {**_WIDER, torch.float16: torch.float64, torch.bfloat16: torch.float64}


@dataclass(frozen=True)
class Gate:
    """How two models are compared.

    Attributes:
        tolerance: largest difference, relative to the largest output.
        wide: in float64; else in the model's own type.
        note: what a user should know about it.
    """

    tolerance: float = TOLERANCE
    wide: bool = True
    note: str = ""


FLOAT64 = Gate()
OWN_TYPE = Gate(
    1e-4,
    wide=False,
    note="an operator does not support float64: compared in the model's own type, within 1e-4",
)
AS_CALLED = Gate(1e-2, wide=False)
META = Gate(note="on the meta device: shapes were compared, values could not be")


@dataclass(frozen=True)
class Comparison:
    """Two models on the same inputs.

    Attributes:
        error: largest difference ÷ largest value of the masked model's outputs; NaN on the meta
            device, where only shapes were compared.
        effect: the same between masked and dense model: near zero, equality says nothing.
        problem: why there is no comparison (an exception, other outputs), or ``None``.
        tolerance: for the error.
        refused: whether the compact model itself says that it does not take this call.
        refusals: uses that it refuses, each with the reason.
        flags: arguments, and values with which it answers otherwise.
        gradient: a parameter whose gradient differs, of a model that answers alike.
    """

    error: float
    effect: float = 0.0
    problem: str | None = None
    tolerance: float = TOLERANCE
    refused: bool = False
    refusals: tuple[str, ...] = ()
    flags: tuple[tuple[str, bool], ...] = ()
    gradient: str = ""

    @property
    def equal(self) -> bool:
        """Whether nothing speaks against the compact model."""
        return self.problem is None and not self.error > self.tolerance


class Double(TorchDispatchMode):
    """Everything in float64, literals such as ``.to(torch.float32)`` included; complex likewise."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        written, kwargs = written_arguments(func), kwargs or {}
        widened = [a if i in written else _all_wide(a) for i, a in enumerate(args)]
        result = func(*widened, **{k: _all_wide(v) for k, v in kwargs.items()})
        given = (*args, *kwargs.values())
        takes = any(isinstance(a, Tensor) for a in given) or tensors_of(given)
        return result if takes else _all_wide(result)


def _all_wide(value: Any) -> Any:
    """The same of nested values."""
    nested = isinstance(value, (list, tuple, dict))
    return pytree.tree_map(wide, value) if nested else wide(value)


def wide(value: Any) -> Any:
    """A tensor in float64, or a type as it is there; anything else as it is."""
    if isinstance(value, Tensor):
        wider = _WIDE_VALUES.get(value.dtype)
        return value if wider is None else value.to(wider)
    return _WIDER.get(value, value) if isinstance(value, torch.dtype) else value


class Still(PutBack):
    """Noise made constant, so that models of different sizes meet the same."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note(func, args)
        name = operator_name(func)
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if name.endswith("dropout"):  # whole, where no gradient is recorded
            return args[0] if written_arguments(func) else args[0].clone()
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        seeded = kwargs.get("generator") is not None  # by whoever asks: the same in all models
        if seeded or not isinstance(found, Tensor) or not _is_noise(func, name):
            return found
        constant = 0.5 if found.is_floating_point() else int(found.dtype is torch.bool)
        if name == "bernoulli" and isinstance(args[-1], float):
            constant = args[-1]  # dropout divides by it: with gradients or without, nothing goes
        written = written_arguments(func)
        return found.fill_(constant) if written else torch.full_like(found, constant)


def _is_noise(operator: Any, name: str) -> bool:
    """Whether what an operator gives is chance alone, of the shape that it is asked for."""
    by_chance = torch.Tag.nondeterministic_seeded in getattr(operator, "tags", ())
    return by_chance and not any(word in name for word in ("attention", "dropout", "randperm"))


def outputs(
    model: nn.Module, state: State, inputs: tuple[Any, Any], gate: Gate = FLOAT64
) -> list[Tensor]:
    """A model's outputs with these values in place of its own, in float64 or its own type."""
    return answers(model, state, Use("", inputs), gate)[0]


def answers(
    model: nn.Module,
    state: State,
    use: Use,
    gate: Gate = FLOAT64,
    drew: list[bool] | None = None,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """A model's outputs in some use, and the buffers that training leaves.

    Args:
        model: is not changed.
        state: its values.
        use: what it is called with, and how.
        gate: in which type.
        drew: gets whether the pass drew random numbers.
    """
    if gate is META and not isinstance(model, fx.GraphModule):
        traced = trace(model, None, inputs=use.inputs)  # eager code may ask for values
        return traced_outputs(traced), {}
    own = values_of(model, state, use, gate)

    def made(given: list[Tensor]) -> list[Tensor]:
        if drew is not None:
            drew.append(not is_as_seeded(0))
        return [dense(t) for t in given]

    found = passed(model, own, use, gate, made)
    return as_answers(model, found, own, use)


def as_answers(
    model: nn.Module, found: list[Tensor], own: Mapping[str, Tensor], use: Use
) -> Answers:
    """What counts of a model's outputs in some use, and the buffers that training leaves.

    Args:
        model: that gave them.
        found: all of them.
        own: the values that it had.
        use: in which it was called.
    """
    real = [t.detach() for t in found if t.is_floating_point() or t.is_complex()]
    real = real[:1] if use.fast else real  # behind it come caches, which may lose heads
    buffers = dict(model.named_buffers())
    trained = {k: v for k, v in own.items() if k in buffers and v.is_floating_point()}
    return real or found, trained if use.training else {}


def values_of(model: nn.Module, state: State, use: Use, gate: Gate) -> dict[str, Tensor]:
    """A model's values in some use: of the gate's type; buffers that it trains are copies."""
    tensors = (*model.named_parameters(), *model.named_buffers())  # tied ones once
    own = {
        k: state[k] if gate.wide else _typed(state[k], v.dtype) for k, v in tensors if k in state
    }
    buffers = dict(model.named_buffers())
    if use.training:
        own |= {k: held(v).clone() for k, v in own.items() if k in buffers}
    return own


def passed(
    model: nn.Module,
    own: Mapping[str, Tensor],
    use: Use,
    gate: Gate,
    then: Callable[[list[Tensor]], T],
) -> T:
    """What becomes of a model's answers in some use, while what makes noise constant still holds.

    Args:
        model: is not changed.
        own: values in place of its own.
        use: what it is called with, and how.
        gate: in which type.
        then: takes the answers, with what autograd knows of them.
    """
    buffers = dict(model.named_buffers())
    args, kwargs = own_containers(map_tensors(Tensor.clone, use.inputs))
    if gate.wide:  # convolutions compare the types of what they are given before a mode sees it
        args, kwargs = map_tensors(wide, (args, kwargs))
    model = shared_copy(model, whole=CompactGraph)  # a pass may fill caches
    caller = _Repeated(model, steps=use.steps) if use.steps or use.again else model
    with contextlib.ExitStack() as stack:
        stack.enter_context(preserve_rng())
        stack.enter_context(torch.set_grad_enabled(use.gradient))
        stack.enter_context(analysis_mode(model, training=use.training, fast=use.fast or use.steps))
        if not use.fast:  # fused paths are taken under no mode
            stack.enter_context(
                Still(t for k, t in own.items() if not use.training or k not in buffers)
            )
        if gate.wide:
            stack.enter_context(Double())
        seed(0)  # numpy's and Python's chance too
        prefix = "model." if caller is model else "model.model."
        values = {prefix + k: v for k, v in own.items()}
        found: T = functional_call(_Then(caller, then), values, args, kwargs)
        return found


def dense(tensor: Tensor) -> Tensor:
    """A tensor with its values, in memory and strided."""
    tensor = held(tensor)
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


class _Then(nn.Module):
    """What becomes of answers while the values are in place: a checkpoint computes them again."""

    def __init__(self, model: nn.Module, then: Callable[[list[Tensor]], Any]) -> None:
        super().__init__()
        self.model, self.then = model, then

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.then(tensors_of(self.model(*args, **kwargs)))


class _Repeated(nn.Module):
    """A decoder that is called token by token, or a model that is called twice."""

    def __init__(self, model: nn.Module, *, steps: bool) -> None:
        super().__init__()
        self.model, self.steps = model, steps
        self.train(model.training)

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        if self.steps:
            return step_by_step(self.model, (args, kwargs))
        first, then = map_tensors(Tensor.clone, (args, kwargs)), map_tensors(_moved, (args, kwargs))
        return [
            t for args, kwargs in (first, then) for t in tensors_of(self.model(*args, **kwargs))
        ]


def _moved(tensor: Tensor) -> Tensor:
    """Other numbers of the same size."""
    return tensor.roll(1, -1) if tensor.dim() and tensor.is_floating_point() else tensor.clone()


def _typed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.typed(dtype) if isinstance(tensor, Lazy) else tensor.to(dtype)


def traced_outputs(traced: Traced) -> list[Tensor]:
    """What a traced model returns, without values."""
    output = next(n for n in traced.module.graph.nodes if n.op == "output")
    found = pytree.tree_map_only(fx.Node, lambda n: n.meta.get("val"), output.args)
    return [torch.empty_like(t, device="meta") for t in tensors_of(found)]


def difference(expected: list[Tensor], found: list[Tensor]) -> tuple[float, str | None]:
    """Largest difference relative to the largest value, or what makes them incomparable."""
    if not expected:
        return float("inf"), "the model returns no tensor, so nothing can be compared"
    if len(expected) != len(found):
        return float("inf"), f"{len(found)} outputs instead of {len(expected)}"
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return float("inf"), f"an output of shape {tuple(b.shape)} instead of {tuple(a.shape)}"
        if a.numel() == 0:
            continue
        if a.is_meta or b.is_meta:
            return float("nan"), None
        if isinstance(a, FakeTensor) or isinstance(b, FakeTensor):
            return float("inf"), "an output stands for values that this torch did not follow"
        a, b = _real(a), _real(b)
        same = (a == b) | (a.isnan() & b.isnan())
        gap = torch.where(same, torch.zeros_like(a), (a - b).abs())
        scale = float(a[a.isfinite()].abs().max()) if bool(a.isfinite().any()) else 1.0
        if bool(gap.isnan().any()):
            return float("inf"), "an output is NaN on one side"
        worst = max(worst, float(gap.max()) / max(scale, 1e-300))
    return worst, None


def _real(tensor: Tensor) -> Tensor:
    return (
        torch.view_as_real(tensor.to(torch.complex128)) if tensor.is_complex() else tensor.double()
    )


def compare(
    masked: Answers,
    model: nn.Module,
    state: State,
    use: Use,
    gate: Gate = FLOAT64,
    run: Callable[[nn.Module, State, Use, Gate], Answers] | None = None,
) -> Comparison:
    """A compact model against the masked model's outputs, and the buffers that training left.

    Args:
        masked: the masked model's.
        model: the compact one.
        state: its values.
        use: in which both answer.
        gate: in which type, and how near.
        run: lets the compact model answer; by default as :func:`answers` does.
    """
    try:
        found, buffers = (run or answers)(model, state, use, gate)
    except InputError as error:  # a guard of ours
        return Comparison(float("inf"), problem=first_line(error, kind=False), refused=True)
    except Exception as error:  # of the model's code, on shapes that it was not written for
        return Comparison(float("inf"), problem=first_line(error))
    both = sorted(buffers.keys() & masked[1].keys())
    expected = [*masked[0], *(masked[1][k] for k in both)]
    gap, problem = difference(expected, [*found, *(buffers[k] for k in both)])
    tolerance = gate.tolerance if not use.training else max(gate.tolerance, TRAINING_TOLERANCE)
    return Comparison(gap, problem=problem, tolerance=tolerance)


def held(tensor: Tensor) -> Tensor:
    """A tensor whose values are in memory."""
    return tensor.made() if isinstance(tensor, Lazy) else tensor
