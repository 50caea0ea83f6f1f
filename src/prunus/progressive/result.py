"""What a run gives: its rounds, how the model was made smaller, and the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from prunus._common.metrics import MetricEstimate
from prunus._common.numbers import metric
from prunus._common.tables import Table, page
from prunus.types import Kept, Masks


@dataclass(frozen=True, repr=False)
class Round:
    """One prune–restore–retrain–judge cycle; round 0 is the dense model.

    Attributes:
        index: its number.
        step: optimizer steps taken in the whole run up to its end.
        progress: how far the schedule was, 0 to 1.
        requested: the part of ``target`` that the schedule or the guard asked to be gone.
        achieved: what the judged model reached.
        metric: on validation data; ``None`` when nothing evaluates.
        verdict: ``dense``, ``accepted``, ``rejected`` or ``not judged``.
        train_metric: the same metric on training data, where it is known.
        l1: Σ|w| over the scope.
        densities: weights kept ÷ those of the dense model, by group; where units are coupled, of
            every layer in scope, inputs and outputs that went taken together.
        cost: what the model costs as it stands, with the theoretical figures beside it.
        seconds: wall time of the round.
        sparsity: removed weights ÷ weights in scope.
        target: what requested and achieved count: ``sparsity``, or a cost of the dense model.
        latency: median ms of the round's artifact by runtime, where the recipe deploys it.
        evidence: what single items say, where ``evaluate`` returns :class:`prunus.Scores`: what
            was lost of the metric and in each class, and the numbers of the items that changed.
    """

    index: int
    step: int
    progress: float
    requested: float
    achieved: float
    metric: float | None
    verdict: str
    train_metric: float | None = None
    l1: float = 0.0
    densities: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    sparsity: float | None = None
    target: str = "sparsity"
    latency: Mapping[str, float] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        judged = "" if self.metric is None else f", metric {metric(self.metric)}"
        return (
            f"<Round {self.index}: {self.counted} {metric(self.achieved)} (requested "
            f"{metric(self.requested)}){judged}, {self.verdict}>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the names that journals and ``--json`` have for them."""
        values = as_written(dataclasses.asdict(self))
        return values if self.evidence else {k: v for k, v in values.items() if k != "evidence"}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Round:
        """What :meth:`to_dict` gave; what it does not know is left out.

        >>> made = Round(1, 9, 0.5, requested=0.4, achieved=0.4, metric=0.9, verdict="accepted")
        >>> made.to_dict()["asked"], Round.from_dict(made.to_dict()) == made
        (0.4, True)
        """
        return cls(**as_named(cls, plain))

    @property
    def counted(self) -> str:
        """What requested and achieved are parts of, for people."""
        return counted(self.target)

    @property
    def accepted(self) -> bool:
        """Whether the run goes on from it."""
        return self.verdict != "rejected"

    @property
    def removed(self) -> float:
        """Removed weights ÷ weights in scope."""
        return self.achieved if self.sparsity is None else self.sparsity

    @property
    def gap(self) -> float | None:
        """Training metric minus validation metric."""
        if self.metric is None or self.train_metric is None:
            return None
        return self.train_metric - self.metric


def last_accepted(rounds: Sequence[Round]) -> Round:
    """The newest round that was not rejected."""
    return next(r for r in reversed(rounds) if r.accepted)


def counted(target: str) -> str:
    """What a target counts, for people."""
    return target if target == "sparsity" else f"part of the {target} removed"


def rounds_table(rounds: Sequence[Round], metric_name: str) -> Table:
    """A row a round."""
    what = rounds[-1].target if rounds else "sparsity"
    more = "" if what == "sparsity" else f"{what} gone: "
    names = (f"{more}requested", f"{more}achieved", f"validation {metric_name}", "train − val",
             "Σ|w|")  # fmt: skip
    return Table(
        ("round", *names, "verdict"),
        [
            (str(r.index), *map(metric, (r.requested, r.achieved, r.metric, r.gap)),
             f"{r.l1:.1f}", r.verdict)
            for r in rounds
        ],
        left=(len(names) + 1,),
    )  # fmt: skip


_WRITTEN = {"requested": "asked", "reason": "why"}
"""Attributes that run folders and ``--json`` have under another name."""


