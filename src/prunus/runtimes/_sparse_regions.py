"""Parts of an exported program that one sequence of convolutions can compute.

A region is convex: nothing outside of it stands between two of its operators. Batch norm goes into
the weights, what is added and the activation go to the step before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from prunus.kernels.conv_steps import Activation, Pair, Program, Step
from prunus.runtimes._sparse_sites import LEAST, tensors_by_name, writes

aten = torch.ops.aten
ACTIVATIONS: dict[Any, Activation] = {
    aten.relu.default: "relu", aten.relu_.default: "relu", aten.silu.default: "silu",
    aten.silu_.default: "silu", aten.gelu.default: "gelu", aten.relu6.default: "relu6",
    aten.relu6_.default: "relu6", aten.hardtanh.default: "relu6", aten.hardtanh_.default: "relu6",
}  # fmt: skip
ADDS = (aten.add.Tensor, aten.add_.Tensor)
MEANS = (aten.mean.dim, aten.adaptive_avg_pool2d.default)


@dataclass
class Draft:
    """A step that may still take up what follows it; x and more are nodes' values."""

    step: Step
    x: Any
    more: Any = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    name: str = ""

    @property
    def open(self) -> bool:
        """Whether nothing follows its sum yet."""
        return self.step.activation == "none" and self.step.kind in ("conv", "depthwise", "sum")


@dataclass(frozen=True, eq=False)
class Region:
    """A part of a program.

    Attributes:
        nodes: its operators.
        reads: an operator, and which of its arguments is an input, for each input.
        program: its steps, with weights numbered in their order.
        weights, biases: of steps that have them.
        outputs: the operators whose values others read.
        names: of the steps, as the program has them.
        later: operators outside that read its values but stand between its own.
    """

    nodes: tuple[fx.Node, ...]
    reads: tuple[tuple[fx.Node, int], ...]
    program: Program
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    outputs: tuple[fx.Node, ...]
    names: tuple[str, ...]
    later: tuple[fx.Node, ...]

    @property
    def node(self) -> fx.Node:
        """Its first operator."""
        return self.nodes[0]

    @property
    def sparsity(self) -> float:
        """Zeros ÷ weights of its convolutions."""
        count = sum(w.numel() for w in self.weights)
        return 1 - sum(int(w.count_nonzero()) for w in self.weights) / max(1, count)

    @property
    def inputs(self) -> list[fx.Node]:
        """The nodes that it reads, as the graph is now."""
        found = [node.args[i] for node, i in self.reads]
        assert all(isinstance(n, fx.Node) for n in found)
        return found  # type: ignore[return-value]


def regions(module: fx.GraphModule) -> list[Region]:
    """Those with at least one convolution whose weights hold enough zeros, in their order."""
    finder = _Finder(module)
    for node in module.graph.nodes:
        finder.look(node)
    finder.close()
    return finder.found


@dataclass
class _Open:
    """The region that grows."""

    drafts: list[Draft] = field(default_factory=list)
    values: dict[fx.Node, Any] = field(default_factory=dict)  # ("in", i) or ("step", i)
    nodes: list[fx.Node] = field(default_factory=list)
    reads: list[tuple[fx.Node, int]] = field(default_factory=list)
    outside: set[fx.Node] = field(default_factory=set)  # what depends on it, and is not of it


