"""From a model to an artifact: which runtime is taken, what is said of it, what is kept."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import helpers
import prunus
from fresh import Pythons
from prunus._common import packages as distributions
from prunus._common.timing import Timing
from prunus.cli.main import cli
from prunus.deployment import advice as advices
from prunus.deployment import build
from prunus.deployment import deploy as call
from prunus.deployment import judge as trials
from prunus.deployment import store as keeping
from prunus.deployment.calibration import inputs_of
from prunus.deployment.deploy import deploy
from prunus.deployment.manifest import Manifest
from prunus.errors import InputError, RunError
from prunus.runtimes import (
    BuildRequest,
    Facts,
    Session,
    missing,
    semi_structured,
    torch_compile,
    torchao_int8,
)
from prunus.runtimes import find as find_runtime
from prunus.runtimes._silent import silent
from prunus.runtimes.eager import computing

EXAMPLE = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))


EXACT = Facts(needs=(), devices=("cpu",), tolerance=0.2)
INT8 = replace(EXACT, exact=False)


@dataclass
class Fake:
    """A runtime whose answers are eager's, times a factor."""

    factor: float = 1.0
    FACTS: Facts = EXACT
    refusal: str | None = None
    built: list[BuildRequest] = field(default_factory=list)

    def refuses(self, order: BuildRequest) -> str | None:
        return self.refusal

    def build(self, order: BuildRequest) -> Session:
        self.built.append(order)
        right = computing(order.model, order.call)
        path = order.folder / "model.bin"
        path.write_bytes(b"artifact")
        return Session(lambda given: [self.factor * t for t in right(given)], path)


