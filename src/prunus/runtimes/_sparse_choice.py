"""Which kernel each layer gets: all that may be are timed in turn, with torch's dense product."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prunus._common.timing import interleaved
from prunus.kernels.choosing import Kernel, blocks_of, layout_of, single
from prunus.kernels.layouts import Cut, tiles
from prunus.kernels.native import library
from prunus.kernels.pattern import Pattern
from prunus.kernels.product import plain, product
from prunus.runtimes._sparse_sites import Site

SECONDS = 0.02
"""Of timing, for each kernel."""
BETTER = 0.97
"""A kernel must take at most this part of the dense product's time."""
FEW = 4
"""Tokens up to which the layouts for one token are tried, and weights are what takes time."""
CACHES = 64 * 2**20
"""Bytes that no processor's caches hold for one core."""


@dataclass(frozen=True)
class Choice:
    """The kernel for a layer at a number of tokens.

    Attributes:
        tokens: at which it was measured.
        form: ``dense``, a layout for one token, or the parts of a :class:`Cut`.
        ms: that it takes.
        dense_ms: that torch's dense product takes.
    """

    tokens: int
    form: tuple[int, ...] | str
    ms: float
    dense_ms: float

    @property
    def wins(self) -> bool:
        """Whether it is sparse."""
        return self.form != "dense"


def candidates(pattern: Pattern, tokens: int, blocks: int) -> list[tuple[int, ...] | str]:
    """What is worth a try: a few cuts of tiles, and for few tokens the layouts of one."""
    found: list[tuple[int, ...] | str] = []
    large = library().name == "avx512"
    if tokens <= FEW and pattern.cols <= 65536:
        found += ["columns"] if blocks == 16 else ["slices"]
        found += ["windows"] if large else []
    found += ["mask"] if tokens <= FEW and pattern.density > 0.1 else []
    if tokens == 1 and found:
        return found
    height = 4 if blocks > 1 else 1
    width = next((w for w in (4, 8, 16, 32) if tokens <= w), 64)
    widths = [width] if width <= 32 else [64, 32]
    for w in widths:
        for band in (max(96, 96 * 64 // w), max(192, 192 * 64 // w)):
            side = 1 if height == 4 else 4 if large and w <= 32 else 2
            cut = Cut(side, height, w, min(band, 4096), 256)
            if tuple(cut) not in found:
                found.append(tuple(cut))
    return found


def made(
    form: tuple[int, ...] | str, pattern: Pattern, weight: Tensor, *, least: int = 0
) -> Kernel:  # fmt: skip
    """The kernel of a form."""
    if form == "dense":
        return Kernel(least, torch.empty(0, dtype=torch.int32), weight)
    values = weight.reshape(-1)[pattern.flat()]
    if isinstance(form, str):
        kernel = single(pattern, values, form=layout_of(form))
        return Kernel(least, kernel.layout, kernel.values)
    layout = tiles(pattern, Cut(*form))
    return Kernel(least, layout.numbers, layout.pack(values))


def choose(site: Site, tokens: int, *, cold: bool = False) -> Choice:
    """The fastest way of one layer at a number of tokens.

    Args:
        site: the layer.
        tokens: that it gets.
        cold: whether weights come from memory, as those of a model larger than the caches do.
    """
    weight = site.weight
    pattern = Pattern.of(weight)
    x = torch.randn(tokens, weight.shape[1])
    more: dict[str, Any] = {"activation": site.activation}
    if site.bias is not None:
        more["bias"] = torch.zeros(weight.shape[0])
    if site.residual is not None:
        more["residual"] = torch.zeros(tokens, weight.shape[0])
    forms = candidates(pattern, tokens, blocks_of(weight))
    calls: dict[str, Callable[[], Tensor]] = {}
    for name, form in (("dense", "dense"), *((str(i), form) for i, form in enumerate(forms))):
        kernel = made(form, pattern, weight)
        size = kernel.layout.nbytes + kernel.values.nbytes
        copies = _copies(kernel, -(-CACHES // size)) if cold else [kernel]
        calls[name] = _in_turn([
            partial(plain, x, k.values, **more) if form == "dense"
            else partial(product, k.layout, k.values, x, **more) for k in copies
        ])  # fmt: skip
    with torch.inference_mode():
        found = {k: t.median_ms for k, t in interleaved(calls, seconds=SECONDS).items()}
    dense = found.pop("dense")
    best = min(found, key=found.__getitem__)
    if found[best] > BETTER * dense:
        return Choice(tokens, "dense", dense, dense)
    return Choice(tokens, forms[int(best)], found[best], dense)


def _copies(kernel: Kernel, count: int) -> list[Kernel]:
    return [Kernel(0, kernel.layout.clone(), kernel.values.clone()) for _ in range(min(count, 256))]


def _in_turn(calls: Sequence[Callable[[], Tensor]]) -> Callable[[], Tensor]:
    """One after the other, from call to call."""
    each = itertools.cycle(calls)
    return lambda: next(each)()


def kernels_of(site: Site, choices: Sequence[Choice]) -> list[Kernel]:
    """The chosen kernels, each from halfway between its tokens and the next fewer ones on."""
    pattern = Pattern.of(site.weight)
    kernels: list[Kernel] = []
    ordered = sorted(choices, key=lambda c: c.tokens)
    for i, choice in enumerate(ordered):
        if i and ordered[i - 1].form == choice.form:
            continue
        least = math.isqrt(ordered[i - 1].tokens * choice.tokens) + 1 if i else 0
        kernels.append(made(choice.form, pattern, site.weight, least=least))
    return kernels


def from_json(found: Any) -> list[Choice]:
    """What the artifact keeps of them.

    Raises:
        KeyError, TypeError, ValueError: if it is something else.
    """

    def form(value: Any) -> tuple[int, ...] | str:
        return str(value) if isinstance(value, str) else tuple(map(int, value))

    return [
        Choice(int(c["tokens"]), form(c["form"]), float(c["ms"]), float(c["dense_ms"]))
        for c in found
    ]
