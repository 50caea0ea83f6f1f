"""Each rule broken on purpose: a label too many, a label too few; both are caught.

A rule that relates too little lets go what must stay: the gate refuses the smaller model, or the
count of units is another. One that relates too much keeps what could go: the count drops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import cut_units
from prunus.compaction.cut import masks_of
from prunus.compaction.search import find_plan
from prunus.errors import PrunusError
from prunus.graph import analysis as walk
from prunus.graph.call import Call, Found
from prunus.graph.labels import Fixed, Value
from prunus.graph.listing import table
from prunus.graph.passes import trace_all
from prunus.graph.rules import Rule, all_rules
from prunus.graph.units import coupled_units
from prunus.pruning.masks import apply
from test_rules import EDGES, Net, around, normal, weight

L, C = nn.Linear, nn.Conv2d


def name(rule: Rule) -> str:
    return f"{rule.__module__.rpartition('.')[2]}.{rule.__name__}"


RULES = {name(rule): rule for rule in all_rules().values()}

LINE, LINES, PICTURE = normal(4, 5), normal(4, 7, 5), normal(2, 2, 8, 8)
"""``[batch, 5]``, ``[batch, 7, 5]`` and ``[batch, 2, 8, 8]``."""

Example = tuple[Callable[[], nn.Module], Any, int]


def on(example: Any, units: int, middle: Callable[..., Tensor], **parts: Any) -> Example:
    """Five numbers to six, what is looked at, and whatever is left to three."""
    return lambda: around(middle, **{k: make() for k, make in parts.items()}), example, units


def seen(units: int, middle: Callable[..., Tensor], **parts: Any) -> Example:
    """A convolution to six channels, what is looked at, and one to three."""

    def make() -> nn.Module:
        made = {k: part() for k, part in parts.items()}
        return Net(lambda m, x: m.o(middle(m, m.p(x))), p=C(2, 6, 3), **{"o": C(6, 3, 1), **made})

    return make, PICTURE, units


def heads(m: Any, y: Tensor) -> Tensor:
    q, k, v = (part(y).view(4, 7, 2, 4).transpose(1, 2) for part in (m.q, m.k, m.v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(4, 7, 8)


def stack_of_matrices() -> Tensor:
    """What is imported here and not in ``grouped``, since classes of answers register themselves
    for torch when they are imported, but not where that happens while a model is exported."""
    pytest.importorskip("transformers.integrations.moe")
    return weight(2, 6, 8)


def grouped(m: Any, y: Tensor) -> Tensor:
    ends = torch.tensor([1, 4], dtype=torch.int32)
    return torch.ops.transformers.grouped_mm_fallback(y, m.w, ends)  # type: ignore[no-any-return]


def messages(m: Any, x: Tensor, e: Tensor) -> Tensor:
    h = m.p(x)
    where = e[1][:, None].expand(-1, 6)
    return m.o(torch.zeros_like(h).scatter_add(0, where, h[e[0]]))  # type: ignore[no-any-return]


def packed(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    y = nn.utils.rnn.pack_padded_sequence(m.p(x), lengths, batch_first=True)
    return m.o(nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0])  # type: ignore[no-any-return]


def step(m: Any, y: Tensor) -> Tensor:
    return m.r(y, (torch.zeros(4, 8), torch.zeros(4, 8)))[0]  # type: ignore[no-any-return]


def eight(*shape: int) -> dict[str, Any]:
    return {"w": lambda: weight(*shape), "o": lambda: L(8, 3)}


ROWS, LENGTHS = torch.tensor([0, 2, 3]), torch.tensor([7, 5, 3, 2])
EXAMPLES: dict[str, Example] = {
    "attention.attention": on(LINES, 8, heads, q=lambda: L(6, 8), k=lambda: L(6, 8),
                              v=lambda: L(6, 8), o=lambda: L(8, 3)),
    "contraction.grouped_matmul": on(LINE, 14, grouped, w=stack_of_matrices, o=lambda: L(8, 3)),
    "contraction.bilinear": on(LINE, 14, lambda m, y: m.b(y, y), b=lambda: nn.Bilinear(6, 6, 8),
                               o=lambda: L(8, 3)),
    "contraction.linear": on(LINE, 6, lambda m, y: y),
    "contraction.matmul": on(LINE, 14, lambda m, y: y @ m.w, **eight(6, 8)),
    "contraction.addmm": on(LINE, 14, lambda m, y: torch.addmm(m.b, y, m.w), b=lambda: weight(8),
                            **eight(6, 8)),
    "contraction.addbmm": on(LINES, 14, lambda m, y: torch.addbmm(m.b, y, m.w),
                             b=lambda: weight(8), **eight(4, 6, 8)),
    "contraction.einsum": on(LINE, 14, lambda m, y: torch.einsum("bi,io", y, m.w), **eight(6, 8)),
    "convolution.convolution": seen(6, lambda m, y: y),
    "creation.filled": on(LINE, 8, lambda m, y: m.q(y / torch.ones_like(y).sum(-1, keepdim=True))
                          * torch.ones(8), q=lambda: L(6, 8), o=lambda: L(8, 3)),
    "creation.numbered": on(LINE, 0, lambda m, y: y * torch.arange(6)),
    "creation.chance": on(LINE, 0, lambda m, y: y * torch.empty_like(y).normal_()),
    "fourier.fourier": on(LINES, 6, lambda m, y: torch.fft.fft(y, dim=1).real),
    "fourier.pairs_to_complex": on(
        LINE, 6, lambda m, y: torch.view_as_complex(torch.stack([y, y], -1)).imag),
    "fourier.complex_to_pairs": on(
        LINE, 6, lambda m, y: torch.view_as_real(torch.complex(y, y)).sum(-1)),
    "gated.glu": on(LINE, 10, lambda m, y: F.glu(m.q(y)), q=lambda: L(6, 8), o=lambda: L(4, 3)),
    "lookup.embedding": (lambda: Net(lambda m, i: m.o(m.e(i)), e=nn.Embedding(9, 6), o=L(6, 3)),
                         torch.tensor([[1, 2], [3, 8]]), 6),
    "lookup.renorm": on(LINE, 6, lambda m, y: F.linear(y, torch.embedding_renorm_(
        1 * m.w, ROWS, 1.0, 2.0)), **eight(8, 6)),
    "lookup.embedding_bag": (lambda: Net(lambda m, i: m.o(m.e(i)), e=nn.EmbeddingBag(9, 6),
                                         o=L(6, 3)), torch.tensor([[1, 2], [3, 8]]), 6),
    "lookup.index": on(LINES, 6, lambda m, y: y[:, ROWS]),
    "lookup.index_put": on(LINES, 6, lambda m, y: y.index_put((ROWS,), y[ROWS - 1])),
    "lookup.index_select": on(LINES, 6, lambda m, y: y.index_select(1, ROWS)),
    "lookup.index_add": on(LINE, 6, lambda m, y: y.index_add(0, ROWS, y[:3])),
    "lookup.segments": on(LINE, 6, lambda m, y: torch.segment_reduce(
        y, "sum", lengths=torch.tensor([1, 3]))),
    "lookup.buckets": on(LINE, 6, lambda m, y: torch.bucketize(y, torch.ones(4)).float()),
    "lookup.scatter": (lambda: Net(messages, p=L(7, 6), o=L(6, 3)), (normal(9, 7), EDGES), 6),
    "lookup.gather": on(LINES, 6, lambda m, y: y.gather(1, ROWS[None, :, None].expand(4, 3, 6))),
    "lookup.one_hot": on(LINE, 0, lambda m, y: F.one_hot(ROWS, 6).float() + y[:3]),
    "movement.move": on(LINES, 6, lambda m, y: y.mT.flip(1).flip(1).mT),
    "movement.diagonal": on(LINE, 6, lambda m, y: y * m.w.diagonal(), w=lambda: weight(6, 6)),
    "movement.split": on(LINE, 3, lambda m, y: torch.mul(*y.chunk(2, -1)), o=lambda: L(3, 3)),
    "movement.cat": on(LINE, 6, lambda m, y: torch.cat([y, -y], -1), o=lambda: L(12, 3)),
    "movement.stack": on(LINE, 6, lambda m, y: torch.stack([y, -y]).relu().sum(0)),
    "movement.diag_embed": on(LINE, 6, lambda m, y: torch.diag_embed(y).sum(-1)),
    "movement.triangle": on(LINE, 0, lambda m, y: y.tril()),
    "norms.channel_norm": seen(6, lambda m, y: m.n(y), n=lambda: nn.BatchNorm2d(6)),
    "norms.last_dims_norm": on(
        LINES, 8, lambda m, y: F.layer_norm(m.q(F.layer_norm(y, (6,))).mT, (7,)).mT,
        q=lambda: L(6, 8), o=lambda: L(8, 3)),
    "norms.group_norm": seen(3, lambda m, y: m.n(y), n=lambda: nn.GroupNorm(3, 6)),
    "norms.weight_norm": on(LINE, 14, lambda m, y: m.q(y), o=lambda: L(8, 3),
                            q=lambda: nn.utils.parametrizations.weight_norm(L(6, 8))),
    "pointwise.pointwise": on(LINE, 6, lambda m, y: y.relu() * m.w, w=lambda: weight(6)),
    "pointwise.prelu": seen(6, lambda m, y: m.a(y), a=lambda: nn.PReLU(6)),
    "pooling.spatial": seen(6, lambda m, y: F.avg_pool2d(y, 2)),
    "pooling.grid_sampler": seen(
        6, lambda m, y: F.grid_sample(y, m.g(y).permute(0, 2, 3, 1), align_corners=False),
        g=lambda: C(6, 2, 1)),
    "pooling.unpool": seen(6, lambda m, y: F.max_unpool2d(
        *F.max_pool2d(y, 2, return_indices=True), 2)),
    "pooling.affine_grid": seen(6, lambda m, y: F.grid_sample(y, F.affine_grid(
        m.g, [2, 6, 5, 5], align_corners=False), align_corners=False), g=lambda: weight(2, 2, 3)),
    "pooling.col2im": seen(6, lambda m, y: F.fold(F.unfold(y, 3, padding=1), (6, 6), 3, padding=1)),
    "recurrent.recurrent": on(LINES, 14, lambda m, y: m.r(y)[0], o=lambda: L(8, 3),
                              r=lambda: nn.LSTM(6, 8, batch_first=True)),
    "recurrent.cell": on(LINE, 14, step, r=lambda: nn.LSTMCell(6, 8), o=lambda: L(8, 3)),
    "recurrent.pack": (lambda: Net(packed, p=L(5, 6), o=L(6, 3)), (LINES, LENGTHS), 6),
    "recurrent.pad": (lambda: Net(packed, p=L(5, 6), o=L(6, 3)), (LINES, LENGTHS), 6),
    "reductions.reduction": on(LINES, 6, lambda m, y: m.q(y.amax(1)).softmax(-1),
                               q=lambda: L(6, 8), o=lambda: L(8, 3)),
    "whole.matrices": on(
        LINE, 14, lambda m, y: (m.q(y)[..., None, None] * torch.linalg.inv(m.w)).sum((-1, -2)),
        q=lambda: L(6, 8), **eight(8, 2, 2)),
    "whole.everything": on(LINE, 0, lambda m, y: y + y.take(ROWS).sum()),
    "whole.similarity": (lambda: Net(lambda m, x: F.cosine_similarity(m.p(x), m.q(x)),
                                     p=L(5, 6), q=L(5, 6)), LINE, 6),
    "whole.distance": on(LINES, 8, lambda m, y: torch.cdist(y, m.w), **eight(8, 6)),
}  # fmt: skip

NOTHING_FREE = {"creation.numbered", "creation.chance", "lookup.one_hot", "movement.triangle",
                "whole.everything", "pooling.affine_grid"}  # fmt: skip
"""Rules that let nothing go: they cannot relate more than they do."""


def fresh(call: Call, value: Value | None) -> Value | None:
    """The same value, its indices related to nothing."""
    if value is None:
        return None
    return Value(call.labels.made(value.shape), value.zero, value.shape)


def each(found: Found, change: Callable[[Value | None], Value | None]) -> Found:
    return [change(v) for v in found] if isinstance(found, list) else change(found)  # type: ignore[arg-type]


def too_many(rule: Rule, runs: list[Call]) -> Rule:
    """A rule that forgets what it says of labels, and gives labels of its own."""

    def broken(call: Call) -> Found:
        runs.append(call)
        said = (call.labels.ties, call.labels.pins, call.labels.sites)
        before = [len(part) for part in said]
        found = rule(call)
        for part, length in zip(said, before, strict=True):
            del part[length:]  # type: ignore[attr-defined]
        return each(found, lambda value: fresh(call, value))

    return broken


def too_few(rule: Rule, runs: list[Call]) -> Rule:
    """A rule that lets nothing go."""

    def held(value: Value | None) -> Value | None:
        if value is None:
            return None
        dims = tuple(Fixed("broken on purpose") for _ in value.shape)
        return Value(dims, value.zero, value.shape)

    def broken(call: Call) -> Found:
        runs.append(call)
        for value in call.operands():
            for dim in value.dims:
                call.labels.pin(dim, "broken on purpose")
        return each(rule(call), held)

    return broken


def analyzed(model: nn.Module, passes: Any) -> tuple[Any, int]:
    found = walk.analyze(model, None, traced=passes)
    return found, table(model, found).total


def refused(model: nn.Module, analysis: Any, example: Any) -> bool:
    """Whether the gate refuses a model that lost half of its units."""
    names = list(dict.fromkeys(analysis.names[n] for n, _ in model.named_parameters()))
    kinds = [k for k in coupled_units(analysis, names) if len(k) > 1]
    if not kinds:
        return False
    chance = np.random.default_rng(0)
    gone = [chance.permutation(k.classes)[: len(k) // 2] for k in kinds]
    cut = cut_units(analysis, np.concatenate(gone))
    apply(model, masks_of(cut, dict(model.named_parameters())))
    try:
        find_plan(model, cut, example)
    except (PrunusError, RuntimeError, AssertionError):  # of torch: a matrix that is singular now
        return True
    return False


def rules_with(broken: Rule, which: str) -> dict[str, Rule]:
    return {n: broken if name(rule) == which else rule for n, rule in all_rules().items()}


def test_every_rule_has_an_example() -> None:
    assert set(EXAMPLES) == set(RULES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", sorted(EXAMPLES))
def test_a_broken_rule_is_caught(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, example, units = EXAMPLES[which]
    torch.manual_seed(0)
    model = make().eval()
    passes = trace_all(model, example)
    assert analyzed(model, passes)[1] == units

    runs: list[Call] = []
    few = rules_with(too_few(RULES[which], runs), which)
    monkeypatch.setattr(walk, "rules", lambda: few)
    if which not in NOTHING_FREE:
        assert analyzed(model, passes)[1] < units
        assert runs

    many = rules_with(too_many(RULES[which], runs), which)
    monkeypatch.setattr(walk, "rules", lambda: many)
    analysis, count = analyzed(model, passes)
    assert runs
    by_gate = refused(model, analysis, example)
    print(which, "by the gate" if by_gate else "", f"{count} units of {units}")
    assert by_gate or count != units
