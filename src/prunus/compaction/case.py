"""A cut that is to be carried out, and the answers that a smaller model must give."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from prunus._common.inputs import Inputs, arguments, every_example
from prunus._common.modules import detached_copy
from prunus.compaction.cut import IndexCut, masks_of
from prunus.compaction.rewriting.rewrite import Rewritten, rewrite
from prunus.compaction.slicing.attributes import Attribute
from prunus.compaction.slicing.norms import widenings
from prunus.compaction.slicing.parameters import slices
from prunus.compaction.verifying.everywhere import Everywhere
from prunus.compaction.verifying.exchange import Exchange, exchanged, exchanges
from prunus.compaction.verifying.uses import Use
from prunus.compaction.verifying.values import (
    Lazy,
    State,
    held,
    random_like,
    small_state,
    values_for_test,
)
from prunus.compaction.verifying.verify import (
    FLOAT64,
    META,
    OWN_TYPE,
    Comparison,
    Gate,
    compare,
    difference,
    outputs,
    traced_outputs,
)
from prunus.errors import first_line
from prunus.types import Kept


@dataclass(frozen=True)
class Case:
    """A model, what goes of it, and what every candidate is compared with.

    Attributes:
        model: dense, or with the masks of the cut applied; it is never changed.
        cut: what goes.
        kept: indices that stay of the model's own tensors; constants of the code are sliced in
            graphs alone.
        inputs: random ones like the example.
        examples: random ones like each example, in its own types.
        gate: how answers are compared.
        expected: the masked model's answers.
        effect: how far the dense model's are from them.
        masked: values of the masked model.
        small: values of the smaller one.
        slices: the smaller tensors, by identity of the model's; of a large model matrices without
            values, since all candidates are called with those of ``small``.
        rewritten: the smaller graph.
        everywhere: the masked model's other uses.
    """

    model: nn.Module
    cut: IndexCut
    kept: Kept
    inputs: Inputs
    examples: Sequence[Inputs]
    gate: Gate
    expected: list[Tensor]
    effect: float
    masked: State
    small: State
    slices: dict[int, Tensor]
    rewritten: Rewritten
    everywhere: Everywhere

    def check(self, model: nn.Module) -> Comparison:
        """Compare a candidate with the masked model in the pass that was traced."""
        found = compare((self.expected, {}), model, self.small, Use("", self.inputs), self.gate)
        return replace(found, effect=self.effect)

    def check_everywhere(self, model: nn.Module) -> Comparison:
        """Compare it in every use that the masked model has."""
        found = self.everywhere.check(model, self.small, self.check(model))
        for exchange, expected in self._exchanged if found.equal else ():
            small = exchanged(self.small, exchange)
            other = compare((expected, {}), model, small, Use("", self.inputs), self.gate)
            if not other.equal and not other.refused:
                what = other.problem or f"they differ by {other.error:.2g}"
                names = ", ".join(exchange.values())
                return replace(other, effect=self.effect, problem=f"in {names}, {what}")
        return found

    @functools.cached_property
    def _exchanged(self) -> list[tuple[Exchange, list[Tensor]]]:
        """What the masked model answers with entries that no example visits in others' places."""
        if self.gate is META:
            return []
        return [
            (one, outputs(self.model, exchanged(self.masked, one), self.inputs, self.gate))
            for one in exchanges(self.cut.analysis.like)
        ]

    def widenings(self) -> list[Attribute]:
        """The norms that go on counting the width that they had."""
        return widenings(self.model, self.cut, (p.node for p in self.rewritten.patches))

    def sliced(self) -> nn.Module:
        """The model's modules with the smaller tensors; those that stay whole are its own."""
        own = {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}
        return detached_copy(self.model, own | self.slices)

    def named_slices(self) -> dict[str, Tensor]:
        """The smaller tensors by name."""
        return _named(self.model, self.slices)


