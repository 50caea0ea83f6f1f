"""What a model costs: clocks, counters and meters by hand; models left as they were."""

from __future__ import annotations

import gc
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import prunus
from prunus._common import timing
from prunus._common.random_inputs import random_inputs
from prunus._common.timing import interleaved, timing_of
from prunus.cli.main import cli
from prunus.costs.macs import macs, macs_of_pass
from prunus.errors import InputError
from prunus.measurement import energy as energies
from prunus.measurement import measure as measuring
from prunus.measurement import meters
from prunus.measurement import table as cost_table
from prunus.measurement.latency import forward
from prunus.measurement.memory import memory

FAST = {"batch_sizes": [1], "seconds": 0.01}


class Clock:
    """A clock that only planted functions move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, *durations: float) -> Callable[[], None]:
        """A function whose n-th call takes the n-th duration, the last one from then on."""
        left = list(durations)

        def function() -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return function


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "perf_counter", made)
    monkeypatch.setattr(energies, "perf_counter", made)
    return made


# --- timing


def test_functions_are_called_in_turn_and_the_order_rotates(clock: Clock) -> None:
    functions = {name: clock.takes(name, 0.01) for name in "abc"}
    interleaved(functions, seconds=1e-9, least=4, warm=2)
    warm = "a" * 10 + "b" * 10 + "c" * 10
    assert "".join(clock.calls) == warm + "abc" + "bca" + "cab" + "abc"


@pytest.mark.parametrize(
    ("seconds", "least", "most", "rounds"),
    [(1.0, 9, 400, 32), (1.0, 60, 400, 60), (1.0, 9, 20, 20), (1e-9, 1, 400, 1)],
)
def test_rounds_end_when_the_seconds_of_all_functions_are_spent(
    clock: Clock, seconds: float, least: int, most: int, rounds: int
) -> None:
    functions = {"a": clock.takes("a", 1 / 64), "b": clock.takes("b", 3 / 64)}
    found = interleaved(functions, seconds=seconds, least=least, most=most)
    assert {t.calls for t in found.values()} == {rounds}


def test_median_percentile_and_spread_are_those_of_the_samples_by_hand() -> None:
    found = timing_of([0.003, 0.001, 0.002, 0.005, 0.004])
    assert found.median_ms == 3.0
    assert found.p95_ms == pytest.approx(4.8)  # place 0.95 · 4 = 3.8 between 4 and 5 ms
    assert found.spread == pytest.approx((0.004 - 0.002) / 0.003)
    assert found.calls == 5


def test_each_function_gets_its_own_samples(clock: Clock) -> None:
    functions = {"a": clock.takes("a", 9, 1, 3, 2), "b": clock.takes("b", 9, 0.5)}
    found = interleaved(functions, seconds=1e-9, least=3, warm=1)
    assert found["a"].median_ms == 2000
    assert found["b"].median_ms == 500


def test_a_short_function_is_called_several_times_for_one_sample(clock: Clock) -> None:
    functions = {"a": clock.takes("a", 0.15, 0.0003)}  # the first call compiles
    found = interleaved(functions, seconds=1e-9, least=5, warm=1)
    assert found["a"].calls == 5 * 7  # 7 · 0.3 ms is the first above 2 ms
    assert len(clock.calls) == 10 + 5 * 7


def test_a_long_function_is_warmed_up_no_more_than_asked_for(clock: Clock) -> None:
    interleaved({"a": clock.takes("a", 0.3)}, seconds=1e-9, least=5, warm=2)
    assert len(clock.calls) == 2 + 5


def test_the_mean_of_a_sample_is_that_of_its_calls(clock: Clock) -> None:
    found = interleaved({"a": clock.takes("a", 0.0003)}, seconds=1e-9, least=5)
    assert found["a"].median_ms == pytest.approx(0.3)


def test_a_busy_machine_is_flagged_when_samples_spread_or_drift() -> None:
    quiet = [1.0, 1.02, 0.99, 1.01, 1.0, 0.98, 1.0, 1.01, 1.0]
    assert not timing_of(quiet).busy
    assert not timing_of([*quiet[:-1], 5.0]).busy  # one outlier says nothing
    assert timing_of([1.0, 1.5] * 6).busy
    drifting = [1.0] * 3 + [1.06] * 3 + [1.12] * 3
    assert timing_of(drifting).spread < timing.BUSY_SPREAD
    assert timing_of(drifting).busy


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0}, {"seconds": -1}, {"least": 0}, {"least": 9, "most": 8}]
)
def test_limits_that_exclude_each_other_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="least"):
        interleaved({"a": lambda: None}, **wrong)
    with pytest.raises(InputError, match="nothing to time"):
        interleaved({})


def test_collector_threads_and_denormals_are_put_back_even_after_an_error() -> None:
    def fails() -> None:
        if not gc.isenabled():
            raise KeyError

    with pytest.raises(KeyError):
        interleaved({"a": fails}, seconds=0.01)
    assert gc.isenabled()
    before = torch.get_num_threads()
    tiny = torch.full((1,), 1e-39)

    def fails_inside() -> None:
        with timing.threads(before + 1) as count, timing.no_denormals():
            assert count == torch.get_num_threads() == before + 1
            if torch.set_flush_denormal(True):
                assert tiny * 1 == 0
            raise KeyError

    with pytest.raises(KeyError):
        fails_inside()
    assert torch.get_num_threads() == before
    assert tiny * 1 != 0
    with timing.threads(None) as count:
        assert count == before
    with pytest.raises(InputError, match="at least 1"), timing.threads(0):
        pass


# --- inputs

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


@given(
    shape=SHAPES,
    batch=st.integers(1, 5),
    low=st.integers(-(2**62), 2**62),
    width=st.integers(0, 1000),
    kind=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
@settings(deadline=None, max_examples=60)
def test_random_inputs_are_like_the_example(
    shape: list[int], batch: int, low: int, width: int, kind: torch.dtype
) -> None:
    example = {
        "x": torch.full(shape, 3.0, dtype=kind),
        "ids": torch.arange(2).mul(width).add(low).expand(shape[0], 2),
        "flags": torch.arange(shape[0]) % 2 == 0,
        "table": torch.zeros(shape[0] + 1, 2),
        "scalar": torch.tensor(0.5),
        "word": "kept",
    }
    none, made = random_inputs(example, batch=batch)
    assert none == ()
    assert made["x"].shape == (batch, *shape[1:])
    assert made["x"].dtype == kind
    size = made["x"].abs()
    assert bool(((size == 0) | (size >= torch.finfo(kind).tiny)).all())
    assert made["ids"].shape == (batch, 2)
    assert low <= int(made["ids"].min()) <= int(made["ids"].max()) <= low + width
    assert made["flags"].tolist() == [i % shape[0] % 2 == 0 for i in range(batch)]
    assert made["table"].shape == (shape[0] + 1, 2)
    assert made["scalar"].shape == ()
    assert made["word"] == "kept"
    again = random_inputs(example, batch=batch)[1]
    assert all(torch.equal(again[k], v) for k, v in made.items() if isinstance(v, Tensor))


def test_random_floats_are_standard_normal_and_differ_by_seed() -> None:
    example = torch.zeros(1, 100_000)
    (one,), _ = random_inputs(example, seed=1)
    (two,), _ = random_inputs(example, seed=2)
    assert float(one.mean()) == pytest.approx(0, abs=0.02)
    assert float(one.std()) == pytest.approx(1, abs=0.02)
    assert not torch.equal(one, two)


def test_random_float16_holds_no_denormals() -> None:
    (made,), _ = random_inputs(torch.zeros(1, 500_000, dtype=torch.float16))
    size = made.abs()
    assert int(((size > 0) & (size < torch.finfo(torch.float16).tiny)).sum()) == 0


def test_masks_and_the_memory_format_are_kept() -> None:
    hidden = torch.tensor([[0.0, -torch.inf]])
    lowest = torch.tensor([[0.0, torch.finfo(torch.float32).min]])
    two = torch.tensor([[0.0, 1.0]])
    made, _ = random_inputs((hidden, lowest, two), batch=3)
    for found, mask in zip(made, (hidden, lowest, two), strict=True):
        assert torch.equal(found, mask.expand(3, 2))
    image = torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    (again,), _ = random_inputs(image, batch=5)
    assert again.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(InputError, match="no tensor of the example has a leading dimension"):
        random_inputs((torch.tensor(1.0), 3), batch=2)
    with pytest.raises(InputError, match="batch size is 0"):
        random_inputs(torch.ones(1), batch=0)


# --- memory, MACs, energy


def test_the_peak_of_a_pass_is_the_worst_moment_by_hand() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    weights, read = 4 * (4 * 8 + 8 + 8 * 2 + 2), 4 * 4
    # at the ReLU its input (8 numbers) and its output live; the last layer holds 8 + 2
    found = memory(model, ((torch.ones(1, 4),), {}))
    assert found.peak_bytes == weights + read + 4 * (8 + 8)
    assert found.written_bytes == 4 * (8 + 8 + 2)


def test_views_cost_no_memory_and_shared_inputs_count_once() -> None:
    class Views(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.view(-1)[:3].mul_(2) + y[0, 0]

    x = torch.ones(2, 4)
    found = memory(Views(), ((x, x.T), {}))
    assert (found.peak_bytes, found.written_bytes) == (4 * 8 + 4 * 3, 4 * 3)


def lstm_macs(inputs: int, hidden: int, steps: int) -> int:
    return steps * 4 * hidden * (inputs + hidden)


def attention_macs(width: int, length: int) -> int:
    return 4 * width * width * length + 2 * length * length * width


@pytest.mark.parametrize("reads_values", [False, True])
@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.LSTM(8, 16, batch_first=True), lstm_macs(8, 16, 10)),
        (nn.MultiheadAttention(8, 2, batch_first=True), attention_macs(8, 10)),
    ],
)
def test_macs_of_lstm_and_attention_are_the_formulas(
    module: nn.Module, expected: int, reads_values: bool
) -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> Any:
            if reads_values and bool(x.isnan().any()):  # the meta device has no values
                raise ValueError
            return self.inner(x) if isinstance(self.inner, nn.LSTM) else self.inner(x, x, x)

    found = prunus.measure(Calls(), torch.zeros(1, 10, 8), batch_sizes=[3], seconds=0.01)
    assert found.model.macs == expected


def test_macs_of_an_example_with_a_scalar_among_its_tensors() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            return super().forward(x) * (1 if scale is None else scale)

    example = (torch.ones(5, 3), torch.tensor(2.0))
    assert macs(Scaled(3, 2), example, {}) == (6, 6)
    assert macs_of_pass(Scaled(3, 2), (example, {}), {}) == (30, 30)


def zone(folder: Path, number: str, name: str, joules: float) -> None:
    own = folder / f"intel-rapl:{number}"
    own.mkdir(parents=True, exist_ok=True)
    (own / "name").write_text(f"{name}\n")
    (own / "max_energy_range_uj").write_text("1000000000\n")
    (own / "energy_uj").write_text(f"{int(joules * 1e6)}\n")


def test_rapl_adds_packages_and_memories_once_and_goes_on_when_a_counter_is_full(
    tmp_path: Path,
) -> None:
    for number, name in (("0", "package-0"), ("0:0", "core"), ("0:1", "dram"), ("1", "psys")):
        zone(tmp_path, number, name, 990)
    meter = meters.rapl(tmp_path)
    assert meter is not None
    assert meter.what == "RAPL (package-0, dram)"
    start = meter.joules()
    zone(tmp_path, "0", "package-0", 995)
    zone(tmp_path, "0:0", "core", 999)
    zone(tmp_path, "1", "psys", 999)
    assert meter.joules() - start == pytest.approx(5)
    zone(tmp_path, "0", "package-0", 3)  # full at 1,000 J: 5 J up to there, 3 J after
    zone(tmp_path, "0:1", "dram", 992)
    assert meter.joules() - start == pytest.approx(5 + 8 + 2)


def test_a_counter_that_is_missing_or_cannot_be_read_is_no_meter(tmp_path: Path) -> None:
    assert meters.rapl(tmp_path / "nothing") is None
    assert meters.rapl(tmp_path) is None
    zone(tmp_path, "0", "package-0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert meters.rapl(tmp_path) is None
    (tmp_path / "intel-rapl:0" / "energy_uj").mkdir()
    assert meters.rapl(tmp_path) is None
    assert meters.meter_for(torch.device("mps"), tmp_path) is None


def test_nvml_counts_the_card_that_torch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter([5000, 5000, 7500])
    library = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: (
            next(spent) if handle == "GPU-12ab" else None
        ),
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    card = types.SimpleNamespace(uuid="12ab", name="a card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    meter = meters.meter_for(torch.device("cuda:0"))
    assert meter is not None
    assert meter.what == "NVML (a card)"
    assert (meter.joules(), meter.joules()) == (5.0, 7.5)
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert meters.meter_for(torch.device("cuda:0")) is None


def test_measured_energy_is_what_the_meter_counts_for_each_item(clock: Clock) -> None:
    forward = clock.takes("a", 0.1)
    meter = meters.Meter("a meter", lambda: 20 * clock.now)  # 20 W
    found = energies.measured_energy(forward, meter=meter, batch=4, seconds=0.1)
    assert found is not None
    assert found.measured
    assert found.mj == pytest.approx(1e3 * 20 * 0.1 / 4)
    still = meters.Meter("a meter", lambda: 7.0)
    assert energies.measured_energy(forward, meter=still, batch=4, seconds=0.1) is None


def test_estimated_energy_is_the_formula_by_hand() -> None:
    found = prunus.measure(nn.Linear(4, 2, bias=False), torch.ones(1, 4), batch_sizes=[2],
                           seconds=0.01).model.passes[0].energy  # fmt: skip
    assert found is not None
    assert not found.measured
    macs_, moved = 2 * 4 * 2, 4 * (4 * 2 + 2 * 4 + 2 * (2 * 2))  # activations written and read
    assert found.mj == pytest.approx(1e-9 * (macs_ * 4.6 + moved * 162.5) / 2)
    assert energies.estimated_energy(macs=1, moved_bytes=1, dtype=torch.float64) is None


# --- measure


class Counts(nn.Module):
    """Changes its buffer, its cache and the random state in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("passes", torch.zeros(()))
        self.cache: dict[str, Tensor] = {}
        self.noted: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.cache["x"] = x
        self.noted.append(len(x))
        assert not torch.is_grad_enabled()
        assert not self.training
        return self.layer(x.mul_(2)) + torch.rand(1)


