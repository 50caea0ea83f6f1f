"""Operators of a graph that know train from eval mode follow the parts that they came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import fx, nn

from prunus._common.former_module import FormerModule
from prunus.errors import InputError
from prunus.graph.call import module_path
from prunus.graph.flags import flag_place

FROZEN = "frozen"
"""Key of a node's ``meta``: its module was in eval mode inside one that trains."""

Flagged = list[tuple[fx.Node, int]]
"""Operators with a flag that ``train()`` switches, and its place."""


def flagged(graphs: Iterable[fx.Graph]) -> Flagged:
    """All that there are in some graphs."""
    found = [(node, flag_place(node)) for graph in graphs for node in graph.nodes]
    return [(node, place) for node, place in found if place is not None]


def follow(flags: Flagged, root: nn.Module, parts: Mapping[str, FormerModule]) -> bool:
    """Give operators the mode of the innermost part that they came from.

    One that was frozen in eval mode when its graph was made stays so.

    Returns:
        Whether any of them was in another mode before.
    """
    changed = False
    for node, place in flags:
        mode = next((parts[p].training for p in outwards(module_path(node)) if p in parts), None)
        wanted = root.training if mode is None else mode
        wanted = wanted and not node.meta.get(FROZEN, False)
        if node.args[place] is not wanted:
            node.args = (*node.args[:place], wanted, *node.args[place + 1 :])
            changed = True
    return changed


def refuse_apart(root: nn.Module, parts: Mapping[str, FormerModule], *, separate: bool) -> None:
    """No part of a graph is in a mode that the graph cannot follow.

    Args:
        root: the graph.
        parts: of it, by path.
        separate: whether the graph runs other operators in train mode.

    Raises:
        InputError: naming the part.
    """
    for path, part in parts.items():
        around = next((parts[p] for p in outwards(path) if p != path and p in parts), root)
        if part.training is around.training or (part.followed and not separate):
            continue
        mode, other = ("eval", "train") if around.training else ("train", "eval")
        why = (
            "it runs other operators in train mode, all of them or none"
            if separate
            else "opened from a file, or pruned again, it does not know which operators are whose"
        )
        raise InputError(
            f"'{path}' is in {mode} mode inside a graph in {other} mode, which the graph cannot "
            f"follow: {why}. Put the whole model in one mode, or freeze that part before the cut"
        )


def outwards(path: str) -> Iterator[str]:
    """A path and those of all that encloses it."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""
