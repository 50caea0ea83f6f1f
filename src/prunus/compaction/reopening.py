"""Whether a smaller model's own library opens it again: tried, not looked up by name.

``from_pretrained`` builds a model of the sizes that its configuration says. Whether these are the
sizes that are left is seen by building one, with its weights on the meta device, and comparing
shapes, buffers and answers. Where a number in the configuration is still the dense model's, the
numbers that would make it fit are looked for and set.
"""

from __future__ import annotations

import contextlib
import copy
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus._common.inputs import every_example
from prunus._common.modules import evaluating
from prunus._common.nested import map_tensors, own_containers, tensors_of
from prunus._common.rng import preserve_rng
from prunus._common.traces import without_trace
from prunus.compaction.slicing.attributes import Attribute
from prunus.compaction.slicing.surgery import own_holders

MOST_BUILDS = 32
OPENS = "from_pretrained opens it again after save_pretrained: its config says the new sizes"
DOES_NOT = (
    "from_pretrained cannot open it again, since its config cannot say the new sizes ({why}), and "
    "with ignore_mismatched_sizes=True it silently draws fresh weights: use prunus.hf.save(model, "
    "folder) and prunus.hf.load(folder)"
)
LIGHTNING = (
    "load_from_checkpoint cannot open it again, since the class has the dense sizes: use "
    "prunus.lightning.load(Class, checkpoint) for a checkpoint of PruneCallback, or prunus.save"
)
Settings = dict[tuple[str, ...], int]
"""New values of numbers in a configuration, by their path in it."""


def reopening(model: nn.Module, example: Any) -> tuple[str, ...]:
    """How a smaller model is opened again, for libraries that have a way of their own.

    Args:
        model: the smaller one; numbers in its own configuration are set where that makes it fit.
        example: an input, a tuple of inputs, or a mapping of keyword arguments; or ``None``.
    """
    if callable(getattr(type(model), "load_from_checkpoint", None)):
        return (LIGHTNING,)
    if not is_pretrained(model):
        return ()
    why = settle(model, example)
    return (OPENS,) if why is None else (DOES_NOT.format(why=why),)


def is_pretrained(model: nn.Module) -> bool:
    """Whether a model is of a class that opens itself from a configuration and weights."""
    config = getattr(model, "config", None)
    opens = callable(getattr(type(model), "from_pretrained", None))
    return opens and callable(getattr(config, "to_dict", None))


def settle(model: nn.Module, example: Any) -> str | None:
    """Let a configuration say a model's sizes; why it cannot, in a few words.

    The configuration becomes the model's own before it changes, and stays as it is where no
    numbers in it fit.
    """
    found, why = _search(model)
    if found is None:
        return why
    trial = _with(model.config, found)
    assert trial is not None
    differs = _differs(model, built(model, trial), example)
    if differs is None:
        _take(model, found)
    return differs


def _take(model: Any, settings: Settings) -> None:
    attributes = []
    for path, after in settings.items():
        before = _value(model.config, path)
        attributes.append(Attribute("", ".".join(("config", *path)), before, after))
    own_holders(model, attributes)
    for (path, after), attribute in zip(settings.items(), attributes, strict=True):
        if type(attribute.before) is int:
            attribute.set(model)
        else:  # a file holds only numbers that take the place of numbers
            setattr(_holder(model.config, path), path[-1], after)


def config_of(
    model: Any, shapes: Mapping[str, tuple[int, ...]], known: Settings
) -> tuple[Any, str]:
    """The configuration of a smaller model before there is one; or ``None``, and why it has none.

    Args:
        model: the dense one, of a class that opens itself; on any device.
        shapes: of every tensor in the smaller one's state dict.
        known: numbers that are known; others are looked for.
    """
    found, why = _search(model, shapes, known)
    return (None, why) if found is None else (_with(model.config, found), "")


def _search(
    model: Any,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    known: Settings | None = None,
) -> tuple[Settings | None, str]:
    """Numbers for the configuration that give a model's shapes, found by trying one by one."""
    own = _shapes(model) if shapes is None else shapes
    settings: Settings = dict(known or {})
    wrong, why = _mismatches(model, own, settings)
    if wrong is None:
        return None, why
    if wrong and _uneven(own, wrong):
        return None, f"layers differ in '{_uneven(own, wrong)}'"
    builds = 0
    while wrong:
        best: tuple[Settings, dict[str, tuple[int, ...] | None]] | None = None
        for path, after in _candidates(model.config, settings, own, wrong):
            builds += 1
            if builds > MOST_BUILDS:
                break
            trial = {**settings, path: after}
            left, _ = _mismatches(model, own, trial)
            if left is not None and len(left) < len(best[1] if best else wrong):
                best = trial, left
            if best is not None and not best[1]:
                break
        if best is None:
            name = next(iter(wrong))
            return None, f"'{name}' is {own.get(name)} and would be {wrong[name]}"
        settings, wrong = best
    return settings, ""


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def _mismatches(
    model: Any, own: Mapping[str, tuple[int, ...]], settings: Settings
) -> tuple[dict[str, tuple[int, ...] | None] | None, str]:
    """The tensors that a model of such a configuration has otherwise; ``None``: it has no model."""
    config = _with(model.config, settings)
    if config is None:
        return None, "its numbers contradict each other"
    try:
        theirs = _shapes(built(model, config))
    except Exception as error:  # of the library's own checks: ValueError, ZeroDivisionError, …
        return None, str(error).partition("\n")[0] or type(error).__name__
    names = [*own, *(name for name in theirs if name not in own)]
    return {n: theirs.get(n) for n in names if own.get(n) != theirs.get(n)}, ""