def test_the_model_the_example_and_the_random_state_are_left_as_they_were() -> None:
    model, example = Counts().train(), torch.ones(1, 3)
    model.layer.eval()
    model.layer.bias.requires_grad_(False)
    model.layer.weight.grad = torch.ones(2, 3)
    weight = model.layer.weight.clone()
    random = torch.get_rng_state()
    prunus.measure(model, example, **FAST)
    assert (model.training, model.layer.training) == (True, False)
    assert float(model.passes) == 0
    assert (model.cache, model.noted) == ({}, [])
    assert [p.requires_grad for p in model.parameters()] == [True, False]
    assert torch.equal(model.layer.weight.grad, torch.ones(2, 3))
    assert torch.equal(model.layer.weight, weight)
    assert torch.equal(example, torch.ones(1, 3))
    assert torch.equal(torch.get_rng_state(), random)


def test_both_models_are_timed_in_one_run_and_ratios_are_dense_over_pruned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = []

    def planted(functions: dict[str, Any], **settings: Any) -> dict[str, timing.Timing]:
        runs.append((sorted(functions), settings))
        milliseconds = {"model 1": 2.0, "baseline 1": 6.0, "model 4": 4.0, "baseline 4": 20.0}
        return {k: timing.Timing(milliseconds[k], 30.0, 0.01, 9, False) for k in functions}

    monkeypatch.setattr("prunus.measurement.latency.interleaved", planted)
    small, dense = nn.Linear(8, 2, bias=False), nn.Linear(8, 8, bias=False)
    found = prunus.measure(small, torch.ones(1, 8), baseline=dense, batch_sizes=(1, 4), seconds=3)
    assert runs == [(["baseline 1", "baseline 4", "model 1", "model 4"], {"seconds": 3})]
    assert found.ratios["latency_ms"] == {"1": 3.0, "4": 5.0}
    assert found.ratios["params"] == found.ratios["macs"] == found.ratios["bytes"] == 4.0
    assert [p.items_per_second for p in found.model.passes] == [500.0, 1000.0]
    text = str(found)
    assert "4.00× smaller" in text
    assert "5.00× faster" in text
    assert "machine busy" not in text
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


