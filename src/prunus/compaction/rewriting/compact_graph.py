"""A graph in a module's place: its mode, its plain attributes, its copies."""

from __future__ import annotations

import copy
import inspect
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import CodeType, MethodType
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from prunus._common.modules import put_attribute
from prunus._common.nested import in_form, tensors_of
from prunus._common.torch_internals import call_of, copy_call, copy_hooks, pytree
from prunus.errors import InputError, MissingError
from prunus.graph.call import module_path
from prunus.graph.decisions import DECIDED, decided
from prunus.graph.flags import flag_place
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


class CompactGraph(fx.GraphModule):
    """Graphs that stand in for a module of the user's, with the plain attributes of that one.

    Each is one pass through the module's code. A call takes the first one that holds for its
    arguments and the mode, and is refused where none does. ``train()`` switches dropout, batch
    norms and recurrent layers as it would have switched the modules that they came from.

    Attributes:
        passes: all of them; the graph of the first one is this module's ``graph``.
        stands_for: the class of the module, for messages.
        methods: other methods of that class, which a graph does not have.
        fixed: attributes that the code of that class reads: a graph holds what they were.
        gradient: a parameter whose gradient is not the module's own: such a graph answers, and
            refuses a backward pass.
    """

    passes: tuple[GraphPass, ...] = ()
    stands_for: str = ""
    methods: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
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
        changed = False
        for node, place in _flagged(self):
            wanted = mode and not node.meta.get(FROZEN, False)
            if node.args[place] is not wanted:
                node.args = (*node.args[:place], wanted, *node.args[place + 1 :])
                changed = True
        if changed:
            self.recompile()
        return self

    def __getattr__(self, name: str) -> Any:
        if name in self.methods:
            raise MissingError(
                f"{self.stands_for}.{name} is not there: the compact model is a graph of its "
                "forward alone. Call it on the dense model, or prune with a scope that leaves "
                "out what made a graph necessary (prunus.units shows the units)"
            )
        try:
            return super().__getattr__(name)
        except AttributeError:
            kind = self.stands_for or "model"
            raise AttributeError(f"the graph of this {kind} has no attribute {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.fixed and not (name in vars(self) and same_plain(vars(self)[name], value)):
            raise InputError(
                f"{self.stands_for}.{name} cannot be set: the compact model is a graph, which has "
                "what it was. Set it in the dense model, and make that smaller again"
            )
        super().__setattr__(name, value)

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
        for key, value in vars(self).items():
            if key not in vars(made) and (type(value) in PLAIN or key in ("methods", "fixed")):
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
        return made


class _Holder(nn.Module):
    """A graph's tensors and the modules that hold them, to be copied with what else is copied."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.root = nn.Module()
        for store in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            vars(self.root)[store] = vars(graph)[store]


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


PLAIN = (int, float, bool, str, type(None))
"""Attributes that enclosing code may ask a replaced module for."""


FROZEN = "frozen"
"""Key of a node's ``meta``: its module was in eval mode inside one that trains."""


def describe_as(graph: CompactGraph, original: nn.Module) -> CompactGraph:
    """Let a graph know whose place it takes, and what of that it lacks."""
    kind = type(original)
    own = {n for n in dir(kind) if not n.startswith("_") and callable(getattr(kind, n, None))}
    vars(graph)["stands_for"] = kind.__name__
    kept = (*graph._modules, *graph._parameters, *graph._buffers, "training")
    vars(graph)["fixed"] = tuple(sorted(_read_by(kind) & set(vars(original)) - set(kept)))
    vars(graph)["methods"] = tuple(sorted(own - set(dir(nn.Module)) - set(dir(CompactGraph))))
    return graph


def same_plain(one: Any, other: Any) -> bool:
    """Whether two plain attributes are the same."""
    return type(one) is type(other) and type(one) in PLAIN and one == other


def _read_by(kind: type) -> set[str]:
    """Public names of attributes that the code of a class reads after it was built."""
    found: set[str] = set()
    for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        for name, value in vars(base).items():
            function = inspect.unwrap(getattr(value, "fget", None) or value)
            code = None if name == "__init__" else getattr(function, "__code__", None)
            found |= _names_in(code)
    return {name for name in found if not name.startswith("_")}


def _names_in(code: Any) -> set[str]:
    """Names in a function's code and in those inside of it."""
    if not isinstance(code, CodeType):
        return set()
    return set(code.co_names).union(*map(_names_in, code.co_consts))


def eval_alone(graph: CompactGraph) -> CompactGraph:
    """Let passes of both modes hold in eval mode alone."""
    passes = [replace(p, training=False) if p.training is None else p for p in graph.passes]
    vars(graph)["passes"] = tuple(passes)
    return graph


def take_mode_of_operators(graph: nn.Module, original: nn.Module) -> None:
    """Put a graph into the mode of the module whose place it takes, operator by operator.

    A batch norm that was frozen inside a network that trains stays frozen in its graph.
    """
    if isinstance(graph, CompactGraph):
        modules = dict(original.named_modules(remove_duplicate=False))
        within = {
            name: iter([bool(node.meta.get(FROZEN)) for node, _ in _flagged(module)])
            for name, module in modules.items()
            if isinstance(module, CompactGraph)
        }
        for node, _ in _flagged(graph):
            path = module_path(node)
            earlier = next((within[p] for p in _outwards(path) if p in within), None)
            inner = modules.get(path, original)
            frozen = original.training and not inner.training
            node.meta[FROZEN] = frozen if earlier is None else next(earlier, False)
    graph.train(original.training)


def _outwards(path: str) -> Iterator[str]:
    """A path and those of all that encloses it."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _flagged(module: fx.GraphModule) -> list[tuple[fx.Node, int]]:
    """Operators with a flag that ``train()`` switches, and its place."""
    passes = module.passes if isinstance(module, CompactGraph) else ()
    graphs = [p.graph for p in passes if p.training is not False] or [module.graph]
    found = [(node, flag_place(node)) for graph in graphs for node in graph.nodes]
    return [(node, place) for node, place in found if place is not None]
