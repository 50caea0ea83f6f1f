"""What deploy says of a table is true of that table: a law over made-up ones."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunus._common.timing import Timing
from prunus.deployment.advice import GAIN, advice
from prunus.deployment.build import Built
from prunus.deployment.deploy import choose
from prunus.deployment.table import RuntimeResult, gain
from prunus.runtimes import missing

EXACT = ("eager", "torch_export", "torch_compile")
QUANTIZED = tuple(n for n in ("onnxruntime_int8", "torchao_int8") if not missing(n))


@dataclass(frozen=True)
class Case:
    """A table, the sizes that it times, and the runtimes that may be taken."""

    rows: tuple[RuntimeResult, ...]
    batches: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def allowed(self) -> list[RuntimeResult]:
        good = [r for r in self.rows if r.model == "pruned" and r.refused is None]
        return [r for r in good if r.runtime in self.names] or good

    def ms(self, runtime: str, model: str, batch: int) -> float:
        (row,) = (r for r in self.rows if (r.runtime, r.model) == (runtime, model))
        return row.latency[batch].median_ms


@st.composite
def tables(draw: Any) -> Case:
    batches = draw(st.sampled_from([(1,), (1, 16), (16, 1), (1, 8, 64)]))
    runtimes = draw(st.lists(st.sampled_from(EXACT + QUANTIZED), min_size=1, unique=True))
    names = draw(st.lists(st.sampled_from(runtimes), min_size=1, unique=True))
    models = draw(st.sampled_from([("pruned",), ("pruned", "dense")]))
    rows = []
    for runtime in runtimes:
        for model in models:
            good = draw(st.booleans()) or (runtime, model) == (names[0], "pruned")
            busy = draw(st.booleans())
            times = {b: draw(st.sampled_from([0.1, 0.5, 0.52, 1.0, 1.2, 3.0, 20.0]))
                     for b in batches}  # fmt: skip
            rows.append(RuntimeResult(
                runtime, model, refused=None if good else "wrong answers",
                exact=runtime in EXACT, metric=draw(st.sampled_from([None, 0.9])),
                latency={b: Timing(t, t, 0.0, 9, busy) for b, t in times.items()} if good else {},
            ))  # fmt: skip
    return Case(tuple(rows), batches, tuple(names))


def network(width: int, *, zeros: bool = False) -> nn.Module:
    made = nn.Sequential(nn.Linear(8, width), nn.Linear(width, 8))
    if zeros:
        made[0].weight.data[: width // 2] = 0
    return made


MODELS = {"smaller": network(16), "odd": network(17), "zeros": network(64, zeros=True),
          "the same": network(64)}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
@given(case=tables())
def test_what_is_said_of_a_table_is_true_of_it(kind: str, case: Case) -> None:
    taken = choose([Built(r) for r in case.rows], case.batches[0], first=case.names).row
    first = case.batches[0]
    assert taken.latency[first].median_ms == min(
        r.latency[first].median_ms for r in case.allowed
    )  # what is taken is the fastest that may be
    has_dense = any(r.model == "dense" for r in case.rows)
    dense = network(64) if has_dense else None
    said = advice(MODELS[kind], dense, case.rows, taken, first=case.names)
    gains = {b: gain(case.rows, taken.runtime, b) for b in case.batches}
    for text in said:
        _true(text, case, taken, {b: g for b, g in gains.items() if g is not None})
    _complete("\n".join(said), case, taken)


def _true(text: str, case: Case, taken: RuntimeResult, gains: dict[int, float]) -> None:
    """Whatever a sentence claims about times."""
    for batches, what in re.findall(r"at batch ([\d and]+) the smaller model is (\w+)", text):
        for batch in map(int, batches.split(" and ")):
            assert gains[batch] < GAIN
            assert (what == "slower") == (gains[batch] * GAIN <= 1)
    if "larger batches gain more" in text:
        ((factor, batch),) = re.findall(r"it is ([\d.]+) times as fast at batch (\d+)", text)
        assert f"{gains[int(batch)]:.1f}" == factor
        slow = [b for b, g in gains.items() if g < GAIN]
        assert int(batch) > max(slow)
        assert gains[int(batch)] >= GAIN
    if "nothing could become faster" in text:
        assert all(g < GAIN for g in gains.values())
    if "multiple_of: 8" in text:
        assert "odd" in text
    found = re.match(r"(\w+) is (.*): take it where those matter more", text)
    for factor, batch in (
        re.findall(r"([\d.]+) times as fast at batch (\d+)", found[2]) if (found) else ()
    ):
        size, name = int(batch), found[1]
        assert found is not None
        times = {r.runtime: r.latency[size].median_ms for r in case.allowed}
        assert times[name] == min(times.values())
        assert f"{times[taken.runtime] / times[name]:.1f}" == factor
    if text.startswith("int8 speeds up the dense model as well"):
        for batch in map(int, re.findall(r"at batch (\d+)", text)):
            exact = [r.latency[batch].median_ms for r in case.rows
                     if r.model == "dense" and r.good and r.exact]  # fmt: skip
            assert case.ms(taken.runtime, "dense", batch) < min(exact)


def _complete(said: str, case: Case, taken: RuntimeResult) -> None:
    """A row that could be taken and is faster at some size is named."""
    for batch in case.batches:
        least = min(r.latency[batch].median_ms for r in case.allowed)
        if least * GAIN < taken.latency[batch].median_ms:
            best = next(r for r in case.allowed if r.latency[batch].median_ms == least)
            assert re.search(rf"{best.runtime} is .*at batch {batch}\b", said)


def test_widths_that_fill_vector_units_are_not_called_odd() -> None:
    times = {1: Timing(1.0, 1.0, 0.0, 9, False), 16: Timing(15.0, 15.0, 0.0, 9, False)}
    rows = tuple(RuntimeResult("eager", m, latency=times) for m in ("pruned", "dense"))
    said = {k: "\n".join(advice(MODELS[k], network(64), rows, rows[0])) for k in MODELS}
    assert "odd numbers of channels" in said["odd"]
    assert "odd numbers of channels" not in said["smaller"]
    assert "its time grows with the batch" in said["smaller"]
