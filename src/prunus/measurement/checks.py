"""Whether models take an example, known before anything is timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.inputs import Inputs, arguments, shapes
from prunus._common.torch_internals import pytree
from prunus.errors import InputError, first_line
from prunus.measurement.latency import forward


def refuse_misfit(name: str, model: nn.Module, example: Any) -> None:
    """Run a model once on the example.

    Args:
        name: what the caller calls the model.
        model: it is run as it is.
        example: an input, a tuple of inputs, or a mapping of keyword arguments; not changed.

    Raises:
        InputError: saying which shapes the model refuses, with its own words.
    """
    own = type(model).__name__
    kept: Inputs = pytree.tree_map_only(Tensor, Tensor.clone, arguments(example))
    problem = problem_of(model, kept)
    if problem is not None:
        raise InputError(
            f"{name}: {own} does not take this example ({shapes(arguments(example))}): {problem}"
        )


def refuse_batches(
    name: str, model: nn.Module, inputs: Mapping[int, Inputs], *, known: int
) -> None:
    """Run a model once on each batch.

    Args:
        name: what the caller calls the model.
        model: it is run as it is.
        inputs: by batch size.
        known: items in the example, which the model takes.

    Raises:
        InputError: saying which shapes the model refuses, with its own words.
    """
    own = type(model).__name__
    for batch, given in inputs.items():
        problem = problem_of(model, given)
        if problem is None:
            continue
        way_out = (
            "pass an example whose integers stay valid when drawn at random"
            if batch == known
            else f"pass batch_sizes=[{known}], the example's own"
        )
        raise InputError(
            f"{name}: {own} takes the example, but not random inputs like it in a batch of "
            f"{batch} ({shapes(given)}): {problem}; {way_out}"
        )


def problem_of(model: nn.Module, inputs: Inputs) -> str | None:
    """What a model says of inputs that it does not take; ``None`` if it runs."""
    try:
        with torch.inference_mode():
            forward(model, inputs)()
    except Exception as error:  # whatever the model raises
        return first_line(error)
    return None
