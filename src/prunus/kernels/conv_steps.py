"""What a sequence of convolutions computes: steps on pictures, and how they are written as numbers.

A sequence is one operator in a program of torch, so that pictures keep the layout of the kernels
from the first step to the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from prunus.errors import InputError

Kind = Literal["conv", "depthwise", "max", "average", "mean", "sum"]
Activation = Literal["none", "relu", "gelu", "silu", "relu6"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
Pair = tuple[int, int]
FORMAT, WIDTH = 2, 17
LARGEST = 2**20
"""No size in a step is larger."""


@dataclass(frozen=True)
class Step:
    """One step of a sequence; it gives one value.

    Attributes:
        kind: ``conv`` and ``depthwise`` have weights; ``max`` and ``average`` pool, ``mean`` takes
            the mean of whole pictures, ``sum`` only adds.
        x: number of the value that is read: inputs come first, then the steps.
        more: of the value that is added before the activation, or −1.
        number: of the weights, or −1.
        channels: of the result.
        kernel, stride, padding, dilation: rows, columns.
        activation: what follows.
        shifted: whether columns are copied, so that every tap begins a line of the cache.
        vectors: of pixels, at most, that run through the registers at once.
        groups: of channels that a convolution keeps apart; its layout is that of the whole matrix,
            in which the others' places are empty.
    """

    kind: Kind
    x: int
    more: int = -1
    number: int = -1
    channels: int = 0
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    activation: Activation = "none"
    shifted: bool = False
    vectors: int = 8
    groups: int = 1

    @property
    def weighted(self) -> bool:
        """Whether it has weights."""
        return self.kind in ("conv", "depthwise")

    @property
    def taps(self) -> int:
        """Places of the kernel."""
        return self.kernel[0] * self.kernel[1]

    def size(self, height: Any, width: Any) -> tuple[Any, Any]:
        """Height and width of the result; symbols stay symbols.

        >>> Step("conv", 0, kernel=(3, 3), stride=(2, 2), padding=(1, 1)).size(224, 7)
        (112, 4)
        """
        if self.kind == "mean":
            return 1, 1
        found = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                (height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return cast("tuple[Any, Any]", tuple(found))


@dataclass(frozen=True)
class Program:
    """Steps, and which values come out.

    Attributes:
        inputs: how many pictures go in.
        steps: in order.
        outputs: numbers of values.
    """

    inputs: int
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    def numbers(self) -> list[int]:
        """As an operator takes it.

        >>> one = Program(1, (Step("conv", 0, number=0, channels=4),), (1,))
        >>> Program.of(one.numbers()) == one
        True
        """
        found = [FORMAT, self.inputs, len(self.outputs), *self.outputs]
        for s in self.steps:
            found += [KINDS.index(s.kind), s.x, s.more, s.number, s.channels]
            found += [*s.kernel, *s.stride, *s.padding, *s.dilation]
            found += [ACTIVATIONS.index(s.activation), int(s.shifted), s.vectors, s.groups]
        return found

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Program:
        """What :meth:`numbers` wrote.

        Raises:
            InputError: if it is something else.
        """
        try:
            first, inputs, outputs, *rest = numbers
            own, body = tuple(rest[:outputs]), rest[outputs:]
            fits = first == FORMAT and len(body) % WIDTH == 0 and 0 < outputs == len(own)
            parts = [body[i : i + WIDTH] for i in range(0, len(body), WIDTH)]
            made = cls(inputs, tuple(map(_step, parts)), own)
        except (ValueError, IndexError) as error:
            raise InputError(f"a sequence of convolutions is damaged: {error}") from None
        if not fits or not made._in_order():
            raise InputError("a sequence of convolutions is damaged: deploy the model again")
        return made

    def _in_order(self) -> bool:
        for i, step in enumerate(self.steps):
            known = range(self.inputs + i)
            sizes = (step.channels, *step.kernel, *step.stride, *step.dilation, step.vectors,
                     step.groups)  # fmt: skip
            fits = (
                step.x in known and (step.more == -1 or step.more in known)
                and all(0 < n <= LARGEST for n in sizes)
                and all(0 <= n <= LARGEST for n in step.padding)
                and (step.number >= 0) == step.weighted
                and (step.groups == 1 or (step.kind == "conv" and not step.channels % step.groups))
                and not (step.more >= 0 and step.kind in ("max", "average", "mean"))
            )  # fmt: skip
            if not fits:
                return False
        values = range(self.inputs + len(self.steps))
        inside = all(o in values and o >= self.inputs for o in self.outputs)
        # the mean of a picture is no picture any more: nothing reads it here
        means = {self.inputs + i for i, s in enumerate(self.steps) if s.kind == "mean"}
        read = {s.x for s in self.steps} | {s.more for s in self.steps}
        return self.inputs > 0 and inside and not means & read and means <= set(self.outputs)


def _step(numbers: Sequence[int]) -> Step:
    kind, x, more, number, channels, *pairs, activation, shifted, vectors, groups = numbers
    if min(kind, activation) < 0:
        raise ValueError("a kind or an activation is negative")
    kernel, stride, padding, dilation = (
        (pairs[0], pairs[1]), (pairs[2], pairs[3]), (pairs[4], pairs[5]), (pairs[6], pairs[7]),
    )  # fmt: skip
    return Step(
        KINDS[kind], x, more, number, channels, kernel, stride, padding, dilation,
        ACTIVATIONS[activation], bool(shifted), vectors, groups,
    )  # fmt: skip
