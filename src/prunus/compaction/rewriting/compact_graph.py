"""A graph in a module's place: its mode, its plain attributes, its copies."""

from __future__ import annotations

import copy
import operator
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from prunus._common.former_module import StandIn, parts_of, put_part, told
from prunus._common.modules import put_attribute, trains
from prunus._common.nested import in_form, tensors_of
from prunus._common.torch_internals import call_of, copy_call, copy_hooks, pytree
from prunus.compaction.rewriting.following import (
    FROZEN,
    Flagged,
    flagged,
    follow,
    outwards,
    refuse_apart,
)
from prunus.errors import InputError, first_line
from prunus.graph.call import module_path
from prunus.graph.decisions import DECIDED, decided
from prunus.graph.guard import Guard


@dataclass(frozen=True)
class GraphPass:
    """One way through a module.

    Attributes:
        graph: its operators.
        guard: the calls that they hold for.
        training: the mode that they hold for; ``None``: both, by the operators' own flags.
        answer: the form of the answers, where it is none that a graph can give.
    """

    graph: fx.Graph
    guard: Guard
    training: bool | None = None
    answer: Any = None


def copied(graph: fx.Graph) -> fx.Graph:
    """The same operators, called alike."""
    made = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        new[node] = made.node_copy(node, new.__getitem__)
    copy_call(made, graph)
    return made


class CompactGraph(StandIn, fx.GraphModule):
    """Graphs that stand in for a module of the user's, with the plain attributes of that one.

    Each is one pass through the module's code. A call takes the first one that holds for its
    arguments and the mode, and is refused where none does. ``train()`` switches dropout, batch
    norms and recurrent layers as it would have switched the modules that they came from.

    Attributes:
        passes: all of them; the graph of the first one is this module's ``graph``.
        gradient: a parameter whose gradient is not the module's own: such a graph answers, and
            refuses a backward pass.
    """

    passes: tuple[GraphPass, ...] = ()
    gradient: str = ""

    def __str__(self) -> str:
        return repr(self)

    def _get_name(self) -> str:
        return "CompactGraph"

    def extra_repr(self) -> str:
        """The number of operators: the code itself is in ``code``."""
        return f"{sum(n.op == 'call_function' for n in self.graph.nodes)} operators"

    def take_passes(self, passes: Sequence[GraphPass], root: nn.Module) -> None:
        """Answer by these; the first one's graph becomes this module's own.

        Args:
            passes: the first is the one whose graph this module was made of.
            root: holds the tensors that the others read.
        """
        first = replace(passes[0], graph=self.graph)
        for one in passes[1:]:
            for node in one.graph.nodes:
                if node.op == "get_attr" and not _has(self, str(node.target)):
                    _copy_place(self, root, str(node.target))
        vars(self)["passes"] = (first, *passes[1:])
        self._guard()

    def recompile(self) -> Any:
        """Compile the graphs; calls go through the guards."""
        with _sizes_asked(self.graph):
            code = super().recompile()
        self._guard()
        return code

    def _guard(self) -> None:
        vars(self)["_compiled"] = {}
        if self.passes:
            generated = type(self).forward
            type(self).forward = _guarded(getattr(generated, "generated", generated))

    def train(self, mode: bool = True) -> CompactGraph:
        """Training or eval mode, for the operators that know the difference.

        Those of modules that were frozen in eval mode when this graph took their place stay so.
        """
        super().train(mode)
        self._follow()
        return self

    def _follow(self) -> bool:
        """Let operators be in the mode of the parts they came from; whether any was in another."""
        known = vars(self).setdefault("_followed", {})  # copies of the tables share their graphs
        if "parts" not in known:
            known["parts"] = parts_of(self)
        modes = [self.training, *(part.training for part in known["parts"].values())]
        if known.get("modes") == modes:
            return False
        flags = _flagged(self)
        separate = any(p.training is not None for p in self.passes)
        if flags or separate:
            refuse_apart(self, known["parts"], separate=separate)
        changed = follow(flags, self, known["parts"])
        known["modes"] = modes
        if changed:
            self.recompile()
        return changed

    def __copy__(self) -> CompactGraph:
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        return made

    def __reduce__(self) -> NoReturn:
        raise InputError(
            f"the graph of this {self.stands_for or 'model'} is not pickled: "
            "prunus.save(model, path) writes it without code, and prunus.load opens it"
        )

    def __deepcopy__(self, memo: Any) -> CompactGraph:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch copies its own old class
            made = super().__deepcopy__(memo)
        for key, value in told(self).items():
            if key not in vars(made) and key not in _OF_A_COPY:
                vars(made)[key] = copy.deepcopy(value, memo)
        own = vars(self).get("forward")
        if isinstance(own, MethodType):  # of a copy that is traced
            vars(made)["forward"] = MethodType(own.__func__, made)
        copy_hooks(made, self)
        made.training = self.training
        assert isinstance(made, CompactGraph)
        if self.passes:
            passes = [replace(p, graph=copied(p.graph)) for p in self.passes]
            made.take_passes(passes, copy.deepcopy(_Holder(self), memo).root)
        for path, part in parts_of(self).items():
            vars(put_part(made, path)).update(copy.deepcopy(told(part), memo))
        return made


