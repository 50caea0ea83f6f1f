"""The operators of one forward pass."""

from __future__ import annotations

import contextlib
import logging
import operator
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus._common.inputs import Inputs, arguments, called, defaults_of, positional_names
from prunus._common.modules import detached_copy, keeping_modes, shared_copy, trains
from prunus._common.nested import in_form, leaves_of, map_tensors, plain, tensors_of
from prunus._common.put_back import PutBack
from prunus._common.rng import preserve_rng, seed
from prunus._common.torch_internals import (
    TYPE_CHECK,
    exported_module,
    open_sizes,
    pytree,
    size_hint,
)
from prunus.errors import InputError, first_line
from prunus.graph.decisions import decided
from prunus.graph.exporting import TooInvolvedError, export, open_exports
from prunus.graph.flags import keep_flags
from prunus.graph.forms import Forms
from prunus.graph.guard import Guard, Size, guard_of
from prunus.graph.no_grad import NO_GRAD, stop_gradients
from prunus.graph.recorder import record
from prunus.graph.writing import without_writes

BY_VALUES = "by_values"
"""In a node's ``meta``: whether a size of what it gives depends on values, and is not known."""

_OF_DATA = re.compile(r"\bu\d+")
"""How export names such sizes."""


@dataclass(frozen=True)
class Traced:
    """A forward pass as a graph of ATen operators.

    Attributes:
        module: the graph; its parameters and buffers are those of the model, by the same names.
        inputs: positional and keyword arguments of the pass.
        how: ``export`` or ``recorder``.
        notes: what the graph takes as given that another input might change.
        guard: the calls that the graph holds for.
        training: whether the model was in train mode.
        answer: the form of the model's answers, without tensors, where the graph gives them plain.
        written: arguments that the model's code changes, which a graph does not.
        involved: whether only the first dimension was left open since sizes became too involved.
    """

    module: fx.GraphModule
    inputs: Inputs
    how: str
    guard: Guard
    notes: tuple[str, ...] = ()
    training: bool = False
    answer: Any = None
    written: tuple[str, ...] = ()
    involved: bool = False

    @property
    def open(self) -> bool:
        """Whether the graph takes inputs of other sizes."""
        return self.guard.open

    def takes(self, inputs: Inputs) -> bool:
        """Whether the graph holds for a call, by its arguments and by what data decide."""
        if not isinstance(self.guard.arranged(*inputs), list):
            return False
        if not decided(self.module.graph) or any(t.is_meta for t in tensors_of(inputs)):
            return True
        before = {b: b.clone() for b in self.module.buffers()}
        found = _answers(self.module, plain(inputs))
        for buffer, old in before.items():  # a pass in train mode writes statistics
            buffer.copy_(old)
        return found is not None

    def tensor(self, node: fx.Node) -> Tensor | None:
        """The tensor that a ``get_attr`` node names, if it is one."""
        value = operator.attrgetter(str(node.target))(self.module)
        return value if isinstance(value, Tensor) else None


def trace(
    model: nn.Module,
    example: Any,
    *,
    dynamic: bool = False,
    closed: Sequence[Collection[int]] = (),
    inputs: Inputs | None = None,
    training: bool = False,
) -> Traced:
    """Trace a model; its mode is put back.

    Args:
        model: on any device, meta too.
        example: an input, a tuple of inputs, or a mapping of keyword arguments.
        dynamic: keep batch size and lengths open where the model allows it, so that the graph
            serves other inputs too; an example of one item is traced with two.
        closed: of each tensor among the inputs, dimensions that are not open even then.
        inputs: positional and keyword arguments, instead of an example.
        training: in train mode, not in eval mode.

    Raises:
        InputError: if the model cannot be traced, with the reason; scripted modules cannot.

    >>> traced = trace(nn.Linear(2, 3), torch.ones(1, 2))
    >>> [str(n.target) for n in traced.module.graph.nodes if n.op == "call_function"]
    ['aten.linear.default']
    """
    given = arguments(example) if inputs is None else inputs
    _refuse_scripted(model)
    model = shared_copy(model)  # caches that a pass fills stay in the copy
    with analysis_mode(model, training=training), torch.no_grad():
        forms = Forms.between(model, given)
        found = _traced(model, plain(given), dynamic, closed)
        if forms.answer is not None:
            if _counts_sizes(model, plain(given), found.guard, forms):
                found = _traced(model, plain(given), False, closed)
            _answers(model, plain(given))  # this example's constants, not the last size's tried
        if not training:
            keep_flags(found.module)
        noted = (*found.notes, *without_writes(found.module, model, plain(given)))
        stop_gradients(found.module)
        inputs = in_form(given, pytree.tree_leaves(found.inputs))
        found = replace(found, inputs=inputs, notes=noted, training=training)
        return replace(found, answer=forms.answer, written=forms.written())


