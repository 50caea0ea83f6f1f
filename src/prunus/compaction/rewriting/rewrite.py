"""The traced graph with smaller tensors and the literals that go with them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunus._common.modules import put_attribute
from prunus._common.torch_internals import copy_call, origin, pytree
from prunus.compaction.cut import IndexCut, take, way_out
from prunus.compaction.rewriting.compact_graph import CompactGraph, GraphPass, copied
from prunus.compaction.rewriting.counting import arranged, counting, counts_on
from prunus.compaction.rewriting.literals import PATCHES
from prunus.compaction.rewriting.moving import many, moves, one_dim_move, run, stand_in
from prunus.errors import RunError
from prunus.graph.call import base_name, describe, named_arguments, written_out
from prunus.graph.guard import Guard
from prunus.graph.labels import Fixed, Value
from prunus.graph.rules.lookup import BY_POSITION, places_read
from prunus.graph.rules.reductions import COUNTS
from prunus.graph.trace import Traced

aten = torch.ops.aten


@dataclass(frozen=True)
class Patch:
    """A literal that had to change: evidence for the attribute that it came from.

    Attributes:
        node: the operator in the original graph.
        before: its arguments.
        after: what they became.
    """

    node: fx.Node
    before: tuple[Any, ...]
    after: tuple[Any, ...]


@dataclass(frozen=True)
class Rewritten:
    """A smaller graph.

    Attributes:
        module: the graph with its sliced tensors under the model's names.
        patches: literals that changed.
        nodes: of the original graphs to those of the new ones.
        traced: the passes of the smaller model, for the next analysis.
    """

    module: CompactGraph
    patches: tuple[Patch, ...]
    nodes: Mapping[fx.Node, fx.Node]
    traced: tuple[Traced, ...]


def rewrite(cut: IndexCut, tensors: Mapping[str, Tensor] | None = None) -> Rewritten:
    """The traced graph after a cut.

    Args:
        cut: what goes.
        tensors: sliced parameters and buffers by name, to be used as they are; others are
            sliced from the traced model.

    Raises:
        RunError: naming an operator that cannot be rewritten for the smaller shapes.
    """
    rewriter = _Rewriter(cut, dict(tensors or {}))
    passes = [rewriter.rewritten(traced) for traced in cut.analysis.passes]
    module = CompactGraph(rewriter.root, passes[0].graph)
    module.take_passes(passes, rewriter.root)
    module.training = passes[0].training is True
    smaller = [
        replace(traced, module=fx.GraphModule(rewriter.root, copied(one.graph)).eval())
        for one, traced in zip(passes, cut.analysis.passes, strict=True)
    ]
    return Rewritten(module, tuple(rewriter.patches), rewriter.new, tuple(smaller))


class _Rewriter:
    def __init__(self, cut: IndexCut, tensors: dict[str, Tensor]) -> None:
        self.cut, self.analysis = cut, cut.analysis
        self.tensors = tensors
        self.root = nn.Module()
        self.new: dict[fx.Node, fx.Node] = {}
        self.patches: list[Patch] = []
        self.lookups = 0
        self.single: set[fx.Node] = set()
        self.parts: dict[Any, list[fx.Node]] = {}

    def rewritten(self, traced: Traced) -> GraphPass:
        """One pass; all share the root and its tensors."""
        self.graph, self.traced = fx.Graph(), traced
        for node in traced.module.graph.nodes:
            self.new[node] = self._one(node)
        copy_call(self.graph, traced.module.graph)
        self.graph.lint()
        both = not any(p.training is not traced.training for p in self.analysis.passes)
        training = None if both else traced.training
        return GraphPass(self.graph, self._guard(traced), training, traced.answer)

    def _guard(self, traced: Traced) -> Guard:
        """The calls that a pass holds for: a module inside a model is given less."""
        entering = [n for n in traced.module.graph.nodes if n.op == "placeholder"]
        values = [v for n in entering if isinstance(v := self.analysis.known.get(n), Value)]
        if not any(map(self.cut.changes, values)):
            return traced.guard
        return traced.guard.cut(
            [
                [None if left is None else len(left) for left in self.cut.left(value)]
                for value in values
            ]
        )

    def _one(self, node: fx.Node) -> fx.Node:
        if node.op == "get_attr":
            return self._attribute(node)
        source = node.args[0] if node.target is operator.getitem else None
        if source in self.parts:
            return self.parts[source][node.args[1]]  # type: ignore[index]
        if node.op != "call_function" or not self._touched(node):
            return self._copied(node)
        if node.target is operator.getitem and node.args[0] in self.single:
            return self.new[node.all_input_nodes[0]]
        if counts_on(self.cut, node):
            return self._counting(node)
        if node in self.analysis.inside and not self._same_words(node):
            return self._taken_apart(node)
        if base_name(node) == "slice" and self._strided(node):
            return self._read(node, self.cut.value(node.args[0]), self.cut.value(node))
        if base_name(node) in BY_POSITION:
            made = self._at_positions(node)
            if made is not None:
                return self._described(made, node)
        args, kwargs, target = self._patched(node)
        if moves(node) and not self._still_right(node, target, args, kwargs):
            return self._read(node, self.cut.value(node.args[0]), self.cut.value(node))
        if args != tuple(node.args) or kwargs != dict(node.kwargs):
            self.patches.append(Patch(node, (*node.args, node.kwargs), (*args, kwargs)))
        args = self._still_open(node.args, args)
        mapped = fx.node.map_arg((args, kwargs), lambda n: self.new.get(n, n))
        made = self.graph.call_function(target, *mapped)
        return self._described(made, node)

    def _counting(self, node: fx.Node) -> fx.Node:
        """An operator that goes on counting the indices that are gone."""
        made = counting(self.graph, self.cut, node, self.new)
        self.patches.append(Patch(node, (*node.args, node.kwargs), ()))
        if isinstance(node.meta["val"], Tensor) or base_name(node) in COUNTS:
            return self._described(made, node)
        self.single.add(node)  # a norm whose statistics nobody reads
        return made

    def _still_open(self, before: Any, after: Any) -> Any:
        """An open size that shrank: the same share of whatever it is in another pass."""
        if isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)):
            if len(before) != len(after):
                return after
            return type(after)(self._still_open(b, a) for b, a in zip(before, after, strict=True))
        old = before.meta.get("val") if isinstance(before, fx.Node) else None
        if type(old) is not int or type(after) is not int or after == -1:
            return after
        whole = self.graph.call_function(operator.mul, (self.new[before], after))
        return self.graph.call_function(operator.floordiv, (whole, old))

    def _copied(self, node: fx.Node) -> fx.Node:
        made = self.graph.node_copy(node, lambda n: self.new[n])
        return self._described(made, node)

    def _described(self, made: fx.Node, node: fx.Node) -> fx.Node:
        made.meta = origin(node)
        value = node.meta.get("val")
        known = self.analysis.known.get(node)
        if isinstance(value, (tuple, list)) and isinstance(known, (tuple, list)):
            pairs = zip(value, known, strict=True)
            made.meta["val"] = type(value)(self._smaller(v, k) for v, k in pairs)
        elif value is not None:
            made.meta["val"] = self._smaller(value, known)
        return made

    def _smaller(self, value: Any, known: Any) -> Any:
        """A node's value in its new shape: only shape and type of it are ever read."""
        if not isinstance(value, Tensor) or not isinstance(known, Value):
            return value
        shape = self.cut.shape(known)
        return value if shape == known.shape else value.new_empty(shape)

    def _same_words(self, node: fx.Node) -> bool:
        """Whether a composite operator of open sizes may stay whole: its result has the shape."""
        if not self.traced.open:
            return False
        args, kwargs = pytree.tree_map_only(
            fx.Node, lambda n: self.new[n].meta.get("val"), (node.args, dict(node.kwargs))
        )
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
        known = self.analysis.known[node]
        try:
            found = many(node.target(*args, **kwargs))  # type: ignore[operator]
        except Exception:  # of an operator on sizes that its literals do not fit
            return False
        values = known if isinstance(known, (list, tuple)) else [known]
        return all(
            isinstance(v, Value) and tuple(t.shape) == self.cut.shape(v)
            for t, v in zip(found, values, strict=True)
        )

    def _taken_apart(self, node: fx.Node) -> fx.Node:
        """A composite operator as what it is made of, each part with its own literals."""
        inside = self.analysis.inside[node]
        outer = iter(inside.operands)
        for inner in inside.graph.nodes:
            if inner.op == "placeholder":
                self.new[inner] = self.new[next(outer)]
            elif inner.op == "call_function":
                self.new[inner] = self._one(inner)
        made = [self.new[n] for n in pytree.tree_leaves(inside.results)]
        if not isinstance(inside.results, fx.Node):
            self.parts[node] = made
        return made[-1]

    # --- tensors

    def _attribute(self, node: fx.Node) -> fx.Node:
        target = str(node.target)
        tensor = self.traced.tensor(node)
        if tensor is None:
            whole = operator.attrgetter(target)(self.traced.module)
            put_attribute(self.root, target, whole)
            return self._copied(node)
        known = self.analysis.known[node]
        assert isinstance(known, Value)
        name = self.analysis.read[node]
        if name not in self.tensors:
            small = take(tensor.detach(), self.cut.left(known))
            if isinstance(tensor, nn.Parameter):
                small = nn.Parameter(small, requires_grad=tensor.requires_grad)
            self.tensors[name] = small
        put_attribute(self.root, target, self.tensors[name])
        return self._copied(node)

    # --- operators

    def _touched(self, node: fx.Node) -> bool:
        values = [self.analysis.known.get(n) for n in (node, *node.all_input_nodes)]
        flat = [v for x in values for v in (x if isinstance(x, (list, tuple)) else (x,))]
        return any(self.cut.changes(v) for v in flat)

    def _patched(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        patch = PATCHES.get(base_name(node))
        args, kwargs = tuple(node.args), dict(node.kwargs)
        if patch is None:
            return args, kwargs, node.target
        changed = patch(self.cut, node, named_arguments(node))
        if changed is None:
            return args, kwargs, node.target
        target, values = changed
        return *arranged(target, values), target

    def _strided(self, node: fx.Node) -> bool:
        named = named_arguments(node)
        value = self.cut.value(node.args[0])
        d = int(named["dim"]) % len(value.shape)
        return int(named["step"]) != 1 and self.cut.stays(value.dims[d]) is not None

    def _still_right(
        self, node: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Run the operator on index numbers, before and after: the kept ones must agree."""
        before = self.cut.value(node.args[0])
        outputs = self.analysis.known[node]
        outs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        if all(isinstance(v, Value) and 0 in v.shape for v in outs):
            return True  # nothing arrives: labels do not follow into an empty tensor
        small = self.cut.shape(before)
        literal = pytree.tree_map_only(
            fx.Node, self._small_stand_in, (tuple(args[1:]), dict(kwargs))
        )
        original = pytree.tree_map_only(
            fx.Node, stand_in, (tuple(node.args[1:]), dict(node.kwargs))
        )
        for d, dim in enumerate(before.dims):
            if isinstance(dim, Fixed):
                continue
            indices = self.cut.indices(dim)
            view = [-1 if i == d else 1 for i in range(len(small))]
            whole = torch.arange(before.shape[d])
            part = whole if indices is None else indices
            try:
                expected = run(node.target, whole.view(view).expand(before.shape), *original)
                found = run(target, part.view(view).expand(small), *literal)
            except RuntimeError:
                return False
            pairs = zip(many(expected), many(found), outs, strict=False)
            for want, got, value in pairs:
                if not isinstance(value, Value):
                    return False
                want = take(want, self.cut.left(value))
                if want.shape != got.shape or not torch.equal(want, got):
                    return False
        return True

    def _small_stand_in(self, node: fx.Node) -> Any:
        value = self.analysis.known.get(node)
        if isinstance(value, Value):
            return torch.zeros(self.cut.shape(value))
        return stand_in(node)

    def _at_positions(self, node: fx.Node) -> fx.Node | None:
        """An operator that reads positions which the code writes out; indices before them go."""
        x, places = self.analysis.known.get(node.all_input_nodes[0]), places_read(node)
        source = written_out(places[0][1]) if len(places) == 1 else None
        if source is None or not isinstance(x, Value):
            return None
        stays, numbers = self.cut.stays(x.dims[places[0][0]]), self.traced.tensor(source)
        if numbers is None or stays is None:
            return None
        held = self._held(torch.from_numpy(np.cumsum(stays) - 1)[numbers % len(stays)])
        self.patches.append(Patch(node, tuple(node.args), ()))
        args = fx.node.map_arg(
            (node.args, node.kwargs), lambda n: held if n is places[0][1] else self.new[n]
        )
        return self.graph.create_node("call_function", node.target, *args)

    def _held(self, numbers: Tensor) -> fx.Node:
        """A constant of the smaller graph."""
        name = f"_kept{self.lookups}"
        self.lookups += 1
        self.root.register_buffer(name, numbers)
        return self.graph.get_attr(name)

    def _read(self, node: fx.Node, x: Value, out: Value) -> fx.Node:
        """A movement that literals cannot express: read the kept indices one by one."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        moved = one_dim_move(node, x, out)
        if moved is None:
            raise RunError(
                f"{describe(node)} cannot be rewritten for the smaller shapes: it puts the indices "
                f"that stay in an order that it has no words for. {way_out(self.cut, node)}"
            )
        dim, index = moved
        stays = self.cut.stays(x.dims[dim])
        kept_out = self.cut.indices(out.dims[dim])
        wanted = index if kept_out is None else index[kept_out.numpy()]
        position = np.cumsum(np.ones(x.shape[dim]) if stays is None else stays) - 1
        numbers = torch.from_numpy(position[wanted].astype(np.int64))
        read = self._held(numbers)
        made = self.graph.call_function(aten.index_select.default, (self.new[source], dim, read))
        self.patches.append(Patch(node, tuple(node.args), ()))
        return self._described(made, node)
