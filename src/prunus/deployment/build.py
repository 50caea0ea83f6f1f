"""One model in one runtime: built, its answers compared with eager's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.inputs import called
from prunus._common.nested import tensors_of
from prunus._common.random_inputs import random_inputs
from prunus.deployment.manifest import manifest_of
from prunus.deployment.module import DeployedModule, Structure
from prunus.deployment.table import RuntimeResult
from prunus.errors import PrunusError, first_line
from prunus.runtimes import Answers, BuildRequest, Compute, Session, error, find
from prunus.runtimes._arguments import batched, calibration_of, variants
from prunus.runtimes.eager import computing

CHECKED = (1, 3)
"""Batch sizes at which answers are compared, beside the example's own."""
APART = 0.5
"""‖a − b‖ ÷ ‖b‖ from which on int8 answers are wrong, not just rounded: those in a wrong order are
off by about 1. The limit at other batch sizes, as one input alone may be twice as far off as many,
and everywhere where a metric judges: of a regression about zero much is rounding."""
IN_PARTS = (
    "it takes only the example's sizes, and outputs for others cannot be assembled from parts: "
    "the first dimension of every input and output must be the batch (batch_first=True)"
)

NO_ANSWER = (
    "the model returns no tensor, so no outputs can be compared with its own: let it return a "
    "tensor, not a number or an array"
)
FLAT = (
    "the model returns more than tensors and None: the artifact returns only the tensors, in order"
)


@dataclass(frozen=True)
class Built:
    """A row as far as it is known without a clock, and the artifact if it is good."""

    row: RuntimeResult
    served: DeployedModule | None = None


@dataclass(frozen=True)
class Baseline:
    """A dense model that is set beside others again and again, and is built once.

    Attributes:
        model: the same each time, as are example, batch sizes and threads.
        built: of it, by runtime.
    """

    model: nn.Module
    built: dict[str, Built] = field(default_factory=dict)


@dataclass(frozen=True)
class Builder:
    """Builds the same example for many models and runtimes.

    Attributes:
        example: an input, a tuple of inputs, or a mapping of keyword arguments.
        calibration: inputs like it.
        threads: of the processor.
        batches: sizes that will be timed.
        scratch: a folder for what is built.
        on_event: told what is done.
        judged: whether a metric judges the pruned model's artifacts.
        made: what runtimes made of the models, and others use.
        known: artifacts of the dense model that need not be built again.
        others: more inputs like the example; sizes in which they differ stay open.
    """

    example: Any
    calibration: Sequence[Any]
    threads: int
    batches: tuple[int, ...]
    scratch: Path
    on_event: Callable[[str], None]
    judged: bool = False
    made: dict[tuple[str, int], Any] = field(default_factory=dict)
    known: dict[str, Built] = field(default_factory=dict)
    others: Sequence[Any] = ()

    def build(self, name: str, kind: str, model: nn.Module) -> Built:
        """Build, open and compare; what goes wrong becomes the row's ``refused``."""
        if kind != "dense":
            return self._build(name, kind, model)
        if name not in self.known:
            self.known[name] = self._build(name, kind, model)
        return self.known[name]

    def _build(self, name: str, kind: str, model: nn.Module) -> Built:
        self.on_event(f"{name}, {kind}")
        began = time.perf_counter()
        place = self.scratch / kind / name
        place.mkdir(parents=True, exist_ok=True)
        runtime = find(name)
        order = BuildRequest(
            model, self.example, place, threads=self.threads, made=self.made, others=self.others,
            calibration=self.calibration, batch=self.batches,
        )  # fmt: skip
        exact = runtime.FACTS.exact
        most = APART if self.judged and not exact else runtime.FACTS.tolerance
        row = RuntimeResult(name, kind, tolerance=most, exact=exact)
        with torch.inference_mode():
            answers = called(order.model, order.call)
        refusal = NO_ANSWER if not tensors_of(answers) else runtime.refuses(order)
        refusal = refusal or _device(runtime, order)
        if refusal:
            return Built(replace(row, refused=refusal))
        try:
            session = _down_to_one(runtime.build(order), order, most=most if exact else APART)
            own, others = self._errors(session, order, how="max" if exact else "norm")
        except PrunusError as problem:
            return Built(replace(row, refused=str(problem)))
        except Exception as problem:  # an engine's own failure is a row of the table, not the end
            return Built(replace(row, refused=first_line(problem)))
        found = max(own, others) if exact else own
        row = replace(row, error=found, bytes=size(session.path), notes=session.notes,
                    build_s=round(time.perf_counter() - began, 2))  # fmt: skip
        wrong = _wrong(row, own, others, dynamic=session.dynamic)
        if wrong:
            return Built(replace(row, refused=wrong))
        structure = Structure.of(answers)
        if structure is None:
            row = replace(row, notes=(*row.notes, FLAT))
        return Built(row, DeployedModule(session, manifest_of(session, order, name), structure))

    def _errors(self, session: Session, order: BuildRequest, *, how: Any) -> tuple[float, float]:
        """The worst over the example, or the calibration; and over inputs of other batch sizes,
        and other inputs that were given."""
        right = computing(order.model, order.call)
        served = _served(session, order)
        calibration = calibration_of(order, session.sizes)[:4] if how == "norm" else []
        own = others = 0.0
        for given in calibration or [order.tensors]:
            inputs, expected = _answered(right, order, given)
            own = max(own, error(served.compute(inputs), expected, how=how))
        more = () if session.dynamic else (served.card.batch + 1,)  # in two parts
        for size in (*CHECKED, *more):
            inputs = _resized(order, calibration, size)
            try:
                expected = right(inputs)
            except Exception:  # of the model's code, which knows one batch size
                continue
            others = max(others, error(served.compute(inputs), expected, how=how))
        for inputs in variants(order)[1:]:
            others = max(others, error(served.compute(inputs), right(inputs), how=how))
        return own, others


