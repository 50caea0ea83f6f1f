"""What a traced pass holds for: the calls that its graph answers as the model does.

A graph has one path through the model's code. Whatever chose that path (an argument that was
``None``, a number, a size) is taken as given, and a call that gives something else is refused.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from prunus._common.inputs import Inputs, by_name
from prunus._common.nested import CONSTANTS, map_tensors, plain
from prunus._common.torch_internals import pytree
from prunus.errors import InputError

Size = int | str
"""Of a dimension: a number, or an expression in the names of open sizes, such as ``"s0"``."""

PLAIN = (int, float, bool, str, type(None))
"""Constants that can be compared, and written to a file."""


@dataclass(frozen=True)
class Leaf:
    """A part of an argument.

    Attributes:
        kind: ``float``, ``int``, ``bool`` or ``complex`` of a tensor; ``value`` for a constant;
            else the name of a class.
        sizes: of a tensor.
        value: of a constant.
    """

    kind: str
    sizes: tuple[Size, ...] = ()
    value: Any = None


@dataclass(frozen=True)
class Guard:
    """The calls that a graph holds for.

    Attributes:
        names: of the parameters that may be given by position.
        defaults: of the parameters that may be left out, where they are plain.
        leaves: of each argument of the traced call, in the order of the graph's.
        conditions: comparisons of open sizes.
    """

    names: tuple[str, ...]
    defaults: Mapping[str, Any]
    leaves: Mapping[str, tuple[Leaf, ...]]
    conditions: tuple[str, ...] = ()

    @functools.cached_property
    def _holds(self) -> list[Callable[[Mapping[str, int]], bool]]:
        return [condition(text) for text in self.conditions]

    def arranged(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any] | str:
        """The arguments in the order of the traced call, or why the graph does not hold for them.

        >>> guard = guard_of(["x", "scale"], {"scale": 1.0}, ((torch.ones(2, 3),), {}))
        >>> guard.arranged((torch.ones(2, 3),), {"scale": 2.0})
        'scale is 2.0, and was 1.0'
        >>> guard.arranged((torch.ones(4, 3), 1.0), {})
        'x has size 4 in dimension 0, and had 2'
        """
        if len(args) > len(self.names) and len(args) != len(self.leaves):
            took = max(len(self.names), len(self.leaves))  # more than it has names for: *args
            return f"{len(args)} arguments are given by position, and it took {took}"
        given = by_name(self.names, (tuple(args), kwargs))
        for name, value in given.items():
            if name not in self.leaves and not self._is_default(name, value):
                return f"{name} is {_shown(value)}, and was {self._default(name)}"
        sizes = self._sizes(given)
        for name, leaves in self.leaves.items():
            value = given[name] if name in given else self.defaults.get(name, _NOTHING)
            problem = _differs(name, value, leaves, sizes)
            if problem is not None:
                return problem
        for text, holds in zip(self.conditions, self._holds, strict=True):
            if not holds(sizes):
                return f"{self.in_words(text)} does not hold"
        found = [given[name] if name in given else self.defaults[name] for name in self.leaves]
        return [plain(value) for value in found]

    def _sizes(self, given: Mapping[str, Any]) -> dict[str, int]:
        """Open sizes, of which those of an argument before may be computed."""
        found: dict[str, int] = {}
        for name, leaves in self.leaves.items() if self._computed else ():
            parts = pytree.tree_leaves(plain(given.get(name)))
            for part, leaf in zip(parts, leaves, strict=False):
                shape = part.shape if isinstance(part, Tensor) else ()
                for size, wanted in zip(shape, leaf.sizes, strict=False):
                    if isinstance(wanted, str) and wanted.isidentifier():
                        found.setdefault(wanted, size)
        return found

    @functools.cached_property
    def _computed(self) -> bool:
        every = (s for leaves in self.leaves.values() for leaf in leaves for s in leaf.sizes)
        return any(isinstance(s, str) and not s.isidentifier() for s in every)

    def _is_default(self, name: str, value: Any) -> bool:
        default = self.defaults.get(name, _NOTHING)
        return default is not _NOTHING and not isinstance(value, Tensor) and _same(default, value)

    def _default(self, name: str) -> str:
        return _shown(self.defaults[name]) if name in self.defaults else "not given"

    def in_words(self, text: str) -> str:
        """An expression in open sizes, each of which becomes the place where it stands."""
        for symbol, (name, dimension) in self.places().items():
            text = text.replace(symbol, f"{name}.shape[{dimension}]")
        return text

    def places(self) -> dict[str, tuple[str, int]]:
        """Where each open size stands first; longer names of sizes come first."""
        found: dict[str, tuple[str, int]] = {}
        for name, leaves in self.leaves.items():
            for leaf in leaves:
                for d, size in enumerate(leaf.sizes):
                    if isinstance(size, str) and size.isidentifier():
                        found.setdefault(size, (name, d))
        return dict(sorted(found.items(), key=lambda item: -len(item[0])))

    def narrowed(self, inputs: Inputs, symbol: str) -> Inputs | None:
        """The same inputs with an open size of 1; ``None`` if other sizes hang on it."""
        dims: list[list[int]] = []
        for leaf in (leaf for leaves in self.leaves.values() for leaf in leaves):
            if leaf.kind in _ARTICLES:
                dims.append([d for d, size in enumerate(leaf.sizes) if size == symbol])
                used = [s for s in leaf.sizes if isinstance(s, str) and not s.isidentifier()]
                if any(symbol in text for text in used):
                    return None
        each = iter(dims)

        def narrow(tensor: Tensor) -> Tensor:
            for d in next(each):
                tensor = tensor.narrow(d, 0, 1)
            return tensor

        made: Inputs = map_tensors(narrow, inputs)
        return made

    def cut(self, sizes: Sequence[Sequence[int | None]]) -> Guard:
        """The guard of a graph whose inputs are smaller.

        Args:
            sizes: of each tensor among the arguments, by dimension; ``None``: as it was.
        """
        each = iter(sizes)
        leaves = {
            name: tuple(
                _smaller(leaf, next(each)) if leaf.kind in _ARTICLES else leaf for leaf in own
            )
            for name, own in self.leaves.items()
        }
        return replace(self, leaves=leaves)

    @property
    def readable(self) -> bool:
        """Whether what is known of open sizes can be computed from them."""
        try:
            return bool(self._holds) or not self.conditions
        except InputError:
            return False

    @property
    def open(self) -> bool:
        """Whether any size is open."""
        return bool(self.places())


def _smaller(leaf: Leaf, sizes: Sequence[int | None]) -> Leaf:
    left = [old if new is None else new for old, new in zip(leaf.sizes, sizes, strict=True)]
    return replace(leaf, sizes=tuple(left))


_NOTHING = object()


def guard_of(
    names: Sequence[str],
    defaults: Mapping[str, Any],
    inputs: Inputs,
    sizes: Sequence[Sequence[Size]] | None = None,
    conditions: Sequence[str] = (),
) -> Guard:
    """The guard of a traced call.

    Args:
        names: of the parameters that may be given by position.
        defaults: of parameters.
        inputs: the call's.
        sizes: of each tensor among the inputs; ``None``: as they are there.
        conditions: comparisons of open sizes.
    """
    given = iter(sizes if sizes is not None else ())
    leaves: dict[str, tuple[Leaf, ...]] = {}
    for name, value in by_name(names, inputs).items():
        parts = []
        for part in pytree.tree_leaves(plain(value)):
            own = None
            if isinstance(part, Tensor):
                own = tuple(part.shape) if sizes is None else tuple(next(given))
            parts.append(_leaf(part, own))
        leaves[name] = tuple(parts)
    known = {k: v for k, v in defaults.items() if type(v) in PLAIN}
    return Guard(tuple(names), known, leaves, tuple(conditions))


def _leaf(value: Any, sizes: tuple[Size, ...] | None) -> Leaf:
    if isinstance(value, Tensor):
        return Leaf(_kind(value), sizes or ())
    if type(value) in PLAIN:
        return Leaf("value", value=value)
    return Leaf(type(value).__name__, value=_text(value))


_COMPARED = (*CONSTANTS, bytes, complex, torch.dtype, torch.device, torch.layout,
             torch.memory_format)  # fmt: skip


def _text(value: Any) -> str | None:
    """What tells a constant from others of its class, in a file too; ``None``: nothing does."""
    if isinstance(value, (type, FunctionType)):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value) if isinstance(value, _COMPARED) else None


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "float"
    return "complex" if tensor.is_complex() else "bool" if tensor.dtype is torch.bool else "int"


def _differs(name: str, value: Any, leaves: Sequence[Leaf], sizes: dict[str, int]) -> str | None:
    """How an argument is another than the traced one; open sizes are noted on the way."""
    was = _described(leaves)
    if value is _NOTHING:
        return f"{name} is not given, and was {was}"
    parts = pytree.tree_leaves(plain(value))
    if len(parts) != len(leaves):
        return f"{name} has {len(parts)} parts, and had {len(leaves)}"
    for part, leaf in zip(parts, leaves, strict=True):
        if not isinstance(part, Tensor):
            if leaf.kind == "value":
                same = _same(leaf.value, part)
            else:
                same = leaf.kind == _class(part) and leaf.value == _text(part)
            if not same:
                return f"{name} is {_shown(part)}, and was {was}"
            continue
        if leaf.kind != _kind(part):
            return f"{name} is {_shown(part)}, and was {was}"
        if part.dim() != len(leaf.sizes):
            return f"{name} has {part.dim()} dimensions, and had {len(leaf.sizes)}"
        for d, (size, wanted) in enumerate(zip(part.shape, leaf.sizes, strict=True)):
            expected = wanted if isinstance(wanted, int) else _expected(wanted, size, sizes)
            if size != expected:
                return f"{name} has size {size} in dimension {d}, and had {expected}"
    return None


def _expected(wanted: str, size: int, sizes: dict[str, int]) -> int | str:
    if wanted.isidentifier():
        return sizes.setdefault(wanted, size)
    try:
        return int(expression(wanted)(sizes))
    except (ArithmeticError, NameError):
        return wanted


def _described(leaves: Sequence[Leaf]) -> str:
    if len(leaves) != 1:
        return f"{len(leaves)} parts"
    (leaf,) = leaves
    if leaf.value is not None or leaf.kind == "value":
        return str(leaf.value) if leaf.kind != "value" else repr(leaf.value)
    return f"a {_ARTICLES.get(leaf.kind, leaf.kind)}"


_ARTICLES = {"float": "tensor of floats", "int": "tensor of integers", "bool": "tensor of bools",
             "complex": "tensor of complex numbers"}  # fmt: skip


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {_ARTICLES[_kind(value)]}"
    if type(value) in PLAIN:
        return repr(value)
    return _text(value) or f"a {type(value).__name__}"


def _class(value: Any) -> str:
    return "value" if type(value) in PLAIN else type(value).__name__


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


# Expressions of open sizes


_ALLOWED = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Name, ast.Load,
    ast.Constant, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.Pow, ast.USub, ast.Eq,
    ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.And, ast.Or, ast.Not, ast.Call,
)  # fmt: skip
_FUNCTIONS = {"max": max, "min": min}


@functools.lru_cache(maxsize=4096)
def expression(text: str) -> Callable[[Mapping[str, int]], Any]:
    """An expression of whole numbers and sizes as a function of the sizes.

    Raises:
        InputError: for anything but arithmetic and comparisons: it may come from a file.

    >>> expression("s0 % 2 == 0")({"s0": 6})
    True
    """
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    parts = list(ast.walk(tree)) if tree is not None else [None]
    fit = len(text) <= _LONGEST and all(isinstance(p, _ALLOWED) and _small(p) for p in parts)
    if not fit or not all(_known(p) for p in parts if isinstance(p, ast.Call)):
        raise InputError(f"{text[:80]!r} is no arithmetic of sizes")
    assert tree is not None
    code = compile(tree, "<sizes>", "eval")
    # the tree holds arithmetic alone
    return lambda sizes: eval(code, {"__builtins__": _FUNCTIONS}, dict(sizes))


_LONGEST = 2000


def _small(part: ast.AST) -> bool:
    """No number, and no power, that takes memory."""
    if isinstance(part, ast.Constant):
        return isinstance(part.value, int) and abs(part.value) < 2**63
    if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Pow):
        plain = isinstance(part.left, (ast.Name, ast.Constant))
        return plain and isinstance(part.right, ast.Constant) and part.right.value in range(8)
    return True


def _known(call: ast.Call) -> bool:
    """The largest or the smallest of some numbers, which sizes of windows are made of."""
    return isinstance(call.func, ast.Name) and call.func.id in _FUNCTIONS and not call.keywords


def condition(text: str) -> Callable[[Mapping[str, int]], bool]:
    """A comparison of sizes as a function of them; one that cannot be computed does not hold."""
    of = expression(text)

    def holds(sizes: Mapping[str, int]) -> bool:
        try:
            return bool(of(sizes))
        except (ArithmeticError, NameError):
            return False

    return holds
