"""A latency as the target: how much to remove so that the artifact is fast enough, by measuring."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from prunus._common.distributed import on_rank_zero
from prunus._common.files import tensors_digest
from prunus._common.modules import detached_copy
from prunus._common.nested import tensors_of
from prunus._common.random_inputs import random_inputs
from prunus._common.timing import interleaved, no_denormals
from prunus._common.timing import threads as fixed_threads
from prunus.deployment.table import Deployment
from prunus.errors import InputError
from prunus.methods.traits import takes
from prunus.progressive.deploy_step import smaller
from prunus.progressive.state import RunContext
from prunus.recipe.schema import Recipe
from prunus.recipe.specs import Spec
from prunus.runtimes import BuildRequest, find
from prunus.types import Masks

NEAR = 0.03
"""A latency this far below the bound, or less, is near enough."""
TRIES = 6
"""Artifacts measured beside the dense one and the smallest."""
SECONDS = 1.0
"""Of timing for each."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        part: of the macs to remove.
        ms: latency of that artifact.
        dense_ms: of the dense one, in the same interleaved run.
        measured: artifacts built for it.
    """

    part: float
    ms: float
    dense_ms: float
    measured: int


def search(
    latency: Callable[[float], float], bound: float, *, most: float, tries: int = TRIES
) -> tuple[float, float, int]:
    """The least to remove so that a falling function is at or below a bound.

    A secant between the last point above and the last below, which for a line hits at once, in
    turn with halving, which converges for any falling function.

    Args:
        latency: of the part removed, 0 to ``most``; measured, so it may waver.
        bound: in the same unit.
        most: that can be removed.
        tries: measurements between the ends.

    Returns:
        The part, its latency, and the number of measurements.

    Raises:
        InputError: if the smallest model is slower than the bound: it says how fast it is.

    >>> search(lambda part: 1.0 - part, 0.5, most=0.9)
    (0.5..., 0.4..., 3)
    """
    low, high = (0.0, latency(0.0)), (most, latency(most))
    measured = 2
    if low[1] <= bound:
        return *low, measured
    if high[1] > bound:
        raise InputError(f"out of reach: the best found is {high[1]:.4g}")
    aim = bound * (1 - NEAR / 2)
    for number in range(tries):
        if high[1] >= bound * (1 - NEAR):
            break
        share = (low[1] - aim) / max(low[1] - high[1], 1e-12) if number % 2 == 0 else 0.5
        part = low[0] + min(max(share, 0.05), 0.95) * (high[0] - low[0])
        point = (part, latency(part))
        measured += 1
        if point[1] <= bound:
            high = point
        else:
            low = point
    return *high, measured


def prepared(recipe: Recipe) -> Recipe:
    """The recipe with widths that its runtime computes well, where it does not say others."""
    if recipe.target is None or recipe.target.latency is None or recipe.deploy is None:
        return recipe
    structure = recipe.structure
    if "multiple_of" in structure.settings or not takes(
        "structures", recipe.located(structure).name, "multiple_of"
    ):
        return recipe
    likes = find(recipe.deploy.runtime).FACTS.multiple_of
    settings = {**structure.settings, "multiple_of": likes}
    structure = Spec.model_validate({"name": structure.name, **settings})
    return recipe.model_copy(update={"structure": structure})


def calibrate_target(job: RunContext, when: str) -> bool:
    """Let the target be the macs whose artifact is fast enough on this machine.

    What was found is in the journal, so that a run that was killed goes on to the same target.

    Args:
        job: whose recipe bounds a latency; others are left alone.
        when: ``start``, with the scores of the model as given, or ``last``, before the last cut.

    Returns:
        Whether the recipe bounds a latency.

    Raises:
        InputError: if the bound is out of reach.
    """
    engine = job.engine
    target = engine.recipe.target
    if target is None or target.latency is None:
        return False
    before = [e for e in job.journal.events if e["event"] == "latency"]
    if when == "start" or any(e["when"] == when for e in before):
        known = before[-1:]
    else:
        known = []
    if not known:
        job.note("measuring how much to remove to meet the latency")
        with _Clock(job) as clock:
            found = clock.found(*target.latency)
        job.journal.write("latency", when=when, **asdict(found))
        job.note(summary(found))
        known = job.journal.events[-1:]
    engine.target = known[-1]["part"]
    return True


def summary(found: Found) -> str:
    """A search's outcome for people."""
    return (
        f"{found.part:.1%} fewer macs take {found.ms:.3g} ms, dense {found.dense_ms:.3g} "
        f"({found.measured} artifacts measured)"
    )