Times = Mapping[tuple[str, str, int], float]
Plant = Callable[..., dict[str, Fake]]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Fake runtimes instead of the real ones, and milliseconds by (runtime, model, batch)."""

    def put(times: Times | None = None, **fakes: Fake) -> dict[str, Fake]:
        for module in (call, build, advices):
            monkeypatch.setattr(module, "find", fakes.__getitem__)
        monkeypatch.setattr(call.catalog, "names", lambda axis: sorted(fakes))
        monkeypatch.setattr(call, "missing", lambda name: list(fakes[name].FACTS.needs))

        def interleaved(functions: Mapping[str, Any], *, seconds: float) -> dict[str, Timing]:
            found = {}
            for key, function in functions.items():
                served, inputs = function.func.__self__, function.args[0]
                kind = served.session.path.parent.parent.name
                ms = (times or {}).get((served.card.runtime, kind, len(inputs[0])), 1.0)
                found[key] = Timing(ms, ms, 0.01, 100, busy=False)
            return found

        monkeypatch.setattr(trials, "interleaved", interleaved)
        return fakes

    return put


def small(*, width: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2))


def said(made: prunus.Deployment) -> str:
    return "\n".join(made.advice)


# --- which one is taken


def test_takes_the_fastest_runtime_that_keeps_the_answers(plant: Plant) -> None:
    times = {("wrong", "pruned", 1): 0.1, ("good", "pruned", 1): 0.5, ("slow", "pruned", 1): 0.9}
    plant(times, wrong=Fake(1.3), good=Fake(1.1), slow=Fake())
    made = deploy(small(), example=EXAMPLE)
    assert made.runtime == "good"
    wrong = made.row("wrong")
    assert wrong is not None
    assert wrong.refused == "outputs differ from eager's by 3.0e-01; at most 2e-01 is allowed"
    assert not wrong.latency


def test_the_first_batch_size_decides(plant: Plant) -> None:
    times = {("a", "pruned", 4): 0.5, ("b", "pruned", 4): 0.9,
             ("a", "pruned", 1): 0.9, ("b", "pruned", 1): 0.5}  # fmt: skip
    plant(times, a=Fake(), b=Fake())
    assert deploy(small(), example=EXAMPLE, batch_sizes=(4, 1)).runtime == "a"
    assert deploy(small(), example=EXAMPLE, batch_sizes=(1, 4)).runtime == "b"


def test_the_table_has_one_star_at_the_row_taken(plant: Plant) -> None:
    plant({("b", "pruned", 1): 0.5}, a=Fake(), b=Fake(), c=Fake(refusal="not today"))
    made = deploy(small(), example=EXAMPLE, baseline=small(width=64))
    stars = [line.split() for line in str(made).splitlines() if line.startswith("*")]
    assert [words[:4] for words in stars] == [["*", "b", "pruned", "0.5"]]
    assert "not taken: c (pruned and dense): not today" in str(made).splitlines()
    assert not [line for line in str(made).splitlines() if line.split()[:1] == ["c"]]


def test_the_gain_is_over_the_dense_model_in_its_own_fastest_runtime(plant: Plant) -> None:
    times = {("a", "pruned", 1): 0.5, ("b", "pruned", 1): 0.8,
             ("a", "dense", 1): 3.0, ("b", "dense", 1): 1.5}  # fmt: skip
    plant(times, a=Fake(), b=Fake())
    made = deploy(small(), example=EXAMPLE, baseline=small(width=64), batch_sizes=(1,))
    assert made.gains == {1: 3.0}
    assert "3.00 times as fast as dense at batch 1" in str(made)


def test_a_quantized_artifact_is_measured_against_the_quantized_dense_model(plant: Plant) -> None:
    times = {("exact", "pruned", 1): 0.8, ("exact", "dense", 1): 1.0,
             ("int8", "pruned", 1): 0.2, ("int8", "dense", 1): 0.5}  # fmt: skip
    plant(times, exact=Fake(), int8=Fake(FACTS=INT8))
    made = deploy(small(), example=EXAMPLE, baseline=small(width=64), batch_sizes=(1,),
                  runtime=("exact", "int8"))  # fmt: skip
    assert (made.runtime, made.gains) == ("int8", {1: 2.5})
    assert "dense model as well: in int8 it takes 2.50 times as long at batch 1;" in said(made)
    assert "nothing has measured what that costs: pass evaluate" in said(made)


def test_no_good_runtime_is_an_error_with_every_reason(plant: Plant) -> None:
    plant(a=Fake(2.0), b=Fake(refusal="it is Tuesday"))
    with pytest.raises(InputError, match=r"a: outputs differ.*; b: it is Tuesday"):
        deploy(small(), example=EXAMPLE)


class Answers(nn.Module):
    """A dictionary of a tensor and something else."""

    def __init__(self, beside: Any) -> None:
        super().__init__()
        self.inner, self.beside = nn.Linear(8, 3), beside

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"beside": self.beside, "classes": self.inner(x)}


def test_answers_keep_their_structure_where_none_is_among_them(plant: Plant) -> None:
    plant(a=Fake())
    model = Answers(None).eval()
    made = deploy(model, example=EXAMPLE)
    found = made.model(EXAMPLE)
    assert found["beside"] is None
    assert torch.equal(found["classes"], model(EXAMPLE)["classes"])


def test_answers_that_hold_a_number_come_as_tensors_and_a_note_says_so(plant: Plant) -> None:
    plant(a=Fake())
    made = deploy(Answers(7).eval(), example=EXAMPLE)
    assert isinstance(made.model(EXAMPLE), Tensor)
    assert "the artifact returns only the tensors" in str(made)


def test_calibration_is_cut_for_a_model_that_knows_one_batch_size(plant: Plant) -> None:
    class Fixed(Fake):
        def build(self, order: BuildRequest) -> Session:
            return replace(super().build(order), dynamic=False)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).reshape(2, 3)

    plant(int8=Fixed(FACTS=INT8))
    made = deploy(Two(), example=EXAMPLE, calibration=[torch.randn(6, 8)], quantize="int8",
                  batch_sizes=(2,))  # fmt: skip
    assert made.runtime == "int8"


def test_an_artifact_that_fails_at_a_batch_size_is_not_taken(plant: Plant) -> None:
    class Fixed(Fake):
        def build(self, order: BuildRequest) -> Session:
            made = super().build(order)

            def compute(given: Any) -> Any:
                if len(given[0]) == 16:
                    raise RuntimeError("out of memory")
                return made.compute(given)

            return Session(compute, made.path)

    plant({("fixed", "pruned", 1): 0.1}, fixed=Fixed(), good=Fake())
    made = deploy(small(), example=EXAMPLE)
    assert made.runtime == "good"
    assert made.row("fixed").refused == "fails on a batch of 16: out of memory"  # type: ignore[union-attr]


# --- quantizing


@pytest.mark.parametrize(("factor", "judged", "taken"), [
    (1.3, True, True), (1.6, True, False), (1.3, False, False), (1.1, False, True),
])  # fmt: skip
def test_the_metric_judges_rounded_answers_where_there_is_one(
    plant: Plant, factor: float, judged: bool, taken: bool
) -> None:
    plant({("int8", "pruned", 1): 0.1}, exact=Fake(), int8=Fake(factor, INT8))
    made = deploy(small(), example=EXAMPLE, calibration=[EXAMPLE], runtime=("exact", "int8"),
                  evaluate=(lambda model: 0.9) if judged else None)  # fmt: skip
    assert made.runtime == ("int8" if taken else "exact")
    refused = made.row("int8").refused  # type: ignore[union-attr]
    if not taken:
        assert refused is not None
        assert "outputs differ" in refused
        assert ("with evaluate= the metric judges" in refused) == (not judged)


def test_quantizing_is_tried_only_where_it_can_be_judged(plant: Plant) -> None:
    fakes = plant(exact=Fake(), int8=Fake(FACTS=INT8))
    deploy(small(), example=EXAMPLE)
    deploy(small(), example=EXAMPLE, evaluate=lambda m: 1.0)
    deploy(small(), example=EXAMPLE, calibration=[EXAMPLE])
    deploy(small(), example=EXAMPLE, calibration=[EXAMPLE], evaluate=lambda m: 1.0, quantize="none")
    assert not fakes["int8"].built
    deploy(small(), example=EXAMPLE, calibration=[EXAMPLE], evaluate=lambda m: 1.0)
    assert len(fakes["int8"].built) == 1
    assert fakes["int8"].built[0].calibration == [EXAMPLE]


@pytest.mark.parametrize(("better", "metric", "taken"), [
    ("higher", 0.895, True), ("higher", 0.885, False), ("higher", float("nan"), False),
    ("lower", 0.905, True), ("lower", 0.915, False),
])  # fmt: skip
def test_a_quantized_artifact_that_loses_too_much_is_not_taken(
    plant: Plant, better: Any, metric: float, taken: bool
) -> None:
    plant({("int8", "pruned", 1): 0.1}, exact=Fake(), int8=Fake(FACTS=INT8))

    def evaluate(model: Any) -> float:
        return metric if isinstance(model, prunus.deployment.module.DeployedModule) and (
            model.card.runtime == "int8") else 0.9  # fmt: skip

    made = deploy(small(), example=EXAMPLE, evaluate=evaluate, better=better,
                  calibration=[EXAMPLE], max_drop=0.01)  # fmt: skip
    assert made.runtime == ("int8" if taken else "exact")
    row = made.row("int8")
    assert row is not None
    assert row.good is taken
    if metric == 0.885:
        assert row.refused == "metric 0.8850, more than 0.01 below 0.9000"


def test_int8_alone_takes_the_relative_of_the_runtime_named(plant: Plant) -> None:
    plant(exact=Fake(), exact_int8=Fake(FACTS=INT8), other=Fake())
    assert deploy(small(), example=EXAMPLE, runtime="exact", quantize="int8").runtime == (
        "exact_int8"
    )
    assert deploy(small(), example=EXAMPLE, quantize="int8").runtime == "exact_int8"
    with pytest.raises(InputError, match="other keeps the model's precision; name exact_int8"):
        deploy(small(), example=EXAMPLE, runtime="other", quantize="int8")
    with pytest.raises(InputError, match="exact_int8 quantizes; name another"):
        deploy(small(), example=EXAMPLE, runtime="exact_int8", quantize="none")


def test_an_evaluation_that_wants_parameters_is_noted_and_does_not_end_it(plant: Plant) -> None:
    plant({("int8", "pruned", 1): 0.1}, exact=Fake(), int8=Fake(FACTS=INT8))
    made = deploy(small(), example=EXAMPLE, calibration=[EXAMPLE],
                  evaluate=lambda m: float(next(m.parameters()).dim()))  # fmt: skip
    assert made.runtime == "exact"
    assert "evaluate fails on it: StopIteration" in made.row().notes[0]  # type: ignore[union-attr]
    assert "evaluate fails on it" in str(made.row("int8").refused)  # type: ignore[union-attr]


# --- what is said


def test_single_zeros_are_said_to_gain_nothing(plant: Plant) -> None:
    model, dense = small(), small()
    model[0].weight.data.view(-1)[:100] = 0  # type: ignore[index, union-attr, operator]
    plant(a=Fake())
    made = deploy(model, example=EXAMPLE, baseline=dense)
    assert "62% of the weights are single zeros, and a multiplies zeros like any number" in (
        said(made)
    )
    assert "structure: channel" in said(made)


def test_single_zeros_in_a_runtime_that_skips_them_need_no_advice(plant: Plant) -> None:
    model = small()
    model[0].weight.data.view(-1)[:100] = 0  # type: ignore[index, union-attr, operator]
    fake = Fake(FACTS=replace(EXACT, skips_zeros=True))
    plant({("a", "pruned", 1): 0.5, ("a", "pruned", 16): 0.5}, a=fake)
    assert deploy(model, example=EXAMPLE, baseline=small()).advice == ()


def test_a_smaller_model_that_is_no_faster_has_layers_that_are_too_small(plant: Plant) -> None:
    times = {("a", "pruned", 16): 1.2, ("a", "dense", 16): 3.6}
    plant(times, a=Fake())
    made = deploy(small(), example=EXAMPLE, baseline=small(width=64))
    assert "at batch 1 the smaller model is hardly faster: its layers are so small" in said(made)
    assert "3.0 times as fast at batch 16" in said(made)


def test_a_smaller_model_that_is_busy_and_no_faster_has_odd_widths(plant: Plant) -> None:
    plant({("a", k, 16): 15.0 for k in ("pruned", "dense")}, a=Fake())
    made = deploy(small(), example=EXAMPLE, baseline=small(width=64))
    assert "multiple_of: 8" in said(made)


def test_a_model_from_which_nothing_was_pruned_is_told_so(plant: Plant) -> None:
    plant(a=Fake())
    made = deploy(small(), example=EXAMPLE, baseline=small())
    assert "about as many weights as the dense one" in said(made)


def test_two_four_weights_are_sent_to_a_gpu(plant: Plant) -> None:
    model = small()
    for layer in (model[0], model[2]):  # type: ignore[index]
        layer.weight.data.view(-1, 4)[:, :2] = 0  # type: ignore[union-attr, operator]
    plant(a=Fake())
    made = deploy(model, example=EXAMPLE, baseline=small())
    assert "pruned 2:4, which a cannot use; an NVIDIA GPU" in said(made)
    assert "runtime='semi_structured'" in said(made)


def test_a_gain_needs_no_advice(plant: Plant) -> None:
    plant({("a", "dense", b): 2.0 for b in (1, 16)}, a=Fake())
    assert deploy(small(), example=EXAMPLE, baseline=small(width=64)).advice == ()


# --- what is refused


def test_an_example_that_does_not_fit_is_refused_before_anything_is_built(plant: Plant) -> None:
    fakes = plant(a=Fake())
    with pytest.raises(InputError, match=r"example: Sequential fails on inputs of shapes.*\(2, 9"):
        deploy(small(), example=torch.ones(2, 9))
    with pytest.raises(InputError, match="example: Linear fails"):
        deploy(small(), example=EXAMPLE, baseline=nn.Linear(9, 2))
    assert not fakes["a"].built


def test_an_example_without_a_batch_is_refused_before_anything_is_built(plant: Plant) -> None:
    class Scalar(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    fakes = plant(a=Fake())
    with pytest.raises(InputError, match="no tensor of the example has a leading dimension"):
        deploy(Scalar(), example=torch.tensor(1.0))
    assert not fakes["a"].built


def test_a_model_of_one_batch_size_is_taken_in_parts_where_the_runtime_can() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(2, 8) * 2

    made = deploy(Pair(), example=EXAMPLE, runtime=("eager", "torch_export"), seconds=0.01)
    assert made.runtime == "torch_export"
    assert "fails on a batch of 1: " in str(made.row("eager").refused)  # type: ignore[union-attr]
    given = torch.randn(5, 8)
    assert torch.equal(made.model(given), given * 2)


@pytest.mark.parametrize(("settings", "words"), [
    ({"batch_sizes": ()}, "batch_sizes"), ({"batch_sizes": (0,)}, "batch_sizes"),
    ({"seconds": 0}, "seconds is 0"), ({"max_drop": -1}, "max_drop is -1"),
    ({"threads": 0}, "threads is 0"), ({"quantize": "int4"}, "quantize: there is no 'int4'"),
    ({"runtime": ()}, "name at least one"), ({"better": "faster"}, "better is 'faster'"),
    ({"runtime": "onxruntime"}, "did you mean 'onnxruntime'"),
    ({"evaluate": lambda m: "good"}, "evaluate returned str, not a number"),
    ({"evaluate": lambda m: float("nan")}, "evaluate returned nan for the model itself"),
])  # fmt: skip
def test_settings_are_refused_by_name(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        deploy(small(), **{"example": EXAMPLE, "runtime": "eager", **settings})


def test_a_named_runtime_that_refuses_is_an_error_before_anything_is_built(plant: Plant) -> None:
    fakes = plant(a=Fake(), b=Fake(refusal="it is Tuesday"))
    for named in ("b", ("a", "b")):
        with pytest.raises(InputError, match="runtime b: it is Tuesday"):
            deploy(small(), example=EXAMPLE, runtime=named)
    assert not fakes["a"].built
    assert deploy(small(), example=EXAMPLE).row("b").refused == "it is Tuesday"  # type: ignore[union-attr]


def test_a_runtime_that_is_missing_comes_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, plant: Plant
) -> None:
    plant(a=Fake(), b=Fake(FACTS=replace(EXACT, needs=("bee", "cee"))))
    made = deploy(small(), example=EXAMPLE)
    assert made.offers == {"b": "pip install bee cee"}
    assert "not installed: b (pip install bee cee)" in str(made)
    monkeypatch.undo()
    monkeypatch.setattr(distributions, "_installed", lambda name: name != "onnxruntime")
    with pytest.raises(InputError, match="onnxruntime is not installed: pip install onnxruntime"):
        deploy(small(), example=EXAMPLE, runtime="onnxruntime")


# --- what is left alone, what is kept


def test_the_model_and_the_process_are_as_they_were(plant: Plant) -> None:
    plant(a=Fake())
    model, dense = small().train(), small().train()
    model[1].eval()  # type: ignore[index, operator]
    model[0].weight.requires_grad_(False)  # type: ignore[index, union-attr, operator]
    model(EXAMPLE).sum().backward()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    torch.set_num_threads(2)
    deploy(model, example=EXAMPLE, baseline=dense, threads=1,
           evaluate=lambda m: float(m(torch.randn(4, 8)).sum()))  # fmt: skip
    assert torch.get_num_threads() == 2
    assert not bool(torch.full((1,), 1e-39).eq(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert all(m.training for m in dense.modules())
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(
        a is b if b is None else torch.equal(a, b)  # type: ignore[arg-type]
        for a, b in zip([p.grad for p in model.parameters()], grads, strict=True)
    )


@pytest.mark.parametrize("name", ["torch_export", "onnxruntime", "openvino"])
def test_opening_an_artifact_leaves_the_processs_small_numbers_alone(
    name: str, python: Pythons
) -> None:
    if missing(name):
        pytest.skip(f"{name} is not installed")
    deploy(small(), example=EXAMPLE, runtime=name, seconds=0.01, folder="kept")
    code = (
        f"import prunus, torch; opened = prunus.load('kept/{name}', trusted=True); "
        "opened(torch.ones(2, 8)); "
        "raise SystemExit(bool(torch.full((1,), 1e-39).eq(0)))"
    )  # in a process of its own: an engine may do it once a process
    assert python(code).returncode == 0


def test_what_was_deployed_does_not_train_on() -> None:
    model = small()
    made = deploy(model, example=EXAMPLE, runtime="eager", seconds=0.01)
    before = made.model(EXAMPLE).clone()
    with torch.no_grad():
        model[0].weight.zero_()  # type: ignore[index, union-attr, operator]
    assert torch.equal(made.model(EXAMPLE), before)


def test_without_a_folder_nothing_is_kept(plant: Plant) -> None:
    plant(a=Fake())
    made = deploy(small(), example=EXAMPLE)
    assert made.path is None
    assert made.model.session.path is None
    assert list(Path().iterdir()) == []


def artifact(value: str) -> Path:
    """An artifact's files, as a runtime leaves them."""
    source = Path(f"new-{value}")
    source.mkdir()
    (source / "model.bin").write_text(value)
    return source


