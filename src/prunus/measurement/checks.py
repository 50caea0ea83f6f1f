"""Whether models take an example, known before anything is timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from prunus._common.inputs import tensors_of
from prunus.errors import InputError
from prunus.graph.trace import arguments, detached_copy, drop_caches
from prunus.measurement.latency import Inputs, forward


def one_device(models: Mapping[str, nn.Module], example: Any) -> torch.device:
    """The device on which models and example lie.

    Raises:
        InputError: if there are several, if it holds no values, or if there is no model.

    >>> one_device({"model": nn.Linear(2, 1)}, torch.ones(1, 2))
    device(type='cpu')
    """
    owners: dict[torch.device, str] = {}
    for name, model in models.items():
        if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
            raise InputError(
                f"measure takes models (nn.Module, not scripted), and {name} is a "
                f"{type(model).__name__}"
            )
        for tensor in (*model.parameters(), *model.buffers()):
            owners.setdefault(tensor.device, name)
    for tensor in tensors_of(example):
        owners.setdefault(tensor.device, "example")
    if any(device.type == "meta" for device in owners):
        raise InputError("tensors on the meta device have no values: nothing can be timed there")
    if len(owners) > 1:
        places = ", ".join(f"{what} on {device}" for device, what in owners.items())
        raise InputError(
            f"everything must lie on one device, and there is {places}: move it with .to(device)"
        )
    return next(iter(owners), torch.device("cpu"))


def evaluation_copy(model: nn.Module, who: str) -> nn.Module:
    """A copy in eval mode with the same parameters; what a pass changes stays in the copy.

    Args:
        model: that is copied.
        who: works on it, for the message.

    Raises:
        InputError: if the model cannot be copied.
    """
    try:
        made = detached_copy(model, {id(p): p for p in model.parameters()})
    except Exception as error:  # copying calls the code of whatever the model holds
        raise InputError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}), and "
            f"{who} works on a copy: remove what copy.deepcopy refuses"
        ) from error
    drop_caches(made)
    return made.eval()


def refuse_misfits(name: str, model: nn.Module, example: Any, inputs: Mapping[int, Inputs]) -> None:
    """Run a model once on the example and once on each batch.

    Args:
        name: what the caller calls the model.
        model: it is run as it is.
        example: an input, a tuple of inputs, or a mapping of keyword arguments; not changed.
        inputs: by batch size.

    Raises:
        InputError: saying which shapes the model refuses, with its own words.
    """
    own = type(model).__name__
    kept: Inputs = _pytree.tree_map_only(Tensor, Tensor.clone, arguments(example))
    problem = _problem(model, kept)
    if problem is not None:
        raise InputError(f"{name}: {own} does not take this example ({shapes(example)}): {problem}")
    known = next((len(t) for t in tensors_of(example) if t.dim()), None)
    for batch, given in inputs.items():
        problem = _problem(model, given)
        if problem is None:
            continue
        way_out = (
            "give an example whose integers stay valid when they are drawn anew"
            if batch == known
            else f"give batch_sizes=[{known}], the example's own"
        )
        raise InputError(
            f"{name}: {own} takes the example, but not random inputs like it in a batch of "
            f"{batch} ({shapes(given)}): {problem}; {way_out}"
        )


def _problem(model: nn.Module, inputs: Inputs) -> str | None:
    try:
        with torch.inference_mode():
            forward(model, inputs)()
    except Exception as error:  # whatever the model raises
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    return None


def shapes(values: Any) -> str:
    """The shapes of nested values, for people.

    >>> shapes((torch.ones(1, 3), {"ids": torch.tensor([[1]])}))
    'float32 (1, 3), int64 (1, 1)'
    """
    found = [f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in tensors_of(values)]
    return ", ".join(found) or "no tensor"
