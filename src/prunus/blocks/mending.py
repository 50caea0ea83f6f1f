"""What is left of a block, brought nearer to the dense one on the same data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.activations import FarEnough
from prunus.blocks.fitting import Way, fit
from prunus.blocks.recipe import BlockRepair
from prunus.blocks.walk import given_by
from prunus.methods.repairs._descent import aside, descend

Pair = tuple[Tensor, Tensor]
"""What a block gives, and what it should."""
PART = 5e-3
"""The rate, as a part of the root mean square of what stays of a tensor."""
LEAST = 1e-3
"""The least that ‖y_t‖² counts for, as a part of its mean."""


def mend(
    block: nn.Module,
    before: nn.Module,
    ways: tuple[Way, Way],
    wanted: Sequence[Tensor],
    masks: Mapping[str, Tensor],
    *,
    how: BlockRepair,
) -> None:
    """Bring what is left of a block nearer to the dense one, as a recipe says.

    Args:
        block: with zeros, in place; removed weights stay zero.
        before: the dense one, where the recipe reads it (:func:`kept_for`).
        ways: batches that come to ``block`` and, the same ones, to ``before``.
        wanted: what ``before`` gives for its batches.
        masks: of parameters, True = kept, broadcastable.
        how: the recipe.

    Raises:
        RunError: if the block diverges, or what it multiplies is not finite.
    """
    if how.fit:
        fit(block, before, ways, masks)
    parts = parts_of(block, ways[0], masks) if how.apart else []
    for name in parts:
        child, dense = block.get_submodule(name), before.get_submodule(name)
        own = {n.removeprefix(f"{name}."): m for n, m in masks.items() if n.startswith(f"{name}.")}

        def of_part(batch: int, child: nn.Module = child, dense: nn.Module = dense) -> Pair:
            with torch.no_grad():
                there = _answer(before, dense, ways[1], batch)
            return _answer(block, child, ways[0], batch), there

        _toward(child, own, of_part, batches=len(wanted), how=how)
    if not parts:
        calls, flow = ways[0].calls, ways[0].flow
        _toward(block, masks, lambda n: (given_by(block, flow[n], calls[n]), wanted[n]),
                batches=len(wanted), how=how)  # fmt: skip


def kept_for(how: BlockRepair, block: nn.Module) -> nn.Module:
    """A copy of the dense block, where the repair reads it; else the block itself."""
    return copy.deepcopy(block) if how.fit or how.apart else block


def parts_of(block: nn.Module, way: Way, masks: Mapping[str, Tensor]) -> list[str]:
    """A block's own submodules that lost weights and answer with a tensor, once in a pass.

    Args:
        block: that has them, such as attention and MLP.
        way: batches that come to it; the first one is read.
        masks: of what was pruned, by parameter name within the block.

    Returns:
        Their names, in the order of a pass.
    """
    order: dict[str, list[bool]] = {}
    with torch.no_grad(), ExitStack() as hooks:
        for name, child in block.named_children():
            if any(n.startswith(f"{name}.") for n in masks):

                def note(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                    order.setdefault(name, []).append(_tensor(output) is not None)

                hooks.callback(child.register_forward_hook(note).remove)
        given_by(block, way.flow[0], way.calls[0])
    return [name for name, answers in order.items() if answers == [True]]


def _tensor(output: Any) -> Tensor | None:
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    return first if isinstance(first, Tensor) and first.is_floating_point() else None


def _answer(block: nn.Module, child: nn.Module, way: Way, batch: int) -> Tensor:
    """What a submodule gives in a pass of the block, which ends there."""
    found: list[Tensor] = []

    def take(module: nn.Module, args: Any, output: Any) -> None:
        answer = _tensor(output)
        assert answer is not None
        found.append(answer)
        raise FarEnough

    hook = child.register_forward_hook(take)
    try:
        with suppress(FarEnough):
            given_by(block, way.flow[batch], way.calls[batch])
    finally:
        hook.remove()
    return found[0]


def _toward(
    module: nn.Module,
    masks: Mapping[str, Tensor],
    pair: Callable[[int], Pair],
    *,
    batches: int,
    how: BlockRepair,
) -> None:
    """min mean_t ‖f(x)_t − y_t‖² / ‖y_t‖² over what stays of a module, by Adam, a batch each step.

    Each place t counts as every other: the next block's norm divides by its length, and a few (the
    first one of a sequence) may be ten times as long as the others and more.
    """
    own = {n: p for n, p in module.named_parameters() if p.is_floating_point()}
    masks = {n: masks[n].to(p.device) for n, p in own.items() if n in masks}
    learned, judging = aside(batches)

    def loss(batch: int) -> Tensor:
        return apart(*pair(batch))

    descend(own, masks, lambda step: loss(learned[step % len(learned)]),
            error=lambda: sum(float(loss(batch)) for batch in judging), steps=how.steps,
            rates=_rates(own, how.rate))  # fmt: skip


def apart(answer: Tensor, wanted: Tensor) -> Tensor:
    """The mean over places of ‖a_t − y_t‖² / ‖y_t‖², features in the last dimension.

    A place that is shorter than a thousandth of the mean counts as if it were that long.

    >>> round(float(apart(torch.tensor([[2.0], [11.0]]), torch.tensor([[1.0], [10.0]]))), 3)
    0.505
    """
    exact = wanted if wanted.dtype == torch.float64 else wanted.float()
    size = exact.square().sum(-1)
    least = (LEAST * size.mean()).clamp(min=1e-12)
    return ((answer - exact).square().sum(-1) / size.clamp(min=least)).mean()


def _rates(own: Mapping[str, Tensor], rate: float | None) -> dict[str, float]:
    """Of each tensor: the one that is asked for, or a part of the tensor's size."""
    if rate is not None:
        return dict.fromkeys(own, rate)
    sizes = {n: float(p.detach()[p.detach() != 0].double().square().mean().sqrt())
             for n, p in own.items() if bool(p.detach().any())}  # fmt: skip
    least = min(sizes.values(), default=1.0)  # of what is zero as yet, such as biases
    return {name: PART * sizes.get(name, least) for name in own}
