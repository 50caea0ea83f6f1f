"""The gate of every use: what the masked model answers in each, and whether another does too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from prunus._common.inputs import Inputs
from prunus.compaction.verifying.gradients import differing, gradients, has_graphs
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

    def _first(self, alternatives: Sequence[Use], *, halves: bool) -> Tried | None:
        """The first that the model is capable of; ``None`` where no answers can be compared."""
        for use in alternatives:
            tried = self._tried(use) if halves or use.whole is None else None
            if tried is not None and (tried[2][0] or use.whole is None):
                return tried if tried[2][0] else None
        return None

    def _tried(self, use: Use) -> Tried | None:
        """A use and the answers: none where they say nothing; ``None`` if the model cannot."""
        if id(use) not in self._known:
            gate = AS_CALLED if use.fast and self.gate is FLOAT64 else self.gate
            try:
                with self.within():
                    given, buffers = answers(self.model, self.state, use, gate)
                    noisy = use.fast and self._noisy(use, given)
                said = not noisy and all(bool(t.isfinite().all()) for t in given)
                self._known[id(use)] = use, gate, (given * said, dict(self.sliced(buffers)))
            except Exception:  # of the model's code: it does not take this
                self._known[id(use)] = None
        return self._known[id(use)]

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
        for alternatives in self._uses if known.equal else ():
            tried = self._first(alternatives, halves=halves)
            if tried is None:
                continue
            use, gate, expected = tried
            found = compare(expected, model, state, use, gate)
            if found.refused and use.whole is not None:
                halves = False  # as of a graph of the example's sizes
                use, gate, expected = self._first(alternatives, halves=halves) or tried
                found = compare(expected, model, state, use, gate)
            if found.refused:
                refusals.append(use.name)
            elif not found.equal and use.flag is not None:
                refusals.append(use.name)
                flags.append(use.flag)
            elif not found.equal:
                what = found.problem or f"they differ by {found.error:.2g}"
                return replace(found, effect=known.effect, problem=f"with {use.name}, {what}")
            elif use.gradient and not gradient and has_graphs(model):
                wanted = functools.partial(self._gradients, use, gate)
                gradient = differing(wanted, model, state, use, gate)
        return replace(known, refusals=tuple(refusals), flags=tuple(flags), gradient=gradient)

    def _gradients(self, use: Use, gate: Gate) -> State | None:
        """What a smaller model has of the masked model's gradients."""
        if id(use) not in self._slopes:
            with self.within():
                found = gradients(self.model, self.state, use, gate)
            self._slopes[id(use)] = None if found is None else dict(self.sliced(found))
        return self._slopes[id(use)]
