"""Multiply–accumulates of one forward pass."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from prunus._common.batch import Batch, find_batch
from prunus._common.inputs import Inputs, arguments
from prunus._common.modules import evaluation_copy
from prunus._common.names import unwrapped
from prunus._common.nested import map_tensors, own_containers, tensors_of
from prunus._common.put_back import PutBack
from prunus._common.rng import preserve_rng
from prunus._common.traces import trainable_again
from prunus.errors import first_line
from prunus.types import Masks


def macs(
    model: nn.Module, example: Any, masks: Masks, batch: Batch | None = None
) -> tuple[float | None, float | None]:
    """MACs of one item of an example, and those that would be left if every zero were skipped.

    The pass is counted as it is given, and divided by the items in it. 1 MAC = 2 FLOPs; only
    products count. The second figure scales the MACs of each module by the density of its masked
    weight: theoretical.

    Args:
        model: any; ``(None, None)`` where the counter cannot follow it (:func:`why_unknown`).
        example: an input, a tuple of inputs, or a mapping of keyword arguments.
        masks: by parameter name.
        batch: the items; by default :func:`prunus._common.batch.find_batch` finds them. Where there
            are none (the nodes of one graph, pairs), the pass is the item.

    >>> macs(nn.LSTM(3, 2), torch.ones(7, 5, 3), {})  # time first: 5 items of 7 steps
    (280, 280)
    """
    inputs = arguments(example)
    whole, skipped = macs_of_pass(model, inputs, masks)
    if whole is None or skipped is None or _holds_nothing(inputs):
        return None, None
    batch = find_batch(model, inputs) if batch is None else batch
    return _of_item(whole, batch.size), _of_item(skipped, batch.size)


def macs_of_pass(model: nn.Module, inputs: Inputs, masks: Masks) -> tuple[int | None, int | None]:
    """The same two figures for one forward pass of exactly these inputs, in eval mode.

    Counted on the meta device, where the counter is right for LSTMs and attention as well. A model
    that reads values while it runs cannot run there; its MACs are counted in a real pass, with the
    fused kernels off that the counter does not know.

    >>> macs_of_pass(nn.Linear(3, 2), ((torch.ones(5, 3),), {}), {})
    (30, 30)
    """
    counted = _on_meta(model, inputs)
    if isinstance(counted, Exception):
        counted = _for_real(model, inputs)
    if isinstance(counted, Exception):
        return None, None
    return _with_zeros_skipped(model, counted, masks)


def why_unknown(model: nn.Module, inputs: Inputs) -> str:
    """Why a pass cannot be counted."""
    if _holds_nothing(inputs):
        return "the example has a size of 0 and holds no item"
    found = _for_real(model, inputs)
    return first_line(found) if isinstance(found, Exception) else "the counter does not follow it"


def _holds_nothing(inputs: Inputs) -> bool:
    first = next((t for t in tensors_of(inputs) if t.dim()), None)
    return first is not None and not first.numel()


def _of_item(whole: int, items: int) -> float:
    return whole // items if whole % items == 0 else whole / items


def _counter() -> FlopCounterMode:
    """torch's, which does not know products of rows with the matrix of each one's group."""
    of_groups = [getattr(torch.ops.aten, "_grouped_mm", None)]
    if "transformers.integrations.moe" in sys.modules:
        of_groups.append(getattr(torch.ops.transformers, "grouped_mm_fallback", None))
    return FlopCounterMode(
        display=False, custom_mapping={op: _of_rows for op in of_groups if op is not None}
    )


def _of_rows(rows: Sequence[int], matrices: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of ``[…, in]`` with ``[…, in, out]``."""
    return 2 * math.prod(rows) * matrices[-1]


class _NoNorms(TorchFunctionMode):
    """Norms have no products that count; torch computes their sizes operator by operator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _NORMS and args and isinstance(args[0], Tensor):
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


_NORMS = frozenset({F.batch_norm, F.layer_norm, F.group_norm, F.rms_norm})


def _on_meta(model: nn.Module, inputs: Inputs) -> FlopCounterMode | Exception:
    counter = _counter()
    try:
        args, kwargs = own_containers(map_tensors(lambda t: t.to("meta"), inputs))
        # The counter looks for what made an input that wants a gradient: a view has nothing here.
        twin = unwrapped(_without_values(model)).eval().requires_grad_(False)
        with counter, _NoNorms(), torch.no_grad():
            twin(*args, **kwargs)
    except Exception as error:  # of the model's code: reads values, which meta tensors lack
        return error
    return counter


def _without_values(model: nn.Module) -> nn.Module:
    """A copy on the meta device; values are not copied on the way there."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        bare = tensor.detach().to("meta")
        parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(bare, tensor.requires_grad) if parameter else bare
    return copy.deepcopy(model, memo).to("meta")


def _for_real(model: nn.Module, inputs: Inputs) -> FlopCounterMode | Exception:
    counter = _counter()
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        twin = evaluation_copy(model)
        args, kwargs = own_containers(map_tensors(Tensor.clone, inputs))
        torch.backends.mha.set_fastpath_enabled(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of Intel's TF32 flag
            with (
                PutBack(twin.parameters()),
                trainable_again(twin),
                preserve_rng(),
                sdpa_kernel(SDPBackend.MATH),
                torch.backends.mkldnn.flags(enabled=False),
                torch.backends.cudnn.flags(enabled=False),
                counter,
                torch.no_grad(),
            ):
                twin.requires_grad_(False)
                twin(*args, **kwargs)
    except Exception as error:  # of the model's code
        return error
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
    key = name.rpartition(".")[2]
    return dict(own.named_parameters())[key].numel() / max(1, sum(p.numel() for p in matrices))
