"""What is done to a model to make it smaller: sliced tensors, changed attributes, new modules."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm

from prunus._common.modules import canonical_names, drop_caches, joined, take_mode
from prunus._common.narrow_list import NarrowList
from prunus._common.torch_internals import pre_hooks, refresh_flat_weights, without_fast_path
from prunus.compaction.rewriting.compact_graph import CompactGraph, take_mode_of_operators
from prunus.compaction.rewriting.describing import take_attributes
from prunus.compaction.slicing.attributes import Attribute
from prunus.compaction.slicing.limits import Limits
from prunus.compaction.slicing.parameters import shrink
from prunus.pruning.optimizers import AnyOptimizer
from prunus.types import Kept


@dataclass(frozen=True)
class Surgery:
    """Changes of a model, in place: done, undone, and done again on a copy.

    Attributes:
        kept: indices that stay, by the first name of each tensor that is sliced.
        attributes: numbers that modules remember.
        replaced: modules by name that became graphs.
        limits: what the model refuses behind it.
        gone: entries of lists that are taken out; in ``kept`` nothing stays of their tensors.
    """

    kept: Kept
    attributes: tuple[Attribute, ...] = ()
    replaced: Mapping[str, nn.Module] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    gone: tuple[str, ...] = ()

    @property
    def places(self) -> tuple[str, ...]:
        """Where other modules stand behind it."""
        return (*self.replaced, *dict.fromkeys(name.rpartition(".")[0] for name in self.gone))

    def apply(
        self, model: nn.Module, optimizer: AnyOptimizer | None = None
    ) -> dict[str, nn.Module]:
        """Make the model smaller; parameters keep their identity, and an optimizer its state.

        Returns:
            The modules that were replaced, for :meth:`undo`.
        """
        shrink(model, optimizer, self.kept, gone=self.gone)
        own_holders(model, self.attributes)
        for attribute in self.attributes:
            attribute.set(model)
        before = {}
        for name, module in self.replaced.items():
            before[name] = model.get_submodule(name)
            adopt(module, before[name])
            plain_attributes(module, before[name])
            take_mode_of_operators(module, before[name])
            model.set_submodule(name, module)
        before |= narrowed(model, self.gone)
        self.limits.apply(model)
        refresh(model)
        return before

    def undo(self, model: nn.Module, before: Mapping[str, nn.Module]) -> None:
        """Put modules and attributes back; tensors are put back by whoever has their values."""
        self.limits.take_back(model)
        for name, module in before.items():
            take_mode(module, of=model.get_submodule(name))
            model.set_submodule(name, module)
        for attribute in reversed(self.attributes):
            attribute.set(model, back=True)


def narrowed(model: nn.Module, gone: Iterable[str]) -> dict[str, nn.Module]:
    """Take entries out of lists of modules, in place; the lists that were there are returned.

    >>> model = nn.Sequential(nn.ModuleList([nn.Linear(1, 2), nn.Linear(1, 2)]))
    >>> list(narrowed(model, ["0.0"])), list(model.state_dict())
    (['0'], ['0.1.weight', '0.1.bias'])
    """
    before: dict[str, nn.Module] = {}
    keys: dict[str, set[str]] = {}
    for name in gone:
        path, _, key = name.rpartition(".")
        keys.setdefault(path, set()).add(key)
    for path, taken in keys.items():
        before[path] = old = model.get_submodule(path)
        left = {k: m for k, m in old._modules.items() if k not in taken and m is not None}
        model.set_submodule(path, NarrowList(left))
        take_mode(model.get_submodule(path), of=old)
        model.get_submodule(path).training = old.training
    return before


def own_holders(model: nn.Module, attributes: Iterable[Attribute]) -> None:
    """A configuration that will change becomes this model's own: others may share it."""
    copies: dict[int, Any] = {}
    for attribute in attributes:
        head, _, rest = attribute.name.partition(".")
        if rest:
            holder = getattr(model.get_submodule(attribute.module), head)
            if not isinstance(holder, nn.Module):
                copies.setdefault(id(holder), copy.deepcopy(holder))
    for module in model.modules() if copies else ():
        for key, value in vars(module).items():
            if id(value) in copies:
                vars(module)[key] = copies[id(value)]


def refresh(model: nn.Module) -> None:
    """What modules remember of their weights' values or addresses."""
    drop_caches(model)
    for module in model.modules():
        for hook in pre_hooks(module):
            if isinstance(hook, WeightNorm):
                with torch.no_grad():  # the next pass computes it again
                    setattr(module, hook.name, hook.compute_weight(module))
        if isinstance(module, nn.RNNBase):
            refresh_flat_weights(module)


def adopt(graph: nn.Module, original: nn.Module) -> None:
    """Let a graph use the very parameters and buffers of the module that it replaces."""
    names = canonical_names(original)
    own: dict[str, Tensor] = {}
    for name, tensor in (*original.named_parameters(), *original.named_buffers()):
        own[name] = tensor
    for path, module in graph.named_modules():
        for store in (module._parameters, module._buffers):
            store_any: dict[str, Any] = store
            for key in list(store_any):
                full = joined(path, key)
                if full in names:
                    store_any[key] = own[names[full]]


def plain_attributes(graph: nn.Module, original: nn.Module) -> None:
    """What code may ask a replaced module for."""
    if isinstance(graph, CompactGraph):
        take_attributes(graph, original)
    if isinstance(original, nn.MultiheadAttention):
        without_fast_path(graph)
