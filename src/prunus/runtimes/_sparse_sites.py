"""Linear layers of an exported program, with what follows them at once, as prepared ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import CodeGen

from prunus._common.torch_internals import schema
from prunus.kernels.choosing import Kernel
from prunus.kernels.prepared import Prepared
from prunus.runtimes import Answers, Compute

aten = torch.ops.aten
LEAST = 0.3
"""Share of zeros below which no kernel is tried."""
_FOLLOW = {
    aten.relu.default: "relu", aten.relu_.default: "relu", aten.gelu.default: "gelu",
    aten.silu.default: "silu", aten.silu_.default: "silu",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Site:
    """A linear layer in a program.

    Attributes:
        node: that multiplies.
        last: whose value the operator gives: itself, the sum with a residual, or the activation.
        weight: ``[rows, cols]``.
        bias: the node that reads the bias.
        residual: the node that is added before the activation.
        activation: what follows.
    """

    node: fx.Node
    last: fx.Node
    weight: Tensor
    bias: fx.Node | None
    residual: fx.Node | None
    activation: str

    @property
    def sparsity(self) -> float:
        """Zeros ÷ weights."""
        return 1 - int(self.weight.count_nonzero()) / max(1, self.weight.numel())


def tensors_by_name(module: fx.GraphModule) -> dict[str, Tensor]:
    """Parameters and buffers, under all their names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def drop_idle(module: fx.GraphModule) -> None:
    """Dropout that does nothing stands between a layer and its residual: it goes."""
    for node in list(module.graph.nodes):
        idle = node.target in (aten.dropout.default, aten.dropout_.default)
        if idle and node.args[2] is False:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def by_place(module: fx.GraphModule) -> None:
    """Arguments by their places: a file of torch 2.6 names those with a default, biases too."""
    for node in module.graph.nodes:
        known = schema(node.target) if node.op == "call_function" and node.kwargs else None
        names = [] if known is None else [a.name for a in known.arguments if not a.kwarg_only]
        for name in names[len(node.args) :]:
            if name not in node.kwargs:
                break
            node.args = (*node.args, node.kwargs[name])
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != name}


def sites(module: fx.GraphModule) -> list[Site]:
    """The float32 linear layers whose weights hold enough zeros, in the order of the program."""
    known = tensors_by_name(module)
    found = []
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target != aten.linear.default:
            continue
        held = node.args[1]
        weight = known.get(str(held.target)) if held.op == "get_attr" else None
        bias = node.args[2] if len(node.args) > 2 else None
        if bias is not None and str(bias.target) not in known:
            continue
        if weight is None or weight.dtype != torch.float32 or weight.device.type != "cpu":
            continue
        if float((weight == 0).float().mean()) >= LEAST:
            found.append(_with_followers(node, weight.detach()))
    return found


def _with_followers(node: fx.Node, weight: Tensor) -> Site:
    bias = node.args[2] if len(node.args) > 2 else None
    last = node
    residual: fx.Node | None = None
    after = _only_user(last)
    if after is not None and after.target in (aten.add.Tensor, aten.add_.Tensor):
        other = after.args[1] if after.args[0] is last else after.args[0]
        mine = not after.kwargs and other is not last and _at_once(node, after)
        if isinstance(other, fx.Node) and mine and _alike(other, last):
            last, residual, after = after, other, _only_user(after)
    activation = "none"
    fits = after is not None and after.kwargs.get("approximate", "none") == "none"
    fits = fits and after is not None and _at_once(node, after)
    if fits and after is not None and after.args == (last,) and after.target in _FOLLOW:
        last, activation = after, _FOLLOW[after.target]
    assert bias is None or isinstance(bias, fx.Node)
    return Site(node, last, weight, bias, residual, activation)


def _at_once(node: fx.Node, after: fx.Node) -> bool:
    """Whether both can be computed where the later one is: what lies between writes to nothing,
    and the later one at most to what the layer gave, which nobody else reads."""
    if writes(after) and after.args[0] not in (node, node.next):
        return False
    between = node.next
    while between is not after:
        if writes(between) and between.args[0] is not node:
            return False
        between = between.next
    return True


def writes(node: fx.Node) -> bool:
    """Whether it changes a tensor in place."""
    known = schema(node.target) if node.op == "call_function" else None
    return known is not None and bool(known.is_mutable)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _alike(one: fx.Node, other: fx.Node) -> bool:
    """Of one type and shape, symbols included."""
    first, second = one.meta.get("val"), other.meta.get("val")
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False
    shapes = [tuple(map(str, t.shape)) for t in (first, second)]
    return first.dtype == second.dtype and shapes[0] == shapes[1]


class Layer(nn.Module):
    """A prepared layer as a part of a program's graph."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__()
        self.prepared = prepared

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """As :class:`Prepared` says."""
        return self.prepared(x, residual)


def put(module: fx.GraphModule, site: Site, kernels: Sequence[Kernel]) -> None:
    """A prepared layer in the place of a linear one and of what follows it.

    What follows is looked up again: a sum of two layers is the first one's alone, and a residual
    may be an answer of a layer that was put in already.
    """
    site = _with_followers(site.node, site.weight)
    known = tensors_by_name(module)
    bias = None if site.bias is None else known[str(site.bias.target)]
    rows, cols = site.weight.shape
    made = Prepared(kernels, rows=rows, cols=cols, bias=bias, activation=site.activation)
    name = f"sparse_{site.node.name}"
    module.add_submodule(name, Layer(made))
    with module.graph.inserting_before(site.last):
        node = module.graph.call_module(name, (site.node.args[0], site.residual))
    node.meta = dict(site.last.meta)
    site.last.replace_all_uses_with(node)
    old = site.last
    while not old.users:  # one that works in place would be left
        before = [n for n in old.all_input_nodes if n is not site.residual]
        module.graph.erase_node(old)
        if old is site.node:
            break
        old = before[0]


def finish(module: fx.GraphModule) -> Compute:
    """The program as a function of flat tensors; what it no longer reads goes, weights too."""
    module.graph.eliminate_dead_code()
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in list(tensors_by_name(module)):
        if name not in read:
            parent, _, own = name.rpartition(".")
            delattr(module.get_submodule(parent), own)
    module.graph.set_codegen(CodeGen())
    module.graph.lint()
    module.recompile()
    forward = module.forward  # without the hooks that look at every input again

    def compute(inputs: Sequence[Tensor]) -> Answers:
        with torch.inference_mode():
            return list(forward(*inputs))

    return compute