CARD = Manifest("a", "model.bin", dynamic=True, batch=1, inputs=())


@pytest.mark.parametrize("where", ["copytree", "write", "first rename", "second rename"])
@pytest.mark.parametrize("problem", [OSError, KeyboardInterrupt])
def test_a_crash_while_keeping_leaves_the_old_artifact(
    monkeypatch: pytest.MonkeyPatch, where: str, problem: type[BaseException]
) -> None:
    target = Path("kept/a")
    target.parent.mkdir()
    keeping.keep(artifact("old"), target, CARD)
    source = artifact("new")
    rename, left = Path.rename, {"first rename": 0, "second rename": 1}.get(where, 99)

    def crashes(*_: object, **__: object) -> Any:
        raise problem("planted")

    def counted(self: Path, to: Path) -> Path:
        nonlocal left
        left -= 1
        if left == -1:
            crashes()
        return rename(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted)
        if where == "copytree":
            patch.setattr(shutil, "copytree", crashes)
        if where == "write":
            patch.setattr(Manifest, "write", crashes)
        with pytest.raises(RunError if problem is OSError else problem):
            keeping.keep(source, target, CARD)
    assert (target / "model.bin").read_text() == "old"
    assert [p.name for p in Path("kept").iterdir()] == ["a"]
    keeping.keep(source, target, CARD)
    assert (target / "model.bin").read_text() == "new"
    assert [p.name for p in Path("kept").iterdir()] == ["a"]


