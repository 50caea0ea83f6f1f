"""One small model for each operator: its units counted by hand, masked and compact model equal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from helpers import cut_units
from prunus._common.inputs import arguments
from prunus._common.nested import tensors_of
from prunus._common.torch_internals import pytree
from prunus.compaction.compact import perform
from prunus.compaction.cut import cut_of, masks_of
from prunus.compaction.search import find_plan
from prunus.compaction.verifying.verify import Double, difference
from prunus.errors import InputError, RunError
from prunus.graph.analysis import analyze
from prunus.graph.listing import Units, table
from prunus.graph.units import coupled_units
from prunus.pruning.masks import apply

L, C = nn.Linear, nn.Conv2d


class Net(nn.Module):
    """Modules and parameters by name, and a function of the model and its inputs."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(normal(*shape, dtype=dtype) / 3)


def answers(model: nn.Module, example: Any) -> list[Tensor]:
    """What a model gives in float64."""

    def wide(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor.clone()

    args, kwargs = arguments(pytree.tree_map_only(Tensor, wide, example))
    with torch.no_grad(), Double():
        found = tensors_of(copy.deepcopy(model).double()(*args, **kwargs))
    return [t for t in found if t.is_floating_point() or t.is_complex()]


def halved(model: nn.Module, example: Any, **options: Any) -> tuple[Units, nn.Module]:
    """What can go; then half of every kind goes, and the smaller model equals the masked one."""
    model = model.eval()
    analysis = analyze(model, example, **options)
    names = list(dict.fromkeys(analysis.names[n] for n, _ in model.named_parameters()))
    found = table(model, analysis)
    assert found.unknown == {}
    chance = np.random.default_rng(0)
    kinds = [k for k in coupled_units(analysis, names) if len(k) > 1]
    if not kinds:
        return found, model
    gone = [chance.permutation(k.classes)[: len(k) // 2] for k in kinds]
    cut = cut_units(analysis, np.concatenate(gone))
    masks = masks_of(cut, dict(model.named_parameters()))
    dense = answers(model, example)
    apply(model, masks)
    assert cut_of(analysis, masks).units() == cut.units()
    plan = find_plan(model, cut, example)
    small = perform(copy.deepcopy(model), plan)
    expected = answers(model, example)
    assert difference(expected, answers(small, example))[0] < 1e-12
    assert difference(dense, expected)[0] > 1e-3
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    return found, small


def kinds(found: Units) -> list[tuple[int, list[str]]]:
    """How many units of each kind, and the dimensions that they take."""
    return [(len(c), [f"{name}[{d}]" for name, d in c.places]) for c in found.coupled]


def reason(found: Units, place: str) -> str:
    return next(p.why for p in found.pinned if f"{p.place[0]}[{p.place[1]}]" == place)


def around(middle: Callable[[Any, Tensor], Tensor], **parts: Any) -> Net:
    """Five numbers to six, what is looked at, and six to three."""
    return Net(lambda m, x: m.o(middle(m, m.p(x))), p=L(5, 6), **{"o": L(6, 3), **parts})


@pytest.mark.parametrize("channels", [6, 16])  # the first is a picture's width as well
def test_a_slope_of_prelu_goes_with_its_channel(channels: int) -> None:
    model = nn.Sequential(C(3, channels, 3), nn.PReLU(channels), C(channels, 4, 1))
    found, small = halved(model, normal(2, 3, 8, 8))
    assert kinds(found) == [(channels, ["0.weight[0]", "0.bias[0]", "1.weight[0]", "2.weight[1]"])]
    assert small[1].num_parameters == channels // 2  # type: ignore[index, union-attr]


def test_one_slope_for_all_stays() -> None:
    found, _ = halved(nn.Sequential(L(5, 6), nn.PReLU(), L(6, 3)), normal(2, 5))
    assert found.total == 6
    assert reason(found, "1.weight[0]") == "of size 1"


def test_a_bilinear_form_loses_rows_of_either_side_and_outputs() -> None:
    model = Net(
        lambda m, x: m.o(m.b(m.p(x), m.q(x)).relu()),
        p=L(5, 6), q=L(5, 8), b=nn.Bilinear(6, 8, 10), o=L(10, 3),
    )  # fmt: skip
    found, small = halved(model, normal(4, 5))
    assert [n for n, _ in kinds(found)] == [6, 8, 10]
    assert (small.b.in1_features, small.b.in2_features, small.b.out_features) == (3, 4, 5)


@pytest.mark.parametrize(
    ("middle", "units"),
    [
        (lambda m, y: torch.fft.irfft(torch.fft.rfft(y, dim=1), n=10, dim=1), 6),
        (lambda m, y: torch.fft.fft(y, dim=-2).real + torch.fft.fft(y, dim=1).imag, 6),
        (lambda m, y: torch.fft.fft2(y).real, 0),
        (lambda m, y: torch.fft.fftshift(torch.fft.fftn(y, dim=(1,)), dim=1).abs(), 6),
        (lambda m, y: torch.fft.fft(y).real, 0),
        (lambda m, y: torch.view_as_real(torch.fft.fft(y, dim=1).conj().resolve_conj()).sum(-1), 6),
        (lambda m, y: torch.view_as_complex(torch.stack([y, y], -1)).imag, 6),
        (lambda m, y: torch.complex(y, y).angle() * torch.polar(y, y).real, 6),
        (lambda m, y: torch.complex(torch.cos(y), y).real, 6),
        (lambda m, y: y.mH.mT, 6),
    ],
)  # fmt: skip
def test_a_transform_over_one_dimension_leaves_the_others(
    middle: Callable[..., Tensor], units: int
) -> None:
    assert halved(around(middle), normal(4, 10, 5))[0].total == units


@pytest.mark.parametrize(
    ("middle", "units"),
    [
        (lambda m, y: y.view(4, 10, 2, 3).softmax(-1).view_as(y), 2),
        (lambda m, y: y.flatten().view_as(y) + y.mT.reshape_as(y.mT).mT, 6),
        (lambda m, y: y * y[..., [-2]].cos(), 5),
        (lambda m, y: y * y.index_select(-1, torch.tensor([4, 1, 4])).sum(-1, keepdim=True), 4),
        (lambda m, y: y * y[..., torch.tensor([[0, 3]])].sum((-1, -2))[..., None], 4),
    ],
)  # fmt: skip
def test_what_code_reads_by_written_out_positions_stays_and_the_rest_goes(
    middle: Callable[..., Tensor], units: int
) -> None:
    assert halved(around(middle), normal(4, 10, 5))[0].total == units


def test_a_complex_kernel_loses_what_its_channels_lose() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.p(x).transpose(1, 2)
        spectrum = torch.einsum("bim,iom->bom", torch.fft.rfft(h)[..., :5], m.w)
        return m.o(F.gelu(torch.fft.irfft(spectrum, n=20) + m.c(h)).transpose(1, 2))  # type: ignore[no-any-return]

    model = Net(
        forward,
        p=L(2, 8), w=weight(8, 6, 5, dtype=torch.complex64), c=nn.Conv1d(8, 6, 1), o=L(6, 1),
    )  # fmt: skip
    found, small = halved(model, normal(2, 20, 2))
    assert kinds(found) == [
        (8, ["w[0]", "p.weight[0]", "p.bias[0]", "c.weight[1]"]),
        (6, ["w[1]", "c.weight[0]", "c.bias[0]", "o.weight[1]"]),
    ]
    assert small.w.shape == (4, 3, 5)
    recipe = {"structure": "channel", "allocation": "uniform", "target": 0.5, "compact": "end"}
    result = prunus.prune(model, recipe, example=normal(2, 20, 2))
    assert result.model.w.shape == (4, 3, 5)


class Packed(nn.Module):
    """A recurrent layer over sequences of their own lengths."""

    def __init__(self, fill: float = 0.0) -> None:
        super().__init__()
        self.fill = fill
        self.p, self.r, self.o = L(5, 6), nn.LSTM(6, 8, batch_first=True), L(8, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        y = nn.utils.rnn.pack_padded_sequence(
            self.p(x), lengths, batch_first=True, enforce_sorted=False
        )
        y, last = self.r(y)
        y, _ = nn.utils.rnn.pad_packed_sequence(y, batch_first=True, padding_value=self.fill)
        return y.sum(-1), self.o(last[0][-1])


@pytest.mark.parametrize(("fill", "hidden"), [(0.0, 8), (1.0, 0)])
def test_packed_sequences_pass_their_features_on(fill: float, hidden: int) -> None:
    """What pads a sequence with ones is not zero where a mask removes it."""
    found, _ = halved(Packed(fill), (normal(4, 7, 5), torch.tensor([7, 5, 3, 2])))
    assert found.total == 6 + hidden


@pytest.mark.parametrize(("layers", "both"), [(1, False), (2, True)])
def test_a_projected_lstm_has_hidden_units_and_outputs_of_its_own(layers: int, both: bool) -> None:
    lstm = nn.LSTM(6, 8, layers, proj_size=4, batch_first=True, bidirectional=both)
    model = around(lambda m, y: m.r(y)[0], r=lstm, o=L(4 + 4 * both, 3))
    found, small = halved(model, normal(4, 7, 5))
    assert sorted(n for n, _ in kinds(found)) == [4, 6, 8]
    sizes = small.r.input_size, small.r.hidden_size, small.r.proj_size
    assert sizes == (3, 4, 2)
    again = pytree.tree_map(torch.Tensor.shape.__get__, dict(small.r.named_parameters()))
    fresh = nn.LSTM(3, 4, layers, proj_size=2, bidirectional=both)
    assert again == {n: p.shape for n, p in fresh.named_parameters()}


EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8, 0], [1, 2, 3, 4, 5, 6, 7, 8, 0, 4]])


def test_messages_along_edges_pass_features_on() -> None:
    def forward(m: Any, x: Tensor, e: Tensor) -> Tensor:
        h = m.p(x).relu()
        mean = torch.zeros_like(h).index_add(0, e[1], h[e[0]])
        most = torch.zeros_like(h).scatter_reduce(
            0, e[1][:, None].expand_as(h[e[0]]), h[e[0]], "amax"
        )
        return m.o(torch.cat([mean, most, h], 1))  # type: ignore[no-any-return]

    found, _ = halved(Net(forward, p=L(7, 6), o=L(18, 3)), (normal(9, 7), EDGES))
    assert [n for n, _ in kinds(found)] == [6]


def test_heads_of_attention_along_edges_lose_the_same_numbers() -> None:
    def forward(m: Any, x: Tensor, e: Tensor) -> Tensor:
        z = m.p(x).view(-1, 4, 8)
        a = F.leaky_relu((z * m.s).sum(-1)[e[0]] + (z * m.t).sum(-1)[e[1]]).exp()
        whole = torch.zeros(len(x), 4).scatter_add_(0, e[1][:, None].expand_as(a), a)
        a = a / (whole[e[1]] + 1e-9)
        out = torch.zeros(len(x), 4, 8).index_add_(0, e[1], z[e[0]] * a[:, :, None])
        return m.o(F.elu(out.flatten(1)))  # type: ignore[no-any-return]

    model = Net(forward, p=L(7, 32), s=weight(1, 4, 8), t=weight(1, 4, 8), o=L(32, 3))
    found, small = halved(model, (normal(9, 7), EDGES))
    assert kinds(found) == [(8, ["s[2]", "t[2]", "p.weight[0]", "p.bias[0]", "o.weight[1]"])]
    assert small.s.shape == (1, 4, 4)
    result = prunus.prune(
        model,
        {"structure": "channel", "target": 0.5, "compact": "end"},
        example=(normal(9, 7), EDGES),
    )
    assert result.model.s.shape == (1, 4, 4)


def test_a_sparse_matrix_is_multiplied_like_any_other() -> None:
    model = Net(
        lambda m, x, a: m.o(torch.sparse.mm(a.to_sparse(), m.p(x)).relu()), p=L(5, 6), o=L(6, 3)
    )
    assert halved(model, (normal(9, 5), (normal(9, 9) > 0.5).float()))[0].total == 6


def test_places_where_a_picture_is_read_stay_and_its_channels_go() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        grid = m.g(h).permute(0, 2, 3, 1).tanh()
        return m.o(F.grid_sample(h, grid, align_corners=False).relu())  # type: ignore[no-any-return]

    model = Net(forward, a=C(3, 8, 3), g=C(8, 2, 1), o=C(8, 4, 1))
    found, _ = halved(model, normal(2, 3, 8, 8))
    assert kinds(found) == [(8, ["a.weight[0]", "a.bias[0]", "g.weight[1]", "o.weight[1]"])]
    assert reason(found, "g.weight[0]") == "grid_sampler: positions in space"


@pytest.mark.parametrize(
    ("middle", "why"),
    [
        (lambda m, y: y / (y.pow(2).mean(1, keepdim=True) + 1e-8).sqrt(),
         "mean: looks at every index"),
        (lambda m, y: y.softmax(1), "softmax: looks at every index"),
        (lambda m, y: y * m.e(y.mean((2, 3))[:, None])[:, 0, :, None, None],
         "conv1d in e: positions in space"),
        (lambda m, y: y * torch.cdist(y.flatten(2).mT, y.flatten(2).mT).mean(),
         "cdist: counts every index"),
    ],
)  # fmt: skip
def test_what_counts_every_channel_keeps_them_all_and_says_so(
    middle: Callable[..., Tensor], why: str
) -> None:
    model = Net(
        lambda m, x: m.o(middle(m, m.p(x))),
        p=C(2, 6, 3), o=C(6, 3, 1), e=nn.Conv1d(1, 1, 3, padding=1, bias=False),
    )  # fmt: skip
    found = prunus.units(model.eval(), normal(2, 2, 8, 8))
    assert found.unknown == {}
    assert {p.why for p in found.pinned} >= {why}
    assert found.total == 0


@pytest.mark.parametrize(
    ("middle", "why"),
    [
        (lambda m, y: y @ torch.linalg.inv(m.w), "linalg_inv: counts the whole matrix"),
        (lambda m, y: y * torch.linalg.slogdet(m.w @ m.w.mT)[1] @ m.w,
         "linalg_slogdet: counts the whole matrix"),
        (lambda m, y: y * F.pairwise_distance(y, y.flip(0))[:, None],
         "pairwise_distance: counts every index"),
    ],
)  # fmt: skip
def test_a_matrix_or_a_distance_that_counts_every_number_keeps_them_all(
    middle: Callable[..., Tensor], why: str
) -> None:
    found = prunus.units(around(middle, w=weight(6, 6)).eval(), normal(4, 5))
    assert found.unknown == {}
    assert reason(found, "p.bias[0]") == why


@pytest.mark.parametrize(
    "middle",
    [
        lambda m, y: F.normalize(y, dim=-1),
        lambda m, y: y * F.cosine_similarity(y, y.flip(0), dim=-1)[:, None],
        lambda m, y: F.normalize(y, p=1, dim=-1) * y.norm(dim=-1, keepdim=True),
    ],
)
def test_a_length_is_a_sum_in_which_zeros_count_nothing(middle: Callable[..., Tensor]) -> None:
    assert halved(around(middle), normal(4, 5))[0].total == 6


def test_a_cosine_needs_both_sides_to_be_zero() -> None:
    model = Net(
        lambda m, x: F.cosine_similarity(m.p(x).exp(), m.q(x), dim=-1), p=L(5, 6), q=L(5, 6)
    )
    found, _ = halved(model, normal(4, 5))
    assert found.total == 0
    assert "a length of what a cut does not zero" in reason(found, "p.weight[0]")


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y.max(1)[0], lambda y: y.sort(1)[0][:, 0], lambda y: y.topk(2, 1)[0].sum(1),
        lambda y: y.std(1), lambda y: y.var(1), lambda y: y.prod(1), lambda y: y.cummax(1)[0][:, 3],
        lambda y: y.median(1)[0], lambda y: y.cumprod(1)[:, 2],
    ],
)  # fmt: skip
def test_what_is_zero_everywhere_stays_zero_over_another_dimension(
    function: Callable[[Tensor], Tensor],
) -> None:
    model = Net(lambda m, x: function(m.p(x)).sum(-1), p=L(5, 6))
    assert halved(model, normal(4, 10, 5))[0].total == 6