def test_figures_that_need_no_clock_are_those_of_the_model() -> None:
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.0]]))
        model.bias.fill_(1)
    found = prunus.measure(model, torch.ones(1, 4), **FAST).model
    assert (found.params, found.nonzero_params, found.l1) == (10, 5, 5.5)
    assert (found.macs, found.macs_if_zeros_skipped, found.bytes) == (8, 3, 40)
    assert found.disk_bytes == prunus.save(model, "m.safetensors").stat().st_size
    sparse = prunus.save(model, "s.safetensors", sparse=True).stat().st_size
    assert found.sparse_disk_bytes == sparse


def test_masks_that_are_given_count_instead_of_zeros() -> None:
    masks = {"weight": torch.tensor([[True, False, False, False], [True, False, False, False]])}
    found = prunus.measure(nn.Linear(4, 2), torch.ones(1, 4), masks=masks, **FAST)
    assert found.model.macs_if_zeros_skipped == 2


def test_the_size_on_disk_of_a_large_model_is_that_of_its_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring, "PACK_BELOW", 0)
    assert prunus.measure(nn.Linear(4, 2), torch.ones(1, 4), **FAST).model.disk_bytes == 40


def test_a_masked_model_is_told_that_zeros_give_no_speed() -> None:
    model = nn.Linear(10, 10)
    prunus.prune(model, {"target": 0.8})
    (note,) = (w for w in prunus.measure(model, torch.ones(1, 10), **FAST).warnings if "zero" in w)
    assert "80 of 110 parameters are zero" in note
    assert "prune channels instead" in note
    dense = prunus.measure(nn.Linear(10, 10), torch.ones(1, 10), **FAST)
    assert not any("zero" in w for w in dense.warnings)