def _uneven(own: Mapping[str, tuple[int, ...]], wrong: Mapping[str, Any]) -> str | None:
    """A tensor whose like in other layers has another shape here, though one number says both."""
    kinds: dict[str, set[Any]] = {}
    theirs: dict[str, set[Any]] = {}
    for name, shape in own.items():
        kind = re.sub(r"\d+", "#", name)
        kinds.setdefault(kind, set()).add(shape)
        theirs.setdefault(kind, set()).add(wrong.get(name, shape))
    return next((k for k in kinds if len(kinds[k]) > 1 and len(theirs[k]) == 1), None)


def _candidates(
    config: Any,
    settings: Settings,
    own: Mapping[str, tuple[int, ...]],
    wrong: Mapping[str, tuple[int, ...] | None],
) -> Iterator[tuple[tuple[str, ...], int]]:
    """Numbers of which a size that differs is a multiple, each with what would set it right."""
    pairs: dict[tuple[int, int], None] = {}
    for name, shape in wrong.items():
        if name in own and shape is not None and len(shape) == len(own[name]):
            pairs |= {(b, a): None for b, a in zip(shape, own[name], strict=True) if a != b}
    seen: set[tuple[tuple[str, ...], int]] = set()
    for path, value in _numbers(config):
        value = settings.get(path, value)
        for before, after in pairs:
            times = before // value if value and before % value == 0 else 0
            if value is None:
                made = after
            elif times and after % times == 0:
                made = after // times
            else:
                continue
            if made not in (0, value) and path not in settings and (path, made) not in seen:
                seen.add((path, made))
                yield path, made


def _numbers(config: Any, outer: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Whole numbers above one, and what is left open, in a configuration and those within."""
    for key, value in vars(config).items():
        if key.startswith("_"):
            continue
        if callable(getattr(value, "to_dict", None)) and len(outer) < 3:
            yield from _numbers(value, (*outer, key))
        elif value is None or (type(value) is int and value > 1):
            yield (*outer, key), value


def _holder(config: Any, path: tuple[str, ...]) -> Any:
    for key in path[:-1]:
        config = getattr(config, key)
    return config


def _value(config: Any, path: tuple[str, ...]) -> Any:
    return getattr(_holder(config, path), path[-1])


def _with(config: Any, settings: Settings) -> Any:
    """A configuration as it comes back from a file, with other numbers; ``None`` if it cannot."""
    made = copy.deepcopy(config)
    try:
        for path, after in settings.items():
            setattr(_holder(made, path), path[-1], after)
        return type(made).from_dict(made.to_dict())
    except Exception:  # of the library's checks of a configuration
        return None


_DRAWS = frozenset({"normal_", "uniform_", "trunc_normal_"})
"""By name: libraries put functions of their own in the place of torch's while they initialize."""


class WeightsOnMeta(TorchFunctionMode):
    """What is only allocated, as weights are before they are drawn, takes no memory nor draws."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.empty:
            return func(*args, **{**(kwargs or {}), "device": "meta"})
        if getattr(func, "__name__", "") in _DRAWS:
            drawn = args[0] if args else (kwargs or {})["tensor"]
            if drawn.is_meta:  # it holds no values, and torch would draw them operator by operator
                return drawn
        return func(*args, **(kwargs or {}))


def built(model: nn.Module, config: Any) -> nn.Module:
    """A model of that class and configuration; its buffers are real, its weights are not."""
    kind: Any = type(model)
    with preserve_rng(), WeightsOnMeta(), contextlib.redirect_stdout(None):
        made: nn.Module = kind(config)
    return made.to(next((p.dtype for p in model.parameters()), torch.float32)).eval()


def _differs(model: nn.Module, fresh: nn.Module, example: Any) -> str | None:
    """Where a fresh model with these weights would not be this one."""
    weights = {name: t.detach() for name, t in model.state_dict().items()}
    fresh.load_state_dict(weights, assign=True)
    buffers = dict(model.named_buffers())
    for name, buffer in fresh.named_buffers():
        own = buffers.get(name)
        if own is None or own.shape != buffer.shape or buffer.is_meta:
            return f"'{name}' differs"
        if not torch.equal(own.detach().cpu(), buffer.detach().cpu().to(own.dtype)):
            return f"'{name}' has other values"
    if example is None:
        return None
    try:
        fresh.to(next(model.parameters()).device)
        same = all(_answers_alike(model, fresh, call) for call in every_example(example))
    except Exception as error:  # of the fresh model's code on sizes that it was not written for
        return f"it fails: {str(error).partition(chr(10))[0]}"
    return None if same else "it answers otherwise"


def _answers_alike(model: nn.Module, fresh: nn.Module, call: Any) -> bool:
    answers = []
    for one in (model, fresh):
        args, kwargs = own_containers(map_tensors(Tensor.clone, call))
        with (
            without_trace(one, "a forward pass"),
            evaluating(one),
            torch.no_grad(),
            preserve_rng(),
        ):
            answers.append(tensors_of(one(*args, **kwargs)))
    pairs = list(zip(*answers, strict=False))
    return len(answers[0]) == len(answers[1]) and all(
        a.shape == b.shape and torch.allclose(a, b, 1e-3, _scale(a) * 1e-4, equal_nan=True)
        for a, b in pairs
    )


def _scale(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()] if tensor.is_floating_point() else tensor.new_zeros(0)
    return float(finite.abs().max()) if finite.numel() else math.ulp(1.0)
