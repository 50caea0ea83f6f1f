"""The call: a model in, the fastest artifact that keeps its answers out."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from prunus._common import rng as randomness
from prunus._common.environment import describe
from prunus._common.given import given_batches, given_example, given_hooks, given_model
from prunus._common.inputs import arguments, by_name, positional_names
from prunus._common.kinds import given_number, given_path, given_sizes
from prunus._common.metrics import Metric
from prunus._common.modules import evaluation_copy
from prunus._common.nested import leaves_of, tensors_of
from prunus._common.packages import pip_line
from prunus._common.random_inputs import random_inputs
from prunus._common.timing import no_denormals
from prunus._common.timing import threads as fixed_threads
from prunus._common.traces import without_trace
from prunus.deployment.advice import advice
from prunus.deployment.build import Baseline, Builder, Built
from prunus.deployment.judge import Judge, measured, timed
from prunus.deployment.manifest import text_of
from prunus.deployment.store import keep, prepare
from prunus.deployment.table import Deployment, faster_dense, takeable
from prunus.errors import InputError, did_you_mean
from prunus.measurement.checks import problem_of
from prunus.methods import catalog
from prunus.runtimes import BuildRequest, find, missing


def deploy(
    model: nn.Module,
    *,
    example: Any,
    runtime: str | Sequence[str] = "auto",
    compare_with: Sequence[str] = (),
    quantize: Literal["auto", "none", "int8"] = "auto",
    folder: str | Path | None = None,
    baseline: nn.Module | Baseline | None = None,
    evaluate: Metric | None = None,
    better: Literal["higher", "lower"] = "higher",
    calibration: Sequence[Any] = (),
    max_drop: float = 0.01,
    batch_sizes: Sequence[int] = (1, 16),
    threads: int = 1,
    seconds: float = 1.0,
    on_event: Callable[[str], None] = lambda text: None,
) -> Deployment:
    """Build a model for a runtime, compare its answers with eager's, time it, keep it.

    It works on copies that share the parameters: the model, its mode, its gradients, the random
    state and torch's threads are left as they are.

    Args:
        model: pruned, compact or not.
        example: an input, a tuple of inputs, or a mapping of keyword arguments; several of them
            in a list where sizes beside the batch's change, such as the lengths of texts: those
            in which they, or the inputs of ``calibration``, differ are kept open, and an artifact
            that does not answer all examples like the model is not taken. The first is timed.
        runtime: the name of one, names of several, or ``auto``: all that are installed.
        compare_with: more runtimes, built and timed for comparison; one of them is taken only if
            none of the others keeps the answers.
        quantize: ``none``: only runtimes that keep the model's precision; ``int8``: only those
            that quantize; ``auto``: those that quantize as well where they are named, or where
            ``evaluate`` and ``calibration`` are given.
        folder: where the artifact is kept, in a folder of the runtime's name. Without one nothing
            is kept.
        baseline: the dense model, built and timed in the same runtimes and the same run.
        evaluate: ``evaluate(model) -> float``; called with the model and with every artifact of
            it, an ``nn.Module`` without parameters that is called in the same way.
        better: whether a ``higher`` or a ``lower`` metric is the better one.
        calibration: inputs like the example, for runtimes that quantize.
        max_drop: of the metric; a quantized artifact that loses more is not taken.
        batch_sizes: to time; the first decides which is the fastest.
        threads: of the processor.
        seconds: of timing, for every artifact at every batch size.
        on_event: called with a line of text as it goes.

    Returns:
        A :class:`Deployment`: the table, and the fastest artifact that keeps the answers, opened.

    Raises:
        InputError: for an example that does not fit, or a named runtime that is missing or
            refuses the model, before anything is built; or if no runtime keeps the answers.
        RunError: if the disk refuses the artifact; one that was there before is kept.

    A runtime that skips zeros is never handed over where it is slower than the model in a dense
    engine by more than 3 %: where it alone was named, that engine's artifact is.

    >>> import torch
    >>> made = deploy(nn.Linear(4, 2), example=torch.randn(2, 4), runtime="eager", seconds=0.01)
    >>> made.runtime, made.model(torch.randn(5, 4)).shape
    ('eager', torch.Size([5, 2]))
    """
    given_hooks(evaluate=evaluate, on_event=on_event)
    folder = None if folder is None else given_path(folder, "folder")
    known = baseline.built if isinstance(baseline, Baseline) else {}
    baseline = baseline.model if isinstance(baseline, Baseline) else baseline
    batches = given_batches(calibration, "calibration")
    calibration = [] if batches is None else list(batches)
    if baseline is not None:
        given_model(baseline, "deploy: baseline", values=True)
    none = isinstance(compare_with, (list, tuple)) and not compare_with
    others = [] if none else candidates(compare_with, quantized=True)[0]
    example = given_example(given_model(model, "deploy", values=True), example)
    example, *more = example if isinstance(example, list) and example else [example]
    sizes = given_sizes(batch_sizes, "batch_sizes")
    given_number(seconds, "seconds", least=0, above=True)
    given_number(max_drop, "max_drop", least=0)
    names, offers = candidates(runtime, quantized=_quantized(quantize, evaluate, calibration))
    names = _in_int8(names) if quantize == "int8" else names
    if quantize == "none":
        names = [n for n in names if find(n).FACTS.exact] or _none_exact(names)
    every = list(dict.fromkeys([*names, *others, *_rivals(names)]))
    with contextlib.ExitStack() as stack:
        stack.enter_context(fixed_threads(threads))
        stack.enter_context(no_denormals())
        stack.enter_context(randomness.preserve_rng())
        for given in (model,) if baseline is None else (model, baseline):
            stack.enter_context(without_trace(given, "a forward pass"))  # copies share parameters
        models = {"pruned": _twin(model)}
        if baseline is not None:
            models["dense"] = _twin(baseline)
        for subject in models.values():
            _refuse_inputs(subject, (example, *more), sizes)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prunus-")))
        if runtime != "auto":
            order = BuildRequest(
                models["pruned"], example, scratch, threads=threads, calibration=calibration,
                batch=sizes, others=more,
            )  # fmt: skip
            _refuse_named(names, order)
        if folder is not None:
            prepare(Path(folder), every)
        judge = Judge.of(
            models["pruned"], evaluate, better=better, max_drop=max_drop, on_event=on_event
        )
        builder = Builder(example, calibration, threads, sizes, scratch, on_event,
                          judged=evaluate is not None, known=known, others=more)  # fmt: skip
        built = [builder.build(n, kind, m) for n in every for kind, m in models.items()]
        built = measured(built, judge)
        on_event("timing all of them in turn")
        built = timed(built, example, sizes, seconds=seconds)
        chosen = choose(built, sizes[0], first=names)
        path = None if folder is None else Path(folder) / chosen.row.runtime
        served = chosen.served
        assert served is not None
        if path is not None:
            keep(scratch / "pruned" / chosen.row.runtime, path, served.card)
    file = None if path is None or served.session.path is None else path / served.card.file
    served.session = replace(served.session, path=file)
    rows = tuple(b.row for b in built)
    return Deployment(
        rows=rows,
        runtime=chosen.row.runtime,
        model=served,
        path=path,
        advice=advice(models["pruned"], models.get("dense"), rows, chosen.row, first=names),
        offers=offers,
        threads=threads,
        machine=describe()["processor"],
    )


def candidates(
    runtime: str | Sequence[str], *, quantized: bool
) -> tuple[list[str], Mapping[str, str]]:
    """The runtimes to try, and those that could be installed and how.

    Args:
        runtime: the name of one, names of several, or ``auto``: all that are installed.
        quantized: whether ``auto`` means those that quantize, too.

    Raises:
        InputError: if a named one is unknown or not installed, with the line that installs it.

    >>> candidates("eager", quantized=False)
    (['eager'], {})
    """
    if not isinstance(runtime, str) or runtime != "auto":
        several = isinstance(runtime, (list, tuple, set, frozenset))
        wanted: list[Any] = [*runtime] if several else [runtime]
        if any(not isinstance(name, str) for name in wanted):
            raise InputError(f"runtime is {runtime!r:.80}: name one, or several in a list, or auto")
        wanted = list(dict.fromkeys(wanted))
        if not wanted:
            raise InputError("runtime: name at least one, or auto")
        for name in wanted:
            find(name)
        return wanted, {}
    every = catalog.names("runtimes")
    offers = {name: pip_line(lacking) for name in every if (lacking := missing(name))}
    installed = [name for name in every if name not in offers]
    return [n for n in installed if quantized or find(n).FACTS.exact], offers


def choose(built: Sequence[Built], size: int, *, first: Sequence[str] = ()) -> Built:
    """The fastest good artifact of the pruned model at a batch size.

    Args:
        built: all of them.
        size: of the batch.
        first: names of runtimes that are preferred to the others.

    Raises:
        InputError: if there is none, with the reason of each.
    """
    good = takeable([b.row for b in built], first)
    if not good:
        own = [b.row for b in built if b.row.model == "pruned"]
        reasons = "; ".join(f"{r.runtime}: {r.refused}" for r in own)
        raise InputError(f"no runtime reproduces the model's outputs: {reasons}")
    best = min(good, key=lambda r: r.latency[size].median_ms)
    if _skips(best.runtime):
        best = faster_dense([b.row for b in built], best, size) or best
    return next(b for b in built if b.row is best)


def _skips(name: str) -> bool:
    facts = find(name).FACTS
    return facts.skips_zeros and "cpu" in facts.devices


def _rivals(names: Sequence[str]) -> list[str]:
    """Dense engines that a runtime which skips zeros must beat, where only such were named."""
    if not all(map(_skips, names)):
        return []
    every = [n for n in catalog.names("runtimes") if not missing(n)]
    return [n for n in every if find(n).FACTS.exact and not find(n).FACTS.slow and not _skips(n)
            and "cpu" in find(n).FACTS.devices]  # fmt: skip


def _quantized(quantize: str, evaluate: Metric | None, calibration: Sequence[Any]) -> bool:
    if not isinstance(quantize, str) or quantize not in ("auto", "none", "int8"):
        raise InputError(
            f"quantize: there is no '{quantize}'; "
            f"{did_you_mean(str(quantize)[:80], ('auto', 'none', 'int8'))}"
        )
    if quantize == "auto":
        return evaluate is not None and len(calibration) > 0
    return quantize == "int8"


def _in_int8(names: Sequence[str]) -> list[str]:
    """Those of the runtimes that quantize; for one that does not, its relative of the name."""
    kept = [n for n in names if not find(n).FACTS.exact]
    if kept:
        return kept
    known = catalog.names("runtimes")
    relatives = [f"{n}_int8" for n in names if f"{n}_int8" in known]
    for name in relatives:
        find(name)
    if not relatives:
        have = [n for n in known if n.endswith("_int8")]
        raise InputError(
            f"quantize: int8: {', '.join(names)} keeps the model's precision; name "
            f"{' or '.join(have)}"
        )
    return relatives


def _none_exact(names: Sequence[str]) -> list[str]:
    raise InputError(f"quantize: none: {', '.join(names)} quantizes; name another runtime")


def _twin(model: nn.Module) -> nn.Module:
    """A copy to build from; a language model's without its cache."""
    made = evaluation_copy(given_model(model, "deploy"))
    for module in made.modules():
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", None) is True:
            setattr(config, "use_cache", False)  # noqa: B010 (its type is not ours)
    return made


