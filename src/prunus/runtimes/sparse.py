"""Kernels of our own that skip the zeros of layers, on processors; the rest runs in torch.

The artifact is torch's program with the weights as they are, and a table: which layer is computed
how, as it measured on the machine that built it. Weights are packed when it is opened.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus._common.nested import tensors_of
from prunus._common.random_inputs import random_inputs
from prunus._common.timing import interleaved
from prunus._common.torch_internals import exported_module
from prunus.errors import InputError
from prunus.kernels.native import LACKING, library, usable
from prunus.runtimes import BuildRequest, Facts, Session
from prunus.runtimes._exported import exported, write_pt2
from prunus.runtimes._silent import silent
from prunus.runtimes._sparse_choice import CACHES
from prunus.runtimes._sparse_kinds import KINDS, AnyChoice, Kind, Shape, to_json
from prunus.runtimes._sparse_sites import LEAST, by_place, drop_idle, finish
from prunus.runtimes.torch_export import computing

FACTS = Facts(needs=("torch",), devices=("cpu",), skips_zeros=True)
TABLE = "model.json"
FORMAT = "prunus sparse 1"
Found = list[tuple[Kind, Any]]
Decisions = Mapping[str, Sequence[AnyChoice]]


def refuses(order: BuildRequest) -> str | None:
    """Where the kernels are not compiled, and models without enough zeros."""
    if not usable():
        return LACKING
    kinds = (nn.Linear, nn.RNNBase, nn.Conv2d)
    weights = [p for m in order.model.modules() if isinstance(m, kinds)
               for p in m.parameters(recurse=False) if p.dim() in (2, 4)]  # fmt: skip
    if weights and not any(_zeros(w) >= LEAST for w in weights):
        return (
            f"no linear or recurrent layer has {LEAST:.0%} zeros, and no convolution: prune single "
            "weights (structure: weight) or blocks of them ({name: block, rows: 4}) first"
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
    by_place(module)
    drop_idle(module)
    found = _found(module)
    if not found:
        raise InputError(f"no layer of the program that has kernels has {LEAST:.0%} zeros")
    batches = order.batch if made.dynamic else (None,)
    shapes = [_shapes(module, order, batch, found) for batch in batches]
    table = _decided(found, shapes)
    if not any(c.wins for choices in table.values() for c in choices):
        raise InputError(f"no layer is faster than dense: {'; '.join(_lines(found, table))}")
    path = write_pt2(order, made.program)
    named = zip(_found(_program(path)), table.values(), strict=True)  # writing may rename nodes
    layers = {site.node.name: to_json(choices) for (_, site), choices in named}
    body = {"format": FORMAT, "instructions": library().name, "threads": order.threads,
            "layers": layers}  # fmt: skip
    (order.folder / TABLE).write_text(json.dumps(body, indent=1), encoding="utf-8")
    opened = open_(path, threads=order.threads)
    return opened.as_made(made, *_lines(found, table), _bound(module, order, table, batches[0]))


def _found(module: fx.GraphModule) -> Found:
    return [(kind, site) for kind in KINDS for site in kind.find(module)]


def _shapes(
    module: fx.GraphModule, order: BuildRequest, batch: int | None, found: Found
) -> dict[str, Shape]:
    """The shape of every layer's input at a batch size."""
    wanted = {site.node.name for _, site in found}
    seen: dict[str, Shape] = {}

    class Watching(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n.name in wanted:
                seen[n.name] = tuple(self.fetch_args_kwargs_from_env(n)[0][0].shape)
            return super().run_node(n)

    with torch.inference_mode():
        Watching(module).run(*_inputs(order, batch))
    return seen


def _inputs(order: BuildRequest, batch: int | None) -> list[Tensor]:
    if batch is None:
        return order.tensors
    return tensors_of(random_inputs(order.example, batch=batch))


def _decided(found: Found, shapes: Sequence[Mapping[str, Shape]]) -> dict[str, list[AnyChoice]]:
    """A choice for each shape; layers of one size and about one sparsity are measured once."""
    table: dict[str, list[AnyChoice]] = {}
    known: dict[tuple[Any, ...], AnyChoice] = {}
    large = sum(_bytes(site) for _, site in found) > CACHES
    with torch.inference_mode():
        for kind, site in found:
            table[site.node.name] = []
            for shape in dict.fromkeys(s[site.node.name] for s in shapes):
                if 0 in shape:
                    continue
                key = (kind.name, *kind.key(site, shape))
                if key not in known:
                    known[key] = kind.choose(site, shape, large)
                table[site.node.name].append(known[key])
    return table


def _bytes(site: Any) -> int:
    held = site.weights if hasattr(site, "weights") else [site.weight]
    return sum(w.nbytes for w in held)


def _lines(found: Found, table: Decisions) -> list[str]:
    """The table of decisions, a line for layers that are alike."""
    many: Counter[str] = Counter()
    for kind, site in found:
        layer, size = kind.said
        said = [f"{size(c)}: {_how(c)}" for c in table[site.node.name]]
        many[f"{layer(site)}, {site.sparsity:.0%} zeros, {', '.join(said)}"] += 1
    return [f"{count} × {line}" for line, count in many.items()]


def _how(choice: AnyChoice) -> str:
    how = "sparse" if choice.wins else "dense"
    return f"{how}, {choice.ms:.3g} ms (dense {choice.dense_ms:.3g})"


def _bound(module: fx.GraphModule, order: BuildRequest, table: Decisions, batch: int | None) -> str:
    """Amdahl's law: what the layers' gain can make of the whole program, at the first batch."""
    inputs = _inputs(order, batch)
    compute = computing(module)
    whole = interleaved({"dense": lambda: compute(inputs)}, seconds=0.1)["dense"].median_ms
    mine = [choices[0] for choices in table.values() if choices]
    dense = sum(c.dense_ms for c in mine)
    now = sum(c.ms if c.wins else c.dense_ms for c in mine)
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
    module = _program(path)
    found = {site.node.name: (kind, site) for kind, site in _found(module)}
    if set(found) != set(table):
        raise InputError(f"'{path}' and its table are not of one program: deploy again")
    count = 0
    for name, (kind, site) in found.items():
        try:
            choices = kind.read(table[name])
            if any(c.wins for c in choices):
                kind.put(module, site, choices)
                count += 1
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise InputError(f"'{path}' has a damaged table: {name}: {error}") from None
    return Session(finish(module), path, notes=(f"{count} of {len(found)} layers run sparse",))


def _program(path: Path) -> fx.GraphModule:
    with silent():
        module = exported_module(torch.export.load(path))
    by_place(module)
    drop_idle(module)
    return module


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
        if found["format"] != FORMAT:
            raise InputError(f"'{path}' has the format '{found['format']}'; this reads '{FORMAT}'")
        return dict(found["layers"])
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"'{path}' is no readable table: {error}") from None