_OF_A_COPY = ("passes", "forward", "_followed")
"""What a copy of a graph makes anew."""


class _Holder(nn.Module):
    """A graph's tensors and the modules that hold them, to be copied with what else is copied."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.root = nn.Module()
        for store in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            vars(self.root)[store] = vars(graph)[store]


def _sizes_asked(graph: fx.Graph) -> AbstractContextManager[Any]:
    """While code is written: tensors are asked for sizes; ``vmap`` does not know the operator."""

    def asked(lines: list[str]) -> list[str]:
        return [_OF_SIZES.sub(r"torch.Tensor.\1(", line) for line in lines]

    manager: AbstractContextManager[Any] = graph.on_generate_code(
        lambda former: asked if former is None else lambda lines: asked(former(lines))
    )
    return manager


_OF_SIZES = re.compile(r"torch\.ops\.aten\.sym_(size|stride|numel)\.(?:int|default)\(")


def _has(module: nn.Module, name: str) -> bool:
    try:
        operator.attrgetter(name)(module)
    except AttributeError:
        return False
    return True


def _copy_place(module: nn.Module, root: nn.Module, name: str) -> None:
    """Let a module hold what another holds under a dotted name."""
    path, _, last = name.rpartition(".")
    persistent = last not in root.get_submodule(path)._non_persistent_buffers_set
    put_attribute(module, name, operator.attrgetter(name)(root), persistent=persistent)


def _guarded(generated: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that takes the pass which holds for a call."""

    def forward(self: CompactGraph, *args: Any, **kwargs: Any) -> Any:
        if self._follow():  # this very function was compiled anew
            return type(self).forward(self, *args, **kwargs)
        problem = ""
        for number, one in enumerate(self.passes):
            if one.training is not None and one.training is not self.training:
                continue
            values = one.guard.arranged(args, kwargs)
            if isinstance(values, str):
                problem = problem or values
                continue
            before = _buffers(self) if decided(one.graph) else {}
            try:
                found = _run(self, number, values) if number else generated(self, *values)
            except RuntimeError as error:  # of a check: data decided otherwise in this pass
                reason = str(error).partition(DECIDED)[2]
                if not reason:
                    _refuse_other_types(self, values, error)
                    raise
                problem = problem or reason
                for buffer, old in before.items():
                    buffer.copy_(old)
                continue
            if self.gradient and torch.is_grad_enabled():
                _refuse_backward(self, found)
            return found if one.answer is None else in_form(one.answer, pytree.tree_leaves(found))
        raise InputError(_refusal(self, problem))

    forward.generated = generated  # type: ignore[attr-defined]
    return forward