def _refuse_inputs(model: nn.Module, examples: Sequence[Any], sizes: Sequence[int]) -> None:
    """Run once, so that an example that does not fit is refused before anything is built."""
    kinds = []
    for number, example in enumerate(examples):
        inputs = arguments(example)
        name = "example" if len(examples) == 1 else f"example {number}"
        problem = problem_of(model, inputs)
        if problem is not None:
            shapes = [tuple(t.shape) for t in tensors_of(inputs)]
            raise InputError(
                f"{name}: {type(model).__name__} fails on inputs of shapes {shapes}: {problem}"
            )
        given = by_name(positional_names(model), inputs)
        kinds.append([(path, leaf.dtype, leaf.dim()) if isinstance(leaf, Tensor)
                      else (path, text_of(leaf)) for path, leaf in leaves_of(given)])  # fmt: skip
        if kinds[number] != kinds[0]:
            raise InputError(
                f"{name} has other arguments than the first one: one artifact takes one kind of "
                "call; deploy the model once for each"
            )
    for size in sizes:
        random_inputs(examples[0], batch=size)


def _refuse_named(names: Sequence[str], order: BuildRequest) -> None:
    for name in names:
        reason = find(name).refuses(order)
        if reason:
            raise InputError(f"runtime {name}: {reason}")
