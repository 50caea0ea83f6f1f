"""What users do with a model beside the one call that was traced.

The smaller model is compared with the original, in float64, whose parameters were multiplied by
the masks of the result: nothing of the gate in ``compaction/verifying`` takes part.
"""

from __future__ import annotations

import copy
import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

import prunus
from zoo.entry import Entry
from zoo.steady import Steady, lively, outcome_of

HALF = {"structure": "channel", "allocation": "uniform", "target": 0.5}

Call = Callable[[Any, Any], Any]
"""What is asked of a model; the second argument turns float inputs into the model's type."""


@dataclass(frozen=True)
class Use:
    """One way to use a model.

    Attributes:
        name: unique for an entry.
        call: what is asked of the model.
        training: in train mode.
        gradient: with autograd on.
        then: what is done to the smaller model first (saved and loaded, exported), in a folder.
        wide: whether it may run in float64.
    """

    name: str
    call: Call
    training: bool = False
    gradient: bool = False
    then: Callable[[Small, Path], Any] | None = None
    wide: bool = True


@dataclass(frozen=True)
class Small:
    """An entry's model with half of its units masked, and what prunus made of it.

    Attributes:
        entry: whose model.
        masked: the original with its masks multiplied in.
        model: the smaller one.
        route: by which it was found.
        attributes: numbers that its modules keep and that changed.
    """

    entry: Entry
    masked: nn.Module
    model: nn.Module
    route: str
    attributes: Sequence[Any] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a use.

    Attributes:
        kind: ``equal``, ``refused`` (an ``InputError`` that says what is not taken), ``skipped``
            (the original cannot do it either), ``wrong`` or ``crash``.
        detail: the message, or the difference.
    """

    kind: str
    detail: str = ""

    @property
    def fine(self) -> bool:
        """No wrong answer, and no error that was not meant."""
        return self.kind in ("equal", "refused", "skipped")


def model_of(entry: Entry) -> nn.Module:
    """The entry's model as it would be after training: nothing is zero or one, and no dropout."""
    return lively(entry.build().eval())


def made_smaller(entry: Entry) -> Small:
    """Half of the units go, by the calls that a user makes.

    Raises:
        prunus.PrunusError: if prunus refuses.
    """
    dense, example = model_of(entry), entry.example()
    result: Any = prunus.prune(copy.deepcopy(dense), HALF, example=example)
    found = prunus.compact(dense, result.masks, example)
    masked = multiplied(dense, result.masks)
    return Small(entry, masked, found.model, found.route, found.attributes)