def test_a_kill_between_the_renames_is_mended_by_the_next_call() -> None:
    target = Path("kept/a")
    target.parent.mkdir()
    keeping.keep(artifact("old"), target, CARD)
    target.rename(Path("kept/.a.old"))
    keeping.prepare(Path("kept"), ["a"])
    assert (target / "model.bin").read_text() == "old"


def test_a_folder_with_other_files_is_not_replaced(plant: Plant) -> None:
    fakes = plant(a=Fake())
    Path("mine/a").mkdir(parents=True)
    Path("mine/a/thesis.txt").write_text("dear reader")
    with pytest.raises(InputError, match=r"'mine/a' is not an artifact .* choose another folder"):
        deploy(small(), example=EXAMPLE, folder="mine")
    assert Path("mine/a/thesis.txt").read_text() == "dear reader"
    assert not fakes["a"].built


# --- runtimes of their own


@pytest.fixture(scope="module")
def sparse() -> Iterator[nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
    return model  # type: ignore[return-value]


def test_torch_compile_writes_machine_code_that_gives_the_same_answers(sparse: nn.Module) -> None:
    example = torch.randn(2, 64)
    made = deploy(sparse, example=example, runtime="torch_compile", seconds=0.01, folder="kept")
    opened = prunus.load("kept/torch_compile", trusted=True)
    for size in (1, 2, 5):
        given = torch.randn(size, 64)
        assert torch.allclose(opened(given), sparse(given), atol=1e-6)
    assert "machine code for processors like this one and 1 thread(s)" in str(made)
    names = zipfile.ZipFile("kept/torch_compile/model.pt2").namelist()
    assert any(name.endswith(".so") for name in names)


def test_torch_compile_says_that_it_finds_no_compiler(sparse: nn.Module) -> None:
    from torch._inductor import config

    order = BuildRequest(sparse, torch.randn(2, 64), Path())
    assert torch_compile.refuses(order) is None
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):  # monkeypatch would take it away
        assert "needs a C++ compiler" in str(torch_compile.refuses(order))
        with pytest.raises(InputError, match=r"runtime torch_compile: it needs a C\+\+ compiler"):
            deploy(sparse, example=torch.randn(2, 64), runtime="torch_compile")
    assert torch_compile.refuses(order) is None


