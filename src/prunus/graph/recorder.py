"""The operators of one real forward pass, for models that torch.export cannot trace.

Export follows a model without data; a loop over lengths, ``.item()``, numpy or a packed sequence
stops it. Here the model simply runs, and what it runs is written down. What was decided by data
on the way stays as it was decided: the graph checks that (:mod:`prunus.graph.decisions`), and
refuses data that decide otherwise.

The operators are seen below autograd: there the composite ones (linear, lstm, layer_norm,
scaled_dot_product_attention) are still whole, as in torch.export; inside vmap they arrive
decomposed, with their batch dimension.
"""

from __future__ import annotations

import contextlib
import keyword
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from prunus._common.inputs import by_name, called, positional_names
from prunus._common.modules import named_tensors
from prunus._common.nested import tensors_of
from prunus._common.put_back import written_arguments
from prunus._common.rng import preserve_rng, seed
from prunus._common.torch_internals import (
    FakeTensorMode,
    StorageWeakRef,
    TorchDispatchMode,
    WeakTensorKeyDictionary,
    below_autograd,
    note_modules,
    pytree,
    set_call,
    storage_key,
)
from prunus.errors import InputError
from prunus.graph.assembled import Stack, assemble, modules_entered
from prunus.graph.decisions import Decisions, counts_alone, other_data
from prunus.graph.no_grad import NO_GRAD

aten = torch.ops.aten

_LITERALS = int | float | complex | str | None | Tensor
_LITERALS |= torch.dtype | torch.device | torch.layout | torch.memory_format
_EXITS = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__}
_SHAPE_ONLY = re.compile("(empty|zeros|ones|full|rand|randn|randint)_like|new_[a-z]+")
_ATTEMPTS = 3  # to find data that show which decisions change nothing
_FREE, _INPUT, _REAL = 0, 1, 2  # does not depend on an input; does; does by a real number


def record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.GraphModule:
    """Run a model once and return its operators in the form of ``torch.export``'s ``module()``.

    The graph module holds the model's own parameters and buffers under their own names, is called
    like the model, and returns the same structure. Numbers that depend on an input and left torch
    (``.item()``, ``.numpy()``, a test in an ``if``), and sizes that depend on values, may decide
    what runs: the graph raises a ``RuntimeError`` where they are others. Two lists of strings say
    so: ``notes`` for real numbers, also where one tensor is given twice, or where the graph, run
    again, does not give the model's answer; ``executed`` for integers and booleans (lengths,
    padding masks). Buffers, inputs and the random state are left as they were. The caller chooses
    eval mode and ``no_grad``.

    Raises:
        InputError: if an operator's argument, an input's name or an output cannot stand in a
            graph. What the model raises is not caught.

    >>> class Halve(nn.Module):
    ...     def forward(self, x):
    ...         while x.abs().sum().item() > 1:
    ...             x = x / 2
    ...         return x
    >>> graph = record(Halve(), (torch.tensor([3.0]),), {})
    >>> [str(n.target) for n in graph.graph.nodes if "div" in n.name]
    ['aten.div.Tensor', 'aten.div.Tensor']
    >>> graph.notes
    ['aten.item read real numbers in the model: the graph refuses inputs that change them']
    """
    recorder, expected = _recorded(model, args, kwargs)
    if any(decision.some for decision in recorder.decisions.found):
        recorder.open_counts(model, args, kwargs)
    module = recorder.module()
    with recorder.nothing_changed():
        _agrees(lambda: module(*args, **kwargs), expected, recorder.notes)
    vars(module).update(notes=recorder.notes, executed=recorder.executed)
    return module


def _recorded(model: nn.Module, args: Any, kwargs: Any) -> tuple[_Recorder, list[Tensor]]:
    """A pass, and its answers."""
    with modules_entered(model) as stack:
        recorder = _Recorder(model, stack)
        recorder.inputs(model, args, kwargs)
        with recorder.nothing_changed():
            with torch.enable_grad(), below_autograd(), recorder, _Exits(recorder):
                output = called(model, (args, kwargs))
            recorder.outputs(output)
            return recorder, [tensor.clone() for tensor in tensors_of(output)]


