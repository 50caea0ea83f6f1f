"""Training under masks that multiplies what is there alone, layer by layer where that is faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus._common.instead import Instead
from prunus.errors import InputError
from prunus.kernels import LACKING, usable
from prunus.kernels import operator as _operators  # noqa: F401 (defines torch.ops.prunus)
from prunus.kernels.choosing import blocks_of, cuts
from prunus.kernels.conv_steps import Pair
from prunus.kernels.conv_training import ConvLayouts
from prunus.kernels.layouts import placed, tiles
from prunus.kernels.pattern import Pattern
from prunus.kernels.tangents import refuse_tangents
from prunus.pruning.enforce import Enforcer
from prunus.types import Masks

LEAST = 0.5
"""Sparsity of a layer below which nothing is tried."""
REPEATS = 5
"""Steps of each way that are timed before one is taken."""


Faster = dict[tuple[Any, ...], bool]
"""Of shapes, sparsities and tokens, whether layers like that are faster by the kernels."""


@dataclass(frozen=True, eq=False)
class Layouts:
    """What the operator reads of a mask: values are taken from the whole weight by their places."""

    layout: Tensor
    order: Tensor
    turned: Tensor
    turned_order: Tensor
    rows: int

    @classmethod
    def of(cls, mask: Tensor, tokens: int) -> Layouts:
        """Of a mask ``[rows, cols]``, for about so many tokens."""
        pattern = Pattern.of(mask)
        turned, number = pattern.transposed()
        place = pattern.flat().int()
        height = min(blocks_of(mask), 4)
        forward = tiles(pattern, cuts(pattern, tokens=tokens, blocks=height))
        back = tiles(turned, cuts(turned, tokens=tokens))
        orders = [placed(forward.order, place), placed(back.order, place[number])]
        return cls(forward.numbers, orders[0], back.numbers, orders[1], pattern.rows)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x · (weight ⊙ mask)ᵀ + bias; the gradient of what the mask removes is zero."""
        refuse_tangents(x, weight, bias)
        found: Tensor = torch.ops.prunus.sparse_linear(
            x, weight.reshape(-1), self.layout, self.order, self.turned, self.turned_order, bias,
            None, self.rows, "none",
        )  # fmt: skip
        return found


