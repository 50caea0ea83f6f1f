"""Whether a resumed run goes on with the data and the optimizer that it was stopped with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus._common.distributed import rank
from prunus.errors import InputError
from prunus.pruning.optimizers import AnyOptimizer, class_of


@dataclass
class Continuity:
    """What a run saw of the user's side: saved with it, and compared when it goes on.

    Attributes:
        seen: plain values: the newest epoch's first batch, and optimizers as they were made.
        before: the same of the process that was stopped; each part is compared once.
        note: is told what differs.
    """

    seen: dict[str, Any]
    before: dict[str, Any] = field(default_factory=dict)
    note: Callable[[str], None] = lambda text: None

    def optimizer(self, made: AnyOptimizer, phase: str, saved: Mapping[str, Any] | None) -> bool:
        """Compare one as it was made; whether it can go on with the state of the one before.

        Args:
            made: the optimizer.
            phase: dense or retrain, which may differ.
            saved: its state dict, where it is to go on in the middle of a phase.

        Raises:
            InputError: if that state is another kind's.
        """
        own, key = describe(made), f"optimizer_{phase}"
        last, earlier, before = self.seen.get("last"), self.seen.get(key), self.before.pop(key, {})
        if saved is not None:
            _refuse_other(made, last, saved)
        found = differences(before, own) if before else []
        if found and rank() == 0:
            self.note(
                f"the optimizer is another one than before the stop ({'; '.join(found)}): the run "
                "does not end as it would have without it"
            )
        self.seen[key] = _common(earlier, own) if earlier else own
        self.seen["last"] = own["class"]
        return last in (None, own["class"])

    def first_batch(self, epoch: int, batch: Any, batches: int | None) -> None:
        """Keep the first batch of an epoch, and compare it with what it was."""
        own = {"epoch": epoch, "digest": batch_digest(batch), "batches": batches}
        before = self.before.get("batch")
        if before is not None and before["epoch"] == epoch:
            del self.before["batch"]
            if before != own and rank() == 0:
                self.note(
                    "the training data are others than before the stop, or the loader keeps state "
                    "that is not saved (give it a generator, or a set_epoch): the first batch of "
                    f"epoch {epoch} differs, so the run does not end as it would have without it"
                )
        self.seen["batch"] = own

    @property
    def due(self) -> int | None:
        """The epoch whose first batch can still be compared."""
        before = self.before.get("batch")
        return None if before is None else int(before["epoch"])


def _refuse_other(made: AnyOptimizer, kind: str | None, saved: Mapping[str, Any]) -> None:
    name = class_of(made)
    sizes = [
        [len(group["params"]) for group in groups]
        for groups in (saved["param_groups"], made.param_groups)
    ]
    if kind not in (None, name) or sizes[0] != sizes[1]:
        raise InputError(
            f"the run was stopped in the middle of a training by {kind or name} with parameters "
            f"in groups of {sizes[0]}, and {name} with {sizes[1]} cannot go on from there: attach "
            "the optimizer that it had, or begin a run in another folder"
        )


def describe(optimizer: AnyOptimizer) -> dict[str, Any]:
    """Class and groups of an optimizer, as plain values.

    >>> describe(torch.optim.SGD([torch.ones(2)], lr=0.5))["groups"][0]["lr"]
    0.5
    """
    groups = []
    for group in optimizer.param_groups:
        shapes = [list(p.shape) for p in group["params"]]
        options = {k: _plain(v) for k, v in group.items() if k not in ("params", "initial_lr")}
        options["lr"] = _plain(group.get("initial_lr", group.get("lr")))
        groups.append({"parameters": len(shapes), **options})
    return {"class": class_of(optimizer), "groups": groups}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else list(value.shape)
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else type(value).__name__


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two descriptions, in words; options that one lacks do not count.

    >>> one, other = (describe(torch.optim.SGD([torch.ones(2)], lr=lr)) for lr in (0.1, 0.2))
    >>> differences(one, other)
    ['lr 0.1 -> 0.2']
    """
    if before["class"] != now["class"]:
        return [f"{before['class']} -> {now['class']}"]
    pairs = list(zip(before["groups"], now["groups"], strict=False))
    found = [
        f"{key} {one[key]} -> {other[key]}"
        for one, other in pairs
        for key in one
        if key in other and one[key] != other[key]
    ]
    if len(before["groups"]) != len(now["groups"]):
        found.append(f"groups {len(before['groups'])} -> {len(now['groups'])}")
    return list(dict.fromkeys(found))


def _common(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What two have in common: a loop may lower its rate from round to round."""
    if one["class"] != other["class"] or len(one["groups"]) != len(other["groups"]):
        return dict(other)
    pairs = zip(one["groups"], other["groups"], strict=True)
    groups = [{k: v for k, v in a.items() if k in b and b[k] == v} for a, b in pairs]
    return {"class": one["class"], "groups": groups}


def batch_digest(batch: Any) -> str:
    """Of the values of a batch: tensors, arrays, numbers and texts, however they are nested.

    >>> one, other = {"x": torch.ones(2), "name": "a"}, {"x": torch.zeros(2), "name": "a"}
    >>> batch_digest(one) == batch_digest(dict(one)), batch_digest(one) == batch_digest(other)
    (True, False)
    """
    digest = hashlib.blake2b(digest_size=16)
    _take_in(digest.update, batch, frozenset())
    return digest.hexdigest()


def _take_in(update: Callable[[bytes], None], value: Any, outer: frozenset[int]) -> None:
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
        update(f"{value.dtype}{tuple(value.shape)}".encode())
        plain = value.detach().to("cpu").contiguous().flatten()
        update(plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, (str, bytes, int, float, complex, type(None))):
        update(f"{type(value).__name__}{value!r};".encode())
    elif id(value) not in outer and len(outer) < 20:
        update(type(value).__name__.encode())
        for part in _parts(value):
            _take_in(update, part, outer | {id(value)})


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, (list, tuple)):
        return value
    own = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
    return [part for pair in own.items() for part in pair] if isinstance(own, Mapping) else ()
