"""How fast a dense and a smaller model are side by side, in PyTorch and in the runtimes here."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn import functional

from prunus._common import numbers
from prunus._common.environment import describe
from prunus._common.files import write_json
from prunus._common.nested import tensors_of, with_tensors
from prunus._common.rng import preserve_rng
from prunus._common.tables import Table
from prunus._common.timing import Timing, interleaved, no_denormals, threads
from prunus.blocks.folder import REPORT, skeleton
from prunus.blocks.judge import targets_of
from prunus.blocks.opening import free_memory, opened
from prunus.blocks.serving import Work, first_of, reading, writing
from prunus.deployment.build import Builder, Built
from prunus.deployment.deploy import candidates
from prunus.errors import InputError
from prunus.measurement.memory import memory
from prunus.runtimes import find

AUTO, INT8 = "auto", "int8"
READ, WRITE = "read", "write"
"""A text at once; one token after it."""
COPIES = 3
"""Of both models' weights in memory: themselves, and artifacts of two runtimes at least."""
FEW = 4
"""Texts of which ranges for int8 are found."""


@dataclass(frozen=True)
class Pace:
    """One model in one runtime.

    Attributes:
        work: ``read`` a text at once, or ``write`` one token after it.
        runtime: its name.
        model: ``dense`` or ``pruned``.
        per_second: tokens; ``None``: it does not run there.
        error: of its answers, beside PyTorch's.
        exact: whether it keeps the precision.
        bytes: of the artifact.
        loss: of the artifact on held-out text, in nats a token, where it is in int8.
        refused: why it does not run there.
    """

    work: str
    runtime: str
    model: str
    per_second: float | None
    error: float | None
    exact: bool
    bytes: int | None
    loss: float | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Speed:
    """Both models in all runtimes.

    Attributes:
        paces: of each.
        length: of the text, in tokens.
        peak_bytes: of each model while it reads the text in PyTorch, its weights among them.
        threads: of the processor.
        machine: measured on it.
        busy: whether something else used it.
    """

    paces: list[Pace]
    length: int
    peak_bytes: Mapping[str, int]
    threads: int
    machine: str
    busy: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "paces": [asdict(one) for one in self.paces]}

    def table(self) -> Table:
        """Tokens a second: a row for each work and runtime."""
        rows = []
        for one in self.paces:
            if one.model != "pruned" or one.per_second is None:
                continue
            dense = self._dense(one)
            times = one.per_second / dense.per_second if dense and dense.per_second else None
            rows.append((
                one.runtime, f"reads {self.length:,} tokens" if one.work == READ else "writes one",
                numbers.digits(dense.per_second if dense else None), numbers.digits(one.per_second),
                numbers.digits(times), numbers.size(dense.bytes if dense else None),
                numbers.size(one.bytes), _quality(dense), _quality(one),
            ))  # fmt: skip
        return Table(("runtime", "", "dense, tokens/s", "smaller", "times", "dense", "smaller",
                      "dense loss", "smaller"), rows, left=(0, 1))  # fmt: skip

    def notes(self) -> list[str]:
        """What the table does not show."""
        peaks = [numbers.size(self.peak_bytes[name]) for name in ("dense", "pruned")]
        refused: dict[str, None] = {}
        for one in self.paces:
            if one.refused is not None:
                work = "reading" if one.work == READ else "writing"
                refused[f"not taken: {one.runtime}, {work} ({one.model}): {one.refused}"] = None
        return [
            f"peak memory while reading in PyTorch: {peaks[0]} -> {peaks[1]}, weights included",
            f"measured on {self.machine}, threads: {self.threads}; losses are of the artifacts",
            *refused,
            *(["the machine was busy: measure again when it is idle"] if self.busy else []),
        ]

    def _dense(self, of: Pace) -> Pace | None:
        key = (of.work, of.runtime, "dense")
        return next((p for p in self.paces if (p.work, p.runtime, p.model) == key), None)


def _quality(pace: Pace | None) -> str:
    return numbers.NONE if pace is None or pace.loss is None else f"{pace.loss:.4f}"


def runtimes_of(said: str) -> list[str]:
    """The runtimes that ``auto``, ``int8`` (those that quantize as well) or names mean.

    Raises:
        InputError: for one that is unknown or not installed.

    >>> runtimes_of("eager")
    ['eager']
    """
    if said in (AUTO, INT8):
        return candidates("auto", quantized=said == INT8)[0]
    return candidates([name.strip() for name in said.split(",")], quantized=True)[0]


def room_for(folder: Path) -> None:
    """See that both models fit into memory side by side.

    Raises:
        InputError: if they do not.
    """
    needed = 2 * COPIES * 4 * sum(p.numel() for p in skeleton(folder).parameters())
    free = free_memory()
    if free is not None and needed > free:
        raise InputError(
            f"speed: both models and what runtimes make of them need {needed / 1e9:.1f} GB of "
            f"memory, and {free / 1e9:.1f} GB are free: leave it out, or measure on a larger "
            "machine by the same command, which finds the result"
        )