def _traced(
    model: nn.Module, inputs: Inputs, dynamic: bool, closed: Sequence[Collection[int]]
) -> Traced:
    """A model that takes plain inputs, by export or by recording."""
    opened = _opened(model, inputs, closed) if dynamic else None
    if opened is not None:
        return opened
    program = export(model, *inputs)
    if isinstance(program, Exception):
        return _recorded(model, inputs, program)
    module = exported_module(program)
    guard = _guard(model, inputs)
    _inline(module)
    _settle(module)
    return Traced(module, inputs, "export", guard)


def _guard(
    model: nn.Module,
    inputs: Inputs,
    sizes: Sequence[Sequence[Size]] | None = None,
    conditions: Sequence[str] = (),
) -> Guard:
    return guard_of(positional_names(model), defaults_of(model), inputs, sizes, conditions)


def _opened(model: nn.Module, inputs: Inputs, closed: Sequence[Collection[int]]) -> Traced | None:
    """The graph of open sizes, and what is known of them; ``None`` where none can be had."""
    given, inputs = inputs, _two_items(model, inputs)
    involved = False
    for program in open_exports(model, *inputs, closed):
        if isinstance(program, TooInvolvedError):
            involved = True
            continue
        module = exported_module(program)
        fakes = [n.meta.get("val") for n in module.graph.nodes if n.op == "placeholder"]
        known = open_sizes(fakes)
        if known is None or len(known[0]) != len(tensors_of(inputs)):
            continue
        guard = _guard(model, inputs, *known)
        if not guard.readable:
            continue
        _inline(module)
        _settle(module)
        guard = _down_to_one(model, module, inputs, guard)
        if isinstance(guard.arranged(*given), list):  # or its code reads a size as a number
            return Traced(module, inputs, "export", guard, involved=involved)
    return None


def _two_items(model: nn.Module, inputs: Inputs) -> Inputs:
    """A batch of one twice over, where the model takes that: a size of 1 cannot be open."""
    leading = [len(t) for t in tensors_of(inputs) if t.dim()]
    if not leading or leading[0] != 1:
        return inputs
    twice = map_tensors(lambda t: torch.cat([t, t]) if t.dim() and len(t) == 1 else t, inputs)
    before, after = _answers(model, inputs), _answers(model, twice)
    if before is None or after is None or len(before) != len(after):
        return inputs
    grown = [(a.shape[:1], b.shape[:1]) for a, b in zip(before, after, strict=True)]
    return twice if any(a != b for a, b in grown) else inputs


def _down_to_one(model: nn.Module, module: nn.Module, inputs: Inputs, guard: Guard) -> Guard:
    """A guard that lets sizes be 1 where graph and model agree there: export takes none for it."""
    for symbol in guard.places():
        lower = f"{symbol} >= 2"
        less = replace(guard, conditions=tuple(c for c in guard.conditions if c != lower))
        small = guard.narrowed(inputs, symbol)
        if less == guard or small is None or not isinstance(less.arranged(*small), list):
            continue
        wanted, found = _answers(model, small), _answers(module, small)
        if wanted is not None and found is not None and _agree(wanted, found):
            guard = less
    return guard


def _counts_sizes(model: nn.Module, inputs: Inputs, guard: Guard, forms: Forms) -> bool:
    """Whether constants among the answers, which a graph holds, follow an open size."""
    _answers(model, inputs)
    before = _constants(forms)
    for symbol in guard.places():
        small = guard.narrowed(inputs, symbol)
        if small is not None and _answers(model, small) is not None and before != _constants(forms):
            return True
    return False


def _constants(forms: Forms) -> list[tuple[str, str]]:
    return [(path, repr(value)) for path, value in leaves_of(forms.answer)]


def _answers(model: nn.Module, inputs: Inputs) -> list[Tensor] | None:
    """What a model answers; ``None`` if it raises."""
    try:
        shared = model.parameters() if model.training else (*model.parameters(), *model.buffers())
        model = detached_copy(model, {id(t): t for t in shared})  # flags, statistics
        with preserve_rng(), torch.no_grad(), PutBack(model.parameters()):
            seed(0)
            return tensors_of(called(model, map_tensors(Tensor.clone, inputs)))
    except Exception:  # of the model's code, on sizes that it was not written for
        return None


