"""The stream of a model turned to its principal directions: the model stays what it is.

With Q orthogonal, whatever writes x writes x·Q, and whatever reads it reads it with W·Q; a norm
without a scale does the same to both. Its scale goes into the layers behind it first. The
directions of largest variance come first, so that the last ones go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from prunus._common.modules import joined
from prunus.blocks.gate import Grouped
from prunus.blocks.hidden import Narrow, difference
from prunus.blocks.source import Part, Source
from prunus.blocks.walk import Call
from prunus.compaction.verifying.verify import FLOAT64, TOLERANCE, outputs, wide
from prunus.errors import RunError

WHY = (
    "rotate: {}: a stream turns where RMS norms alone stand between what writes and what reads it; "
    "leave rotate out, and channels are chosen by their score"
)


class Turned:
    """A model each of whose blocks is turned when it is held.

    Args:
        source: has the model.
        narrow: by what it is turned.
    """

    def __init__(self, source: Source, narrow: Narrow) -> None:
        self.source, self.narrow = source, narrow
        self.model, self.scratch, self.whole = source.model, source.scratch, source
        self.before: dict[str, Tensor] = {}
        self._done: set[str] = set()

    @contextmanager
    def hold(self, name: str) -> Iterator[nn.Module]:
        """A block, turned; what it was is in ``before``."""
        with self.source.hold(name) as block:
            if name not in self._done:
                own = dict(block.named_parameters())
                self.before = {n: p.detach().clone() for n, p in own.items()}
                scales = {joined(name, n): t for n, t in self.before.items()}
                for inner, parameter in own.items():
                    full = joined(name, inner)
                    parameter.data.copy_(self.narrow.turned(full, self.before[inner], scales))
            if self.scratch is None:  # it stays as it is
                self._done.add(name)
            yield block
            self.before = {}

    def note(self, name: str) -> None:
        """The block is about to change."""
        self.source.note(name)

    def keep(self, name: str, part: Part) -> None:
        """The block is the result."""
        self.source.keep(name, part)

    def reset(self, name: str) -> None:
        """The block is again as it was given."""
        self._done.discard(name)
        self.source.reset(name)


def shown(
    narrow: Narrow,
    name: str,
    block: nn.Module,
    before: Mapping[str, Tensor],
    given: tuple[Tensor, Call],
) -> float:
    """How far a turned block's answer is from that of the block before, in float64, relative to it.

    Args:
        narrow: by what it was turned.
        name: of the block.
        block: turned.
        before: its parameters before.
        given: what the turned block reads, and its other arguments.

    Raises:
        RunError: if they differ.
    """
    assert narrow.turn is not None
    (x, call), buffers = given, {n: wide(b) for n, b in block.named_buffers()}
    now = {n: wide(p.detach()) for n, p in block.named_parameters()}
    then = {n: wide(t) for n, t in before.items()}
    exact = {n: narrow.turned(joined(name, n), t, {joined(name, m): v for m, v in then.items()})
             for n, t in then.items()}  # fmt: skip
    assert now.keys() == exact.keys()
    with Grouped():
        dense = outputs(block, buffers | then, ((wide(x) @ narrow.turn.T, *call[0]), call[1]),
                        FLOAT64)  # fmt: skip
        turned = outputs(block, buffers | exact, ((wide(x), *call[0]), call[1]), FLOAT64)
    error = difference(dense[0] @ narrow.turn, turned[0])
    if not error <= TOLERANCE:
        raise RunError(
            WHY.format(f"'{name}' turned is not what it was (it differs by {error:.2g})")
        )
    return error
