"""Batches that go from layer to layer side by side: a repair passes each through the model once."""

from __future__ import annotations

import contextvars
import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus._common.as_written import as_written
from prunus._common.lockstep import walking
from prunus.methods.repairs import RepairContext, _affine


class Net(nn.Module):
    """A residual around two convolutions; a layer called by keyword; one that some data skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2))
        self.drop = nn.Dropout(0.5)
        self.head, self.rare = nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        y = self.norm(self.stem(x)).relu()
        y = self.drop(y + self.inner(y)).mean((2, 3))
        y = self.head(input=y)
        if float(x[0, 0, 0, 0]) > 0:
            y = self.rare(y).relu()
        return self.out(y)  # type: ignore[no-any-return]


def cut() -> tuple[Net, Net, list[Tensor]]:
    torch.manual_seed(0)
    whole = Net()
    batches = [torch.randn(6, 1, 7, 7) for _ in range(4)]
    for number, batch in enumerate(batches):
        batch[0, 0, 0, 0] = 1.0 if number in (0, 2) else -1.0
        whole(batch)  # statistics
    whole.passes = 0
    masked = copy.deepcopy(whole)
    with torch.no_grad():
        for parameter in masked.parameters():
            if parameter.dim() > 1:
                parameter.mul_(torch.rand_like(parameter) > 0.5)
    return masked, whole, batches


@pytest.mark.parametrize("repair", ["least_squares", "bias_correction"])
def test_side_by_side_gives_the_bits_of_one_after_the_other(
    repair: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for held in (0, 2**30):
        masked, whole, batches = cut()
        masked.rare.requires_grad_(False)
        monkeypatch.setattr(_affine, "MOST_HELD", held)
        del whole.rare, masked.rare  # one after the other asks every batch to come to every layer
        whole.rare = masked.rare = nn.Identity()
        prunus.repair(masked, batches, repair=repair, reference=whole)
        found.append(masked.state_dict())
        passed = whole.passes
    assert passed == len(batches)
    assert not torch.equal(found[0]["out.bias"], cut()[0].out.bias)
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


def test_a_layer_that_some_batches_skip_is_fitted_on_the_others() -> None:
    masked, whole, batches = cut()
    before = copy.deepcopy(masked)
    prunus.repair(masked, batches, repair="least_squares", reference=whole)

    def apart(model: Net, batch: Tensor) -> float:
        with torch.no_grad():
            return float((model.eval()(batch) - whole.eval()(batch)).square().mean())

    assert not torch.equal(masked.rare.weight, before.rare.weight)
    assert sum(apart(masked, b) for b in batches) < 0.5 * sum(apart(before, b) for b in batches)


def test_what_a_model_raises_comes_out_and_no_pass_is_left_behind() -> None:
    masked, whole, batches = cut()
    before, running = copy.deepcopy(masked.state_dict()), threading.active_count()
    batches[3] = torch.randn(6, 2, 7, 7)  # two colors
    with pytest.raises(RuntimeError, match="expected input"):
        prunus.repair(masked, batches, repair="least_squares", reference=whole)
    assert threading.active_count() == running
    for name, tensor in masked.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in masked.modules())


def test_a_walk_that_is_left_at_its_first_layer_ends_its_passes() -> None:
    masked, _, batches = cut()
    running = threading.active_count()
    inputs: list[Any] = [((batch,), {}) for batch in batches]
    with walking(masked, [masked.stem, masked.head], inputs) as reach:
        assert len([seen for seen in reach(masked.stem) if seen is not None]) == 4
        assert threading.active_count() == running + 4
    assert threading.active_count() == running
    assert masked.passes == 4


def test_passes_see_the_device_and_the_autocast_of_who_walks() -> None:
    seen: list[Any] = []

    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            seen.append((torch.empty(0).device.type, torch.is_grad_enabled()))
            return self.layer(x)  # type: ignore[no-any-return]

    model = Asks()
    inputs: Any = [((torch.ones(1, 2),), {})]
    with torch.autocast("cpu", dtype=torch.bfloat16), walking(model, [model.layer], inputs) as to:
        (met,) = to(model.layer)
    assert met is not None
    assert met[1].dtype == torch.bfloat16
    with torch.device("meta"), walking(model, [model.layer], inputs) as to:
        to(model.layer)
    assert seen == [("cpu", False), ("meta", False)]


@pytest.mark.parametrize("repair", ["least_squares", {"name": "reconstruct", "blocks": ["inner"]}])
@pytest.mark.parametrize("wrapped", ["model", "reference", "a layer"])
def test_what_was_compiled_is_repaired_as_it_was_written(repair: Any, wrapped: str) -> None:
    found = []
    for compiles in (False, True):
        masked, whole, batches = cut()
        models: dict[str, nn.Module] = {"model": masked, "reference": whole}
        if compiles and wrapped == "a layer":
            masked.inner = torch.compile(masked.inner, backend="eager")  # type: ignore[assignment]
        elif compiles:
            models[wrapped] = torch.compile(models[wrapped], backend="eager")  # type: ignore
        with torch.no_grad():
            for model in models.values():  # compiled code knows no hooks that come later
                model.eval()(batches[0])
        prunus.repair(models["model"], batches, repair=repair, reference=models["reference"])
        found.append([p.detach() for p in masked.parameters()])
    assert any(not torch.equal(a, b) for a, b in zip(found[1], cut()[0].parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class Ends(nn.Module):
    """Code of its own calls a layer whatever happened before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.first(x * SCALE.get())  # type: ignore[no-any-return]
        finally:
            self.last(x.add_(1))


