"""What a public call is given, looked at before anything is done with it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunus._common.inputs import arguments, shapes
from prunus._common.kinds import kind_of
from prunus._common.nested import tensors_of, with_tensors
from prunus.errors import InputError, first_line


def given_model(model: object, who: str, *, values: bool = False, code: bool = False) -> nn.Module:
    """A model that can be worked on.

    Args:
        model: what was given for it.
        who: the call, for the message.
        values: whether its tensors must have values: a model on the meta device has none.
        code: whether it must be Python code, not compiled by torch.jit.

    Raises:
        InputError: for anything else, saying what it is and what to give.

    >>> given_model(nn.Linear, "prune")
    Traceback (most recent call last):
    prunus.errors.InputError: prune takes a model, and Linear is a class: make one, Linear(…)
    """
    if isinstance(model, type):
        name = model.__name__
        raise InputError(f"{who} takes a model, and {name} is a class: make one, {name}(…)")
    if not isinstance(model, nn.Module):
        raise InputError(f"{who} takes a model (nn.Module), not {kind_of(model)}")
    if code and isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            f"{who}: the model is a torch.jit.ScriptModule, compiled code that cannot be changed: "
            "give the model as it was before torch.jit.script or torch.jit.trace"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise InputError(
                f"{who}: '{name}' of {type(model).__name__} is lazy and has no shape yet: run one "
                "batch through the model first"
            )
        if values and tensor.is_meta:
            raise InputError(
                f"{who}: '{name}' of {type(model).__name__} is on the meta device and has no "
                "values: call model.to_empty(device=…) and load its weights first"
            )
        if isinstance(tensor, nn.Parameter) and tensor.layout not in (torch.strided, torch.jagged):
            raise InputError(
                f"{who}: '{name}' of {type(model).__name__} is stored as {tensor.layout}: give a "
                "model whose parameters are plain tensors (.to_dense())"
            )
        if any(step == 0 and size > 1 for step, size in zip(*_places(tensor), strict=True)):
            raise InputError(
                f"{who}: several elements of '{name}' of {type(model).__name__} lie in one place "
                "(an expanded tensor): make it a tensor of its own, .clone()"
            )
    return model


def refuse_inference(model: nn.Module, who: str) -> None:
    """Parameters that nothing may change or train cannot be cut.

    Raises:
        InputError: naming the first one.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise InputError(
                f"{who}: '{name}' was made under torch.inference_mode() and cannot be changed: "
                "make or load the model outside of it, or give copy.deepcopy(model)"
            )


def _places(tensor: Tensor) -> tuple[Sequence[int], Sequence[int]]:
    plain = isinstance(tensor, nn.Parameter) and tensor.layout == torch.strided
    return (tensor.stride(), tensor.shape) if plain else ((), ())


def given_function(value: object, name: str, *calls: tuple[str, ...]) -> None:
    """Refuse what cannot be called as it will be; ``None`` is no function and is let through.

    Args:
        value: what was given.
        name: of the argument.
        calls: the arguments of a call, in words, as alternatives.

    Raises:
        InputError: naming what is expected.

    >>> given_function(0.9, "evaluate", ("model",))
    Traceback (most recent call last):
    prunus.errors.InputError: evaluate is float 0.9: give a function, evaluate(model)
    """
    if value is None:
        return
    wanted = " or ".join(f"{name}({', '.join(call)})" for call in calls)
    if not callable(value) or isinstance(value, type):
        raise InputError(f"{name} is {kind_of(value)}: give a function, {wanted}")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # built in, or made by another language
        return
    if any(_binds(signature, *call) for call in calls):
        return
    raise InputError(f"{name} takes {signature}: give a function that is called {wanted}")