def case_of(model: nn.Module, cut: IndexCut, example: Any, *, whole: int) -> Case:
    """Run the masked model once, and slice its tensors.

    Args:
        model: dense, or with the masks of the cut applied.
        cut: what goes.
        example: an input, a tuple of inputs, a mapping of keyword arguments, or a list of these.
        whole: bytes of parameters and buffers above which float64 is never held.
    """
    kept = {n: k for n, k in cut.kept().items() if n in cut.analysis.names}
    masks = masks_of(cut, dict(model.named_parameters()))
    states = values_for_test(model, masks, whole=whole)
    (states, inputs, gate, expected), examples = answers_of(model, cut, example, states)
    sliced = partial(small_state, kept=kept, names=cut.analysis.names)
    everywhere = Everywhere(model, states[1], examples, gate, sliced)
    effect = float("nan") if gate is META else _moved(everywhere, states[0], inputs, expected)
    lazily = any(isinstance(t, Lazy) for t in states[1].values())
    small = slices(model, kept, bare=lazily)
    return Case(
        model=model,
        cut=cut,
        kept=kept,
        inputs=inputs,
        examples=examples,
        gate=gate,
        expected=expected,
        effect=effect,
        masked=states[1],
        small=small_state(states[1], kept, cut.analysis.names),
        slices=small,
        rewritten=rewrite(cut, _named(model, small)),
        everywhere=everywhere,
    )


def _moved(masked: Everywhere, dense: State, inputs: Inputs, expected: list[Tensor]) -> float:
    """How far the masks moved the answers: to a part of a large picture, if the model takes it."""
    for use, gate, (answered, _) in masked.to_parts():
        with contextlib.suppress(Exception):  # of the model's code
            return difference(outputs(masked.model, dense, use.inputs, gate), answered)[0]
    return difference(outputs(masked.model, dense, inputs, masked.gate), expected)[0]


Found = tuple[tuple[State, State], Inputs, Gate, list[Tensor]]
"""The masked model's answers last; before them the values, inputs and gate they were found with."""


def answers_of(
    model: nn.Module, cut: IndexCut, example: Any, states: tuple[State, State]
) -> tuple[Found, list[Inputs]]:
    """The masked model's answers to random inputs like the first example, and all examples so.

    Whole numbers stay where they stand if the model takes no others: as many image tokens as
    there are images, and the like.
    """
    for drawn in (True, False):
        try:
            found = _answers(model, cut, arguments(example), states, drawn)
            break
        except Exception:  # of the model's code: a ValueError for ids that it has no pictures for
            if not drawn:
                raise
    every = every_example(example)
    return found, [random_like(one, own_type=True, integers=drawn) for one in every]


def _answers(
    model: nn.Module, cut: IndexCut, given: Inputs, states: tuple[State, State], drawn: bool
) -> Found:
    inputs = random_like(given, integers=drawn)
    if any(p.is_meta for p in model.parameters()):
        return states, inputs, META, traced_outputs(cut.analysis.traced)
    try:
        return states, inputs, FLOAT64, outputs(model, states[1], inputs)
    except Exception as error:  # of the model's code, which may refuse lazy or double tensors
        in_memory = held(states)
        if in_memory is not None:  # some code asks tensors for more than operators do
            return _answers(model, cut, given, in_memory, drawn)
        if not isinstance(error, (RuntimeError, NotImplementedError)):
            raise
        why = first_line(error, kind=False)  # an operator without float64
        gate = replace(OWN_TYPE, note=f"{OWN_TYPE.note} ({why})")
        inputs = random_like(cut.analysis.traced.inputs, own_type=True, integers=drawn)
        return states, inputs, gate, outputs(model, states[1], inputs, gate)


def _named(model: nn.Module, small: dict[int, Tensor]) -> dict[str, Tensor]:
    named = (*model.named_parameters(), *model.named_buffers())
    return {n: small[id(t)] for n, t in named if id(t) in small}