def as_written(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of attributes under the names that run folders have for them."""
    return {_WRITTEN.get(name, name): value for name, value in values.items()}


def as_named(kind: type[Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a dataclass from such values; what it does not know is left out."""
    names = {_WRITTEN.get(f.name, f.name): f.name for f in dataclasses.fields(kind)}
    return {names[key]: value for key, value in plain.items() if key in names}


@dataclass(frozen=True)
class Compaction:
    """How a model was made physically smaller.

    Attributes:
        route: ``sliced``, ``attributes``, ``modules`` or ``graph``; of several the last of these.
        units: units taken out.
        error: largest difference from the masked model in float64, relative to its outputs.
        effect: how far the masks moved the outputs, by the same measure.
        notes: what to know beside.
        attributes: numbers that modules keep and that changed, for :func:`prunus.save`.
    """

    route: str
    units: int
    error: float
    effect: float
    notes: tuple[str, ...] = ()
    attributes: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Result:
    """What a run ends with.

    Attributes:
        model: the pruned model, its removed weights exactly zero.
        masks: by parameter name of the model as it was given; True = kept. They may be
            broadcast to a parameter's shape.
        rounds: every round, rejected ones too.
        metric: of the last accepted round, on validation data.
        test_metric: the metric on test data, computed once, with its interval.
        reason: why the run ended.
        cost_before: of the dense model.
        cost_after: of ``model`` as it stands.
        folder: where the run lies; ``None`` when nothing was written.
        compaction: how the model was made smaller and shown equal; ``None`` when it was not.
        deployment: the artifact in the runtime that will serve it (:class:`Deployment`);
            ``None`` unless the recipe says ``deploy`` or ``quantize``.
        notes: what to know of the scope.
        kept: where the model became smaller, what is left of each sliced parameter and buffer of
            the model as it was given: a tuple with the kept indices of every dimension, ``None``
            for all. After any number of rounds ``small = dense[i][:, j]`` for ``(i, j)``. Of
            tensors that went as a whole, with an expert of a list, no index is kept.
        controls: what else was trained on the same budget, where the recipe asks for it.
        front: with ``keep: front`` the numbers of the rounds that no other is ahead of, and the
            files of their models, for :func:`prunus.load`.
        worth: what pruning was worth over training the small shape, in a sentence.
    """

    model: nn.Module
    masks: Masks
    rounds: Sequence[Round]
    metric: float | None
    test_metric: MetricEstimate | None
    reason: str
    cost_before: Mapping[str, float | None]
    cost_after: Mapping[str, float | None]
    folder: Path | None
    compaction: Compaction | None = None
    deployment: Any = None
    notes: tuple[str, ...] = ()
    kept: Kept = field(default_factory=dict)
    controls: Sequence[Any] = ()
    worth: str = ""
    front: Sequence[tuple[int, Path]] = ()

    def __str__(self) -> str:
        """The end in a few lines; the rounds are in ``rounds``."""
        found = [f"metric {self.metric:.4f}"] if self.metric is not None else []
        found += [f"test {self.test_metric}"] if self.test_metric is not None else []
        costs = [
            f"{before:,.0f} -> {after:,.0f} {key}"
            for key in ("params", "macs")
            if (before := self.cost_before.get(key)) and (after := self.cost_after.get(key))
        ]
        how = [f"compact, {self.compaction.route}"] if self.compaction is not None else []
        runs = [f"runs in {self.deployment.runtime}"] if self.deployment is not None else []
        end = f"sparsity {self.sparsity:.4f} after {len(self.rounds) - 1} rounds: {self.reason}"
        arms = [f"control {arm}" for arm in self.controls]
        said = [self.worth] if self.worth else []
        notes = [f"note: {text}" for text in self.notes]
        return "\n".join([end, *found, *how, *costs, *runs, *arms, *said, *notes])

    def __repr__(self) -> str:
        return f"<Result: {self}\nnext: {self._next()}>"

    def _next(self) -> str:
        """What one does with it."""
        if self.deployment is not None:
            return "result.deployment.model(inputs), print(result.deployment)"
        return "prunus.deploy(result.model, example=…); every round is in result.rounds"

    def _repr_html_(self) -> str:
        """For notebooks: the end, every round, and the picture where matplotlib is installed."""
        try:
            from prunus.progressive.picture import metric_svg
        except ImportError:
            return page(repr(self), rounds_table(self.rounds, "metric").html())
        judged = any(r.metric is not None for r in self.rounds)
        pictures = [metric_svg(self.rounds, "metric")] if judged else []
        return page(repr(self), rounds_table(self.rounds, "metric").html(), *pictures)

    @property
    def test(self) -> float | None:
        """The metric on test data."""
        return None if self.test_metric is None else self.test_metric.metric

    @property
    def sparsity(self) -> float:
        """Removed weights ÷ weights in scope."""
        return last_accepted(self.rounds).removed

    def figures(self, metric_name: str) -> dict[str, Any]:
        """What it comes to, as result.json and ``--json`` begin."""
        return {
            "metric_name": metric_name,
            "metric": self.metric,
            "test": self.test,
            "tested": None if self.test_metric is None else self.test_metric.to_dict(),
            "sparsity": self.sparsity,
            "why": self.reason,
            **({"controls": self._controls()} if self.controls else {}),
        }

    def _controls(self) -> dict[str, Any]:
        return {"arms": [arm.to_dict() for arm in self.controls], "worth": self.worth}