class _Finder:
    def __init__(self, module: fx.GraphModule) -> None:
        self.known = tensors_by_name(module)
        self.found: list[Region] = []
        self.now = _Open()

    def look(self, node: fx.Node) -> None:
        """Take a node into the region, or note that it depends on it."""
        handler: Callable[[fx.Node], bool] | None = None
        if node.op == "call_function":
            handler = self._handler(node.target)
        if handler is not None and picture(node.all_input_nodes[0]) and handler(node):
            return
        if writes(node):
            self.close()  # what was read before must be computed before
        now = self.now
        if any(n in now.outside or n in now.values for n in node.all_input_nodes):
            now.outside.add(node)

    def _handler(self, target: Any) -> Callable[[fx.Node], bool] | None:
        if target in ACTIVATIONS:
            return self._activation
        if target in ADDS:
            return self._add
        if target in MEANS:
            return self._mean
        return {
            aten.conv2d.default: self._conv, aten.batch_norm.default: self._norm,
            aten.max_pool2d.default: self._max, aten.avg_pool2d.default: self._average,
        }.get(target)  # fmt: skip

    # --- what a region takes

    def _conv(self, node: fx.Node) -> bool:
        x, held, *rest = _args(node)
        weight = self._tensor(held)
        bias = self._tensor(rest[0]) if rest and rest[0] is not None else None
        lacking = bool(rest) and rest[0] is not None and bias is None
        if weight is None or lacking:
            return False
        stride, padding, dilation = (
            _pair(rest[i] if len(rest) > i else None, default)
            for i, default in ((1, 1), (2, 0), (3, 1))
        )
        groups = rest[4] if len(rest) > 4 else 1
        out, own = weight.shape[:2]
        kernel = (int(weight.shape[2]), int(weight.shape[3]))
        if groups == out > 1 and own == 1 and channels(x) == out:
            step = Step("depthwise", 0, -1, 0, out, kernel, stride, padding, dilation)
        else:
            step = Step("conv", 0, -1, 0, out, kernel, stride, padding, dilation, groups=groups)
        self._join(node, [0], Draft(step, None, None, weight, bias, node.name))
        return True

    def _norm(self, node: fx.Node) -> bool:
        x, *held, trains, _, epsilon, _ = _args(node)
        scale, shift, mean, variance = (self._tensor(h) for h in held)
        if trains is not False or mean is None or variance is None:
            return False
        if any(h is not None and t is None for h, t in zip(held, (scale, shift), strict=False)):
            return False
        factor = (variance.double() + epsilon).rsqrt()
        factor = factor if scale is None else factor * scale.double()
        offset = -mean.double() * factor
        offset = offset if shift is None else offset + shift.double()
        draft = self._fresh(x)
        if draft is not None and draft.weight is not None and draft.more is None:
            weight = draft.weight.double() * factor[:, None, None, None]
            bias = offset if draft.bias is None else offset + draft.bias.double() * factor
            draft.weight, draft.bias = weight.float(), bias.float()
            self._extend(node, x)
            return True
        step = Step("depthwise", 0, -1, 0, len(mean))
        weight = factor.float().view(-1, 1, 1, 1)
        self._join(node, [0], Draft(step, None, None, weight, offset.float(), node.name))
        return True

    def _activation(self, node: fx.Node) -> bool:
        x, *more = _args(node)
        kind = ACTIVATIONS[node.target]
        hard = node.target in (aten.hardtanh.default, aten.hardtanh_.default)
        if hard and more != [0.0, 6.0]:
            return False
        if node.kwargs.get("approximate", "none") != "none" or self._changes(node, x):
            return False
        draft = self._fresh(x)
        if draft is not None and draft.open:
            draft.step = replace(draft.step, activation=kind)
            self._extend(node, x)
            return True
        step = Step("sum", 0, channels=channels(x), activation=kind)
        self._join(node, [0], Draft(step, None, name=node.name))
        return True

    def _add(self, node: fx.Node) -> bool:
        one, other = _args(node)
        if (
            not isinstance(other, fx.Node)
            or node.kwargs
            or one is other
            or self._changes(node, one)
        ):
            return False
        if not picture(other) or shape_of(one) != shape_of(other):
            return False
        outside = self.now.outside
        if one in outside or other in outside or self._place(one) == self._place(other) == -1:
            return False  # two inputs: torch adds them as fast
        later = max((one, other), key=self._place)
        draft, rest = self._fresh(later), 1 if later is one else 0
        if draft is not None and draft.open and draft.more is None:
            draft.more = self._value(node, rest)
            self._extend(node, later)
            return True
        step = Step("sum", 0, channels=channels(one))
        self._join(node, [0, 1], Draft(step, None, name=node.name))
        return True

    def _max(self, node: fx.Node) -> bool:
        kernel, stride, padding, dilation = _window(node, dilated=True)
        if len(node.args) > 5 and node.args[5]:
            return False
        step = Step("max", 0, -1, -1, channels(node.args[0]), kernel, stride, padding, dilation)
        self._join(node, [0], Draft(step, None, name=node.name))
        return True

    def _average(self, node: fx.Node) -> bool:
        kernel, stride, padding, _ = _window(node, dilated=False)
        rest = _args(node)[4:]
        usual: list[Any] = [False, True, None]
        odd, counts, divisor = rest + usual[len(rest) :]
        if odd or divisor is not None or not (counts or padding == (0, 0)):
            return False
        step = Step("average", 0, -1, -1, channels(node.args[0]), kernel, stride, padding)
        self._join(node, [0], Draft(step, None, name=node.name))
        return True

    def _mean(self, node: fx.Node) -> bool:
        x, sizes, *_ = _args(node)
        if node.target == aten.mean.dim:
            fits = sizes is not None and sorted(d % 4 for d in sizes) == [2, 3] and not node.kwargs
        else:
            fits = list(sizes) == [1, 1]
        if not fits or self._internal(x) is None:
            return False
        step = Step("mean", 0, channels=channels(node.args[0]))
        self._join(node, [0], Draft(step, None, name=node.name))
        self.now.outside.add(node)  # no step reads it
        return True

    # --- how it grows

    def _tensor(self, held: Any) -> Tensor | None:
        if not isinstance(held, fx.Node) or held.op != "get_attr":
            return None
        found = self.known.get(str(held.target))
        plain = found is not None and found.dtype == torch.float32 and found.device.type == "cpu"
        return found.detach() if found is not None and plain else None

    def _internal(self, node: Any) -> Any:
        """The value of a node that steps may read, or None."""
        return None if node in self.now.outside else self.now.values.get(node)

    def _place(self, node: fx.Node) -> int:
        value = self._internal(node)
        return value[1] if value is not None and value[0] == "step" else -1

    def _changes(self, node: fx.Node, x: fx.Node) -> bool:
        """Whether it changes in place what others read too, or what no step of the region made."""
        return writes(node) and (len(x.users) > 1 or self._place(x) == -1)

    def _fresh(self, node: Any) -> Draft | None:
        """The step of a node that nothing else reads."""
        value = self._internal(node)
        if value is None or value[0] != "step" or len(node.users) != 1:
            return None
        found: Draft = self.now.drafts[value[1]]
        return found

    def _extend(self, node: fx.Node, x: fx.Node) -> None:
        self.now.values[node] = self.now.values[x]
        self.now.nodes.append(node)

    def _value(self, node: fx.Node, position: int) -> Any:
        """Of an argument; a new input where it is none of the region's."""
        given = node.args[position]
        assert isinstance(given, fx.Node)
        if given not in self.now.values:
            self.now.values[given] = ("in", len(self.now.reads))
            self.now.reads.append((node, position))
        return self.now.values[given]

    def _join(self, node: fx.Node, positions: Sequence[int], draft: Draft) -> None:
        if any(node.args[p] in self.now.outside for p in positions):
            self.close()
        values = [self._value(node, p) for p in positions]
        draft.x, draft.more = values[0], values[1] if len(values) > 1 else None
        self.now.values[node] = ("step", len(self.now.drafts))
        self.now.drafts.append(draft)
        self.now.nodes.append(node)

    def close(self) -> None:
        """End the region; keep it if it is worth it."""
        now, self.now = self.now, _Open()
        worth = any(d.step.kind == "conv" and zeros(d.weight) >= LEAST for d in now.drafts)
        if worth:
            self.found.append(_closed(now))