def test_busy_times_and_estimates_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(functions: Any, **settings: Any) -> dict[str, timing.Timing]:
        return {k: timing.Timing(1.0, 9.0, 0.5, 9, True) for k in functions}

    monkeypatch.setattr("prunus.measurement.latency.interleaved", planted)
    monkeypatch.setattr(measuring, "meter_for", lambda device: None)
    found = prunus.measure(nn.Linear(2, 2), torch.ones(1, 2), **FAST)
    assert any("machine was busy while batches of 1" in w for w in found.warnings)
    assert any("energy is estimated" in w and "Horowitz" in w for w in found.warnings)
    assert "(machine busy)" in str(found)
    assert "(estimated)" in str(found)


def test_energy_that_a_meter_counts_is_said_to_be_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    joules = iter(range(1000))
    meter = meters.Meter("a meter", lambda: float(next(joules)))
    monkeypatch.setattr(measuring, "meter_for", lambda device: meter)
    monkeypatch.setattr(energies, "SHORTEST", 0.0)
    found = prunus.measure(nn.Linear(2, 2), torch.ones(1, 2), **FAST)
    energy = found.model.passes[0].energy
    assert energy is not None
    assert energy.measured
    assert any("energy is measured by a meter" in w for w in found.warnings)
    assert "(estimated)" not in str(found)


