"""Why a pruned model is not faster, and what would make it so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from prunus._common.parts import computable
from prunus.deployment.table import RuntimeResult, gain, takeable
from prunus.runtimes import find

Rows = tuple[RuntimeResult, ...]
GAIN = 1.1
"""Less than this is no gain: it is within what timing can tell."""
MANY_ZEROS = 0.2
"""Share of zeros from which one may have hoped for speed from them."""
SMALLER = 0.9
"""A model with at most this part of the dense one's parameters should gain."""
FLAT = 0.5
"""A batch that takes less than this part of its items one by one: starting operators decides."""


def advice(
    model: nn.Module,
    dense: nn.Module | None,
    rows: Rows,
    chosen: RuntimeResult,
    *,
    first: Sequence[str] = (),
) -> tuple[str, ...]:
    """Sentences for a user: where there is no gain, why, and the next step.

    Args:
        model: the pruned one.
        dense: what it is compared with, if anything.
        rows: of all runtimes.
        chosen: the one taken.
        first: names of runtimes that are preferred to the others.
    """
    allowed = takeable(rows, first)
    sizes = sorted(chosen.latency)
    gains = {b: g for b in sizes if (g := gain(rows, chosen.runtime, b)) is not None}
    said = [*_speed(model, dense, allowed, chosen, gains), *_faster(allowed, chosen)]
    said += _precision(rows, chosen)
    if first and chosen.runtime not in first and chosen.exact:
        said += [
            f"{r.runtime} is slower than {chosen.runtime}, which multiplies zeros like others: "
            f"{chosen.runtime} is kept"
            for r in rows
            if r.model == "pruned" and r.good and r.runtime in first
            and find(r.runtime).FACTS.skips_zeros
        ]  # fmt: skip
    if any(t.busy for r in rows for t in r.latency.values()):
        said.append("the timings vary widely: the machine was busy; measure again when it is idle")
    return tuple(said)


def _speed(
    model: nn.Module,
    dense: nn.Module | None,
    allowed: Rows,
    chosen: RuntimeResult,
    gains: Mapping[int, float],
) -> list[str]:
    slow = [b for b, g in gains.items() if g < GAIN]
    zeros = zero_fraction(model)
    skips = any(find(r.runtime).FACTS.skips_zeros for r in allowed)
    if zeros > MANY_ZEROS and not skips and (slow or dense is None):
        return [_two_four(chosen) if is_two_four(model) else _single_zeros(zeros, chosen)]
    if not slow or dense is None:
        return []
    if parameters(model) > SMALLER * parameters(dense):
        if len(slow) < len(gains):
            return []
        return [
            "the model has about as many weights as the dense one, and few of them are zero: "
            "nothing could become faster (structure: channel with compact: every_round makes it "
            "smaller)"
        ]
    return [_small_layers(model, chosen, slow, gains)]


def _faster(allowed: Rows, chosen: RuntimeResult) -> list[str]:
    """Where another row of the table that could have been taken is faster."""
    said: dict[str, list[str]] = {}
    for batch, own in sorted(chosen.latency.items()):
        timed = [r for r in allowed if batch in r.latency]
        best = min(timed, key=lambda r: r.latency[batch].median_ms, default=chosen)
        ms = best.latency[batch].median_ms
        if ms * GAIN < own.median_ms:
            said.setdefault(best.runtime, []).append(
                f"{own.median_ms / ms:.1f} times as fast at batch {batch}"
            )
    return [
        f"{name} is {' and '.join(where)}: take it where those matter more, with runtime: {name}"
        for name, where in said.items()
    ]


def _single_zeros(zeros: float, chosen: RuntimeResult) -> str:
    return (
        f"{zeros:.0%} of the weights are single zeros, and {chosen.runtime} multiplies zeros like "
        "any number: on a processor, runtime: sparse skips those of linear and recurrent layers if "
        "half of the weights or more are zero; elsewhere prune channels (structure: channel, "
        "compact: every_round), or linear layers 2:4 for an NVIDIA GPU (structure: '2:4'); on disk "
        "the zeros cost little"
    )


