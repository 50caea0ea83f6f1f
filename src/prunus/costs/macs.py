"""Multiply–accumulates of one forward pass."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prunus._common.inputs import Inputs, arguments, tensors_of
from prunus._common.torch_internals import pytree
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
    inputs = arguments(example)
    first = pytree.tree_map_only(Tensor, lambda t: t[:1] if t.dim() else t, inputs)
    counted = _on_meta(model, first)
    batches = {t.shape[0] for t in tensors_of(inputs) if t.dim()}
    if counted is None and len(batches) > 1:  # nodes and edges of one graph: no items
        counted = _on_meta(model, inputs)
    return (None, None) if counted is None else _with_zeros_skipped(model, counted, masks)


def macs_of_pass(model: nn.Module, inputs: Inputs, masks: Masks) -> tuple[int | None, int | None]:
    """The same two figures for one forward pass of exactly these inputs.

    A model that reads values while it runs cannot run on the meta device; its MACs are counted
    in a real pass, with the fused kernels off that the counter does not know.

    >>> macs_of_pass(nn.Linear(3, 2), ((torch.ones(5, 3),), {}), {})
    (30, 30)
    """
    counted = _on_meta(model, inputs) or _for_real(model, inputs)
    return (None, None) if counted is None else _with_zeros_skipped(model, counted, masks)


def _on_meta(model: nn.Module, inputs: Inputs) -> FlopCounterMode | None:
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.to("meta"), inputs)
    counter = FlopCounterMode(display=False)
    try:
        twin = _without_values(model).eval()
        with counter, torch.no_grad():
            twin(*args, **kwargs)
    except Exception:  # of the model's code: reads values, which meta tensors lack, or a slice
        return None
    return counter


def _without_values(model: nn.Module) -> nn.Module:
    """A copy on the meta device; values are not copied on the way there."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        bare = tensor.detach().to("meta")
        parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(bare, tensor.requires_grad) if parameter else bare
    return copy.deepcopy(model, memo).to("meta")


def _for_real(model: nn.Module, inputs: Inputs) -> FlopCounterMode | None:
    args, kwargs = inputs
    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of Intel's TF32 flag
            with (
                sdpa_kernel(SDPBackend.MATH),
                torch.backends.mkldnn.flags(enabled=False),
                torch.backends.cudnn.flags(enabled=False),
                counter,
                torch.no_grad(),
            ):
                model(*args, **kwargs)
    except Exception:  # the model runs: whatever its code raises
        return None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter


def _with_zeros_skipped(
    model: nn.Module, counter: FlopCounterMode, masks: Masks
) -> tuple[int, int]:
    whole = counter.get_total_flops() // 2
    saved = 0.0
    table = counter.get_flop_counts()
    for name, mask in masks.items():
        owner = name.rpartition(".")[0]
        module = table.get(f"{type(model).__name__}.{owner}") if owner else table.get("Global")
        if module:
            density = int(mask.count_nonzero()) / max(1, mask.numel())
            saved += sum(module.values()) / 2 * (1 - density) * _share(model, owner, name)
    return whole, round(whole - saved)


def _share(model: nn.Module, owner: str, name: str) -> float:
    """The part of a module's matrices that a parameter is."""
    own = model.get_submodule(owner) if owner else model
    matrices = [p for p in own.parameters() if p.dim() > 1]
    return model.get_parameter(name).numel() / max(1, sum(p.numel() for p in matrices))
