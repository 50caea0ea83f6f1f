"""Parameters of a user's own modules: which of them are weights, and how to read those.

The table of layers knows torch's modules. Of any other parameter only its use can tell: a matrix
that is multiplied with values is a weight; a table of positions, which is added, or of tokens,
which is looked up, is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.former_module import FormerModule
from prunus._common.layers import Layer, layers_of
from prunus._common.torch_internals import (
    TorchDispatchMode,
    WeakTensorKeyDictionary,
    pytree,
    schema,
)


@dataclass(frozen=True)
class Matrix:
    """Which dimensions of a parameter are what.

    Attributes:
        out_dim: runs over outputs.
        in_dim: runs over inputs.
        stack: number separate matrices, as those of a fused tensor of experts do.
    """

    out_dim: int
    in_dim: int
    stack: tuple[int, ...] = ()


Uses = Mapping[str, "Matrix | None"]
"""By the first name of a parameter: how it is multiplied; ``None``: it is used, but not so."""

_OPERANDS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "mm": ((0, 0, 1), (1, 1, 0)),
    "addmm": ((1, 0, 1), (2, 1, 0)),
    "bmm": ((0, 1, 2), (1, 2, 1)),
    "baddbmm": ((1, 1, 2), (2, 2, 1)),
    "mv": ((0, 0, 1),),
    "addmv": ((1, 0, 1),),
    "linear": ((1, 0, 1),),
    "_grouped_mm": ((1, 2, 1),),
    "grouped_mm_fallback": ((1, 2, 1),),
    "convolution": ((1, 0, 1),),
    "_convolution": ((1, 0, 1),),
}
"""Products that reach a dispatcher: argument, its dimension of outputs, the one summed over."""
_SAME = frozenset({"_to_copy", "clone", "contiguous", "mul", "div", "neg", "lift_fresh"})
"""What leaves a matrix a matrix, index by index: copies, and products with one number."""
_LOOKUPS = frozenset({"embedding", "index", "index_select"})
_WORDS = ("bias", "pos", "emb", "tok", "table", "rel", "query", "queries", "prompt", "latent")
"""In names of tables, where nothing shows how a parameter is used."""
_CONTAINERS = (nn.ParameterList, nn.ParameterDict)


def used_as_weights(model: nn.Module, run: Callable[[], object]) -> Uses:
    """How a pass uses each parameter that no layer of the table holds.

    Args:
        model: whose parameters.
        run: a function without arguments that runs the model once.

    >>> class Own(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w, self.pos = (nn.Parameter(torch.ones(3, 2)) for _ in range(2))
    ...     def forward(self, x):
    ...         return (x + self.pos) @ self.w.mT
    >>> own = Own()
    >>> used_as_weights(own, lambda: own(torch.ones(3, 2)))
    {'pos': None, 'w': Matrix(out_dim=0, in_dim=1, stack=())}
    """
    known = {la.name for path, m in model.named_modules() for la in layers_of(path, m)}
    tensors = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    if tensors.keys() <= known:
        return {}
    watch = _Watch(tensors)
    with torch.no_grad(), watch:
        run()
    met = sorted(watch.met - known)
    return {n: None if n in watch.tables else watch.found.get(n) for n in met}


def raw_weight(name: str, module: str, parameter: Tensor, model: nn.Module, uses: Uses) -> Layer:
    """A parameter that no layer of the table holds, read as it is used, or else by its shape.

    Three dimensions are a stack of matrices ``[stack, out, in]``; two or more than three are
    ``[out, in, …]``.
    """
    shape = tuple(parameter.shape)
    how = uses.get(name) or _of_its_like(name, model, uses)
    if how is None:
        how = Matrix(1, 2, (0,)) if len(shape) == 3 else Matrix(0, 1)
    own = dict(model.get_submodule(module).named_parameters(recurse=False))
    key = name.rpartition(".")[2]
    rows = tuple(shape[d] for d in (*how.stack, how.out_dim))
    beside = (f"{key}_bias", key.replace("weight", "bias"))
    bias = next((b for b in beside if b in own and tuple(own[b].shape) == rows), None)
    prefix = f"{module}." if module else ""
    return Layer(
        name=name,
        module=module,
        kind="other",
        shape=shape,
        out_dim=how.out_dim,
        in_dim=how.in_dim,
        stack=how.stack,
        bias=() if bias is None else (prefix + bias,),
        neuron=name,
    )


def is_weight(layer: Layer, parameter: Tensor, model: nn.Module, uses: Uses) -> bool:
    """Whether a parameter that no layer of the table holds is in scope unless told otherwise.

    Where a pass has used it, or its like in another module of the same class or in the same list:
    if it multiplies values as a matrix. Where none has: if it is a stack of matrices by its
    shape, or a matrix in a ``ParameterList``, and has no name of a table.
    """
    holder = model.get_submodule(layer.module)
    if _of_a_graph(holder):  # of a graph, which keeps no classes
        return uses.get(layer.name) is not None
    listed = isinstance(holder, _CONTAINERS)
    ours = type(holder).__module__.startswith("torch.nn.") and not listed
    if ours or not parameter.is_floating_point() or sum(n > 1 for n in parameter.shape) < 2:
        return False
    like = _slot(model, layer.name)
    seen = [how for name, how in uses.items() if _slot(model, name) == like]
    if seen:
        return any(how is not None for how in seen)
    named = any(word in like[1].lower() for word in _WORDS)
    return min(parameter.shape) > 1 and (parameter.dim() > 2 or listed) and not named


def _of_its_like(name: str, model: nn.Module, uses: Uses) -> Matrix | None:
    """How another parameter in the same place of a module of the same class is multiplied."""
    rank = model.get_parameter(name).dim()
    if _of_a_graph(model.get_submodule(name.rpartition(".")[0])):
        return None
    return next(
        (
            how
            for other, how in uses.items()
            if how is not None
            and model.get_parameter(other).dim() == rank
            and _slot(model, other) == _slot(model, name)
        ),
        None,
    )


def _slot(model: nn.Module, name: str) -> tuple[type[nn.Module], str]:
    """The class that uses a parameter, and what it calls it; entries of a list are alike."""
    path, _, key = name.rpartition(".")
    while isinstance(model.get_submodule(path), _CONTAINERS) and path:
        path, _, key = path.rpartition(".")
    return type(model.get_submodule(path)), key


class _Watch(TorchDispatchMode):
    """Follows parameters through views and copies to the products that they enter.

    Attributes:
        met: names of the parameters that some operator read.
        found: those that are multiplied as matrices.
        tables: those of which single rows are looked up.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.met: set[str] = set()
        self.found: dict[str, Matrix] = {}
        self.tables: set[str] = set()
        self._ranks = {name: t.dim() for name, t in tensors.items()}
        self._is = WeakTensorKeyDictionary()
        for name, tensor in tensors.items():
            self._is[tensor] = (name, tuple(frozenset({d}) for d in range(tensor.dim())))

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [a for a in pytree.tree_leaves(args) if isinstance(a, Tensor)]
        read = [t for t in tensors if t in self._is]
        if read:
            self.met |= {self._is[t][0] for t in read}
            self._follow(func, args, tensors, result)
        return result

    def _follow(self, func: Any, args: Any, tensors: list[Tensor], result: Any) -> None:
        name = str(schema(func).name).split("::")[-1]
        if name in _OPERANDS:
            self._product(name, args)
            return
        source = args[0] if args else None
        if not isinstance(source, Tensor) or source not in self._is:
            return
        first, dims = self._is[source]
        others = [t for t in tensors if t is not source]
        if name in _LOOKUPS and len(dims) < 3:
            self.tables.add(first)
        elif name == "index" and len(args[1]) == 1:  # matrices by number
            read = args[1][0].dim()
            self._is[result] = (first, (*(frozenset[int]() for _ in range(read)), *dims[1:]))
        elif name == "index_select" or (name in _SAME and all(t.dim() == 0 for t in others)):
            self._is[result] = (first, dims)
        else:
            for view in result if isinstance(result, (list, tuple)) else [result]:
                if isinstance(view, Tensor) and _is_view(func):
                    self._is[view] = (first, _seen(view, source, dims))

    def _product(self, name: str, args: Any) -> None:
        operands = _OPERANDS[name]
        both = [i for i, *_ in operands if args[i] in self._is]
        for i, out, summed in operands:
            if i not in both or i != both[-1]:  # of two parameters, the first is what goes in
                continue
            parameter, dims = self._is[args[i]]
            turned = "convolution" in name and bool(args[6])
            outs, ins = (dims[1], dims[0]) if turned else (dims[out], dims[summed])
            ins = ins - outs or ins
            if outs and ins:
                apart = set(range(self._ranks[parameter])) - ins - {max(outs)}
                stack = () if "convolution" in name else tuple(sorted(apart))
                self.found.setdefault(parameter, Matrix(max(outs), min(ins), stack))


def _is_view(func: Any) -> bool:
    found = schema(func)
    return any(r.alias_info and not r.alias_info.is_write for r in found.returns)


def _seen(
    view: Tensor, source: Tensor, dims: tuple[frozenset[int], ...]
) -> tuple[frozenset[int], ...]:
    """Of each dimension of a view: the parameter's dimensions that it runs over, by its stride."""
    spans = [
        (step, step * n, dim)
        for step, n, dim in zip(source.stride(), source.shape, dims, strict=True)
        if n > 1 and step
    ]
    return tuple(
        frozenset().union(*(d for low, high, d in spans if low < step * n and step < high))
        if n > 1 and step
        else frozenset()
        for step, n in zip(view.stride(), view.shape, strict=True)
    )


def _of_a_graph(module: nn.Module) -> bool:
    return type(module) is nn.Module or isinstance(module, FormerModule)
