"""The gate: masked and compact model compared in float64, on random inputs and values."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.compaction.cut import Cut, Kept, take
from prunus.compaction.rewrite import Rewritten
from prunus.graph.call import describe
from prunus.graph.labels import Value
from prunus.graph.trace import Traced, arguments, quiet, trace, twin
from prunus.types import Masks

TOLERANCE = 1e-10
"""Largest difference in float64, relative to the largest output."""


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
    note="an operator knows no float64: compared in the model's own type, within 1e-4",
)
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
    """

    error: float
    effect: float = 0.0
    problem: str | None = None
    tolerance: float = TOLERANCE

    @property
    def equal(self) -> bool:
        """Whether nothing speaks against the compact model."""
        return self.problem is None and not self.error > self.tolerance


State = Mapping[str, Tensor]


class Double(TorchDispatchMode):
    """Everything in float64, literals such as ``.to(torch.float32)`` included."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        written = set()
        if func._schema.is_mutable:
            written = {
                i
                for i, a in enumerate(func._schema.arguments)
                if a.alias_info and a.alias_info.is_write
            }

        def wide(value: Any) -> Any:
            if isinstance(value, Tensor) and value.dtype in (
                torch.float32, torch.float16, torch.bfloat16
            ):  # fmt: skip
                return value.double()
            return torch.float64 if value is torch.float32 else value

        widened = [a if i in written else _pytree.tree_map(wide, a) for i, a in enumerate(args)]
        return func(*widened, **_pytree.tree_map(wide, kwargs or {}))


def values_for_test(model: nn.Module, masks: Masks, seed: int = 0) -> tuple[State, State]:
    """Values for a comparison in float64: of the dense model, and with the masks applied.

    Statistics, biases, scales and whatever else is constant are made random: zeros and ones
    would hide mistakes.
    """
    generator = torch.Generator().manual_seed(seed)
    dense: dict[str, Tensor] = {}
    done: dict[int, Tensor] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    every = {**parameters, **dict(model.named_buffers(remove_duplicate=False))}
    for name, tensor in every.items():
        if id(tensor) not in done:
            done[id(tensor)] = _value(name, tensor, name in parameters, generator)
        dense[name] = done[id(tensor)]
    for name, mask in masks.items():  # what is zero already would hide what the masks do
        filled = _filled(dense[name], mask.to(dense[name].device), generator)
        for other, tensor in every.items():
            if tensor is every[name]:
                dense[other] = filled
    masked = dict(dense)
    for name, mask in masks.items():
        masked[name] = dense[name] * mask.to(dense[name].device)
        for other, tensor in every.items():
            if tensor is every[name]:
                masked[other] = masked[name]
    return dense, masked


def _filled(values: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers, of the size of what is kept, in place of what is removed."""
    if values.is_meta:
        return values
    kept = mask.expand(values.shape)
    filled = values.clone()
    spread = float(filled[kept].std()) if int(kept.sum()) > 1 else 0.1
    noise = _normal((int((~kept).sum()),), generator, values.device)
    filled[~kept] = noise * max(spread, 1e-3)
    return filled