def _agree(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    pairs = list(zip(wanted, found, strict=False))
    same = len(wanted) == len(found) and all(a.shape == b.shape for a, b in pairs)
    return same and all(
        a.is_meta or torch.allclose(a, b, 1e-3, 1e-5, equal_nan=True) for a, b in pairs
    )


def _refuse_scripted(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            which = f"'{name}'" if name else "the model"
            raise InputError(
                f"{which} is a torch.jit.ScriptModule: compiled code "
                "can be neither traced nor sliced. Prune the model as it was before "
                "torch.jit.script or torch.jit.trace, and script the smaller one"
            )


def _recorded(model: nn.Module, inputs: Inputs, refused: Exception) -> Traced:
    """The operators of a real pass, where export refused."""
    try:
        module = record(model, *inputs)
    except Exception as error:  # the model runs: whatever its code raises
        raise InputError(
            f"{type(model).__name__} cannot be traced with this example, neither by torch.export "
            f"({first_line(refused)}) nor by recording a pass ({first_line(error)}). Give an "
            "example that the model takes in eval mode (model(*example)), or use a structure that "
            "needs no trace: weight, n:m, block or neuron"
        ) from error
    notes: Any = vars(module)
    given = f"torch.export refused ({first_line(refused)}), so one pass was recorded"
    noted = (given, *notes["notes"], *notes["executed"])
    return Traced(module, inputs, "recorder", _guard(model, inputs), noted)


def _settle(module: fx.GraphModule) -> None:
    """Open sizes as this example has them, wherever the analysis reads a size."""

    def settled(value: Any) -> Any:
        if isinstance(value, Tensor) and any(isinstance(n, torch.SymInt) for n in value.shape):
            shape = [size_hint(n) for n in value.shape]
            return torch.empty(shape, dtype=value.dtype, device="meta")
        return size_hint(value) if isinstance(value, torch.SymInt) else value

    checks = []
    for node in module.graph.nodes:
        if "val" in node.meta:
            sizes = map(str, getattr(node.meta["val"], "shape", ()))
            node.meta[BY_VALUES] = any(_OF_DATA.search(size) for size in sizes)
            node.meta["val"] = pytree.tree_map(settled, node.meta["val"])
        if node.target is TYPE_CHECK:
            checks.append(node)  # of a cast: half precision or float64 is no other graph
    for node in checks:
        module.graph.erase_node(node)
    if checks:
        module.recompile()


def _inline(module: fx.GraphModule) -> None:
    """Bring the bodies of ``with no_grad()`` and ``with autocast()`` into the graph itself."""
    graph, found = module.graph, False
    for node in list(graph.nodes):
        kind = str(node.target)
        if node.op != "call_function" or "wrap_with_" not in kind:
            continue
        found = True
        body = next(i for i, a in enumerate(node.args) if _is_module(module, a))
        inner = getattr(module, str(node.args[body].target))
        _inline(inner)
        if "set_grad_enabled" in kind:
            for called in inner.graph.nodes:
                called.meta.setdefault(NO_GRAD, not node.args[0])
        values = dict(
            zip(
                (n for n in inner.graph.nodes if n.op == "placeholder"),
                node.args[body + 1 :],
                strict=True,
            )
        )
        with graph.inserting_before(node):
            result = graph.graph_copy(inner.graph, values)
        outputs: Any = result
        for user in list(node.users):  # each is a getitem
            user.replace_all_uses_with(outputs[user.args[1]])
            graph.erase_node(user)
        holder = node.args[body]
        graph.erase_node(node)
        if isinstance(holder, fx.Node) and not holder.users:
            graph.erase_node(holder)
            delattr(module, str(holder.target))
    if found:
        module.recompile()


def _is_module(module: fx.GraphModule, argument: Any) -> bool:
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return False
    return isinstance(getattr(module, str(argument.target), None), fx.GraphModule)


@contextlib.contextmanager
def analysis_mode(
    model: nn.Module, *, training: bool = False, fast: bool = False
) -> Iterator[None]:
    """A model as it is analyzed: no cache among its outputs, no fused fast path, and eval mode.

    Args:
        model: its mode and configuration are put back.
        training: train mode instead; modules that are frozen in eval mode inside a model that
            trains stay so.
        fast: with its cache and fast path, as users call it.
    """
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    caching = [c for c in configs.values() if getattr(c, "use_cache", None) is True and not fast]
    trainable = [(p, p.requires_grad) for p in model.parameters()]
    enabled = torch.backends.mha.get_fastpath_enabled()
    log = logging.getLogger("torch")
    level = log.level
    own = vars(model)
    # accelerate's mixed precision casts inside a forward of its own, which float64 cannot pass
    casts = own.pop("forward", None) if "_original_forward" in own else None
    try:
        log.setLevel(logging.CRITICAL)
        for config in caching:
            config.use_cache = False
        torch.backends.mha.set_fastpath_enabled(fast and enabled)
        with keeping_modes(model), warnings.catch_warnings():
            frozen = [m for m in model.modules() if not m.training] if trains(model) else []
            model.train(training)
            for module in frozen:
                module.training = False
            warnings.simplefilter("ignore")
            yield
    finally:
        for parameter, needed in trainable:  # its code may freeze some, and copies share them
            if parameter.requires_grad != needed:  # which a tensor of inference mode refuses
                parameter.requires_grad_(needed)
        if casts is not None:
            own["forward"] = casts
        log.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(enabled)
        for config in caching:
            config.use_cache = True