class _Memory(NamedTuple):
    """What stands on one storage; the reference keeps its address from being used again."""

    reference: StorageWeakRef
    node: fx.Node
    where: tuple[Any, ...]
    level: int


class _Recorder(TorchDispatchMode):
    """The graph so far, and which live tensor is which of its nodes."""

    def __init__(self, model: nn.Module, stack: Stack) -> None:
        super().__init__()
        self.graph, self._stack = fx.Graph(), stack
        self.decisions = Decisions(self.graph)
        self.notes: list[str] = []
        self.executed: list[str] = []
        self._fake = FakeTensorMode()
        self._nodes = WeakTensorKeyDictionary()
        self._memory: dict[int, _Memory] = {}
        self._named = named_tensors(model)
        self._names = {id(tensor): name for name, tensor, _ in reversed(self._named)}
        self._outer = [tensor for _, tensor, _ in self._named]
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}
        self._constants: list[tuple[fx.Node, Tensor, Tensor]] = []  # node, seen, kept
        self._overwritten: list[fx.Node] = []

    def inputs(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A placeholder for every leaf of the arguments."""
        for name in kwargs:
            if not name.isidentifier() or keyword.iskeyword(name):
                raise InputError(f"the argument '{name}' needs a name that is valid in Python")
        given = by_name(positional_names(model), (args, kwargs))
        self._arguments = list(given)
        self._in_spec = pytree.tree_structure((args, kwargs))
        for name, value in given.items():
            leaves = pytree.tree_leaves(value)
            for i, leaf in enumerate(leaves):
                node = self.graph.placeholder(name if len(leaves) == 1 else f"{name}_{i}")
                node.meta["val"] = self._val(leaf)
                if isinstance(leaf, Tensor) and leaf in self._nodes:
                    self.notes.append(f"{node} is {self._nodes[leaf]}: the graph reads the latter")
                elif isinstance(leaf, Tensor):
                    self._outer.append(leaf)
                    self._stands(leaf, node, _REAL if _real(leaf) else _INPUT)

    def outputs(self, output: Any) -> None:
        """The output node."""
        leaves, self._out_spec = pytree.tree_flatten(output)
        _refuse_objects(leaves, "the model returns")
        self.graph.output(pytree.tree_map_only(Tensor, self._node, tuple(leaves)))

    def module(self) -> fx.GraphModule:
        """The graph with its tensors, called as the model is."""
        for node in self._overwritten:
            users = list(node.users)
            with self.graph.inserting_after(node):
                copy = self.graph.call_function(aten.clone.default, (node,))
            copy.meta = dict(node.meta)
            for user in users:
                user.replace_input_with(node, copy)
        for node in reversed(self.graph.nodes):
            if node.target is operator.getitem and not node.users:
                self.graph.erase_node(node)
        set_call(self.graph, self._arguments, self._in_spec, self._out_spec)
        constants = [(str(node.target), kept, True) for node, _, kept in self._constants]
        return assemble(self.graph, [*self._named, *constants])

    @contextlib.contextmanager
    def nothing_changed(self) -> Iterator[None]:
        """Put back afterwards what a pass wrote outside itself, and the random state."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            try:
                yield
            finally:
                for tensor, before in self._saved.values():
                    tensor.copy_(before)

    def leaves_torch(self, tensor: Tensor, how: str) -> None:
        """A tensor's values go where no operator is seen: the graph checks that they are these."""
        level = self._level([tensor])
        if level:
            what = self._left(level, how)
            node, kept = self._node(tensor), tensor.detach().clone()
            constant = self._constant(kept, kept)
            self.decisions.values(node, constant, kept, what)

    def _left(self, level: int, how: str) -> str:
        """Note what leaves torch, and say it for the message of its check."""
        where = (self._stack[-1][1][0] if self._stack else "") or "the model"
        kind, into = ("real numbers", self.notes) if level == _REAL else ("integers", self.executed)
        note = f"{how} read {kind} in {where}: the graph refuses inputs that change them"
        if note not in into:
            into.append(note)
        return f"what {how} reads in {where}"

    def open_counts(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        """Let sizes that depend on values be others, if passes on other data have the same form."""
        for attempt in range(_ATTEMPTS):
            with preserve_rng():
                seed(attempt)
                changed = other_data((args, kwargs))
            try:
                other, _ = _recorded(model, *changed)
            except Exception:  # of the model's code: these data are none for it
                continue
            pairs = list(zip(self._constants, other._constants, strict=False))
            same = len(self._constants) == len(other._constants)
            same = same and all(
                a.shape == b.shape and torch.equal(a, b) for (*_, a), (*_, b) in pairs
            )
            self.decisions.open(counts_alone(self.decisions, other.decisions, same))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operands = tensors_of((args, kwargs))
        for tensor in operands:
            self._node(tensor)
        written = _written(func, args, kwargs)
        self._before_writing({_storage(tensor) for tensor in written})
        result = func(*args, **kwargs)
        made = tensors_of(result)
        if not made and not written:
            self._number(func, args, kwargs, result)
        elif written or not all(id(tensor) in self._names for tensor in made):
            # The result of lift_fresh may be written to; the constant must not be.
            called = aten.lift_fresh_copy.default if func is aten.lift_fresh.default else func
            shape_only = _SHAPE_ONLY.fullmatch(func.overloadpacket.__name__)
            level = _FREE if shape_only else self._level(operands)
            level = _REAL if level and any(map(_real, (*made, *written))) else level
            self._bind(self._call(called, args, kwargs), result, level)
            for tensor in written:
                self._stands(tensor, self._nodes[tensor], level)
            if func is aten._pack_padded_sequence.default:  # sizes depend on lengths alone
                self._memory.pop(_storage(result[1]))
                self._stands(result[1], self._nodes[result[1]], self._level([args[1]]))
            elif level and made and torch.Tag.dynamic_output_shape in func.tags:
                self._size(func, args, made[0])
        return result

    def _number(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """An operator that gives a number, on which the model's code may decide."""
        level = self._level(tensors_of((args, kwargs)))
        if level and isinstance(result, (bool, int, float, complex)):
            what = self._left(level, str(func.overloadpacket))
            node = self._call(func, args, kwargs)
            node.meta["val"] = result
            self.decisions.number(node, result, what)

    def _size(self, func: Any, args: Any, result: Tensor) -> None:
        """An operator whose result's size depends on values."""
        where = (self._stack[-1][1][0] if self._stack else "") or "the model"
        what = f"how many {func.overloadpacket} finds in {where}"
        if func is not aten.index.Tensor:
            dim = args[1] if func is aten.unique_dim.default else 0
            self.decisions.size(self._nodes[result], dim, result.shape[dim], what)
        for index in args[1] if func is aten.index.Tensor else ():
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                found = self._call(aten.nonzero.default, (index,), {})
                found.meta["val"] = self._val(index.nonzero())
                self.decisions.size(found, 0, int(index.count_nonzero()), what)

    def _call(self, func: Any, args: Any, kwargs: Any) -> fx.Node:
        _refuse_objects(pytree.tree_leaves((args, kwargs)), f"{func} is given")
        operands = pytree.tree_map_only(Tensor, self._node, (args, kwargs))
        node = self.graph.call_function(func, *operands)
        note_modules(node, self._stack)
        node.meta[NO_GRAD] = not torch.is_grad_enabled()
        return node

    def _bind(self, node: fx.Node, result: Any, level: int) -> None:
        node.meta["val"] = pytree.tree_map(self._val, result)
        if isinstance(result, Tensor):
            self._stands(result, node, level)
        for i, part in enumerate(result if isinstance(result, (tuple, list)) else []):
            if part is not None:
                item = self._call(operator.getitem, (), {})
                item.args = (node, i)
                self._bind(item, part, level)

    def _stands(self, tensor: Tensor, node: fx.Node, level: int) -> None:
        """From here on this tensor is that node; views share what is known of their memory."""
        self._nodes[tensor] = node
        if tensor.layout is torch.strided:
            known = self._memory.get(_storage(tensor))
            reference = known.reference if known else StorageWeakRef(tensor.untyped_storage())
            level = max(level, known.level) if known else level
            self._memory[_storage(tensor)] = _Memory(reference, node, _where(tensor), level)

    def _node(self, tensor: Tensor) -> fx.Node:
        """The node of a tensor: known, the model's, on known memory, or else a constant."""
        if tensor not in self._nodes:
            name = self._names.get(id(tensor))
            known = self._memory.get(_storage(tensor))
            if name is not None:
                node = self.graph.get_attr(name)
            elif known is not None and not known.reference.expired():  # as of nn.Parameter(x)
                same = known.where == _where(tensor)
                node = self._call(aten.detach.default if same else aten.as_strided.default, (), {})
                node.args = (known.node,) if same else (known.node, *_where(tensor))
            else:
                node = self._constant(tensor, tensor.detach().clone())
            node.meta["val"] = self._val(tensor)
            self._stands(tensor, node, _FREE)
        node = self._nodes[tensor]
        assert isinstance(node, fx.Node)
        return node

    def _constant(self, seen: Tensor, kept: Tensor) -> fx.Node:
        node = self.graph.get_attr(f"_constant{len(self._constants)}")
        self._constants.append((node, seen, kept))
        return node

    def _val(self, leaf: Any) -> Any:
        """What a node's value looks like, without its numbers."""
        if not isinstance(leaf, Tensor) or leaf.layout is not torch.strided:
            return leaf
        like = partial(torch.empty_strided, dtype=leaf.dtype, device=leaf.device)
        with self._fake:
            return like(leaf.shape, leaf.stride())

    def _before_writing(self, places: set[int]) -> None:
        """Keep what the pass must not change for good; a constant gets a copy in the graph."""
        for tensor in self._outer if places else []:
            if _storage(tensor) in places and id(tensor) not in self._saved:
                self._saved[id(tensor)] = (tensor, tensor.detach().clone())
        for node, seen, _ in self._constants if places else []:
            if _storage(seen) in places and node not in self._overwritten:
                self._overwritten.append(node)

    def _level(self, tensors: Iterable[Tensor]) -> int:
        """The most that these tensors depend on an input."""
        known = [self._memory.get(_storage(tensor)) for tensor in tensors]
        return max([memory.level for memory in known if memory], default=_FREE)


class _Exits(TorchFunctionMode):
    """Sees the calls by which numbers leave torch without any operator."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _EXITS:
            self._recorder.leaves_torch(args[0], f".{func.__name__}()")
        return func(*args, **(kwargs or {}))


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operator overwrites, by its schema."""
    written = written_arguments(func).items()
    return tensors_of([args[i] if i < len(args) else kwargs.get(name) for i, name in written])


def _real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _storage(tensor: Tensor) -> int:
    """The memory that a tensor stands on; a sparse one stands alone."""
    strided = tensor.layout is torch.strided
    return storage_key(tensor.untyped_storage()) if strided else id(tensor)


def _where(tensor: Tensor) -> tuple[list[int], list[int], int]:
    return list(tensor.shape), list(tensor.stride()), int(tensor.storage_offset())


def _refuse_objects(leaves: Iterable[Any], who: str) -> None:
    for leaf in leaves:
        if not isinstance(leaf, _LITERALS):
            what = f"{who} a {type(leaf).__name__}, which a graph cannot hold"
            raise InputError(f"{what}: use tensors, numbers and strings, nested or not")


def _agrees(again: Callable[[], Any], expected: list[Tensor], notes: list[str]) -> None:
    """Note when the graph, run on the recorded input, does not give the recorded output."""
    try:
        pairs = list(zip(tensors_of(again()), expected, strict=True))
        why = "gives an output other than the model's"
        same = all(torch.allclose(a, b, 1e-4, 1e-6, equal_nan=True) for a, b in pairs)
    except RuntimeError as error:
        same, why = False, f"fails: {error}"
    if not same:
        notes.append(f"run again on the recorded input, the graph {why}")
