"""Multiply–accumulates of one forward pass."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree
from torch.utils.flop_counter import FlopCounterMode

from prunus.types import Masks


def macs(model: nn.Module, example: Any, masks: Masks) -> tuple[int | None, int | None]:
    """MACs for one example, and those that would be left if every zero were skipped.

    Counted on the meta device, where the counter is right for LSTMs and attention as well;
    1 MAC = 2 FLOPs. The second figure scales the MACs of each module by the density of its
    masked weight: theoretical.

    Args:
        model: any model that runs on the meta device; ``(None, None)`` for others.
        example: an input, a tuple of inputs, or a mapping of keyword arguments; counted for its
            first item alone.
        masks: by parameter name.
    """
    named = isinstance(example, Mapping)
    inputs = example if isinstance(example, tuple) or named else (example,)
    first = _pytree.tree_map_only(torch.Tensor, lambda t: t[:1].to("meta"), inputs)
    try:
        twin = copy.deepcopy(model).to("meta").eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            twin(**first) if named else twin(*first)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return None, None
    whole = counter.get_total_flops() // 2
    saved = 0.0
    table = counter.get_flop_counts()
    for name, mask in masks.items():
        owner = name.rpartition(".")[0]
        module = table.get(f"{type(twin).__name__}.{owner}") if owner else table.get("Global")
        if module:
            weight = model.get_parameter(name)
            density = float(mask.expand(weight.shape).float().mean())
            saved += sum(module.values()) / 2 * (1 - density) * _share(model, owner, name)
    return whole, round(whole - saved)


def _share(model: nn.Module, owner: str, name: str) -> float:
    """The part of a module's matrices that a parameter is."""
    own = model.get_submodule(owner) if owner else model
    matrices = [p for p in own.parameters() if p.dim() > 1]
    return model.get_parameter(name).numel() / max(1, sum(p.numel() for p in matrices))
