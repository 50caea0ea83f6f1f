"""Blocks trained one after the other to give what they gave before the cut."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Gt, Interval
from torch import Tensor, nn

from prunus._common.activations import FarEnough, is_affine, places
from prunus._common.as_written import looked_into
from prunus._common.inputs import Inputs
from prunus._common.modules import evaluating, holders
from prunus._common.names import each_meant, module_names, module_paths
from prunus._common.nested import map_tensors, tensors_of
from prunus.errors import InputError, RunError
from prunus.methods.repairs import RepairContext
from prunus.methods.repairs._descent import aside, descend
from prunus.methods.repairs.batch_norm import settle
from prunus.methods.repairs.least_squares import fit_layers

NEEDS_REFERENCE = True


def reconstruct(
    context: RepairContext,
    *,
    blocks: tuple[str, ...] = (),
    steps: Annotated[int, Interval(ge=1, le=100_000)] = 100,
    rate: Annotated[float, Gt(0)] = 1e-3,
) -> None:
    """For each block ``least_squares``, then min Σ‖block(x) − y‖² / Σ‖y‖² by gradient steps.

    x is what the block reads in the masked model, where those before it are done; y is what it gave
    before the cut. Adam, its rate rising and then falling linearly to zero; of four batches or more
    one in eight, at least one, is not learned from and says after which steps a block was best, if
    any made it better. Removed weights stay zero, dropout is off, batch norms go by the statistics
    that they have and are settled at the end. A block that is called several times learns from all
    of its calls; what blocks share is fitted to none. The activations of one block are held at a
    time.

    Args:
        context: with a reference.
        blocks: patterns of module names, such as ``["*.attention", "*.mlp"]``; by default the
            outermost modules of a class that the model has more than once.
        steps: of each block, a calibration batch each.
        rate: of Adam, at its highest.

    Raises:
        InputError: if there is no such block.
        RunError: if a block diverges.

    Source: Li et al. 2021 (BRECQ, block by block), arXiv:2102.05426; attention and MLP apart:
    arXiv:2510.14444.
    """
    calls = _in_order(context, blocks_of(context.model, blocks))
    names = list(calls)
    met = places(context.model, context.passes())
    order = [place.name for place in met]
    fitted: set[str] = set()
    for name in (*names, ""):
        layers = _layers_before(order, name, names) - fitted
        own = {context.model.get_submodule(layer) for layer in layers}
        fit_layers(context, wanted=own.__contains__, order=met)
        fitted |= layers
        if name:
            assert context.reference is not None
            there = module_paths(context.reference)[module_names(context.model)[name]]
            wanted = [*_calls(context, context.reference, there, calls[name])]
            read = [*_calls(context, context.model, name, calls[name])]
            both = [(a[0], b[1]) for one, other in zip(read, wanted, strict=True)
                    for a, b in zip(one, other, strict=False)]  # fmt: skip
            if both:  # data may take another way through the reference
                _fit(context, name, both, steps, rate)
    settle(context)


def _layers_before(order: Sequence[str], name: str, blocks: Sequence[str]) -> set[str]:
    """Layers of a block and those before it that are in none; for no block the layers of none.

    >>> sorted(_layers_before(["stem", "a.fc", "neck", "b.fc", "head"], "b", ["a", "b"]))
    ['b.fc', 'neck', 'stem']
    >>> sorted(_layers_before(["stem", "a.fc", "neck", "b.fc", "head"], "", ["a", "b"]))
    ['head', 'neck', 'stem']
    """

    def inside(layer: str, block: str) -> bool:
        return layer.startswith(f"{block}.")

    last = max((i for i, n in enumerate(order) if inside(n, name)), default=-1)
    free = {n for n in (order[:last] if name else order) if not any(inside(n, b) for b in blocks)}
    return free | {n for n in order if name and inside(n, name)}


def blocks_of(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The names of the blocks of a model.

    >>> model = nn.Sequential(nn.Linear(2, 2), *(nn.TransformerEncoderLayer(2, 1) for _ in "ab"))
    >>> blocks_of(model, ())
    ['1', '2']
    """
    computing = {
        n: m for n, m in model.named_modules() if n and not is_affine(m) and
        any(map(is_affine, m.modules()))
    }  # fmt: skip
    kinds = Counter(type(m) for m in computing.values())
    simple = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    if patterns:
        names = {n: plain for plain, n in module_paths(model).items() if n in computing}
        said = "repair: reconstruct: no module that computes is named …"
        named = each_meant(patterns, names, said, around=False)
        found = [n for n in computing if any(n in own for own in named.values())]
    else:
        found = [n for n, m in computing.items() if kinds[type(m)] > 1 and type(m) not in simple]
    found = [n for n in found if not any(n.startswith(f"{o}.") for o in found)]
    if not found:
        raise InputError(
            "repair: reconstruct: this model has no class of modules more than once: name the "
            "blocks, for example blocks: ['*']"
        )
    return found


def _in_order(context: RepairContext, names: Sequence[str]) -> dict[str, int]:
    """In the order in which passes run them, and how often one does; the rest is left out."""
    most: dict[str, int] = {}
    with contextlib.ExitStack() as hooks:
        now: Counter[str] = Counter()

        def note(name: str, *_: Any) -> None:
            now[name] += 1
            most[name] = max(most.get(name, 0), now[name])

        for name in names:
            module = context.model.get_submodule(name)
            hooks.callback(module.register_forward_hook(partial(note, name)).remove)
        with evaluating(context.model), torch.no_grad():
            for inputs in context.passes():
                now.clear()
                looked_into(context.model, inputs)
    return most


def _calls(
    context: RepairContext, model: nn.Module, name: str, most: int
) -> Iterator[list[tuple[Inputs, Tensor]]]:
    """What a block reads and gives, in each call of each pass."""
    found: list[tuple[Inputs, Tensor]] = []

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        found.append((map_tensors(Tensor.clone, (args, kwargs)), tensors_of(output)[0].clone()))
        if len(found) == most:
            raise FarEnough

    hook = model.get_submodule(name).register_forward_hook(note, with_kwargs=True)
    try:
        with evaluating(model), torch.no_grad():
            for inputs in context.passes():
                with contextlib.suppress(FarEnough):
                    looked_into(model, inputs)
                yield [*found]
                found.clear()
    finally:
        hook.remove()


def _fit(
    context: RepairContext,
    name: str,
    pairs: Sequence[tuple[Inputs, Tensor]],
    steps: int,
    rate: float,
) -> None:
    block = context.model.get_submodule(name)
    others = holders(context.model) - holders(block)  # a tensor that two blocks share fits neither
    own = {n: p for n, p in block.named_parameters(prefix=name)
           if p.is_floating_point() and not others[id(p)]}  # fmt: skip
    if not own:
        return
    masks = {n: context.masks[n].to(p.device) for n, p in own.items() if n in context.masks}
    size = sum(float(wanted.double().square().mean()) for _, wanted in pairs) / len(pairs)

    learned, judging = aside(len(pairs))

    def loss(batch: int) -> Tensor:
        given, wanted = pairs[batch]
        answers = looked_into(block, map_tensors(Tensor.clone, given))
        gap = (tensors_of(answers)[0] - wanted).square().mean()
        return gap / max(size, 1e-12)

    try:
        with evaluating(context.model):
            descend(own, masks, lambda step: loss(learned[step % len(learned)]),
                    error=lambda: sum(float(loss(batch)) for batch in judging), steps=steps,
                    rates=dict.fromkeys(own, rate))  # fmt: skip
    except RunError as error:
        raise RunError(f"repair: reconstruct: block '{name}' {error}") from None