def test_the_place_of_the_largest_is_no_zero() -> None:
    model = Net(lambda m, x: (m.p(x) + m.b).max(1)[1].float().sum(-1), p=L(5, 6), b=weight(10, 6))
    assert halved(model, normal(4, 10, 5))[0].total == 0


@pytest.mark.parametrize("equation", ["...i,oi->...o", "...i,oi", "bni,oi->bno", "bni , oi"])
def test_every_way_to_write_an_einsum_says_the_same(equation: str) -> None:
    model = around(lambda m, y: torch.einsum(equation, y, m.w), w=weight(6, 6))
    found, _ = halved(model, normal(4, 7, 5))
    assert kinds(found) == [(6, ["w[0]", "o.weight[1]"]), (6, ["w[1]", "p.weight[0]", "p.bias[0]"])]


class Positions(nn.Module):
    """A table that is repeated, added to in place, and added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.o = L(5, 6), L(6, 3)
        self.time, self.space, self.gate = weight(3, 6), weight(4, 6), weight(6)

    def forward(self, x: Tensor) -> Tensor:
        where = torch.repeat_interleave(self.time, 4, dim=0)
        where.add_(self.space.unsqueeze(0).expand(3, -1, -1).reshape(12, -1))
        x = self.p(x)
        x.add_(where)
        with torch.no_grad():
            self.gate.clamp_(-1, 1)
        return self.o(x * self.gate)  # type: ignore[no-any-return]


def test_what_is_made_of_a_table_can_be_written_to_and_so_can_a_parameter() -> None:
    found, _ = halved(Positions(), normal(2, 12, 5))
    assert kinds(found) == [
        (6, ["time[1]", "space[1]", "gate[0]", "p.weight[0]", "p.bias[0]", "o.weight[1]"])
    ]


def test_a_table_of_limited_length_loses_columns() -> None:
    model = Net(lambda m, x: m.o(m.e(x)), e=nn.Embedding(9, 6, max_norm=1.0), o=L(6, 3))
    found, _ = halved(model, torch.tensor([[1, 2, 8], [3, 3, 0]]))
    assert kinds(found) == [(6, ["e.weight[1]", "o.weight[1]"])]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_scripted_module_is_refused_by_name_with_a_way_out() -> None:
    model = nn.Sequential(L(5, 6), torch.jit.script(nn.Sequential(L(6, 7), nn.ReLU())), L(7, 3))
    with pytest.raises(
        InputError, match=r"'1' is a torch\.jit\.ScriptModule.*before torch\.jit\.script"
    ):
        prunus.units(model, normal(2, 5))


LINES = [
    ("inner", lambda m, y: torch.inner(y, m.w), 12),
    ("tensordot", lambda m, y: torch.tensordot(y, m.w, dims=([2], [0])), 12),
    ("multi_dot", lambda m, y: torch.linalg.multi_dot([y[0], m.w, m.w])[None], 6),
    ("vecdot", lambda m, y: y + torch.linalg.vecdot(y, y)[..., None], 6),
    ("a norm of one dimension", lambda m, y: y * torch.linalg.norm(y, dim=-1, keepdim=True), 6),
    ("a norm of matrices", lambda m, y: y * torch.linalg.matrix_norm(y)[:, None, None], 6),
    ("a diagonal in an einsum", lambda m, y: y + torch.einsum("ii->i", m.w), 6),
    ("addbmm", lambda m, y: torch.addbmm(y[0], y @ y.mT, y)[None], 6),
    ("trace", lambda m, y: y + torch.trace(m.w), 12),
    ("hstack", lambda m, y: torch.hstack([y, y]), 6),
    ("neighbors", lambda m, y: torch.diff(y, dim=1, append=y[:, :1]), 6),
    ("quantile", lambda m, y: y + torch.quantile(y, 0.5, dim=1, keepdim=True), 6),
    ("kthvalue and mode", lambda m, y: y.kthvalue(2, 1)[0] + y.mode(1)[0], 6),
    ("buckets", lambda m, y: y * torch.bucketize(y, torch.linspace(-1, 1, 4)), 6),
    ("a diagonal matrix", lambda m, y: y @ torch.diag(m.w.diagonal()), 6),
    ("half precision", lambda m, y: y.half().relu().float(), 6),
    ("a fourth norm", lambda m, y: F.normalize(y, p=-1.0, dim=-1), 0),
    ("a triangle", lambda m, y: y.tril(), 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("middle", "units"), [line[1:] for line in LINES], ids=[line[0] for line in LINES]
)
def test_an_operator_made_of_others_does_what_they_do(
    middle: Callable[..., Tensor], units: int
) -> None:
    assert halved(around(middle, w=weight(6, 6)), normal(4, 7, 5))[0].total == units


PICTURES = [
    ("both halves", lambda m, y: torch.cat(torch.hsplit(y, 2)[::-1], 1), 6),
    ("backwards", lambda m, y: y.flip(1), 6),
    ("backwards onto itself", lambda m, y: y + y.flip(1), 3),
    ("patches and back", lambda m, y: F.fold(F.unfold(y, 3, padding=1), (6, 6), 3, padding=1), 6),
    ("unpooled", lambda m, y: F.max_unpool2d(*F.max_pool2d(y, 2, return_indices=True), 2), 6),
    ("antialiased", lambda m, y: F.interpolate(y, size=5, mode="bicubic", antialias=True), 6),
    ("turned", lambda m, y: F.grid_sample(y, F.affine_grid(
        m.g, [2, 6, 5, 5], align_corners=False), align_corners=False), 6),
    ("positions that do not meet", lambda m, y: F.conv1d(y.flatten(2).mT, m.t).mT[..., None], 6),
]  # fmt: skip


@pytest.mark.parametrize(
    ("middle", "units"), [p[1:] for p in PICTURES], ids=[p[0] for p in PICTURES]
)
def test_an_operator_on_pictures_leaves_their_channels(
    middle: Callable[..., Tensor], units: int
) -> None:
    model = Net(lambda m, x: m.o(middle(m, m.p(x))), p=C(2, 6, 3), o=C(6, 3, 1),
                t=weight(4, 36, 1), g=weight(2, 2, 3))  # fmt: skip
    assert halved(model, normal(2, 2, 8, 8))[0].total == units


@pytest.mark.parametrize("drop", [F.dropout, F.dropout2d])
def test_dropout_that_never_ends_is_no_obstacle(drop: Callable[..., Tensor]) -> None:
    model = Net(lambda m, x: m.o(drop(m.p(x), 0.1, training=True)), p=C(2, 6, 3), o=C(6, 3, 1))
    recipe = {"structure": "channel", "allocation": "uniform", "target": 0.5, "compact": "end"}
    result = prunus.prune(model, recipe, example=normal(2, 2, 8, 8))
    assert result.model.o.in_channels == 3


@pytest.mark.parametrize(
    "read",
    [
        lambda t, n: t[:n], lambda t, n: t.view(3, 4, 6).flatten(0, 1)[:n],
        lambda t, n: (2 * t)[:n],
        lambda t, n: t.T[:, :n].T, lambda t, n: torch.stack([t, -t])[:, :n].sum(0),
        lambda t, n: torch.atleast_3d(t)[:n, :, 0], lambda t, n: F.gelu(t)[:n],
        lambda t, n: t.split([n, 12 - n])[0],
    ],
)  # fmt: skip
def test_rows_of_a_table_beyond_this_length_stay_whatever_is_done_to_it_before(
    read: Callable[[Tensor, int], Tensor],
) -> None:
    model = Net(
        lambda m, x: m.o(m.p(x) + read(m.t, x.shape[1])), p=L(5, 6), o=L(6, 3), t=weight(12, 6)
    )
    found = prunus.units(model.eval(), normal(2, 7, 5))
    assert found.total == 6
    assert reason(found, "t[0]") in ("not read with this example", "input args_0")


def test_a_model_that_cannot_be_smaller_says_which_parameters_to_keep_whole() -> None:
    """An operator that says of itself that it is pointwise, and counts its numbers."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.o(torch.ops.prunus_tests.sized(m.p(x))) + m.r(m.q(x))  # type: ignore[no-any-return]

    def model() -> Net:
        return Net(forward, p=L(5, 6), o=L(6, 3), q=L(5, 8), r=L(8, 3))

    recipe = {"structure": "channel", "allocation": "uniform", "target": 0.5, "compact": "end"}
    with torch.library._scoped_library("prunus_tests", "DEF") as library:
        library.define("sized(Tensor x) -> Tensor", tags=torch.Tag.pointwise)
        library.impl("sized", lambda x: x * x.shape[-1], "CompositeExplicitAutograd")
        with pytest.raises(RunError, match=r"does not equal.*is sized") as refused:
            prunus.prune(model(), recipe, example=normal(4, 5))
        names = str(refused.value).split("scope.exclude: [")[1].split("]")[0].split(", ")
        recipe["scope"] = {"exclude": names}
        small = prunus.prune(model(), recipe, example=normal(4, 5)).model
    assert (small.p.out_features, small.q.out_features) == (6, 4)
