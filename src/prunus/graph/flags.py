"""Operators whose flag says whether the model trains, and those that are always on.

A flag by position follows the mode. One that is on in eval mode too (dropout that estimates
doubt, batch statistics) is given by name, and stays.
"""

from __future__ import annotations

from torch import fx

from prunus._common.torch_internals import schema
from prunus.graph.call import base_name

TRAINING_FLAGS = {"dropout": 2, "feature_dropout": 2, "alpha_dropout": 2, "batch_norm": 5,
                  "lstm": 6, "gru": 6, "rnn_tanh": 6, "rnn_relu": 6}  # fmt: skip
"""Operators with a training flag, and its place among their arguments."""


BATCH_NORM = "batch_norm"
"""The operator whose statistics a mode chooses."""


def flag_place(node: fx.Node) -> int | None:
    """The place of a flag that follows the mode; without statistics a norm has no eval mode."""
    name = base_name(node) if node.op == "call_function" else ""
    place = TRAINING_FLAGS.get(name)
    if place is None or len(node.args) <= place or (name == BATCH_NORM and node.args[3] is None):
        return None
    return place


def keep_flags(module: fx.GraphModule) -> None:
    """Give flags by name that are on in a graph of eval mode: no mode switches them off.

    >>> import torch
    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x")
    >>> found = graph.call_function(torch.ops.aten.dropout.default, (x, 0.5, True))
    >>> keep_flags(fx.GraphModule(torch.nn.Module(), graph))
    >>> found.args, found.kwargs
    ((x, 0.5), {'train': True})
    """
    changed = False
    for node in module.graph.nodes:
        place = flag_place(node)
        if place is not None and node.args[place] is True:
            changed = True
            names = [a.name for a in schema(node.target).arguments]
            named = zip(names[place:], node.args[place:], strict=False)
            node.kwargs = {**dict(named), **node.kwargs}
            node.args = node.args[:place]
    if changed:
        module.recompile()
