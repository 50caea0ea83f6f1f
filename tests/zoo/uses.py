"""What users do with a model beside the one call that was traced.

The smaller model is compared with the original, in float64, whose parameters were multiplied by
the masks of the result: nothing of the gate in ``compaction/verifying`` takes part.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

import prunus
from zoo.arguments import arguments_of
from zoo.entry import Entry
from zoo.inputs import Call, arranged, batched, calling, reflected, sizes_of, tensors_in
from zoo.steady import Steady, lively, outcome_of

HALF = {"structure": "channel", "allocation": "uniform", "target": 0.5}


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
        *(Use(name, calling(inputs)) for name, inputs in sizes_of(other)),
        *(Use(name, calling(inputs)) for name, inputs in entry.calls().items()),
        *(
            Use(name, call, training=mode, gradient=mode)
            for name, call, mode in arguments_of(model, example)
        ),
        Use("saved and loaded", calling(other), then=_saved),
        Use("saved and loaded, three items", calling(batched(other, 3)), then=_saved),
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

    if use.then is _onnx:  # ONNX has no complex numbers: pairs come out
        expected = [torch.view_as_real(t) if t.is_complex() else t for t in expected]

    def made() -> list[Tensor]:
        return run(use.then(small, folder) if use.then else small.model)

    kind, detail = outcome_of(expected, made, 1e-5 if wide else 2e-3)
    if use.then is _onnx and kind == "crash":
        try:
            run(_exported(small.masked, small.entry.example(), folder))
        except Exception as error:  # of exporter or runtime: the original cannot go there either
            return Outcome("skipped", f"{type(error).__name__}: {error}"[:200])
    return Outcome(kind, detail)


def _fresh(tensor: Tensor, *, wide: bool) -> Tensor:
    if wide and tensor.is_floating_point():
        return tensor.double()
    return tensor.to(torch.complex128) if wide and tensor.is_complex() else tensor.clone()


def gradients(inputs: Any) -> Call:
    """What training would follow: the sum of squares of the answers, and how the inputs and the
    one-dimensional output weigh in it."""

    def call(model: Any, typed: Any) -> Any:
        given = typed(inputs)
        floats = [t for t in tensors_in(given) if t.is_floating_point()]
        for tensor in floats:
            tensor.requires_grad_()
        args, kwargs = arranged(given)
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

    args, kwargs = arranged(example)
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