def test_torchao_int8_rounds_weights_by_the_row_and_keeps_zeros(sparse: nn.Module) -> None:
    helpers.torchao()
    layer = nn.Linear(4, 1)
    layer.weight.data.copy_(torch.tensor([[1.0, -0.5, 0.0, 0.251]]))
    with silent():
        made = torchao_int8.quantized(nn.Sequential(layer))
        made_sparse = torchao_int8.quantized(sparse)
    values = dict(made.named_parameters())["0.parametrizations.weight.original0"]
    scale = 1.0 / 127.5
    expected = [min(127, round(v / scale)) for v in (1.0, -0.5, 0.0, 0.251)]
    assert values.tolist() == [expected]
    rounded = dict(made_sparse.named_parameters())["0.parametrizations.weight.original0"]
    assert not rounded[:, ::2].any()


def test_torchao_int8_writes_a_file_without_pickles_that_opens_again(sparse: nn.Module) -> None:
    helpers.torchao()
    example = torch.randn(8, 64)
    made = deploy(sparse, example=example, runtime="torchao_int8", seconds=0.01, folder="kept",
                  calibration=[example])  # fmt: skip
    row = made.row()
    assert row is not None
    assert 0 < (row.error or 0) < 0.05
    with zipfile.ZipFile("kept/torchao_int8/model.pt2") as file:
        kinds = json.loads(file.read("model/data/weights/model_weights_config.json"))
    assert all(not entry["use_pickle"] for entry in kinds["config"].values())
    assert torch.equal(prunus.load("kept/torchao_int8", trusted=True)(example), made.model(example))


