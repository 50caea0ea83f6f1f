"""Kernels of our own that skip the zeros of linear layers, on processors; the rest runs in torch.

The artifact is torch's program with the weights as they are, and a table: which layer is computed
how, as it measured on the machine that built it. Weights are packed when it is opened.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus._common.inputs import tensors_of
from prunus._common.random_inputs import random_inputs
from prunus._common.timing import interleaved
from prunus._common.torch_internals import exported_module
from prunus.errors import InputError
from prunus.kernels.native import LACKING, library, usable
from prunus.runtimes import BuildRequest, Facts, Session
from prunus.runtimes._exported import exported, write_pt2
from prunus.runtimes._silent import silent
from prunus.runtimes._sparse_choice import (
    CACHES,
    FEW,
    Choice,
    choose,
    from_json,
    kernels_of,
    to_json,
)
from prunus.runtimes._sparse_sites import LEAST, Site, drop_idle, finish, put, sites
from prunus.runtimes.torch_export import computing

FACTS = Facts(needs=("torch",), devices=("cpu",), skips_zeros=True)
TABLE = "model.json"
FORMAT = "prunus sparse 1"


def refuses(order: BuildRequest) -> str | None:
    """Where the kernels are not compiled, and models without enough zeros in linear layers."""
    if not usable():
        return LACKING
    layers = [m.weight for m in order.model.modules() if isinstance(m, nn.Linear)]
    if layers and not any(_zeros(w) >= LEAST for w in layers):
        return (
            f"no linear layer has {LEAST:.0%} zeros: prune single weights (structure: weight) or "
            "blocks of them (structure: '4x1') first"
        )
    return None


def _zeros(weight: Tensor) -> float:
    return 1 - int(torch.count_nonzero(weight.detach())) / max(1, weight.numel())


def build(order: BuildRequest) -> Session:
    """Export, measure every layer, write, and open with packed weights.

    Raises:
        InputError: if torch.export cannot trace the model, or no layer is faster than dense.
    """
    made = exported(order)
    module = exported_module(made.program)
    drop_idle(module)
    found = sites(module)
    if not found:
        raise InputError(f"no linear layer of the program has {LEAST:.0%} zeros")
    counts = {
        b: _tokens(module, order, b, found) for b in (order.batch if made.dynamic else (None,))
    }
    table: dict[str, list[Choice]] = {}
    known: dict[tuple[Any, ...], Choice] = {}
    large = sum(site.weight.nbytes for site in found) > CACHES
    with torch.inference_mode():
        for site in found:
            own = sorted({c[site.node.name] for c in counts.values() if c[site.node.name]})
            table[site.node.name] = [
                _remembered(known, site, tokens, large=large) for tokens in own
            ]
    if not any(c.wins for choices in table.values() for c in choices):
        raise InputError(f"no layer is faster than dense: {'; '.join(_lines(found, table))}")
    path = write_pt2(order, made.program)
    body = {"format": FORMAT, "instructions": library().name, "threads": order.threads,
            "layers": {name: to_json(choices) for name, choices in table.items()}}  # fmt: skip
    (order.folder / TABLE).write_text(json.dumps(body, indent=1), encoding="utf-8")
    opened = open_(path, threads=order.threads)
    first = {site.node.name: next(iter(counts.values()))[site.node.name] for site in found}
    notes = (*made.notes, *_lines(found, table), _bound(module, order, table, first))
    return replace(opened, dynamic=made.dynamic, notes=notes)


def _tokens(
    module: fx.GraphModule, order: BuildRequest, batch: int | None, found: Sequence[Site]
) -> dict[str, int]:
    """Tokens that every layer gets at a batch size."""
    wanted = {site.node.name for site in found}
    seen: dict[str, int] = {}

    class Watching(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            made = super().run_node(n)
            if n.name in wanted:
                seen[n.name] = made.numel() // max(1, made.shape[-1])
            return made

    inputs = (
        order.tensors if batch is None else tensors_of(random_inputs(order.example, batch=batch))
    )
    with torch.inference_mode():
        Watching(module).run(*inputs)
    return seen


def _remembered(
    known: dict[tuple[Any, ...], Choice], site: Site, tokens: int, *, large: bool
) -> Choice:
    """Layers of one shape and about one sparsity are measured once."""
    key = (
        site.weight.shape,
        round(site.sparsity, 2),
        site.activation,
        site.residual is None,
        tokens,
    )
    if key not in known:
        known[key] = choose(site, tokens, cold=large and tokens <= FEW)
    return known[key]


def _lines(found: Sequence[Site], table: Mapping[str, Sequence[Choice]]) -> list[str]:
    """The table of decisions, a line for layers that are alike."""
    many: Counter[str] = Counter()
    for site in found:
        rows, cols = site.weight.shape
        many[
            f"{rows}×{cols}, {site.sparsity:.0%} zeros, "
            + ", ".join(map(_said, table[site.node.name]))
        ] += 1
    return [f"{count} × {line}" for line, count in many.items()]


def _said(choice: Choice) -> str:
    how = "sparse" if choice.wins else "dense"
    return f"{choice.tokens} tokens: {how}, {choice.ms:.3g} ms (dense {choice.dense_ms:.3g})"


def _bound(
    module: fx.GraphModule, order: BuildRequest, table: Mapping[str, Sequence[Choice]],
    tokens: Mapping[str, int],
) -> str:  # fmt: skip
    """Amdahl's law: what the layers' gain can make of the whole program."""
    inputs = order.tensors
    compute = computing(module)
    whole = interleaved({"dense": lambda: compute(inputs)}, seconds=0.1)["dense"].median_ms
    mine = [
        next((c for c in choices if c.tokens == tokens[name]), None)
        for name, choices in table.items()
    ]
    dense = sum(c.dense_ms for c in mine if c)
    now = sum(c.ms for c in mine if c)
    rest = max(whole - dense, 0.0)
    most = f"{whole / rest:.1f}" if rest > 0.01 * whole else "100 or more"
    return (
        f"these layers take {min(dense / whole, 1):.0%} of torch's dense program ({whole:.3g} ms): "
        f"without them it would be {most} times as fast (Amdahl's bound), with them it should be "
        f"{whole / max(rest + now, 1e-9):.1f} times as fast as torch"
    )


def open_(path: Path, *, threads: int) -> Session:
    """Open the ``.pt2`` and pack the weights that the table names.

    Raises:
        InputError: if the kernels are not compiled here, or the table is damaged or of another
            program.
    """
    library()
    table = _read(path.with_name(TABLE))
    with silent():
        module = exported_module(torch.export.load(path))
    drop_idle(module)
    found = {site.node.name: site for site in sites(module)}
    count = 0
    for name, choices in table:
        if name not in found:
            raise InputError(f"'{path}' and its table are not of one program: deploy again")
        if any(c.wins for c in choices):
            put(module, found[name], kernels_of(found[name], choices))
            count += 1
    return Session(finish(module), path, notes=(f"{count} of {len(found)} layers run sparse",))


def _read(path: Path) -> Iterator[tuple[str, list[Choice]]]:
    try:
        found = json.loads(path.read_bytes())
        if found["format"] != FORMAT:
            raise InputError(f"'{path}' has the format '{found['format']}'; this reads '{FORMAT}'")
        return iter([(str(name), from_json(c)) for name, c in found["layers"].items()])
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"'{path}' is no readable table: {error}") from None
