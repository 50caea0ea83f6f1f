"""Measure what a model costs on this machine, alone or beside another."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus import costs
from prunus._common import rng as randomness
from prunus._common.batch import Batch, find_batch
from prunus._common.entries import with_entries
from prunus._common.environment import describe
from prunus._common.given import given_example, given_model
from prunus._common.inputs import Inputs, arguments, one_device, shapes
from prunus._common.kinds import given_number, given_sizes
from prunus._common.modules import evaluation_copy
from prunus._common.nested import tensors_of
from prunus._common.random_inputs import random_inputs
from prunus._common.steps import takes_steps
from prunus._common.timing import Timing, no_denormals
from prunus._common.timing import threads as fixed_threads
from prunus._common.traces import without_trace
from prunus.compaction.files.artifact import packed
from prunus.costs.bytes_ import bytes_
from prunus.errors import InputError, PrunusError, first_line
from prunus.measurement.checks import refuse_batches, refuse_misfit
from prunus.measurement.energy import Energy, estimated_energy, measured_energy
from prunus.measurement.latency import forward, latency
from prunus.measurement.memory import Memory, memory
from prunus.measurement.meters import Meter, meter_for
from prunus.measurement.result import Measurement, ModelCost, PassCost
from prunus.pruning.masks import match_names
from prunus.types import Masks

PACK_BELOW = 10**9
"""Bytes of tensors up to which the file is made to know its length."""

MANY_ZEROS = 0.1
"""Share of zeros among the parameters above which one may expect speed from them."""


@takes_steps
def measure(
    model: nn.Module,
    example: Any,
    *,
    baseline: nn.Module | None = None,
    batch_sizes: Sequence[int] | None = None,
    threads: int | None = 1,
    seconds: float = 1.0,
    masks: Masks | None = None,
) -> Measurement:
    """Measure what a model costs as it stands: size, MACs, latency, memory, energy.

    The passes run in eval mode without autograd, on random inputs like the example and with
    denormal numbers as zero. They run on a copy that shares the parameters: the model, its mode,
    its gradients and the random state are left as they are. With ``baseline`` the passes of both
    models alternate in one run, so that what slows the machine slows both.

    Args:
        model: on the CPU or on CUDA.
        example: an input, a tuple of inputs, or a mapping of keyword arguments; its values are
            not used, except the range of integers, bools and masks.
        baseline: another model that takes the same example, the dense one by custom.
        batch_sizes: items of a pass, in the dimension of the inputs that is found to hold them
            (the first one, or the second one where time comes first); by default 1 and 16. Where
            none holds items (the nodes of one graph), 1 is the pass as it is, and all there is.
        threads: processor threads of an operator; ``None`` for torch's own choice.
        seconds: of timing, for each model and batch size.
        masks: of the model, by parameter name, for ``macs_if_zeros_skipped``; by default its
            weights that are not zero.

    Returns:
        A :class:`Measurement`; printed, it is a table.

    Raises:
        InputError: if a model does not take the example or a batch size, or lies on another
            device; nothing was timed then.

    >>> dense, small = nn.Linear(64, 64), nn.Linear(64, 16)
    >>> found = measure(small, torch.ones(1, 64), baseline=dense, batch_sizes=[1], seconds=0.01)
    >>> found.model.macs, found.ratios["params"], found.model.passes[0].batch
    (1024, 4.0, 1)
    """
    models = {"model": model} if baseline is None else {"model": model, "baseline": baseline}
    for own in models.values():
        if isinstance(own, nn.Module):
            given_model(own, "measure")
    example = given_example(model, example) if isinstance(model, nn.Module) else example
    device = one_device(models, example)
    masks = None if masks is None else match_names(model, masks)
    if batch_sizes is not None and len(given_sizes(batch_sizes, "batch_sizes")) < len(batch_sizes):
        raise InputError(f"batch_sizes is {list(batch_sizes)}: name each size once")
    given_number(seconds, "seconds", least=0, above=True)
    with contextlib.ExitStack() as stack:
        used = stack.enter_context(fixed_threads(threads))
        stack.enter_context(randomness.preserve_rng())
        stack.enter_context(no_denormals())
        for given in models.values():  # copies share the parameters
            stack.enter_context(without_trace(given, "a forward pass"))
        twins = {name: evaluation_copy(m) for name, m in models.items()}
        for name, own in twins.items():
            refuse_misfit(name, own, example)
        items = find_batch(model, arguments(example))
        inputs = _inputs(example, batch_sizes, items)
        for name, own in twins.items():
            refuse_batches(name, own, inputs, known=items.size)
        timings = latency(twins, inputs, seconds=seconds)
        meter = meter_for(device)
        figures = {
            name: _figures(
                own,
                inputs,
                still=_still(own, example, items, masks if name == "model" else None),
                timings=timings[name],
                meter=meter,
                seconds=seconds,
            )
            for name, own in twins.items()
        }
        environment = describe()
    return Measurement(
        model=figures["model"],
        baseline=figures.get("baseline"),
        device=device.type,
        threads=used,
        environment=environment,
        warnings=(
            *_warnings(figures),
            *(
                text
                for name, own in models.items()
                for text in costs.notes(own, example, figures[name].macs, items)
            ),
        ),
    )


def _inputs(example: Any, sizes: Sequence[int] | None, items: Batch) -> dict[int, Inputs]:
    """Random inputs by batch size; without a batch, those of the pass as it is."""
    if items.entries is not None:
        many = {b: with_entries(arguments(example), items.entries, b) for b in sizes or (1, 16)}
        return {b: random_inputs(kwargs or args) for b, (args, kwargs) in many.items()}
    whole = bool(items.why) and any(t.dim() for t in tensors_of(arguments(example)))
    if not whole:
        return {b: random_inputs(example, batch=b, dims=items.dims) for b in sizes or (1, 16)}
    if sizes is not None and list(sizes) != [1]:
        raise InputError(
            f"batch_sizes is {list(sizes)}, but no batch was found in the example "
            f"({shapes(arguments(example))}): {items.why}; pass batch_sizes=[1], which is the pass "
            "as it is"
        )
    return {1: random_inputs(example)}


def _figures(
    model: nn.Module,
    inputs: Mapping[int, Inputs],
    *,
    still: Mapping[str, Any],
    timings: Mapping[int, Timing],
    meter: Meter | None,
    seconds: float,
) -> ModelCost:
    """Everything about one model."""
    passes = []
    for batch, given in inputs.items():
        room, why = _room(model, given)
        energy = _measured(model, given, batch=batch, meter=meter, seconds=seconds)
        if energy is None and room is not None:
            energy = _estimated(model, given, batch=batch, macs=still["macs"], room=room)
        peak = None if room is None else room.peak_bytes
        passes.append(PassCost(batch, timings[batch], peak, energy, why))
    return ModelCost(**still, passes=tuple(passes))


def _room(model: nn.Module, inputs: Inputs) -> tuple[Memory | None, str]:
    """The memory of a pass, or why it cannot be known."""
    try:
        return memory(model, inputs), ""
    except Exception as error:  # of the model's code, which runs, but not while it is watched
        return None, f"the memory at the peak is unknown: {first_line(error)}"


def _still(model: nn.Module, example: Any, items: Batch, masks: Masks | None) -> dict[str, Any]:
    """What needs no clock."""
    if masks is None:
        masks = {n: p.detach() != 0 for n, p in model.named_parameters() if p.dim() > 1}
    return {
        **costs.measure(model, example, masks, items),
        "disk_bytes": _disk_bytes(model, sparse=False),
        "sparse_disk_bytes": _disk_bytes(model, sparse=True),
    }


def _disk_bytes(model: nn.Module, *, sparse: bool) -> int:
    """Of the file; of its tensors alone where the model is large or cannot be saved."""
    if bytes_(model) < PACK_BELOW:
        try:
            return len(packed(model, sparse=sparse))
        except PrunusError:
            pass
    kept = {id(t): t for t in model.state_dict(keep_vars=True).values() if isinstance(t, Tensor)}
    return sum(t.numel() * t.element_size() for t in kept.values())


def _measured(
    model: nn.Module, inputs: Inputs, *, batch: int, meter: Meter | None, seconds: float
) -> Energy | None:
    if meter is None:
        return None
    with torch.inference_mode():
        run = forward(model, inputs)
        return measured_energy(run, meter=meter, batch=batch, seconds=seconds)


def _estimated(
    model: nn.Module, inputs: Inputs, *, batch: int, macs: float | None, room: Memory
) -> Energy | None:
    """Weights and inputs are read once, activations written and read once."""
    if macs is None:
        return None
    read = bytes_(model) + sum(t.numel() * t.element_size() for t in tensors_of(inputs))
    moved = read + 2 * room.written_bytes
    return estimated_energy(macs=macs * batch, moved_bytes=moved, dtype=_dtype(model), batch=batch)


def _dtype(model: nn.Module) -> torch.dtype:
    """The type of most of the parameters."""
    numbers: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        numbers[parameter.dtype] = numbers.get(parameter.dtype, 0) + parameter.numel()
    return max(numbers, key=lambda d: numbers[d], default=torch.float32)


def _warnings(figures: Mapping[str, ModelCost]) -> list[str]:
    found = []
    passes = [p for f in figures.values() for p in f.passes]
    busy = sorted({p.batch for p in passes if p.latency.busy})
    if busy:
        sizes = ", ".join(map(str, busy))
        found.append(
            f"the machine was busy while batches of {sizes} were timed: their times spread or "
            "drifted; measure again when nothing else is running"
        )
    mine = figures["model"]
    zeros = mine.params - mine.nonzero_params
    if zeros > MANY_ZEROS * mine.params:
        found.append(
            f"{zeros:,} of {mine.params:,} parameters are zero, and zeros bring no speedup: they "
            "are stored and multiplied like other values; prune channels instead (structure: "
            "channel, compact: end)"
        )
    found += sorted({p.why for p in passes if p.why})
    energies = [p.energy for p in passes if p.energy is not None]
    how = sorted({e.how for e in energies if not e.measured})
    found += [f"energy is estimated from {h}: for comparison only" for h in how]
    found += sorted({f"energy is measured by {e.how}" for e in energies if e.measured})
    return found