def _wrong(row: RuntimeResult, own: float, others: float, *, dynamic: bool) -> str | None:
    """Why answers are not eager's, if they are not."""
    most = row.tolerance
    for found, limit in ((own, most), (others, most if row.exact else APART)):
        if not found <= limit:
            if own <= most and not dynamic:
                return IN_PARTS
            hint = "" if row.exact or limit >= APART else "; with evaluate= the metric judges"
            return (
                f"outputs differ from eager's by {found:.1e}; at most {limit:.0e} is allowed{hint}"
            )
    return None


def _served(session: Session, order: BuildRequest) -> DeployedModule:
    return DeployedModule(session, manifest_of(session, order, order.folder.name))


def _down_to_one(session: Session, order: BuildRequest, *, most: float) -> Session:
    """A session that takes open sizes of 1 as well, where its answers there are eager's: export
    never looks at them."""
    right = computing(order.model, order.call)
    items = {sizes[0] for sizes, own in zip(session.sizes.of, batched(order), strict=False) if own}
    places = session.sizes.places()
    lengths = ([symbol] for symbol in places if symbol not in items)
    for symbols in ([s for s in places if s in items], *lengths):  # the batch's change together
        dims = session.sizes.dims(*symbols)
        if not symbols or dims is None:
            continue
        inputs = [_narrowed(t, own) for t, own in zip(order.tensors, dims, strict=True)]
        more = replace(session, sizes=session.sizes.or_one(*symbols))
        try:
            off = error(_served(more, order).compute(inputs), right(inputs), how="norm")
        except Exception:  # of the model's code or the engine, which take no single step
            continue
        session = more if off <= most else session
    return session


def _narrowed(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    for d in dims:
        tensor = tensor.narrow(d, 0, 1)
    return tensor


def _answered(
    right: Compute, order: BuildRequest, inputs: list[Tensor]
) -> tuple[list[Tensor], Answers]:
    """Inputs and eager's answers; as many as the example has, if the model takes no others."""
    try:
        return inputs, right(inputs)
    except Exception:  # of the model's code, which knows one batch size
        batch = next((len(t) for t in order.tensors if t.dim()), 1)
        cut = _resized(order, [inputs], batch)
        return cut, right(cut)


def _resized(
    order: BuildRequest, calibration: Sequence[Sequence[Tensor]], batch: int
) -> list[Tensor]:
    """Inputs of another batch size: fresh ones, or calibration's rows repeated or cut."""
    like = tuple(calibration[0]) if calibration else order.example
    if not any(t.dim() for t in tensors_of(like)):
        return order.tensors
    if not calibration:
        return tensors_of(random_inputs(like, batch=batch))
    own = next(len(t) for t in like if t.dim())
    rows = torch.arange(batch) % own
    return [t[rows] if t.dim() and len(t) == own else t for t in like]


def size(path: Path | None) -> int | None:
    """Bytes of an artifact: of a folder, or of a file and those of its name beside it.

    ``model.xml`` has its weights in ``model.bin``, a large ``model.onnx`` in ``model.onnx.data``.
    """
    if path is None:
        return None
    inside = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.stem}.*")
    return sum(p.stat().st_size for p in inside if p.is_file())


def _device(runtime: Any, order: BuildRequest) -> str | None:
    kinds = {t.device.type for t in (*order.model.parameters(), *order.tensors)}
    own = runtime.FACTS.devices
    odd = sorted(kinds - set(own))
    return f"it runs on {' or '.join(own)}; the model or its input is on {odd[0]}" if odd else None
