"""A graph of ATen operators as a JSON document and named tensors, without pickle::

    {"format": "prunus graph 1",
     "call": {"names": ["x"], "inputs": TREE, "outputs": TREE},      or null: leaf by leaf
     "tensors": {"fc.weight": {"kind": "parameter", "dtype": "float32", "shape": [3, 2],
                               "requires_grad": true, "persistent": true},
                 "tied.weight": {"same_as": "fc.weight"}},
     "nodes": [{"name": "linear", "op": "call_function", "target": "aten.linear.default",
                "args": [{"node": "x"}, {"node": "fc_weight"}], "kwargs": {}}]}

A value is what JSON holds, or an object of one key that names its kind: node, tuple, dict, slice,
float, complex, dtype, layout, memory_format, device. A TREE is such a value with "*" for each
leaf, or class: [name, keys, parts].

**Classes of inputs and outputs are never imported.** A dataclass that torch's pytree already knows
(a ModelOutput, once its transformers module is imported) is used; where it is not in memory, a
dict of its fields stands for it, a tuple where it has none. A named tuple becomes one of the same
fields, a deque a list, any other mapping and a class of ``register_dataclass`` a dict.

**Reading is not running.** A document may come from anyone: operators are looked up among torch's
registered ATen overloads (without ``from_file``, which opens files) and in ``_FUNCTIONS``, names
in generated code are identifiers or in a schema, nothing is allocated. ``prunus.float_type`` is the
type of a weight or input, where the code took one from there.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus._common import torch_internals as internals
from prunus._common.float_types import float_type
from prunus._common.modules import Named, named_tensors
from prunus.compaction.files.document import fields_of, name_of, of_kind, wrong
from prunus.compaction.files.guards import guard_from, plain_guard
from prunus.compaction.files.structures import NamedStructure, spec_of, tree_of
from prunus.compaction.rewriting.compact_graph import CompactGraph, GraphPass
from prunus.graph.assembled import assemble
from prunus.graph.decisions import DECIDED

FORMAT = "prunus graph 1"
GUARDED_FORMAT = "prunus graph 2"
"""Of graphs that say which calls they hold for."""
FORWARD_FORMAT = "prunus graph 3"
"""Of those that refuse a backward pass too, with the parameter whose gradient would be another."""

_ARITHMETIC = "add sub mul truediv floordiv mod eq ne lt le gt ge getitem"
_FUNCTIONS: dict[str, Any] = {
    **{f"operator.{name}": getattr(operator, name) for name in _ARITHMETIC.split()},
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_min", "sym_max")},
    "prunus.float_type": float_type,
    "prims.convert_element_type.default": torch.ops.prims.convert_element_type.default,
}
_ARITY = {"placeholder": 0, "get_attr": 0, "call_function": 2, "output": 1}  # without a schema
_ASSERTS = re.compile(r"aten\.(_assert_\w+|_functional_assert_\w+|sym_constrain_range\w*)\.\w+")
_KINDS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
_WORDS: dict[str, Mapping[str, Any]] = {
    kind: {str(v).removeprefix("torch."): v for v in vars(torch).values() if isinstance(v, of)}
    for kind, of in _KINDS.items()
}
_TEXTS: dict[str, Any] = {"float": float, "complex": complex, "device": torch.device}
_LISTS: dict[str, Any] = {"tuple": tuple, "dict": dict, "slice": lambda parts: slice(*parts)}
_LISTS["class"] = lambda parts: NamedStructure(parts[0], parts[1], [*parts[2]])
_DEEPEST = 20  # nested values; Python's own parser ends at 200 brackets


def to_plain(module: fx.GraphModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document and the tensors of a graph module; assertions and guards are left out.

    The tensors are detached and share memory with the module's; a tied one is there once.

    Raises:
        InputError: by its name, for a node that is neither ATen's nor plain.

    >>> model = torch.export.export(nn.Linear(2, 3), (torch.ones(1, 2),), strict=False).module()
    >>> document, tensors = to_plain(model)
    >>> [node["target"] for node in document["nodes"]], sorted(tensors)
    (['weight', 'bias', 'input', 'aten.linear.default', 'output'], ['bias', 'weight'])
    """
    passes = module.passes if isinstance(module, CompactGraph) else ()
    graphs = [_plain_graph(graph) for graph in ([p.graph for p in passes] or [module.graph])]
    read = [n["target"] for graph in graphs for n in graph["nodes"] if n["op"] == "get_attr"]
    described, tensors = _plain_tensors(module, read)
    if not passes:
        return {"format": FORMAT, "tensors": described, **graphs[0]}, tensors
    guarded = [
        {"training": one.training, "guard": plain_guard(one.guard), **graph}
        for one, graph in zip(passes, graphs, strict=True)
    ]
    document: dict[str, Any] = {
        "format": GUARDED_FORMAT, "tensors": described, "passes": guarded,
    }  # fmt: skip
    if isinstance(module, CompactGraph) and module.gradient:
        document |= {"format": FORWARD_FORMAT, "gradient": module.gradient}
    return document, tensors