SCALE: contextvars.ContextVar[float] = contextvars.ContextVar("scale", default=0.0)


def test_a_pass_that_is_left_stops_though_layers_are_called_on_its_way_out() -> None:
    model, running = Ends(), threading.active_count()

    def walk() -> None:
        with walking(model, [model.first, model.last], [((torch.ones(1, 2),), {})]) as reach:
            reach(model.first)

    walker = threading.Thread(target=walk, daemon=True)
    walker.start()
    walker.join(20)
    assert not walker.is_alive()
    assert threading.active_count() == running


def test_passes_see_the_context_and_the_inference_mode_of_who_walks() -> None:
    model = Ends()
    token = SCALE.set(3.0)
    with torch.inference_mode():
        x = torch.ones(1, 2)
        with walking(model, [model.first, model.last], [((x,), {})]) as reach:
            met = reach(model.first)[0], reach(model.last)[0]
    SCALE.reset(token)
    assert [m[0].tolist() for m in met if m is not None] == [[[3.0, 3.0]], [[2.0, 2.0]]]


@pytest.mark.parametrize("together", [True, False])
def test_a_layer_is_fitted_on_weights_as_they_are_inside_autocast(
    together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    found = []
    for caches in (True, False):
        masked = copy.deepcopy(whole)
        with torch.no_grad():
            masked[0].weight.mul_(torch.eye(8) > 0)
        if not together:
            monkeypatch.setattr(_affine, "MOST_THREADS", 0)
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=caches):
            batches = [torch.linspace(-1, 1, 128).view(16, 8)]
            prunus.repair(masked, batches, repair="bias_correction", reference=whole)
        found.append(masked[1].bias.detach())
    assert torch.equal(*found)


def test_two_threads_inside_code_as_it_was_written_leave_torchs_stance_as_it_was() -> None:
    compiled = torch.compile(lambda x: torch.compiler.is_compiling(), backend="eager")
    inside, outside = threading.Event(), threading.Event()

    def first() -> None:
        with as_written():
            inside.set()
            assert outside.wait(20)

    other = threading.Thread(target=first)
    other.start()
    assert inside.wait(20)
    with as_written():  # the first to come is the first to go
        outside.set()
        other.join()
        assert not compiled(torch.ones(1))
    assert compiled(torch.ones(1))


class Ways(nn.Module):
    """Each batch goes its own way: some meet the layers in another order, or one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.late = (nn.Sequential(nn.Linear(8, 8)) for _ in range(4))

    def forward(self, x: Tensor, way: str) -> Tensor:
        for name in way:
            x = self.get_submodule("late" if name == "l" else name)(x).tanh()
        return x


WAYS = ["abc", "acb", "bcac", "bl"]


@pytest.mark.parametrize(
    "repair", ["least_squares", {"name": "reconstruct", "blocks": ["?", "late"], "steps": 4}]
)
def test_batches_that_meet_layers_in_another_order_count_whole(
    repair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    whole = Ways()
    batches = [{"x": torch.randn(16, 8), "way": way} for way in WAYS]
    found = []
    for held in (0, 2**30):  # one after the other, and side by side where that is as good
        masked = copy.deepcopy(whole)
        with torch.no_grad():
            for parameter in masked.parameters():
                parameter.mul_(torch.rand(parameter.shape, generator=torch.Generator()) > 0.5)
        before = copy.deepcopy(masked)
        monkeypatch.setattr(_affine, "MOST_HELD", held)
        prunus.repair(masked, batches, repair=repair, reference=whole)
        assert not torch.equal(masked.late[0].weight, before.late[0].weight)  # the first skips it
        found.append(masked.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_every_call_of_a_layer_counts_wherever_its_batch_meets_it() -> None:
    whole = Ways()
    masked = copy.deepcopy(whole)
    context = RepairContext(
        masked, whole, {}, lambda: [((), {"x": torch.ones(2, 8), "way": w}) for w in WAYS]
    )
    counts: dict[str, int] = {}
    masked.a[0].weight.data.zero_()
    masked.b[0].bias.data.zero_()
    _affine.layer_by_layer(context, lambda place, m: counts.update({place.name: int(m.count)}))
    assert counts["a.0"] == 2 * 3
    assert counts["c.0"] == 2 * 4
    assert counts["b.0"] == 2 * 4