class FixedBatch(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(2, 3))


@pytest.mark.parametrize(
    ("model", "example", "settings", "says"),
    [
        (nn.Conv2d(3, 4, 3), torch.ones(1, 4, 8, 8), {},
         r"model: Conv2d does not take this example \(float32 \(1, 4, 8, 8\)\): RuntimeError: .*3 "
         "channels"),
        (FixedBatch(3, 2), torch.ones(2, 3), {},
         r"takes the example, but not .* batch of 1 \(float32 \(1, 3\)\).*batch_sizes=\[2\]"),
        (nn.Linear(3, 2), torch.ones(1, 3), {"baseline": nn.Linear(4, 2)},
         r"baseline: Linear does not take this example"),
        (nn.Linear(3, 2), torch.ones(1, 3), {"batch_sizes": []}, "one or more whole numbers"),
        (nn.Linear(3, 2), torch.ones(1, 3), {"batch_sizes": [1, 0]}, "one or more whole numbers"),
        (nn.Linear(3, 2), torch.ones(1, 3), {"batch_sizes": [1, 1]}, "each size once"),
        (nn.Linear(3, 2), torch.ones(1, 3), {"threads": 0}, "threads is 0"),
        (nn.Linear(3, 2), torch.ones(1, 3), {"seconds": 0}, "seconds is 0"),
        (nn.Linear(3, 2, device="meta"), torch.ones(1, 3), {}, "meta device have no values"),
        (nn.Flatten(0), torch.tensor(1.0), {}, "no tensor of the example"),
        (len, torch.ones(1, 3), {}, "takes models"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_with_its_reason(
    model: Any, example: Any, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        prunus.measure(model, example, **settings)


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = nn.Linear(3, 2)
    model.rows = (i for i in range(3))  # type: ignore[assignment]
    with pytest.raises(InputError, match="cannot be copied"):
        prunus.measure(model, torch.ones(1, 3))


def test_a_model_and_an_example_on_two_devices_are_refused_by_name() -> None:
    with FakeTensorMode():
        example = torch.ones(1, 3, device="cuda")
    with pytest.raises(InputError, match=r"model on cpu, example on cuda:0: move it"):
        prunus.measure(nn.Linear(3, 2), example)


def test_figures_read_well() -> None:
    assert [cost_table.digits(v) for v in (0.0, 0.00012345, 0.5, 9.999, 99.96)] == [
        "0", "0.000123", "0.500", "10.0", "100",
    ]  # fmt: skip
    assert [cost_table.size(v) for v in (999, 1000, 2.5e12)] == ["999 B", "1.00 kB", "2,500 GB"]


# --- the command


def command(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


QUICK = ["--batch", "2", "--seconds", "0.01"]


def test_a_run_is_measured_beside_its_dense_model_and_keeps_the_figures() -> None:
    changes = ["target={max_macs: 0.5}", "rounds=1", "dense=1ep", "retrain=1ep", "guard=null"]
    assert command("run", "channels", *changes, "--folder", "run").exit_code == 0
    done = command("measure", "run", *QUICK)
    assert done.exit_code == 0, done.output
    assert "dense" in done.output
    assert "wrote run/measure.json" in done.output
    written = json.loads(Path("run/measure.json").read_text())
    before = json.loads(Path("run/result.json").read_text())["cost_before"]
    assert {k: written["against"][k] for k in ("params", "macs", "bytes", "l1")} == {
        k: before[k] for k in ("params", "macs", "bytes", "l1")
    }
    assert written["ratios"]["macs"] >= 2
    assert [p["batch"] for p in written["model"]["passes"]] == [2]
    as_json = command("measure", "run", *QUICK, "--json")
    (line,) = as_json.output.splitlines()
    assert json.loads(line)["model"]["params"] == written["model"]["params"]


def test_a_model_of_ones_own_is_measured_alone() -> None:
    Path("mine.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Linear(3, 5), torch.ones(1, 3)\n"
    )
    done = command("measure", "mine.py:make", *QUICK, "--batch", "3", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)  # what code runs is said beside
    assert found["against"] is None
    assert [p["batch"] for p in found["model"]["passes"]] == [2, 3]
    assert found["model"]["macs"] == 15
    table = command("measure", "digits", *QUICK)
    assert "38,282" in table.output
    assert not Path("measure.json").exists()


def test_what_is_no_finished_run_is_refused_with_the_next_step() -> None:
    Path("empty").mkdir()
    done = command("measure", "empty")
    assert (done.exit_code, "contains no run" in done.output) == (2, True)
    done = command("measure", "digit")
    assert (done.exit_code, "did you mean 'digits'" in done.output) == (2, True)
    command("run", "iterative", "dense=1ep", "retrain=1ep", "rounds=1", "guard=null",
            "--folder", "run")  # fmt: skip
    Path("run/result.json").unlink()
    done = command("measure", "run")
    assert (done.exit_code, "resume it with: prunus resume run" in done.output) == (2, True)
    prunus.prune(nn.Linear(10, 10), {"target": 0.5}, folder="python")
    done = command("measure", "python")
    assert (done.exit_code, "was started from Python" in done.output) == (2, True)
    assert "python/model.safetensors" in done.output.replace("\n", "")


def test_a_compiled_model_is_timed_compiled_whatever_it_is_called_with() -> None:
    class Doubles(nn.Module):
        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return batch["x"] * (2.0 if torch.compiler.is_compiling() else 1.0)

    compiled = torch.compile(Doubles(), backend="eager")
    answer = forward(compiled, (({"x": torch.ones(1)},), {}))()
    assert isinstance(answer, torch.Tensor)
    assert answer.item() == 2.0
