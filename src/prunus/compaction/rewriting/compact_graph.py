"""A graph in a module's place: its mode, its plain attributes, its copies."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from prunus._common.torch_internals import copy_hooks
from prunus.graph.call import base_name, module_path


class CompactGraph(fx.GraphModule):
    """A graph that stands in for a module of the user's, with the plain attributes of that one.

    It was traced in eval mode; ``train()`` switches its dropout, batch norms and recurrent layers
    as it would have switched the modules that they came from.
    """

    def __str__(self) -> str:
        return repr(self)

    def _get_name(self) -> str:
        return "CompactGraph"

    def extra_repr(self) -> str:
        """The number of operators: the code itself is in ``code``."""
        return f"{sum(n.op == 'call_function' for n in self.graph.nodes)} operators"

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

    def __deepcopy__(self, memo: Any) -> CompactGraph:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch copies its own old class
            made = super().__deepcopy__(memo)
        for key, value in vars(self).items():
            if type(value) in PLAIN and key not in vars(made):
                setattr(made, key, value)
        copy_hooks(made, self)
        made.training = self.training
        assert isinstance(made, CompactGraph)
        return made


PLAIN = (int, float, bool, str, type(None))
"""Attributes that enclosing code may ask a replaced module for."""


MODES = {"dropout": 2, "feature_dropout": 2, "alpha_dropout": 2, "batch_norm": 5, "lstm": 6,
         "gru": 6, "rnn_tanh": 6, "rnn_relu": 6}  # fmt: skip
"""Operators with a training flag, and its place among their arguments."""


FROZEN = "frozen"
"""Key of a node's ``meta``: its module was in eval mode inside one that trains."""


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


def _flagged(graph: fx.GraphModule) -> list[tuple[fx.Node, int]]:
    """Operators with a flag that ``train()`` switches, and its place."""
    found = [(node, _flag(node)) for node in graph.graph.nodes]
    return [(node, place) for node, place in found if place is not None]


def _flag(node: fx.Node) -> int | None:
    """The place of a flag that ``train()`` switches; without statistics a norm has no eval mode."""
    name = base_name(node) if node.op == "call_function" else ""
    place = MODES.get(name)
    if place is None or len(node.args) <= place or (name == "batch_norm" and node.args[3] is None):
        return None
    return place
