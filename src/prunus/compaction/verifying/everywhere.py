"""The gate of every use: what the masked model answers in each, and whether another does too."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from prunus._common.inputs import Inputs
from prunus.compaction.verifying.gradients import (
    answers_and_gradients,
    differing,
    gradients,
    has_graphs,
)
from prunus.compaction.verifying.kept_state import keeps_state
from prunus.compaction.verifying.uses import Use, uses_of
from prunus.compaction.verifying.values import State
from prunus.compaction.verifying.verify import (
    AS_CALLED,
    FLOAT64,
    META,
    Answers,
    Comparison,
    Gate,
    answers,
    compare,
    difference,
)

Tried = tuple[Use, Gate, Answers]


@dataclass(frozen=True, eq=False)
class Everywhere:
    """A masked model in every use that it has.

    Attributes:
        model: is never changed.
        state: its values, masked.
        examples: as they were given, their numbers random, in their own types.
        gate: how answers are compared.
        sliced: what a smaller model has of the buffers that training leaves.
        within: in what the masked model answers.
    """

    model: nn.Module
    state: State
    examples: Sequence[Inputs]
    gate: Gate
    sliced: Callable[[State], State] = lambda state: state
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    _known: dict[int, Tried | None] = field(default_factory=dict, init=False)
    _slopes: dict[int, State | None] = field(default_factory=dict, init=False)

    @functools.cached_property
    def _uses(self) -> list[tuple[Use, ...]]:
        return [] if self.gate is META else list(uses_of(self.model, self.examples))

    def to_parts(self) -> Iterator[Tried]:
        """What the model answers to a part of a large picture, if it takes that."""
        for use in self._uses[0] if self._uses else ():
            tried = self._tried(use) if use.whole is not None else None
            if tried is not None and tried[2][0]:
                yield tried

    def _first(
        self, alternatives: Sequence[Use], *, halves: bool, slopes: bool = False
    ) -> Tried | None:
        """The first that the model is capable of; ``None`` where no answers can be compared."""
        for use in alternatives:
            both = slopes and _whole_with_gradient(use)
            tried = self._tried(use, slopes=both) if halves or use.whole is None else None
            if tried is not None and (tried[2][0] or use.whole is None):
                return tried if tried[2][0] else None
        return None

    def _tried(self, use: Use, *, slopes: bool = False) -> Tried | None:
        """A use and the answers: none where they say nothing; ``None`` if the model cannot."""
        if id(use) not in self._known:
            gate = AS_CALLED if use.fast and self.gate is FLOAT64 else self.gate
            try:
                with self.within():
                    drew: list[bool] = []
                    if slopes:
                        given, buffers = self._with_slopes(use, gate)
                    else:
                        given, buffers = answers(self.model, self.state, use, gate, drew)
                    noisy = use.fast and any(drew) and self._noisy(use, given)
                said = not noisy and all(bool(t.isfinite().all()) for t in given)
                self._known[id(use)] = use, gate, (given * said, dict(self.sliced(buffers)))
            except Exception:  # of the model's code: it does not take this
                self._known[id(use)] = None
        return self._known[id(use)]

    def _with_slopes(self, use: Use, gate: Gate) -> Answers:
        """The answers; the gradients are kept, if there are any."""
        given, found = answers_and_gradients(self.model, self.state, use, gate)
        if found is not None:
            self._slopes[id(use)] = dict(self.sliced(found))
        return given

    def _noisy(self, use: Use, given: list[Tensor]) -> bool:
        """Whether chance is among the answers: a smaller model draws other numbers."""
        still = answers(self.model, self.state, replace(use, fast=False), AS_CALLED)[0][:1]
        return difference(still, given)[0] > AS_CALLED.tolerance

    def check(self, model: nn.Module, state: State, known: Comparison) -> Comparison:
        """Compare a candidate in all uses.

        Args:
            model: the candidate.
            state: its values.
            known: how it compared in the pass that was traced.

        Returns:
            ``known`` with the names of uses that the candidate itself refuses, the flags with
            which it answers otherwise and a parameter whose gradient is another; or the first
            comparison that fails.
        """
        refusals, flags, halves, gradient = [], [], True, ""
        graphs = has_graphs(model)
        for alternatives in self._uses if known.equal else ():
            tried = self._first(alternatives, halves=halves, slopes=graphs)
            if tried is None:
                continue
            use, gate, expected = tried
            candidate = _Candidate(slopes=graphs and not gradient and _whole_with_gradient(use))
            found = compare(expected, model, state, use, gate, candidate.answers)
            if found.refused and use.whole is not None:
                halves = False  # as of a graph of the example's sizes
                again = self._first(alternatives, halves=halves, slopes=graphs)
                use, gate, expected = again or tried
                candidate.slopes = not gradient and _whole_with_gradient(use)
                found = compare(expected, model, state, use, gate, candidate.answers)
            if found.refused:
                refusals.append(use.name)
            elif not found.equal and use.flag is not None:
                refusals.append(use.name)
                flags.append(use.flag)
            elif not found.equal:
                what = found.problem or f"they differ by {found.error:.2g}"
                return replace(found, effect=known.effect, problem=f"with {use.name}, {what}")
            elif use.gradient and not gradient and graphs:
                wanted = functools.partial(self._gradients, use, gate)
                gradient = differing(wanted, model, state, use, gate, candidate.found)
        second = self._second(model, state) if graphs and known.equal else None
        if second is not None and not second.equal:
            return replace(second, effect=known.effect)
        return replace(known, refusals=tuple(refusals), flags=tuple(flags), gradient=gradient)

    def _second(self, model: nn.Module, state: State) -> Comparison | None:
        """How graphs compare in a second call, if the model keeps anything of the first."""
        tried = self._tried(self._again) if self._again is not None else None
        if tried is None or not tried[2][0]:
            return None
        use, gate, expected = tried
        found = compare(expected, model, state, use, gate)
        if found.equal or found.refused:
            return None
        what = found.problem or f"they differ by {found.error:.2g}"
        kept = (
            "a second call goes on from what the model keeps of the first, which a graph does not"
        )
        return replace(found, problem=f"{kept}: let forward take and return it; {what}")

    @functools.cached_property
    def _again(self) -> Use | None:
        """A second call; ``None`` where the model keeps nothing of the first."""
        inputs = self.examples[0]
        with contextlib.suppress(Exception):  # of the model's code, without its masks
            if self.gate is not META and keeps_state(self.model, inputs):
                return Use("a second call", inputs, again=True)
        return None

    def _gradients(self, use: Use, gate: Gate) -> State | None:
        """What a smaller model has of the masked model's gradients."""
        if id(use) not in self._slopes:
            with self.within():
                found = gradients(self.model, self.state, use, gate)
            self._slopes[id(use)] = None if found is None else dict(self.sliced(found))
        return self._slopes[id(use)]


def _whole_with_gradient(use: Use) -> bool:
    """Whether gradients come with the answers: of a part, other sizes may be asked for next."""
    return use.gradient and use.whole is None


@dataclass
class _Candidate:
    """How a smaller model answers: with its gradients, where these are compared as well.

    Attributes:
        slopes: whether they are.
        found: the gradients of its last answers; ``None`` where they are not known.
    """

    slopes: bool
    found: State | None = None

    def answers(self, model: nn.Module, state: State, use: Use, gate: Gate) -> Answers:
        self.found = None
        if not self.slopes:
            return answers(model, state, use, gate)
        given, self.found = answers_and_gradients(model, state, use, gate)
        return given