def _plain_graph(graph: fx.Graph) -> dict[str, Any]:
    left_out = _left_out(graph)
    nodes = [_plain_node(n) for n in graph.nodes if n not in left_out]
    return {"call": _plain_call(graph), "nodes": nodes}


def from_plain(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """The graph module of a document, in eval mode, on the memory of ``tensors``; nothing runs.

    Raises:
        InputError: if anything in the document is unknown or does not fit, by its place.

    >>> model = torch.export.export(nn.Linear(2, 3), (torch.ones(1, 2),), strict=False).module()
    >>> again = from_plain(*to_plain(model))
    >>> torch.equal(again(torch.ones(1, 2)), model(torch.ones(1, 2)))
    True
    """
    if of_kind(Mapping, document, "document").get("format") in (GUARDED_FORMAT, FORWARD_FORMAT):
        return _guarded(document, tensors)
    written, call, described, nodes = fields_of(document, "document", "format call tensors nodes")
    if written != FORMAT:
        raise wrong("format", written, f"'{FORMAT}'; a newer prunus may read it")
    named = _tensors(described, tensors)
    return assemble(_called(call, nodes, named), named)


def _called(call: Any, nodes: Any, named: list[Named]) -> fx.Graph:
    graph = _graph(nodes, {name for name, _, _ in named})
    if call is not None:
        internals.set_call(graph, *_call(call, graph))
    return graph


def _guarded(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CompactGraph:
    """A module of several passes, each with the calls that it holds for."""
    forward_only = document["format"] == FORWARD_FORMAT
    keys = "format tensors passes" + " gradient" * forward_only
    _, described, entries, *gradient = fields_of(document, "document", keys)
    named = _tensors(described, tensors)
    passes = []
    for i, entry in enumerate(of_kind(list, entries, "passes")):
        where = f"pass {i}"
        training, guard, call, nodes = fields_of(entry, where, "training guard call nodes")
        if training is not None and type(training) is not bool:
            raise wrong(f"{where}, training", training, "true, false or null")
        graph = _called(call, nodes, named)
        passes.append(GraphPass(graph, guard_from(guard, graph, where), training))
    if not passes:
        raise wrong("passes", "none", "one or more")
    opened = assemble(passes[0].graph, named)
    module = CompactGraph(opened, opened.graph)
    module.take_passes(passes, opened)
    if forward_only:
        vars(module)["gradient"] = name_of(gradient[0], "gradient", dotted=True)
    return module


def _left_out(graph: fx.Graph) -> set[fx.Node]:
    """Assertions, guards, and what only they read."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        asserts = _ASSERTS.fullmatch(str(node.target)) or node.target == "_guards_fn"
        asserts = asserts and not (node.args and str(node.args[-1]).startswith(DECIDED))
        mutable = (
            isinstance(node.target, internals.OpOverload)
            and internals.schema(node.target).is_mutable
        )
        read = node.op == "call_function" and not mutable and node.users
        if asserts or (read and found.issuperset(node.users)):
            found.add(node)
    return found


def _plain_node(node: fx.Node) -> dict[str, Any]:
    where = f"node '{node.name}'"
    if node.op not in _ARITY or (node.op == "placeholder" and node.args):
        raise wrong(where, node.op, "operators and inputs without defaults; inline submodules")
    called = node.op == "call_function"
    return {
        "name": node.name,
        "op": node.op,
        "target": _function_name(node.target, where) if called else str(node.target),
        "args": [_plain(a, f"{where}, argument {i}") for i, a in enumerate(node.args)],
        "kwargs": {k: _plain(v, f"{where}, argument '{k}'") for k, v in node.kwargs.items()},
    }


def _function_name(target: Any, where: str) -> str:
    if isinstance(target, internals.OpOverload) and target.namespace == "aten":
        return str(target)
    for name, function in _FUNCTIONS.items():
        if function is target:
            return name
    raise wrong(where, str(target), f"ATen's operators, {', '.join(_FUNCTIONS)}")


def _plain(value: Any, where: str) -> Any:
    """A value of a node as JSON."""
    again = functools.partial(_plain, where=where)
    finite = type(value) is float and math.isfinite(value)
    if finite or value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list):
        return [again(v) for v in value]
    if isinstance(value, NamedStructure):
        return {"class": [value.name, value.keys, again(value.parts)]}
    if isinstance(value, tuple):
        return {"tuple": [again(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[again(k), again(v)] for k, v in value.items()]}
    if isinstance(value, slice):
        return {"slice": [again(v) for v in (value.start, value.stop, value.step)]}
    for kind, of in {**_KINDS, **_TEXTS}.items():
        if isinstance(value, of):
            return {kind: str(value).removeprefix("torch.")}
    raise wrong(where, f"{value!r} ({type(value).__name__})", "numbers, text and torch's words")


def _plain_tensors(module: fx.GraphModule, read: list[str]) -> tuple[dict[str, Any], Any]:
    """Descriptions and tensors: all that the module names and all that the graph reads."""
    named = {name: (tensor, persistent) for name, tensor, persistent in named_tensors(module)}
    for name in read:  # constants may be plain attributes
        named.setdefault(name, (operator.attrgetter(name)(module), False))
    described: dict[str, Any] = {}
    first: dict[int, str] = {}
    for name, (tensor, persistent) in named.items():
        name_of(name, "a tensor", dotted=True)
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            raise wrong(f"tensor '{name}'", type(tensor).__name__, "dense tensors")
        parameter = isinstance(tensor, nn.Parameter)
        described[name] = {
            "kind": "parameter" if parameter else "buffer",
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "requires_grad": parameter and tensor.requires_grad,
            "persistent": persistent,
        }
        if first.setdefault(id(tensor), name) != name:
            described[name] = {"same_as": first[id(tensor)]}
    return described, {name: named[name][0].detach() for name in first.values()}


def _plain_call(graph: fx.Graph) -> dict[str, Any] | None:
    call = internals.call_of(graph)
    if call is None:
        return None
    names, *specs = call
    inputs, outputs = (spec and _plain(tree_of(spec), "call") for spec in specs)
    return {"names": list(names), "inputs": inputs, "outputs": outputs}


def _tensors(described: Any, tensors: Mapping[str, Tensor]) -> list[Named]:
    """What the document describes, each tensor checked against its description."""
    names = [name_of(k, "a tensor", dotted=True) for k in of_kind(Mapping, described, "tensors")]
    items = described.items()
    tied = {k: d["same_as"] for k, d in items if isinstance(d, Mapping) and [*d] == ["same_as"]}
    built = {k: _tensor(f"tensor '{k}'", d, tensors.get(k)) for k, d in items if k not in tied}
    for name, source in [*tied.items(), *((name, name) for name in tensors)]:
        if of_kind(str, source, f"tensor '{name}'") not in built:
            raise wrong(f"tensor '{name}'", source, "the tensors that the file describes")
    return [(name, *built[tied.get(name, name)]) for name in names]


def _tensor(where: str, entry: Any, tensor: Tensor | None) -> tuple[Tensor, bool]:
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        raise wrong(where, "a missing or sparse one", "dense tensors")
    real = tensor.is_floating_point() or tensor.is_complex()
    allowed: dict[str, list[Any]] = {
        "kind": ["parameter", "buffer"],
        "dtype": [str(tensor.dtype).removeprefix("torch.")],
        "shape": [list(tensor.shape)],
        "requires_grad": [False, True] if real else [False],
        "persistent": [False, True],
    }
    kind, _, _, learns, persistent = values = fields_of(entry, where, " ".join(allowed))
    for (key, known), value in zip(allowed.items(), values, strict=True):
        if type(value) is not type(known[0]) or value not in known:
            raise wrong(f"{where}, {key}", value, " or ".join(map(str, known)))
    tensor = tensor.detach()
    return nn.Parameter(tensor, learns) if kind == "parameter" else tensor, persistent


def _graph(nodes: Any, attributes: set[str]) -> fx.Graph:
    """The nodes in order: each reads only those before it, so that there is no cycle."""
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    for i, entry in enumerate(of_kind(list, nodes, "nodes")):
        name, op, target, args, kwargs = fields_of(entry, f"node {i}", "name op target args kwargs")
        where = f"node {i} '{name_of(name, f'node {i}, name')}'"
        if name in known or (op == "output") != (i == len(nodes) - 1):
            raise wrong(where, op, "every name once, and one output, as the last node")
        args = [_value(v, where, known) for v in of_kind(list, args, where)]
        kwargs = {k: _value(v, where, known) for k, v in of_kind(Mapping, kwargs, where).items()}
        target = _target(op, of_kind(str, target, where), attributes, where)
        if target is operator.getitem and not isinstance([*args, None][0], fx.Node):
            raise wrong(where, "an item of something else", "a node")
        _check_arguments(op, target, len(args), set(kwargs), where)
        known[name] = graph.create_node(op, target, tuple(args), kwargs, name=name)
    inputs = [node.target for node in known.values() if node.op == "placeholder"]
    if not known or len(set(inputs)) < len(inputs):
        raise wrong("nodes", inputs, "an output, and every input once")
    return graph


def _target(op: Any, target: str, attributes: set[str], where: str) -> Any:
    """What a node stands for; operators by name, among those that are registered."""
    if op == "get_attr" and target in attributes:
        return target
    if op in ("placeholder", "output"):
        return name_of(target, where)
    if op == "call_function" and target in _FUNCTIONS:
        return _FUNCTIONS[target]
    found = re.fullmatch(r"aten\.(?!from_file\b)(\w+)\.((?!__)\w+)", target, re.ASCII)
    registered = "aten::" + target.removeprefix("aten.").removesuffix(".default")
    if op == "call_function" and found and internals.is_registered(registered):
        return getattr(getattr(torch.ops.aten, found[1]), found[2])
    raise wrong(where, f"{op} of '{target}'", f"tensors, ATen's, {', '.join(_FUNCTIONS)}")


def _check_arguments(op: str, target: Any, count: int, names: set[str], where: str) -> None:
    """How many arguments, and under which names: those enter generated code."""
    called = isinstance(target, internals.OpOverload)
    known = [argument.name for argument in internals.schema(target).arguments] if called else []
    allowed = range(len(known) + 1) if called else [_ARITY[op]]
    if count not in allowed or not names <= set(known[count:]):
        raise wrong(where, f"{count} arguments and {sorted(names)}", f"{allowed} of {known}")


def _value(value: Any, where: str, known: Mapping[str, fx.Node], depth: int = 0) -> Any:
    """What :func:`_plain` wrote."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    again = functools.partial(_value, where=where, known=known, depth=depth + 1)
    if isinstance(value, list) and depth < _DEEPEST:
        return [again(v) for v in value]
    single = isinstance(value, Mapping) and len(value) == 1 and depth < _DEEPEST
    kind, inner = next(iter(value.items())) if single else ("", None)
    if isinstance(inner, str) and inner in (words := {**_WORDS, "node": known}.get(kind, {})):
        return words[inner]
    with contextlib.suppress(LookupError, RuntimeError, TypeError, ValueError):
        if isinstance(inner, str):
            return _TEXTS[kind](inner)
        if isinstance(inner, list):
            return _LISTS[kind]([again(v) for v in inner])
    raise wrong(where, value, f"nodes before this one, the format's values, {_DEEPEST} deep")


def _call(call: Any, graph: fx.Graph) -> tuple[list[str], Any, Any]:
    """How the graph is called, checked against its inputs and its output."""
    names, *trees = fields_of(call, "call", "names inputs outputs")
    into, out = (None if tree is None else _value(tree, "call", {}) for tree in trees)
    if not isinstance(into, tuple) or [type(part) for part in into] != [tuple, dict]:
        raise wrong("call, inputs", into, "a tuple of a tuple and a dict")
    names = [name_of(name, "call, names") for name in of_kind(list, names, "call, names")]
    [name_of(key, "call, inputs") for key in into[1]]
    inputs, outputs = spec_of(into), None if out is None else spec_of(out)
    count = sum(node.op == "placeholder" for node in graph.nodes)
    once = len(set(names)) == len(names) == len(into[0]) + len(into[1])
    if not once or inputs.num_leaves != count:
        raise wrong("call", f"{names}, {inputs.num_leaves} leaves", f"{count} inputs, each once")
    result = graph.output_node().args[0]
    if outputs and not (isinstance(result, (tuple, list)) and len(result) == outputs.num_leaves):
        raise wrong("call, outputs", f"{outputs.num_leaves} leaves", "as many as the output has")
    return names, inputs, outputs