def given_example(model: nn.Module, example: Any) -> Any:
    """An example as it is meant.

    A mapping may be the model's one input, and no arguments; a tensor that is given twice stands
    for two, which only happen to be equal.

    Raises:
        InputError: for a nested tensor.

    >>> class Takes(nn.Module):
    ...     def forward(self, batch): return batch["x"]
    >>> given_example(Takes(), {"x": 1}), given_example(nn.Linear(1, 1), {"input": 1})
    (({'x': 1},), {'input': 1})
    """
    if isinstance(example, list):
        return [given_example(model, one) for one in example]
    tensors = tensors_of(arguments(example))
    if any(t.is_nested for t in tensors):
        raise InputError(
            "example: a nested tensor has no sizes that could be followed: give a padded one "
            "(torch.nested.to_padded_tensor), or a list of tensors"
        )
    first = {id(t): i for i, t in reversed([*enumerate(tensors)])}
    if len(first) < len(tensors):
        apart = [t if first[id(t)] == i else t.clone() for i, t in enumerate(tensors)]
        example = with_tensors(example, apart)
    if not isinstance(example, Mapping):
        return example
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # of a forward that is no Python function
        return example
    named = all(isinstance(key, str) for key in example)
    if named and _binds(signature, **example):
        return example
    return (example,) if _binds(signature, example) else example


def _binds(signature: inspect.Signature, *args: Any, **kwargs: Any) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


_CALLS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "train": (("model", "run"), ("model",)),
    "evaluate": (("model",),),
    "evaluate_train": (("model",),),
    "test": (("model",),),
    "loss": (("model", "batch"),),
    "metric": (("model", "batches"),),
    "on_event": (("event",),),
    "should_stop": ((),),
    "on_group": (("name",),),
    "on_block": (("name", "error"),),
}
"""How the functions of a caller are called."""


def given_hooks(**given: object) -> None:
    """Refuse functions of the caller that cannot be called as they will be.

    >>> given_hooks(evaluate=len, loss=None)
    """
    for name, value in given.items():
        given_function(value, name, *_CALLS[name])


def given_batches(batches: Any, name: str) -> Any:
    """Batches that can be read again: those of a generator are kept in a list.

    Raises:
        InputError: for what cannot be iterated over.
    """
    if batches is None:
        return None
    if isinstance(batches, Iterator):
        return list(batches)
    if (
        isinstance(batches, (str, bytes, Mapping, Tensor, nn.Module))
        or not (isinstance(batches, Iterable) or hasattr(batches, "__getitem__"))
        or getattr(batches, "shape", None) == ()
    ):
        raise InputError(f"{name} is {kind_of(batches)}: give batches, such as a list or a loader")
    return batches


def given_copies(copies: Any) -> list[Any]:
    """Copies of a model, in a list; what each of them may be is for others to say.

    >>> len(given_copies(nn.Linear(1, 1))), given_copies(())
    (1, [])
    """
    if isinstance(copies, (nn.Module, Mapping)):
        return [copies]
    if not isinstance(copies, Iterable) or isinstance(copies, (str, bytes, Tensor)):
        raise InputError(f"copies is {kind_of(copies)}: give a list of modules")
    return list(copies)


def length_of(loader: object) -> int | None:
    """How many batches a loader has; ``None`` for a stream.

    A DataLoader of an IterableDataset has a ``__len__``, which raises.

    >>> length_of([1, 2]), length_of(iter([1, 2]))
    (2, None)
    """
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


def not_taken(model: nn.Module, example: Any, error: Exception) -> InputError:
    """That a model raised when it was run on an example.

    >>> str(not_taken(nn.Linear(2, 1), {}, ValueError("no")))[:50]
    'Linear does not take this example (no tensor): Val'
    """
    name = type(model).__name__
    if isinstance(error, NotImplementedError) and type(model).forward is nn.Module.forward:
        return InputError(f"{name} has no forward, and cannot be run: give the model that calls it")
    what = shapes(arguments(example)) if example is not None else "None"
    return InputError(
        f"{name} does not take this example ({what}): {first_line(error)}; give what the model is "
        "called with: an input, a tuple of inputs, or a mapping of keyword arguments"
    )