def _closed(now: _Open) -> Region:
    own, count = set(now.nodes), len(now.reads)

    def number(value: Any) -> int:
        return -1 if value is None else int(value[1]) + (count if value[0] == "step" else 0)

    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    steps = []
    for draft in now.drafts:
        held = -1
        if draft.weight is not None:
            held = len(weights)
            weights.append(draft.weight)
            biases.append(draft.bias)
        steps.append(replace(draft.step, x=number(draft.x), more=number(draft.more), number=held))
    outputs = {number(now.values[n]): n for n in now.nodes if any(u not in own for u in n.users)}
    order = {n: i for i, n in enumerate(now.nodes[-1].graph.nodes)}
    later = [n for n in now.outside - own if order[n] < order[now.nodes[-1]]]
    return Region(
        tuple(now.nodes), tuple(now.reads), Program(count, tuple(steps), tuple(outputs)),
        tuple(weights), tuple(biases), tuple(outputs.values()), tuple(d.name for d in now.drafts),
        tuple(sorted(later, key=order.__getitem__)),
    )  # fmt: skip


def _args(node: fx.Node) -> list[Any]:
    return list(node.args)


def _window(node: fx.Node, *, dilated: bool) -> tuple[Pair, Pair, Pair, Pair]:
    """Kernel, stride, padding and dilation of a pooling."""
    given = _args(node)[1:]
    kernel = _pair(given[0], 1)
    stride = _pair(given[1], 1) if len(given) > 1 and given[1] else kernel
    padding = _pair(given[2] if len(given) > 2 else None, 0)
    dilation = _pair(given[3] if dilated and len(given) > 3 else None, 1)
    return kernel, stride, padding, dilation


def zeros(weight: Tensor | None) -> float:
    """Zeros ÷ weights."""
    return 0.0 if weight is None else 1 - int(weight.count_nonzero()) / max(1, weight.numel())


def shape_of(node: Any) -> tuple[str, ...]:
    """Of a node's value, symbols by their names."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(map(str, value.shape)) if isinstance(value, Tensor) else ()


def channels(node: Any) -> int:
    """Of a node's pictures."""
    return int(node.meta["val"].shape[1])


def picture(node: Any) -> bool:
    """Whether a node's value is float32 [batch, channels, height, width] of known size."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, Tensor) or value.dim() != 4 or value.dtype != torch.float32:
        return False
    return all(isinstance(n, int) for n in value.shape[1:]) and value.device.type == "cpu"


def _pair(given: Any, default: int) -> Pair:
    values = [default] if given is None else [given] if isinstance(given, int) else list(given)
    return (int(values[0]), int(values[-1])) if values else (default, default)