def test_torchao_int8_refuses_models_of_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Flatten(), nn.Linear(64, 2))
    refusal = torchao_int8.refuses(BuildRequest(model, torch.ones(1, 3, 3, 3), Path()))
    assert "hold 7% of the weights" in str(refusal)
    half = torchao_int8.refuses(
        BuildRequest(nn.Linear(4, 4).half(), torch.ones(1, 4).half(), Path())
    )
    assert half == "it takes float32 and bfloat16 weights, not torch.float16"


def test_semi_structured_refuses_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(model: nn.Module) -> str:
        return str(semi_structured.refuses(BuildRequest(model, torch.ones(1, 64), Path())))

    dense = nn.Linear(64, 32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch finds none here: deploy on a machine with one" in refusal(dense)
    with pytest.raises(InputError, match="needs an NVIDIA GPU of compute capability 8"):
        deploy(dense, example=torch.ones(1, 64), runtime="semi_structured")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "this one has 7.5" in refusal(dense)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert "not torch.float32: call model.half() first" in refusal(dense)
    assert "structure: '2:4'" in refusal(dense.half())
    dense.weight.data.view(-1, 4)[:, 1:3] = 0
    assert refusal(dense) == "None"


def test_semi_structured_packs_only_what_linear_layers_alone_read() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(32, 64)
            self.inner = nn.Linear(64, 64)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.inner(self.words(ids)), self.words.weight)

    model = Tied()
    for p in (model.words.weight, model.inner.weight):
        p.data.view(-1, 4)[:, ::2] = 0
    example = (torch.ones(1, 2, dtype=torch.long),)
    program = torch.export.export(model, example, strict=False).module()
    assert list(semi_structured._linear_weights(program)) == ["inner.weight"]  # type: ignore[arg-type]