def _value(name: str, tensor: Tensor, parameter: bool, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.detach()
    values = tensor.detach().double()
    if values.is_meta:
        return values
    last = name.rpartition(".")[2]
    if last == "running_var":
        return 0.5 + _normal(values.shape, generator, values.device).abs()
    if last == "running_mean":
        return 0.3 * _normal(values.shape, generator, values.device)
    if parameter and (values.dim() < 2 or bool((values == values.flatten()[0]).all())):
        return values + 0.2 * _normal(values.shape, generator, values.device)
    return values


def _normal(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Drawn on the CPU, so that a seed means the same everywhere."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(device)


def small_state(state: State, kept: Kept, names: Mapping[str, str]) -> State:
    """The values of a state that a compact model has."""
    small = {}
    for name, tensor in state.items():
        cut = kept.get(names.get(name, name))
        small[name] = tensor if cut is None else take(tensor, cut)
    return small


def random_like(example: Any, seed: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Random inputs of an example's shapes: normal values, integers within the example's range."""
    generator = torch.Generator().manual_seed(seed)

    def fresh(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.numel() == 0 or value.is_meta:
            return value
        if value.is_floating_point():
            made = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            return made.to(value.device)
        if value.dtype is torch.bool or int(value.min()) == int(value.max()):
            return value
        low, high = int(value.min()), int(value.max())
        made = torch.randint(low, high + 1, value.shape, generator=generator, dtype=value.dtype)
        return made.to(value.device)

    args, kwargs = arguments(example)
    return _pytree.tree_map(fresh, (args, kwargs))  # type: ignore[no-any-return]


def outputs(
    model: nn.Module, state: State, inputs: tuple[Any, Any], gate: Gate = FLOAT64
) -> list[Tensor]:
    """A model's outputs with these values in place of its own, in float64 or its own type."""
    if gate is META and not isinstance(model, fx.GraphModule):
        return traced_outputs(trace(model, None, inputs=inputs))  # eager code may ask for values
    tensors = (*model.named_parameters(), *model.named_buffers())  # tied ones once
    own = {k: state[k] if gate.wide else state[k].to(v.dtype) for k, v in tensors if k in state}
    args, kwargs = _pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, inputs)
    model = twin(model)  # a pass may fill caches
    with torch.no_grad(), quiet(model), Double() if gate.wide else contextlib.nullcontext():
        found = functional_call(model, own, args, kwargs)
    real = [t for t in tensors_of(found) if t.is_floating_point() or t.is_complex()]
    return real or tensors_of(found)


def traced_outputs(traced: Traced) -> list[Tensor]:
    """What a traced model returns, without values."""
    output = next(n for n in traced.module.graph.nodes if n.op == "output")
    found = _pytree.tree_map_only(fx.Node, lambda n: n.meta.get("val"), output.args)
    return [torch.empty_like(t, device="meta") for t in tensors_of(found)]


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of a nested output, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors_of(v)]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in tensors_of(v)]
    if hasattr(value, "__dataclass_fields__"):
        return [t for k in value.__dataclass_fields__ for t in tensors_of(getattr(value, k))]
    return []


def difference(expected: list[Tensor], found: list[Tensor]) -> tuple[float, str | None]:
    """Largest difference relative to the largest value, or what makes them incomparable."""
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
    masked: list[Tensor],
    model: nn.Module,
    state: State,
    inputs: tuple[Any, Any],
    gate: Gate = FLOAT64,
) -> Comparison:
    """A compact model against the masked model's outputs."""
    try:
        found = outputs(model, state, inputs, gate)
    except Exception as error:
        text = str(error).strip().splitlines()
        return Comparison(
            float("inf"), problem=f"{type(error).__name__}: {text[0] if text else ''}"
        )
    gap, problem = difference(masked, found)
    return Comparison(gap, problem=problem, tolerance=gate.tolerance)


def first_difference(
    cut: Cut,
    rewritten: Rewritten,
    states: tuple[State, State],
    inputs: tuple[Any, Any],
    gate: Gate = FLOAT64,
) -> str | None:
    """The first operator whose value differs between the masked and the smaller graph.

    Args:
        cut: what was removed.
        rewritten: the smaller graph.
        states: values of the masked and of the compact model.
        inputs: positional and keyword arguments.
        gate: how values are compared.
    """
    old = cut.analysis.traced.module
    with torch.no_grad(), Double() if gate.wide else contextlib.nullcontext():
        before = every_value(old, inputs, states[0])
        after = every_value(rewritten.module, inputs, states[1])
    for node, value in before.items():
        known = cut.analysis.known.get(node)
        if not isinstance(value, Tensor) or not isinstance(known, Value):
            continue
        twin = rewritten.nodes[node]
        if twin not in after:
            return describe(node)
        expected = take(value, tuple(cut.indices(d) for d in known.dims))
        if difference([expected], [after[twin]])[0] > gate.tolerance:
            return describe(node)
    return None


def every_value(
    module: fx.GraphModule, inputs: tuple[Any, Any], state: State | None = None
) -> dict[fx.Node, Any]:
    """What each operator of a traced model gives, up to the first one that fails.

    Args:
        module: traced.
        inputs: positional and keyword arguments.
        state: values in place of the module's own.
    """
    values: dict[fx.Node, Any] = {}
    own = {} if state is None else state

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            values[n] = found = super().run_node(n)
            return found.clone() if isinstance(found, Tensor) and n.op == "placeholder" else found

        def fetch_attr(self, target: str) -> Any:
            return own[target] if target in own else super().fetch_attr(target)

    flat = _pytree.tree_leaves(inputs)
    if len(flat) != sum(n.op == "placeholder" for n in module.graph.nodes):
        flat = [v for v in flat if v is not None]
    try:
        Watch(module).run(*flat, enable_io_processing=False)
    except Exception:  # the caller looks at what there is
        return values
    return values