def latency_verdict(recipe: Recipe, made: Deployment | None) -> str:
    """Whether the finished artifact keeps the bound, with what it was measured at.

    Args:
        recipe: of the run.
        made: its artifact, timed beside the dense model.

    Returns:
        A sentence; empty where the recipe bounds no latency.
    """
    bound = recipe.target.latency if recipe.target is not None else None
    if bound is None or recipe.deploy is None:
        return ""
    own, dense = (None if made is None else made.row(recipe.deploy.runtime, m)
                  for m in ("pruned", "dense"))  # fmt: skip
    batch = recipe.deploy.batch
    if own is None or batch not in own.latency:
        return "the latency of the artifact is unknown"
    ms, most = own.latency[batch].median_ms, bound[0]
    if bound[1]:
        if dense is None or batch not in dense.latency:
            return "the latency of the dense model is unknown"
        most *= dense.latency[batch].median_ms
    word = "kept" if ms <= most else "missed by the finished artifact"
    return f"max_latency_ms is {word}: {ms:.3g} ms of at most {most:.3g} in {recipe.deploy.runtime}"


class _Clock:
    """Builds and times smaller copies of a model beside the dense one, on rank 0; each once."""

    def __init__(self, job: RunContext) -> None:
        deploy = job.engine.recipe.deploy
        assert deploy is not None
        self.job, self.how = job, deploy
        self.runtime = find(deploy.runtime)
        self.count = 0
        self.dense: Any = None
        self.known: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> _Clock:
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(fixed_threads(self.how.threads))
        self.stack.enter_context(no_denormals())
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        example = self.job.example
        self.inputs = tensors_of(random_inputs(example, batch=self.how.batch))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def found(self, bound: float, relative: bool) -> Found:
        """Search with the bound in milliseconds, or as a part of the dense model's latency."""
        engine = self.job.engine
        most = engine.space.reach()
        seen: dict[float, tuple[float, float]] = {}

        def latency(part: float) -> float:
            seen[part] = self._measure(part)
            ms, dense = seen[part]
            return ms / dense if relative else ms

        try:
            part, _, _ = search(latency, bound, most=most)
        except InputError:
            ms, dense = seen[most]
            wanted = f"{bound:g} of dense" if relative else f"{bound:g} ms"
            raise InputError(
                f"target: max_latency_ms: {wanted} is out of reach in {self.how.runtime}: with "
                f"{most:.1%} fewer macs, the most that can go, the best found is {ms:.3g} ms, "
                f"dense {dense:.3g}; try a larger batch, another runtime or structure: layer"
            ) from None
        return Found(part, *seen[part], len(self.known))

    def _measure(self, part: float) -> tuple[float, float]:
        """Milliseconds of the artifact with this part of the macs removed, and of the dense one."""
        engine = self.job.engine
        engine.target = part
        masks = engine.choose(1.0) if part > 0 else None  # all ranks choose, one measures
        same = "" if masks is None else tensors_digest(masks)
        if same not in self.known:  # units are whole: near parts may remove the same ones
            self.known[same] = on_rank_zero(lambda: self._timed(masks))
        return self.known[same]

    def _timed(self, masks: Masks | None) -> tuple[float, float]:
        if self.dense is None:
            assert self.job.dense is not None
            self.dense = self._session(self.job.dense)
        small = self.dense if masks is None else self._session(smaller(self.job.engine, masks))
        calls = {"dense": self.dense, "small": small}
        times = interleaved({k: partial(c, self.inputs) for k, c in calls.items()}, seconds=SECONDS)
        return times["small"].median_ms, times["dense"].median_ms

    def _session(self, model: nn.Module) -> Any:
        self.count += 1
        place = self.folder / str(self.count)
        place.mkdir()
        order = BuildRequest(
            detached_copy(model).eval(), self.job.example, place, threads=self.how.threads,
            batch=(self.how.batch,),
        )  # fmt: skip
        refusal = self.runtime.refuses(order)
        if refusal:
            raise InputError(f"deploy: {self.how.runtime}: {refusal}")
        return self.runtime.build(order).compute
