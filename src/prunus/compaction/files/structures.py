"""Structures of arguments and answers as JSON: a TREE with "*" for each leaf."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any, NamedTuple

import torch

from prunus._common import torch_internals as internals
from prunus.compaction.files.document import name_of, of_kind, wrong


class NamedStructure(NamedTuple):
    """A structure of a class, named and not looked up."""

    name: str
    keys: list[str] | None
    parts: list[Any]


def tree_of(spec: Any) -> Any:
    """A pytree's structure as plain values around "*"."""
    kind, keys, children = internals.spec_parts(spec)
    parts = [tree_of(child) for child in children]
    if kind is None:
        return "*"
    if kind in (list, tuple, deque):
        return tuple(parts) if kind is tuple else parts
    if kind is namedtuple:
        return NamedStructure("named_tuple", list(keys._fields), parts)
    if kind is defaultdict or (isinstance(keys, list) and [type(k) for k in keys] == [list, list]):
        kind, keys = dict, keys[kind is defaultdict]  # register_dataclass: fields, those of None
    if kind in (dict, OrderedDict):
        return dict(zip(keys, parts, strict=True))
    plain = isinstance(keys, list) and [type(k) for k in keys] == [str] * len(parts)
    return NamedStructure(f"{kind.__module__}.{kind.__qualname__}", keys if plain else None, parts)


def spec_of(tree: Any) -> internals.pytree.TreeSpec:
    """A pytree's structure from what :func:`tree_of` made of it."""
    if tree == "*":
        return internals.leaf_spec()
    kind, keys, parts = type(tree), None, tree
    if isinstance(tree, NamedStructure):
        (kind, keys), parts = _known_class(tree), tree.parts
    elif isinstance(tree, dict):
        keys, parts = list(tree), list(tree.values())
    elif not isinstance(tree, (tuple, list)):
        raise wrong("call", tree, "tuples, lists, dicts and classes around '*'")
    return internals.pytree.TreeSpec(kind, keys, [spec_of(part) for part in parts])


def _known_class(tree: NamedStructure) -> tuple[Any, Any]:
    """A class in memory with the context of its structure; else dict or tuple."""
    known = {
        f"{kind.__module__}.{kind.__qualname__}": kind for kind in internals.pytree.SUPPORTED_NODES
    }
    kind: Any = known.get(str(tree.name))
    if tree.keys is None:
        named = kind in torch.return_types.all_return_types and kind.n_fields == len(tree.parts)
        return kind if named else tuple, None
    keys = [name_of(key, "call, class") for key in of_kind(list, tree.keys, "call, class")]
    if len(set(keys)) != len(tree.parts):
        raise wrong("call, class", keys, "a field for each part")
    if tree.name == "named_tuple":
        return namedtuple, namedtuple("NamedTuple", keys, rename=True)
    if dataclasses.is_dataclass(kind) and {f.name for f in dataclasses.fields(kind)} >= set(keys):
        return kind, keys
    return dict, keys
