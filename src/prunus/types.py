"""The words of the library as types, and the signature of each axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor, nn

from prunus._common.metrics import Outcome


@dataclass(frozen=True, eq=False)
class Member:
    """A parameter's part in a group.

    Attributes:
        name: the parameter's name in ``model.named_parameters()``.
        index: one small integer vector per dimension, shaped to broadcast; their sum is the
            number of the unit to which an element belongs. An element with a negative entry
            is not of the group. ``None``: every element is its own unit, in storage order.
        scored: whether its elements count: in a unit's score and in the sparsity
            (a bias falls with its neuron but does neither).
    """

    name: str
    index: tuple[Tensor, ...] | None = None
    scored: bool = True


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters whose units fall together.

    Attributes:
        name: what reports call it.
        units: how many units it has.
        members: its parameters.
        shape: the shape of the weight it stands for, ``(out, in, ...)``.
        run: units in one local competition: the weights of one output neuron, the m of n:m.
            Units are numbered run by run.
        balanced: every run keeps the same number (n:m).
        sizes: weights per unit, ``[units]``; ``None`` when each unit is one weight.
        may_empty: whether all of its units may go (``layer``).
        classes: of coupled units: the class of each in the analysis that they come from.
        multiple_of: the number kept is a multiple of this, where the group is large enough.
        least: units that must stay.
        dense_units: how many the dense model had, where the model became smaller since.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    shape: tuple[int, ...]
    run: int
    balanced: bool = False
    sizes: Tensor | None = None
    may_empty: bool = False
    classes: tuple[int, ...] | None = None
    multiple_of: int = 1
    least: int = 1
    dense_units: int | None = None

    @property
    def weights(self) -> int:
        """How many weights its units hold together."""
        return self.units if self.sizes is None else int(self.sizes.sum())


@dataclass(frozen=True)
class Limits:
    """What an allocation must respect in one group.

    Attributes:
        least: units that must stay.
        most: units that can stay: those not removed already.
    """

    least: int
    most: int


Masks: TypeAlias = dict[str, Tensor]
"""Parameter name to bool, True = kept; of the parameter's shape or broadcastable to it."""

Units: TypeAlias = Mapping[Group, Tensor]
"""A group's unit scores, ``[units]``, float; −inf = removed already."""

Counts: TypeAlias = dict[Group, int | Tensor]
"""Units kept in a group; a tensor ``[units // run]`` counts run by run."""

Criterion: TypeAlias = Callable[..., Tensor]
Allocation: TypeAlias = Callable[..., Counts]
Schedule: TypeAlias = Callable[..., float]
Rate: TypeAlias = Callable[..., float]
Restore: TypeAlias = Callable[..., "State"]


@dataclass
class State:
    """All that training changes: what a restore receives and returns.

    Attributes:
        tensors: parameters and buffers by their names in ``model.state_dict()``.
        optimizer: the ``"state"`` part of the optimizer's ``state_dict()``.
    """

    tensors: dict[str, Tensor]
    optimizer: dict[Any, Any]


@dataclass(frozen=True)
class Round:
    """One prune–restore–retrain–judge cycle; round 0 is the dense model.

    Attributes:
        index: its number.
        step: optimizer steps taken in the whole run up to its end.
        progress: how far the schedule was, 0 to 1.
        asked: the part of ``target`` that the schedule or the guard asked to be gone.
        achieved: what the judged model reached.
        metric: on validation data; ``None`` when nothing evaluates.
        verdict: ``dense``, ``accepted``, ``rejected`` or ``not judged``.
        train_metric: the same metric on training data, where it is known.
        l1: Σ|w| over the scope.
        densities: density by group.
        cost: what the model costs as it stands, with the theoretical figures beside it.
        seconds: wall time of the round.
        sparsity: removed weights ÷ weights in scope.
        target: what asked and achieved count: ``sparsity``, or a cost of the dense model.
        latency: median ms of the round's artifact by runtime, where the recipe deploys it.
    """

    index: int
    step: int
    progress: float
    asked: float
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

    @property
    def counted(self) -> str:
        """What asked and achieved are parts of, for people."""
        return "sparsity" if self.target == "sparsity" else f"part of the {self.target} removed"

    @property
    def gap(self) -> float | None:
        """Training metric minus validation metric."""
        if self.metric is None or self.train_metric is None:
            return None
        return self.train_metric - self.metric


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
        masks: by parameter name; True = kept.
        rounds: every round, rejected ones too.
        metric: of the last accepted round, on validation data.
        tested: the metric on test data, computed once, with its interval.
        why: why the run ended.
        cost_before: of the dense model.
        cost_after: of ``model`` as it stands.
        folder: where the run lies; ``None`` when nothing was written.
        compaction: how the model was made smaller and shown equal; ``None`` when it was not.
        deployment: the artifact in the runtime that will serve it (:class:`Deployment`);
            ``None`` unless the recipe says ``deploy`` or ``quantize``.
    """

    model: nn.Module
    masks: Masks
    rounds: Sequence[Round]
    metric: float | None
    tested: Outcome | None
    why: str
    cost_before: Mapping[str, float | None]
    cost_after: Mapping[str, float | None]
    folder: Path | None
    compaction: Compaction | None = None
    deployment: Any = None

    def __str__(self) -> str:
        """The end in a few lines; the rounds are in ``rounds``."""
        found = [f"metric {self.metric:.4f}"] if self.metric is not None else []
        found += [f"test {self.tested}"] if self.tested is not None else []
        costs = [
            f"{before:,.0f} -> {after:,.0f} {key}"
            for key in ("params", "macs")
            if (before := self.cost_before.get(key)) and (after := self.cost_after.get(key))
        ]
        how = [f"compact, {self.compaction.route}"] if self.compaction is not None else []
        runs = [f"runs in {self.deployment.runtime}"] if self.deployment is not None else []
        end = f"sparsity {self.sparsity:.4f} after {len(self.rounds) - 1} rounds: {self.why}"
        return "\n".join([end, *found, *how, *costs, *runs])

    @property
    def test(self) -> float | None:
        """The metric on test data."""
        return None if self.tested is None else self.tested.metric

    @property
    def sparsity(self) -> float:
        """Removed weights ÷ weights in scope."""
        kept = [r for r in self.rounds if r.verdict != "rejected"]
        last = kept[-1]
        return last.achieved if last.sparsity is None else last.sparsity