class _Mode(Instead):
    """Linear products and convolutions of masked weights, taken over one by one."""

    def __init__(
        self, product: Callable[..., Tensor | None], convolution: Callable[..., Tensor | None]
    ) -> None:
        super().__init__()
        self.ways = {F.linear: product, F.conv2d: convolution}

    def found(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """The product of a layer that runs sparse."""
        way = self.ways.get(func)
        return None if way is None else way(*args, **kwargs)


class _Training:
    """What is known of the layers under the masks that hold now."""

    def __init__(self, enforcer: Enforcer, faster: Faster) -> None:
        self.enforcer, self.faster = enforcer, faster
        self.masks: Masks = {}
        self.by_weight: dict[int, tuple[Tensor, Tensor]] = {}
        self.made: dict[tuple[int, int], Layouts | None] = {}
        self.convs: dict[tuple[Any, ...], ConvLayouts | None] = {}
        self.modes: list[_Mode | None] = []

    def enter(self, model: nn.Module, *_: Any) -> None:
        """Before the model's forward pass."""
        on = model.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        # regrowth reads the gradients of removed weights too: such a step is dense
        sparse = on and self.enforcer.captured is None
        mode = _Mode(self.product, self.convolution) if sparse else None
        self.modes.append(mode)
        if mode is not None:
            self._follow(model)
            mode.__enter__()

    def leave(self, *_: Any) -> None:
        """After it, however it ended."""
        mode = self.modes.pop() if self.modes else None
        if mode is not None:
            mode.__exit__(None, None, None)

    def _follow(self, model: nn.Module) -> None:
        """Forget what was made for other masks, or other parameters."""
        masks = self.enforcer.masks
        weights = {n: p for n, p in model.named_parameters(remove_duplicate=False) if n in masks}
        same = all(id(weights.get(n)) in self.by_weight for n in masks)
        if masks is self.masks and same:
            return
        self.masks, self.made, self.convs = masks, {}, {}
        self.by_weight = {id(p): (p, masks[n]) for n, p in weights.items()}

    def product(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """By the kernels, if this layer is faster so."""
        known = self.by_weight.get(id(weight))
        if known is None or not _fits(input, weight, bias) or _is_watched():
            return None
        tokens = input.numel() // max(1, input.shape[-1])
        key = id(weight), tokens
        if key not in self.made:
            self.made[key] = self._measured(*known, input, bias, tokens)
        layouts = self.made[key]
        return None if layouts is None else layouts(input, weight, bias)

    def _measured(
        self, weight: Tensor, mask: Tensor, x: Tensor, bias: Tensor | None, tokens: int
    ) -> Layouts | None:
        """Layouts, unless the layer has few zeros or layers like it are faster dense."""
        mask = mask.expand(weight.shape)
        sparsity = 1 - int(mask.sum()) / max(1, mask.numel())
        if sparsity < LEAST:
            return None
        key = (*weight.shape, round(sparsity, 2), tokens, *_learning(x, weight), bias is None)
        if self.faster.get(key, True) is False:
            return None
        made = Layouts.of(mask, tokens)
        if key not in self.faster:
            dense = _step_time(F.linear, x, weight, bias)
            self.faster[key] = _step_time(made, x, weight, bias) < dense
        return made if self.faster[key] else None

    def convolution(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
        padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> Tensor | None:  # fmt: skip
        """By the kernels, if this convolution is faster so."""
        known = self.by_weight.get(id(weight))
        if known is None or groups != 1 or not _plain(input, weight, bias) or _is_watched():
            return None
        if input.dim() != 4 or weight.dim() != 4 or isinstance(padding, str):
            return None
        where: dict[str, Any] = {
            "stride": _pair(stride), "padding": _pair(padding), "dilation": _pair(dilation),
        }  # fmt: skip
        if input.shape[1] != weight.shape[1] or not input.numel():
            return None  # torch says what is wrong
        key = (id(weight), *input.shape, *where.values())
        if key not in self.convs:
            self.convs[key] = self._measured_conv(*known, input, bias, where)
        layouts = self.convs[key]
        return None if layouts is None else layouts(input, weight, bias, **where)

    def _measured_conv(
        self, weight: Tensor, mask: Tensor, x: Tensor, bias: Tensor | None, where: dict[str, Any]
    ) -> ConvLayouts | None:
        """Layouts, unless the convolution has few zeros or ones like it are faster dense."""
        mask = mask.expand(weight.shape)
        sparsity = 1 - int(mask.sum()) / max(1, mask.numel())
        if sparsity < LEAST:
            return None
        numbers = [n for pair in where.values() for n in pair]
        learning = _learning(x, weight)
        key = (*weight.shape, round(sparsity, 2), *x.shape, *numbers, *learning, bias is None)
        if self.faster.get(key, True) is False:
            return None
        made = ConvLayouts.of(mask)
        if key not in self.faster:
            dense = _step_time(partial(F.conv2d, **where), x, weight, bias)
            self.faster[key] = _step_time(partial(made, **where), x, weight, bias) < dense
        return made if self.faster[key] else None


def _learning(x: Tensor, weight: Tensor) -> tuple[bool, bool]:
    """What a step computes beside the product: other times than without."""
    return x.requires_grad, weight.requires_grad


def _pair(given: Any) -> Pair:
    return (given, given) if isinstance(given, int) else (int(given[0]), int(given[-1]))


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a linear product is one that the kernels take; else torch says what is wrong."""
    return _plain(x, weight, bias) and x.dim() >= 1 and x.shape[-1] == weight.shape[-1]


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """float32 on the CPU, and nothing that stands for something else."""
    parts = (x, weight) if bias is None else (x, weight, bias)
    plain = all(
        t.dtype == torch.float32 and t.device.type == "cpu" and t.layout == torch.strided
        and type(t) in (Tensor, nn.Parameter)
        for t in parts
    )  # fmt: skip
    return plain and not torch.is_autocast_enabled("cpu")


def _is_watched() -> bool:
    """Whether somebody keeps what a pass saves, as checkpointing does: it runs the layers again,
    outside of the model's pass, and wants the very same tensors to be saved."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("looked for"):
            return False
    except RuntimeError:
        return True


def _step_time(way: Callable[..., Tensor], *given: Tensor | None) -> float:
    """Seconds forward and backward on copies, so that nobody's gradients change."""
    own = [None if t is None else t.detach().clone().requires_grad_(t.requires_grad) for t in given]
    dy = torch.ones_like(way(*own).detach())
    taken = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        made = way(*own)
        if made.requires_grad:  # else the layer is frozen, and nothing before it learns
            made.backward(dy)
        taken.append(time.perf_counter() - begin)
    return median(taken)


class SparseTraining:
    """Forward passes in training mode run the layers that are faster so by the sparse kernels.

    Two hooks on the model; none of its methods is changed. Linear layers, and convolutions without
    groups, in float32 on the CPU whose mask removes half or more are timed once, forward and
    backward, and again for other shapes; what is checkpointed runs dense. A kernel adds up in
    another order than dense arithmetic: two runs may differ in their last bits, where they chose
    differently. One run that is stopped does not: what it measured is kept.

    Args:
        wanted: else nothing happens.

    Raises:
        InputError: where the kernels that it needs are not compiled.
    """

    def __init__(self, wanted: bool = True) -> None:
        if wanted and not usable():
            raise InputError(f"sparse_training: {LACKING}")
        self._wanted, self._faster = wanted, Faster()

    @contextmanager
    def over(self, model: nn.Module, enforcer: Enforcer) -> Iterator[None]:
        """While it is entered, a model trains so under its masks, as they change."""
        if not self._wanted:
            yield
            return
        state = _Training(enforcer, self._faster)
        before = model.register_forward_pre_hook(state.enter)
        after = model.register_forward_hook(state.leave, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def state(self) -> dict[str, Any]:
        """To go on from; nothing where nothing was timed."""
        return {"faster": list(self._faster.items())} if self._faster else {}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Return to what :meth:`state` gave."""
        self._faster.clear()
        self._faster.update((tuple(key), faster) for key, faster in saved.get("faster", ()))