def multiplied(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """A copy whose parameters were multiplied by their masks."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])
    return model


def uses_of(entry: Entry, model: nn.Module) -> list[Use]:
    """Every use of an entry; what its original cannot do is told when it is tried."""
    example = entry.example()
    other = reflected(example)
    return [
        Use("the example", calling(example), gradient=True),
        Use("other values", calling(other), gradient=True),
        Use("no_grad", calling(other)),
        Use("train mode", calling(other), training=True, gradient=True),
        Use("gradients", gradients(other), training=True, gradient=True),
        Use("eval after a step of train mode", _after_training(example), training=True),
        *(Use(name, calling(inputs)) for name, inputs in _sizes(other)),
        *(Use(name, calling(inputs)) for name, inputs in entry.calls().items()),
        *_arguments(model, example),
        Use("saved and loaded", calling(other), then=_saved),
        Use("saved and loaded, three items", calling(_batch(other, 3)), then=_saved),
        Use("onnx", calling(example), then=_onnx, wide=False),
    ]


def chosen(entry: Entry, uses: list[Use]) -> list[Use]:
    """A fixed third of the uses, the same in every run."""
    return [u for u in uses if zlib.crc32(f"{entry.name}/{u.name}".encode()) % 3 == 0]


def tried(small: Small, use: Use, folder: Path) -> Outcome:
    """The use on the masked model and on the smaller one."""
    wide = use.wide
    found = _compared(small, use, folder, wide=wide)
    if wide and not found.fine and small.route in ("graph", "modules"):
        # a graph holds the types of its example, and is not made for others
        found = _compared(small, use, folder, wide=False)
    if wide and found.kind == "skipped":
        found = _compared(small, use, folder, wide=False)
    return found


def _compared(small: Small, use: Use, folder: Path, *, wide: bool) -> Outcome:
    def typed(value: Any) -> Any:
        return _pytree.tree_map_only(Tensor, lambda t: _fresh(t, wide=wide), value)

    def run(model: Any) -> list[Tensor]:
        if isinstance(model, nn.Module):
            model = copy.deepcopy(model)
            model = (model.double() if wide else model).train(use.training)
        torch.manual_seed(0)
        with torch.set_grad_enabled(use.gradient), Steady(on=use.training):
            return [t.detach() for t in tensors_in(use.call(model, typed))]

    try:
        expected = run(small.masked)
    except Exception as error:  # of the model's own code, on inputs that it was not made for
        return Outcome("skipped", f"{type(error).__name__}: {error}"[:200])
    if not expected:
        return Outcome("skipped", "no answer")

    def made() -> list[Tensor]:
        return run(use.then(small, folder) if use.then else small.model)

    kind, detail = outcome_of(expected, made, 1e-5 if wide else 2e-3)
    if use.then is _onnx and kind == "crash":
        try:
            _exported(small.masked, small.entry.example(), folder)
        except Exception as error:  # of the exporter: the original cannot go there either
            return Outcome("skipped", f"{type(error).__name__}: {error}"[:200])
    return Outcome(kind, detail)


def _fresh(tensor: Tensor, *, wide: bool) -> Tensor:
    if wide and tensor.is_floating_point():
        return tensor.double()
    return tensor.to(torch.complex128) if wide and tensor.is_complex() else tensor.clone()


def tensors_in(answer: Any) -> list[Tensor]:
    """The tensors of an answer of any form, in order; caches are no answers."""
    if isinstance(answer, Tensor):
        return [answer]
    if isinstance(answer, dict):
        return [t for k, v in answer.items() if k not in _CACHES for t in tensors_in(v)]
    if isinstance(answer, (list, tuple)):
        return [t for v in answer for t in tensors_in(v)]
    if hasattr(answer, "__dataclass_fields__"):
        return tensors_in(vars(answer))
    return []


_CACHES = ("past_key_values", "cache_params", "state", "attentions", "cross_attentions")


def calling(inputs: Any) -> Call:
    """Call the model with an input, a tuple of inputs, or keyword arguments."""

    def call(model: Any, typed: Any) -> Any:
        args, kwargs = _arranged(typed(inputs))
        return model(*args, **kwargs)

    return call


def _arranged(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def gradients(inputs: Any) -> Call:
    """What training would follow: the sum of squares of the answers, and how the inputs and the
    one-dimensional output weigh in it."""

    def call(model: Any, typed: Any) -> Any:
        given = typed(inputs)
        floats = [t for t in tensors_in(given) if t.is_floating_point()]
        for tensor in floats:
            tensor.requires_grad_()
        args, kwargs = _arranged(given)
        answers = [t for t in tensors_in(model(*args, **kwargs)) if t.requires_grad]
        loss = sum((t.abs() ** 2).mean() for t in answers)
        loss.backward()
        return [loss, *(t.grad for t in floats if t.grad is not None)]

    return call


def _after_training(inputs: Any) -> Call:
    """Statistics that training gathers are the masked model's, where they still exist."""

    def call(model: Any, typed: Any) -> Any:
        calling(inputs)(model, typed)
        model.eval()
        return calling(inputs)(model, typed)

    return call


# Inputs


def reflected(inputs: Any) -> Any:
    """Other values of the same kind: numbers of other sizes and signs, other ones of the ids."""

    def one(tensor: Tensor) -> Tensor:
        if tensor.dtype is torch.bool or (not tensor.is_floating_point() and _is_mask(tensor)):
            return tensor
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.flip(-1) * 0.8 if tensor.dim() else tensor * 0.8
        return tensor.max() + tensor.min() - tensor

    return _pytree.tree_map_only(Tensor, one, inputs)


def _is_mask(tensor: Tensor) -> bool:
    return bool(((tensor == 0) | (tensor == 1)).all())


def _batch(inputs: Any, size: int) -> Any:
    """Examples hold two items, wherever that dimension stands; what has none stays."""

    def one(tensor: Tensor) -> Tensor:
        if 2 not in tensor.shape:
            return tensor
        where = list(tensor.shape).index(2)
        return tensor.index_select(where, torch.arange(size) % 2)

    return _pytree.tree_map_only(Tensor, one, inputs)


def _sizes(inputs: Any) -> Iterator[tuple[str, Any]]:
    """Other batches, lengths and pictures."""
    yield "one item", _batch(inputs, 1)
    yield "three items", _batch(inputs, 3)
    found = {s for t in tensors_in(inputs) for s in t.shape if s > 2}
    for size in sorted(found, reverse=True)[:4]:
        for new in (size + 1, size - 2, 2 * size, size // 2):
            if new > 0 and new != 2:
                yield f"{size} becomes {new}", _stretched(inputs, {size: new})
    pictures = {t.shape[-2:] for t in tensors_in(inputs) if t.dim() >= 4}
    for high, wide in sorted(pictures)[:1]:
        yield "a larger picture", _stretched(inputs, {high: 2 * high, wide: 2 * wide})


def _stretched(inputs: Any, sizes: dict[int, int]) -> Any:
    """Every dimension of these sizes, but a first one of two, cut or repeated from the start."""

    def one(tensor: Tensor) -> Tensor:
        for d, size in enumerate(tensor.shape):
            if size in sizes:
                tensor = tensor.index_select(d, torch.arange(sizes[size]) % size)
        return tensor

    return _pytree.tree_map_only(Tensor, one, inputs)


# Arguments that the models of transformers take


def _arguments(model: nn.Module, example: Any) -> Iterator[Use]:
    takes = inspect.signature(model.forward).parameters
    ids = example.get("input_ids") if isinstance(example, dict) else None
    if not isinstance(ids, Tensor):
        return
    base = {k: v for k, v in reflected(example).items() if k != "attention_mask"}
    if "attention_mask" in takes:
        for side in ("left", "right", "no"):
            mask = torch.ones_like(ids)
            if side != "no":
                mask[0, slice(0, 3) if side == "left" else slice(-3, None)] = 0
            padded = {**base, "attention_mask": mask}
            yield Use(f"{side} padding", calling(padded))
            yield Use(f"{side} padding, train mode", calling(padded), training=True, gradient=True)
    if "return_dict" in takes or "kwargs" in takes:
        yield Use("return_dict=False", calling({**base, "return_dict": False}))
    if "labels" in takes:
        yield Use("labels", _labelled(base), training=True, gradient=True)
    if "inputs_embeds" in takes:
        yield Use("embeddings for ids", _embedded(base))
    if "use_cache" in takes:
        yield Use("use_cache=True", calling({**base, "use_cache": True}))
        yield Use("use_cache=False", calling({**base, "use_cache": False}))
    if "position_ids" in takes:
        places = torch.arange(ids.shape[1]).expand_as(ids) + 2
        yield Use("position_ids", calling({**base, "position_ids": places}))
    if "past_key_values" in takes and "decoder_input_ids" not in takes:
        yield Use("a cache, token by token", _step_by_step(base["input_ids"]))
    if hasattr(model, "generate") and getattr(model, "can_generate", bool)():
        for cache in (True, False):
            for padded in (True, False):
                how = ("with" if cache else "without") + " a cache" + ", padded" * padded
                yield Use(f"generate {how}", _generated(base, cache=cache, padded=padded))


def _labelled(base: dict[str, Any]) -> Call:
    def call(model: Any, typed: Any) -> Any:
        labels = base["input_ids" if "decoder_input_ids" not in base else "decoder_input_ids"]
        return model(**typed(base), labels=labels.clone())

    return call


def _embedded(base: dict[str, Any]) -> Call:
    def call(model: Any, typed: Any) -> Any:
        rest = {k: v for k, v in base.items() if k != "input_ids"}
        return model(inputs_embeds=model.get_input_embeddings()(base["input_ids"]), **typed(rest))

    return call


def _step_by_step(ids: Tensor) -> Call:
    def call(model: Any, typed: Any) -> Any:
        first = model(input_ids=ids[:, :-2], use_cache=True)
        second = model(input_ids=ids[:, -2:], past_key_values=first.past_key_values, use_cache=True)
        return [first[0], second[0]]

    return call


def _generated(base: dict[str, Any], *, cache: bool, padded: bool) -> Call:
    def call(model: Any, typed: Any) -> Any:
        given = {k: v for k, v in typed(base).items() if not k.startswith("decoder_")}
        if padded:
            given["attention_mask"] = torch.ones_like(given["input_ids"])
            given["attention_mask"][0, :3] = 0
        found = model.generate(
            **given,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            num_beams=1,
            use_cache=cache,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return [found.sequences, *found.logits]

    return call


# What is done to the smaller model first


def _saved(small: Small, folder: Path) -> nn.Module:
    file = prunus.save(small.model, folder / "small.safetensors", small.attributes)
    if small.route == "graph":
        return prunus.load(file)
    return prunus.load(file, model=small.entry.build())


def _onnx(small: Small, folder: Path) -> Any:
    return _exported(small.model, small.entry.example(), folder)


def _exported(model: nn.Module, example: Any, folder: Path) -> Any:
    """The model as ONNX Runtime runs it."""
    import onnxruntime

    args, kwargs = _arranged(example)
    path = str(folder / "model.onnx")
    model = copy.deepcopy(model).eval()
    torch.onnx.export(model, args, path, kwargs=kwargs, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def run(*args: Any, **kwargs: Any) -> list[Tensor]:
        given = [v for v in tensors_in((args, kwargs)) if isinstance(v, Tensor)]
        names = [i.name for i in session.get_inputs()]
        feed = {n: t.numpy() for n, t in zip(names, given, strict=True)}
        return [torch.from_numpy(a) for a in session.run(None, feed)]

    return run
