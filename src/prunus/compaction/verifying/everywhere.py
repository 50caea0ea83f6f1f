"""The gate of every use: what the masked model answers in each, and whether another does too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from prunus._common.inputs import Inputs
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


@dataclass(frozen=True, eq=False)
class Everywhere:
    """A masked model in every use that it has.

    Attributes:
        model: is never changed.
        state: its values, masked.
        examples: as they were given, their numbers random, in their own types.
        gate: how answers are compared.
        sliced: what a smaller model has of the buffers that training leaves.
    """

    model: nn.Module
    state: State
    examples: Sequence[Inputs]
    gate: Gate
    sliced: Callable[[State], State] = lambda state: state

    @functools.cached_property
    def uses(self) -> list[tuple[Use, Gate, Answers]]:
        """Each use that the model is capable of, how it is compared, and the answers."""
        found = []
        for alternatives in () if self.gate is META else uses_of(self.model, self.examples):
            for use in alternatives:
                gate = AS_CALLED if use.fast and self.gate is FLOAT64 else self.gate
                try:
                    given, buffers = answers(self.model, self.state, use, gate)
                    if use.fast and self._noisy(use, given):
                        break
                except Exception:  # of the model's code: it does not take this
                    continue
                if given and all(bool(t.isfinite().all()) for t in given):
                    found.append((use, gate, (given, dict(self.sliced(buffers)))))
                break
        return found

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
            ``known`` with the names of uses that the candidate itself refuses and the flags with
            which it answers otherwise, or the first comparison that fails.
        """
        refusals = []
        flags = []
        for use, gate, expected in self.uses if known.equal else ():
            found = compare(expected, model, state, use, gate)
            if found.refused:
                refusals.append(use.name)
            elif not found.equal and use.flag is not None:
                refusals.append(use.name)
                flags.append(use.flag)
            elif not found.equal:
                what = found.problem or f"they differ by {found.error:.2g}"
                return replace(found, effect=known.effect, problem=f"with {use.name}, {what}")
        return replace(known, refusals=tuple(refusals), flags=tuple(flags))