def test_semi_structured_answers_like_eager_on_a_gpu(tmp_path: Path) -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs an NVIDIA GPU of compute capability 8.0 or newer")
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 64))
    prunus.prune(model, {"structure": "2:4", "target": 0.5, "allocation": "uniform"})
    model, example = model.half().cuda().eval(), torch.randn(64, 256).half().cuda()
    made = deploy(model, example=example, runtime="semi_structured", folder=tmp_path / "made",
                  seconds=0.05)  # fmt: skip
    assert "2 weights packed as 2:4" in str(made)
    opened = prunus.load(tmp_path / "made" / "semi_structured", trusted=True)
    for served in (made.model, opened):
        off = (served(example) - model(example)).abs().max() / model(example).abs().max()
        assert off <= semi_structured.FACTS.tolerance


# --- inputs for calibration


class Two(nn.Module):
    """Takes one input by place and one by name."""

    def forward(self, x: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
        return x * mask


def test_inputs_are_what_the_loss_calls_the_model_with() -> None:
    model = small().train()
    given = [torch.full((2, 8), float(i)) for i in range(5)]
    state = torch.get_rng_state()

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        assert not model.training
        return model(batch + 1 + 0 * torch.rand(1)).sum() + model(batch).sum()

    found = inputs_of(model, loss, given, limit=3)
    assert [float(x[0, 0]) for x in found] == [1.0, 2.0, 3.0]
    assert model.training
    assert not model._forward_pre_hooks
    assert torch.equal(torch.get_rng_state(), state)


def test_inputs_by_place_and_by_name_become_a_mapping() -> None:
    found = inputs_of(Two(), lambda m, b: m(b, mask=b > 0).sum(), [torch.ones(1)])
    assert list(found[0]) == ["x", "mask"]
    assert Two()(**found[0]).item() == 1.0


def test_a_loss_that_does_not_call_the_model_is_refused() -> None:
    with pytest.raises(InputError, match="loss does not call the model"):
        inputs_of(small(), lambda m, b: b.sum(), [torch.ones(1)])
    with pytest.raises(InputError, match="contains no batch"):
        inputs_of(small(), lambda m, b: m(b).sum(), [])


# --- the commands


FAST = ["dense=1ep", "retrain=1ep", "rounds=1", "schedule=one_shot", "guard=null"]


def command(*words: str) -> str:
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    return done.output


def test_deploy_builds_a_run_keeps_the_fastest_and_load_opens_it() -> None:
    command("run", "iterative", *FAST, "target=0.5", "--folder", "made")
    out = command("deploy", "made", "--runtime", "eager", "--runtime", "torch_export",
                  "--seconds", "0.05", "--batch", "4", "--json")  # fmt: skip
    events = [json.loads(line) for line in out.splitlines()]
    assert {e["event"] for e in events} == {"note", "row", "deployed"}
    rows = [(e["runtime"], e["model"]) for e in events if e["event"] == "row"]
    assert rows == [(r, m) for r in ("eager", "torch_export") for m in ("pruned", "dense")]
    assert all(list(e["latency"]) == ["4"] for e in events if e["event"] == "row")
    end = events[-1]
    kept = json.loads(Path("made/deploy.json").read_text())
    assert (kept["runtime"], kept["gains"]) == (end["runtime"], end["gains"])
    metric = json.loads(Path("made/result.json").read_text())["metric"]
    assert {r["metric"] for r in kept["rows"] if r["model"] == "pruned"} == {metric}
    slow = any(gain < advices.GAIN for gain in end["gains"].values())  # the clock decides that
    assert any("single zeros" in text for text in end["advice"]) == slow

    from prunus.progressive.finished import open_run

    pruned, given = open_run("made").pruned, torch.randn(3, 1, 8, 8)
    command("deploy", "made", "--runtime", "torch_export", "--seconds", "0.05", "--batch", "4")
    opened = prunus.load("made/deployed/torch_export", trusted=True)
    assert torch.allclose(opened(given), pruned(given), atol=1e-5)
    again = prunus.load("made/deployed/torch_export/model.pt2", trusted=True)
    assert torch.equal(again(given), opened(given))
    with pytest.raises(InputError, match="leave model out"):
        prunus.load("made/deployed/torch_export", pruned)


@pytest.mark.parametrize("runtime", ["eager", "torch_export", "onnxruntime"])
def test_a_deployment_says_the_call_that_opens_it(runtime: str, tmp_path: Path) -> None:
    if runtime == "onnxruntime":
        pytest.importorskip("onnxscript")
    model, given = small().eval(), torch.randn(2, 8)
    made = prunus.deploy(model, example=given, folder=tmp_path, runtime=runtime, seconds=0.01)
    assert made.opened_by in str(made)
    assert made.opened_by in repr(made)
    opened = eval(made.opened_by.replace("…", "small()"))
    assert torch.allclose(opened(given), model(given), atol=1e-5)
    assert prunus.deploy(model, example=given, runtime=runtime, seconds=0.01).opened_by == ""


def test_deploy_knows_from_the_runs_guard_which_metric_is_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guard = "guard={better: lower, max_drop: 1.0}"
    words = [guard if w == "guard=null" else w for w in FAST]
    command("run", "iterative", *words, "target=0.5", "--folder", "made")
    real, told = trials.Judge.of, []
    monkeypatch.setattr(
        trials.Judge, "of", lambda *a, **k: told.append(k["better"]) or real(*a, **k)
    )
    command("deploy", "made", "--runtime", "eager", "--seconds", "0.05", "--batch", "1")
    assert told == ["lower"]


def test_an_eager_artifact_opens_with_the_models_code() -> None:
    command("run", "channels", *FAST, "target={max_macs: 0.5}", "--folder", "made")
    out = command("deploy", "made", "--runtime", "eager", "--seconds", "0.05", "--batch", "1")
    assert "kept made/deployed/eager" in out
    assert "wrote made/deploy.json" in out
    from prunus.progressive.finished import open_run
    from prunus.tasks.digits import small_cnn

    pruned, given = open_run("made").pruned, torch.randn(3, 1, 8, 8)
    for path in ("made/deployed/eager", "made/deployed/eager/model.safetensors", "made"):
        opened = prunus.load(path, small_cnn())
        assert torch.equal(opened(given), pruned(given))
    assert opened[0].out_channels < 16  # type: ignore[index, union-attr]


def test_deploy_takes_a_function_that_returns_a_model_and_an_example() -> None:
    Path("model.py").write_text(
        "import torch\n\n\ndef make():\n    return torch.nn.Linear(3, 2), torch.ones(2, 3)\n"
    )
    out = command("deploy", "model.py:make", "--runtime", "torch_export", "--seconds", "0.05",
                  "--folder", "kept")  # fmt: skip
    assert "kept kept/torch_export" in out
    assert prunus.load("kept/torch_export", trusted=True)(torch.ones(5, 3)).shape == (5, 2)


def test_deploy_says_what_is_wrong_with_its_arguments() -> None:
    for words, message in (
        (["no-such-run"], "there is no run folder and no task 'no-such-run'"),
        (["digits", "--runtime", "auto", "--runtime", "eager"], "name it alone"),
        (["digits", "--runtime", "tensorrt"], "there is no runtime 'tensorrt'"),
    ):
        done = CliRunner().invoke(cli, ["deploy", *words])
        assert done.exit_code == 2, done.output
        assert message in done.output


def test_list_names_the_runtimes_and_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "_installed", lambda name: name != "torchao")
    out = command("list", "runtimes")
    assert "  eager: PyTorch as it is" in out
    (line,) = [x for x in out.splitlines() if x.startswith("  torchao_int8:")]
    assert line.endswith("[not installed: pip install torchao]")
    rows = [json.loads(x) for x in command("list", "runtimes", "--json").splitlines()]
    assert {r["name"]: r["pip"] for r in rows}["eager"] is None
    assert {r["axis"] for r in rows} == {"runtimes"}


def test_every_runtime_says_what_it_is_and_stands_in_the_docs() -> None:
    from prunus.methods.catalog import names

    page = (Path(__file__).parents[1] / "docs" / "deploy.md").read_text(encoding="utf-8")
    for name in names("runtimes"):
        assert f"| `{name}` |" in page
        if missing(name):
            continue
        runtime = find_runtime(name)
        assert (runtime.__doc__ or "").strip(), name
        facts = runtime.FACTS
        kinds = (facts.needs, facts.devices, facts.exact, facts.slow, facts.safe)
        assert [type(k) for k in kinds] == [tuple, tuple, bool, bool, bool], name
        assert facts.multiple_of >= 1


def test_a_file_that_can_hold_code_is_opened_only_when_it_is_trusted() -> None:
    deploy(nn.Linear(3, 2), example=torch.ones(2, 3), runtime="torch_export", seconds=0.01,
           folder="kept")  # fmt: skip
    with pytest.raises(InputError, match=r"can contain code.*trusted=True"):
        prunus.load("kept/torch_export")
    with pytest.raises(InputError, match="trusted=True"):
        prunus.load("kept/torch_export/model.pt2")
    assert prunus.load("kept/torch_export", trusted=True)(torch.ones(5, 3)).shape == (5, 2)
