"""How transformers arranges a checkpoint: other names than the model's, and tensors taken apart.

From its fifth version on, transformers joins tensors of a checkpoint as it opens it (the matrices
of all experts, say) and takes them apart as it writes one. The same rules are asked here for one
block at a time; older versions have none, and names are the model's.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunus.blocks.shards import Shards
from prunus.errors import InputError, first_line


@dataclass(frozen=True)
class Reading:
    """How one of a model's tensors is read.

    Attributes:
        dtype: of its numbers in the files.
        shape: of it, where a file says it.
        read: it; mapped where a file has it as it is, and else made anew.
    """

    dtype: torch.dtype
    shape: tuple[int, ...] | None
    read: Callable[[], Tensor]


def readings(model: Any, shards: Shards, *, ours: bool = False) -> dict[str, Reading]:
    """How each tensor of a model is read, by its name in the model's state dict.

    Args:
        model: that is read.
        shards: its files.
        ours: whether prunus wrote them, under the model's own names.

    Raises:
        InputError: where transformers' own rules fail.
    """
    state = dict(model.state_dict())
    rules = None if ours else _rules(model)
    if rules is None:
        return _plain(state, shards, getattr(model, "base_model_prefix", ""))
    core, renamings, converters = rules
    found: dict[str, Reading] = {}
    groups: dict[str, _Joined] = {}
    for key in shards.tensors:
        name, pattern = core.rename_source_key(
            key, renamings, converters, getattr(model, "base_model_prefix", ""), state
        )
        if pattern is None:
            if name in state:
                stored = shards.tensors[key]
                found[name] = Reading(stored.dtype, stored.shape, _reader(shards, key))
            continue
        rule = next(c for c in converters if pattern in c.source_patterns)
        groups.setdefault(name, _Joined(name, rule, model, shards)).keys.append((key, pattern))
    for group in groups.values():
        for name in group.names():
            if name in state:
                key = group.keys[0][0]
                found[name] = Reading(shards.tensors[key].dtype, None, _of_group(group, name))
    return found


def written(model: Any, state: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors of a model as transformers writes them."""
    rules = _rules(model)
    if rules is None:
        return state
    back = getattr(rules[0], "revert_weight_conversion", None)
    return dict(back(model, dict(state))) if back is not None else state


def _rules(model: Any) -> tuple[Any, list[Any], list[Any]] | None:
    try:
        core: Any = importlib.import_module("transformers.core_model_loading")
        mapping: Any = importlib.import_module("transformers.conversion_mapping")
    except ImportError:
        return None
    every = mapping.get_model_conversion_mapping(model)
    converters = [rule for rule in every if isinstance(rule, core.WeightConverter)]
    return core, [rule for rule in every if not isinstance(rule, core.WeightConverter)], converters


def _plain(state: Mapping[str, Tensor], shards: Shards, prefix: str) -> dict[str, Reading]:
    found = {}
    for key, stored in shards.tensors.items():
        for name in (key, f"{prefix}.{key}", key.removeprefix(f"{prefix}.")):
            if name in state:
                found[name] = Reading(stored.dtype, stored.shape, _reader(shards, key))
                break
    return found


def _reader(shards: Shards, key: str) -> Callable[[], Tensor]:
    return lambda: shards[key]


def _of_group(group: _Joined, name: str) -> Callable[[], Tensor]:
    return lambda: group.read(name)


class _Joined:
    """Tensors of a checkpoint that one rule makes others of."""

    def __init__(self, first: str, rule: Any, model: Any, shards: Shards) -> None:
        self.first, self.rule, self.model, self.shards = first, rule, model, shards
        self.keys: list[tuple[str, str]] = []

    def names(self) -> list[str]:
        """Of what is made, in the model."""
        patterns = [p.removesuffix("$") for p in self.rule.target_patterns]
        start = next((p for p in patterns if p in self.first), patterns[0])
        return [self.first.replace(start, p) for p in patterns]

    def read(self, name: str) -> Tensor:
        rule = copy.deepcopy(self.rule)
        for key, pattern in sorted(self.keys, key=lambda pair: _natural(pair[0])):
            rule.add_tensor(self.first, key, pattern, self.shards[key])
        try:
            made = rule.convert(self.first, model=self.model, config=self.model.config)
        except Exception as error:  # of transformers, on tensors that do not fit
            raise InputError(f"'{name}' cannot be read: {first_line(error)}") from error
        value = made.get(name)
        if isinstance(value, list):
            value = value[0]
        if not isinstance(value, Tensor):
            raise InputError(f"'{name}' cannot be read in blocks: its checkpoint has it otherwise")
        return value


def _natural(key: str) -> list[Any]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in key.split(".")]
