"""A pass that was traced of one module, for another one that is built alike.

To trace a module with open sizes takes torch.export seconds where its code computes with them,
and the layers of a model differ in their weights alone.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn

from prunus._common.former_module import PLAIN
from prunus._common.inputs import Inputs
from prunus._common.modules import canonical_names, named_tensors, put_attribute
from prunus._common.nested import tensors_of
from prunus.compaction.rewriting.compact_graph import copied
from prunus.graph.trace import Traced, trace

_OWN = {"_parameters", "_buffers", "_modules"}


@dataclass
class Traces:
    """Passes of modules that were traced so far.

    Attributes:
        known: each with its module and how it was asked for.
        involved: modules whose code computes with open sizes until they are too involved; others
            of the same code are not tried again with every size open.
    """

    known: list[tuple[nn.Module, Any, Traced]] = field(default_factory=list)
    involved: list[nn.Module] = field(default_factory=list)

    def trace(
        self, module: nn.Module, inputs: Inputs, *, dynamic: bool, closed: Any, training: bool
    ) -> Traced:
        """A pass of a module: as :func:`prunus.graph.trace.trace` gives it, or one of its like."""
        asked = (dynamic, closed, training)
        for other, how, traced in self.known:
            if how == asked and traced.takes(inputs) and alike(module, other):
                fitted = _fitted(traced, module)
                if fitted is not None:
                    return fitted
        if dynamic and any(_same_kind(module, other) for other in self.involved):
            closed = [range(1, tensor.dim()) for tensor in tensors_of(inputs)]
        made = trace(module, None, dynamic=dynamic, closed=closed, inputs=inputs, training=training)
        if made.involved:
            self.involved.append(module)
        if made.how == "export":  # a recorded pass took what values decided as given
            self.known.append((module, asked, made))
        return made


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether modules run the same code on the same sizes: they differ in values of tensors alone.

    >>> alike(nn.Linear(2, 3), nn.Linear(2, 3)), alike(nn.Linear(2, 3), nn.Linear(3, 3))
    (True, False)
    """
    pairs = [list(m.named_modules(remove_duplicate=False)) for m in (one, other)]
    tensors = [[(n, _form(t), kept) for n, t, kept in named_tensors(m)] for m in (one, other)]
    return (
        [n for n, _ in pairs[0]] == [n for n, _ in pairs[1]]
        and tensors[0] == tensors[1]
        and canonical_names(one) == canonical_names(other)
        and all(_same_code(a, b) for (_, a), (_, b) in zip(*pairs, strict=True))
    )


def _same_kind(one: nn.Module, other: nn.Module) -> bool:
    """Whether modules run the same code on any sizes: they may differ in numbers."""
    kinds = [[type(m) for m in module.modules()] for module in (one, other)]
    first, second = _settings(one), _settings(other)
    return (
        kinds[0] == kinds[1]
        and len(first) == len(second)
        and all(a == b or type(a) in (int, float) for a, b in zip(first, second, strict=True))
    )


def _settings(module: nn.Module) -> list[Any]:
    """What its modules keep of plain values, in order."""
    every = (vars(m) for m in module.modules())
    return [v for own in every for k, v in own.items() if k not in _OWN and type(v) in PLAIN]


def _form(tensor: Tensor) -> Any:
    return (
        tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad,
        type(tensor),
    )  # fmt: skip


def _same_code(one: nn.Module, other: nn.Module) -> bool:
    a, b = ({k: v for k, v in vars(m).items() if k not in _OWN} for m in (one, other))
    return type(one) is type(other) and a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)


def _same(a: Any, b: Any) -> bool:
    """Whether two attributes are the same, as far as that can be told."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    return (type(a) in PLAIN and a == b) or (isinstance(a, (dict, set)) and not a and not b)


def _fitted(traced: Traced, module: nn.Module) -> Traced | None:
    """The pass with a module's own tensors; constants of the code stay."""
    own = {name: (tensor, kept) for name, tensor, kept in named_tensors(module)}
    root, graph = nn.Module(), copied(traced.module.graph)
    for name in _read(graph.nodes):
        tensor, kept = own.get(name, (operator.attrgetter(name)(traced.module), False))
        if not isinstance(tensor, Tensor):
            return None
        put_attribute(root, name, tensor, persistent=kept)
    for node in graph.nodes:
        if node.op == "get_attr":
            node.meta["val"] = operator.attrgetter(str(node.target))(root)
    return replace(traced, module=fx.GraphModule(root, graph))


def _read(nodes: Iterable[fx.Node]) -> list[str]:
    return list(dict.fromkeys(str(n.target) for n in nodes if n.op == "get_attr"))