def speed_of(
    folder: Path,
    out: Path,
    texts: tuple[Sequence[Any], Sequence[Any]],
    *,
    runtimes: Sequence[str],
    seconds: float = 1.0,
    on_event: Callable[[str], None] = lambda text: None,
) -> Speed:
    """Both models in each runtime: reading a text at once, and writing one token after it.

    Args:
        folder: the dense model's.
        out: what was made of it; the result is noted in its ``pruned.json``.
        texts: batches that choose, of which runtimes that quantize find their ranges, and others
            that judge them. The first item of the first one is the text.
        runtimes: names.
        seconds: of timing, for each artifact.
        on_event: told what is done.

    Raises:
        InputError: if no runtime runs the models.
    """
    chosen, held = texts
    paces: list[Pace] = []
    busy = False
    with ExitStack() as stack:
        count = stack.enter_context(threads(None))
        for context in (no_denormals(), preserve_rng()):
            stack.enter_context(context)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prunus-")))
        models = {"dense": opened(folder), "pruned": opened(out)}
        bench = _Bench(models, list(chosen[:FEW]), count, scratch, on_event)
        losses = bench.losses([n for n in runtimes if not find(n).FACTS.exact], held)
        for kind in (READ, WRITE):
            found, timings = bench.timed(kind, runtimes, seconds)
            busy = busy or any(t.busy for t in timings.values())
            paces += [_pace(kind, b, timings.get(key), bench.tokens(kind), losses.get(key))
                      for key, b in found.items()]  # fmt: skip
        peaks = {name: memory(m, ((), reading(m, chosen[0]).example)).peak_bytes
                 for name, m in models.items()}  # fmt: skip
    if not any(pace.per_second for pace in paces):
        why = next((p.refused for p in paces if p.refused), "it takes no text")
        raise InputError(f"speed: no runtime runs the model: {why}")
    speed = Speed(paces, bench.tokens(READ), peaks, count, describe()["processor"], busy)
    said = json.loads((out / REPORT).read_text(encoding="utf-8"))
    write_json(out / REPORT, {**said, "speed": speed.to_dict()})
    return speed


Key = tuple[str, str]
"""A runtime, and ``dense`` or ``pruned``."""


class _Bench:
    """Builds both models, each for its own example: a smaller one keeps a smaller cache."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        texts: Sequence[Any],
        count: int,
        scratch: Path,
        on_event: Callable[[str], None],
    ) -> None:
        self.models, self.texts, self.threads = models, texts, count
        self.scratch, self.on_event = scratch, on_event

    def tokens(self, kind: str) -> int:
        """What one call reads."""
        return 1 if kind == WRITE else reading(self.models["dense"], self.texts[0]).tokens

    def timed(
        self, kind: str, runtimes: Sequence[str], seconds: float
    ) -> tuple[dict[Key, Built], dict[Key, Timing]]:
        """All artifacts of one kind of work, and how long each takes, in turns."""
        built, calls = {}, {}
        for name, model in self.models.items():
            works = [work for text in self.texts if (work := _work(kind, model, text)) is not None]
            if works:
                for runtime, one in self._built(name, works, runtimes, kind).items():
                    built[runtime, name] = one
                    if one.served is not None:
                        inputs = tensors_of(works[0].example)
                        calls[runtime, name] = partial(one.served.compute, inputs)
        keys = {f"{runtime} {name}": (runtime, name) for runtime, name in calls}
        functions = {text: calls[key] for text, key in keys.items()}
        self.on_event(f"timing: {kind}")
        found = interleaved(functions, seconds=seconds) if functions else {}
        return built, {keys[text]: timing for text, timing in found.items()}

    def losses(self, runtimes: Sequence[str], held: Sequence[Any]) -> dict[Key, float]:
        """The loss on held-out text of artifacts that quantize."""
        found = {}
        for name, model in self.models.items() if runtimes and held else ():
            works = [reading(model, text, last=False) for text in self.texts]
            for runtime, one in self._built(name, works, runtimes, "judge").items():
                loss = None if one.served is None else _loss(one.served, works[0].example, held)
                if loss is not None:
                    found[runtime, name] = loss
        return found

    def _built(
        self, name: str, works: Sequence[Work], runtimes: Sequence[str], kind: str
    ) -> dict[str, Built]:
        place = self.scratch / kind
        calibration = [work.example for work in works]
        builder = Builder(
            works[0].example, calibration, self.threads, (1,), place, self.on_event, judged=True
        )
        return {runtime: builder.build(runtime, name, works[0].model) for runtime in runtimes}


def _work(kind: str, model: nn.Module, text: Any) -> Work | None:
    return reading(model, text) if kind == READ else writing(model, text)


def _loss(served: nn.Module, example: Mapping[str, Any], held: Sequence[Any]) -> float | None:
    """The mean −ln p of the tokens of all windows that are as long as the example."""
    total, count = 0.0, 0
    for row in _rows(held):
        known = targets_of(row)
        if known is None or any(example[n].shape != t.shape for n, t in row.items()):
            continue
        logits = tensors_of(served(**{**example, **row}))[0]
        if logits.shape[:2] != (1, known[0].shape[1] + 1):
            return None
        losses = functional.cross_entropy(
            logits[0, :-1].float(), known[0][0], reduction="none"
        )[known[1][0]]  # fmt: skip
        total, count = total + float(losses.double().sum()), count + losses.numel()
    return total / count if count else None


def _rows(held: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for batch in held:
        for parts in zip(*(t.split(1) for t in tensors_of(batch)), strict=True):
            yield first_of(with_tensors(batch, parts))


def _pace(kind: str, built: Built, timing: Timing | None, tokens: int, loss: float | None) -> Pace:
    row = built.row
    speed = None if timing is None else 1e3 * max(1, tokens) / timing.median_ms
    return Pace(kind, row.runtime, row.model, speed, row.error, row.exact, row.bytes,
                loss if kind == READ else None, row.refused)  # fmt: skip