def _two_four(chosen: RuntimeResult) -> str:
    return (
        f"linear layers are pruned 2:4, which {chosen.runtime} cannot use; an NVIDIA GPU of "
        "compute capability 8.0 or newer can: there, deploy(model.half().cuda(), example=…, "
        "runtime='semi_structured')"
    )


def _small_layers(
    model: nn.Module, chosen: RuntimeResult, slow: list[int], gains: Mapping[int, float]
) -> str:
    """Fewer weights, and no faster: by how the time grows with the batch one sees why."""
    sizes = sorted(chosen.latency)
    first, last = sizes[0], sizes[-1]
    kinds = {
        "hardly faster": [b for b in slow if gains[b] * GAIN > 1],
        "slower than the dense one": [b for b in slow if gains[b] * GAIN <= 1],
    }
    found = [f"at batch {' and '.join(map(str, b))} the smaller model is {what}"
             for what, b in kinds.items() if b]  # fmt: skip
    text = ", ".join(found)
    growth = chosen.latency[last].median_ms / max(chosen.latency[first].median_ms, 1e-9)
    if len(sizes) > 1 and growth > FLAT * last / first:
        odd = any(p.shape[0] % 8 for p in model.parameters() if p.dim() > 1)
        widths = (
            "odd numbers of channels leave vector units half empty (structure: {name: channel, "
            "multiple_of: 8}), and "
        )
        return (
            f"{text}, and its time grows with the batch: {widths if odd else ''}layers that move "
            "data rather than compute do not shrink with the weights"
        )
    more = [b for b in sizes if b > slow[-1] and gains.get(b, 0) >= GAIN]
    where = (
        f"larger batches gain more (it is {gains[more[-1]]:.1f} times as fast at batch "
        f"{more[-1]}), and so do fewer layers" if more else "fewer layers gain more"
    )  # fmt: skip
    return (
        f"{text}: its layers are so small that the cost of starting each operator decides; "
        f"{where} (structure: layer)"
    )


def _precision(rows: Rows, chosen: RuntimeResult) -> list[str]:
    """What of a quantized artifact's gain is pruning's, and what is not known of it."""
    if chosen.exact:
        return []
    said = []
    dense = next((r for r in rows if (r.runtime, r.model) == (chosen.runtime, "dense")), None)
    exact = [r for r in rows if r.model == "dense" and r.good and r.exact]
    plain = {b: min(r.latency[b].median_ms for r in exact if b in r.latency)
             for r in exact for b in r.latency}  # fmt: skip
    both = [
        b for b in sorted(chosen.latency)
        if dense is not None and b in dense.latency
        and dense.latency[b].median_ms < plain.get(b, 0.0)
    ]  # fmt: skip
    if dense is not None and both:
        part = ", ".join(
            f"{dense.latency[b].median_ms / chosen.latency[b].median_ms:.2f} times as long at "
            f"batch {b}"
            for b in both
        )
        said.append(
            f"int8 speeds up the dense model as well: in {chosen.runtime} it takes {part}; the "
            "rest of the gain over float32 is not pruning's"
        )
    if chosen.metric is None:
        said.append(
            f"{chosen.runtime} quantizes, and nothing has measured what that costs: pass evaluate"
        )
    return said


def zero_fraction(model: nn.Module) -> float:
    """Exact zeros among the weights of two or more dimensions, 0 to 1."""
    with torch.no_grad():
        weights = [p for p in model.parameters() if p.dim() > 1]
        zeros = sum(p.numel() - int(torch.count_nonzero(computable(p))) for p in weights)
    return zeros / max(1, sum(p.numel() for p in weights))


def is_two_four(model: nn.Module) -> bool:
    """Whether linear layers hold at most two weights in every four consecutive inputs.

    Of every linear layer with a zero in half of its weights; there must be one.

    >>> layer = nn.Linear(4, 1)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 0.0, 0.0, 2.0]]))
    >>> is_two_four(layer)
    True
    """
    linear = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Linear)]
    sparse = [w for w in linear if 2 * int(torch.count_nonzero(w)) <= w.numel()]
    return bool(sparse) and all(
        w.shape[1] % 4 == 0 and bool((w.reshape(-1, 4) != 0).sum(1).le(2).all()) for w in sparse
    )


def parameters(model: nn.Module) -> int:
    """How many."""
    return sum(p.numel() for p in model.parameters())