def _refuse_other_types(module: CompactGraph, values: Any, error: RuntimeError) -> None:
    """Say that a graph knows the types that its code took from its weights, not autocast's."""
    devices = {t.device.type for t in tensors_of(values)}
    if "type" in str(error) and any(map(torch.is_autocast_enabled, devices)):
        raise InputError(
            f"the compact {module.stands_for or 'model'} is a graph, whose types follow those of "
            f"its weights and not torch.autocast ({first_line(error, kind=False)}): call it "
            "outside of autocast, or convert it, as in model.to(torch.bfloat16)"
        ) from error


def _refuse_backward(module: CompactGraph, answers: Any) -> None:
    """Let a backward pass that reaches a graph of other gradients end."""

    def refuse(_: Tensor) -> None:
        raise InputError(untrainable(module.stands_for or "model", module.gradient))

    for answer in tensors_of(answers):
        if answer.grad_fn is not None:
            answer.register_hook(refuse)


def untrainable(kind: str, name: str) -> str:
    """Why a smaller model cannot be trained, and what to do."""
    return (
        f"the compact {kind} answers as the masked model does, but the gradient of '{name}' would "
        "be another: its code differentiates in a way of its own (a torch.autograd.Function, a "
        "hook on a gradient, .data), which a graph does not keep. Train the masked model, and "
        "make it smaller once, at the end"
    )


def _buffers(module: nn.Module) -> dict[Tensor, Tensor]:
    """The buffers that a pass in train mode writes, and their values."""
    return {b: b.clone() for b in module.buffers()} if module.training else {}


def _run(module: CompactGraph, number: int, values: Sequence[Any]) -> Any:
    """A further pass, flat in and flat out, on the module's own tensors."""
    one = module.passes[number]
    compiled = vars(module)["_compiled"]
    if number not in compiled:
        flat = copied(one.graph)
        flat.set_codegen(fx.graph.CodeGen())
        with _sizes_asked(flat):
            compiled[number] = type(fx.GraphModule(module, flat)).forward
    call = call_of(one.graph)
    leaves = [leaf for value in values for leaf in pytree.tree_leaves(value)]
    if len(leaves) != sum(node.op == "placeholder" for node in one.graph.nodes):
        leaves = [leaf for leaf in leaves if leaf is not None]  # some exports leave these out
    found = compiled[number](module, *leaves)
    return found if call is None else pytree.tree_unflatten(list(found), call[2])


def _refusal(module: CompactGraph, problem: str) -> str:
    what = f"the compact {module.stands_for or 'model'} is a graph"
    if not problem:
        mode = "train" if module.training else "eval"
        return (
            f"{what} that was not traced in {mode} mode, since the model could not run there with "
            f"the example that was given, or runs what chance decides. {_REMEDY}"
        )
    return f"{what} of the calls that it was traced with, and this is another: {problem}. {_REMEDY}"


_REMEDY = "Give an example of every kind of call when you prune or compact: example=[first, second]"


def eval_alone(graph: CompactGraph) -> CompactGraph:
    """Let passes of both modes hold in eval mode alone."""
    passes = [replace(p, training=False) if p.training is None else p for p in graph.passes]
    vars(graph)["passes"] = tuple(passes)
    return graph


def take_mode_of_operators(graph: nn.Module, original: nn.Module) -> None:
    """Put a graph into the mode of the module whose place it takes, operator by operator.

    A batch norm that was frozen inside a network that trains stays frozen in its graph.
    """
    training = trains(original)
    if isinstance(graph, CompactGraph):
        modules = dict(original.named_modules(remove_duplicate=False))
        within = {
            name: iter([bool(node.meta.get(FROZEN)) for node, _ in _flagged(module)])
            for name, module in modules.items()
            if isinstance(module, CompactGraph)
        }
        for node, _ in _flagged(graph):
            path = module_path(node)
            earlier = next((within[p] for p in outwards(path) if p in within), None)
            inner = modules.get(path, original)
            frozen = training and not inner.training
            node.meta[FROZEN] = frozen if earlier is None else next(earlier, False)
    graph.train(training)


def _flagged(module: fx.GraphModule) -> Flagged:
    """Operators with a flag that ``train()`` switches, and its place."""
    passes = module.passes if isinstance(module, CompactGraph) else ()
    return flagged([p.graph for p in passes if p.training is not False] or [module.graph])
