"""A law: no public call ends in an exception that is not a PrunusError, except the caller's own.

Odd models meet odd arguments in every public call. What is right among them works; the rest is
refused in words, by :class:`prunus.PrunusError`.
"""

from __future__ import annotations

import collections
import copy
import inspect
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import prunus
from prunus.errors import InputError, PrunusError, RunError

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
WEIGHT = {"target": 0.5}
CHANNEL = {"structure": "channel", "target": 0.5, "compact": "end"}
BY_LOSS = {"target": 0.5, "criterion": "sensitivity"}


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def masks_of(kept: Tensor) -> dict[str, Tensor]:
    """Of the hidden neurons of ``mlp``."""
    return {"0.weight": kept[:, None], "0.bias": kept, "2.weight": kept[None]}


KEPT = torch.arange(8) > 2


class Holds(nn.Module):
    """A model beside whose layers something else is."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.inner = mlp()
        if isinstance(what, nn.Parameter):
            self.odd = what
        elif isinstance(what, Tensor):
            self.register_buffer("odd", what)
        else:
            self.odd = what

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


class Named(nn.Module):
    """Takes one mapping, and answers in a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, batch: dict[str, Tensor]) -> Any:
        made = collections.namedtuple("made", ["logits", "number"])
        return made(self.inner(batch["x"]) + self.inner(batch["y"]), 3)


class Answers(nn.Module):
    def __init__(self, what: Any) -> None:
        super().__init__()
        self.inner, self.what = mlp(), what

    def forward(self, x: Tensor) -> Any:
        self.inner(x)
        return self.what


class Shares(nn.Module):
    """Calls one module twice, under two names, and answers in several parts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, 6), nn.Linear(6, 3)
        self.b = self.a

    def forward(self, x: Tensor, y: Any = None) -> Any:
        return self.c(self.b(self.a(x))), None, {"a": x}


def changed(weight: Tensor) -> nn.Module:
    model = mlp()
    model[0].weight = nn.Parameter(weight)
    return model


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return mlp()


class NoCopies(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        raise KeyError("no copies of me")


def float8() -> nn.Parameter:
    return nn.Parameter(torch.ones(6, 6).to(torch.float8_e4m3fn), requires_grad=False)


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear})  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[], Any]] = {
    "right": mlp,
    "half": lambda: mlp().half(),
    "meta": lambda: mlp().to("meta"),
    "partly meta": lambda: nn.Sequential(nn.Linear(6, 8, device="meta"), nn.Linear(8, 3)),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3)),
    "nothing goes in": lambda: nn.Sequential(nn.Linear(6, 0), nn.Linear(0, 3)),
    "nothing inside": nn.Identity,
    "no forward": lambda: nn.ModuleList([nn.Linear(6, 3)]),
    "a cell": lambda: nn.GRUCell(6, 8),
    "a recurrent layer": lambda: nn.LSTM(6, 8, proj_size=3),
    "one layer": lambda: nn.Linear(6, 3),
    "float8": lambda: Holds(float8()),
    "integers": lambda: Holds(nn.Parameter(torch.ones(3, 3, dtype=torch.int8), False)),
    "complex": lambda: Holds(nn.Parameter(torch.ones(3, 3, dtype=torch.cfloat))),
    "a float8 buffer": lambda: Holds(torch.ones(3).to(torch.float8_e5m2)),
    "nan": lambda: nn.Linear(6, 3).apply(lambda m: nn.init.constant_(m.weight, torch.nan)),
    "quantized": quantized,
    "partly quantized": lambda: Holds(quantized()),
    "scripted": lambda: torch.jit.script(mlp()),
    "partly scripted": lambda: nn.Sequential(torch.jit.script(nn.Linear(6, 8)), nn.Linear(8, 3)),
    "a generator inside": lambda: Holds(i for i in range(3)),
    "no copies": lambda: nn.Sequential(NoCopies(6, 8), nn.ReLU(), nn.Linear(8, 3)),
    "a mapping goes in": Named,
    "answers None": lambda: Answers(None),
    "answers an object": lambda: Answers(object()),
    "bfloat16": lambda: mlp().bfloat16(),
    "transposed": lambda: changed(torch.randn(6, 8).t()),
    "one row": lambda: changed(torch.randn(1, 6).expand(8, 6)),
    "sparse": lambda: changed(torch.eye(8, 6).to_sparse()),
    "of inference": in_inference_mode,
    "shared": Shares,
    "frozen": lambda: mlp().requires_grad_(False),
    "buffers alone": lambda: nn.BatchNorm1d(6, affine=False),
    "computed": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))),
    "a class": lambda: nn.Linear,
    "None": lambda: None,
    "a tensor": lambda: X,
    "a state": lambda: mlp().state_dict(),
    "a word": lambda: "digit",
    "a number": lambda: 3,
}  # fmt: skip
EXAMPLES: dict[str, Any] = {
    "right": X, "None": None, "a shape": (4, 6), "too narrow": X[:, :5], "none of it": X[:0],
    "a mapping": {"x": X, "y": X}, "numbered": {1: X}, "twice": (X, X), "empty list": [],
    "a list": [X, X[:2]], "numpy": X.numpy(), "a model": mlp(), "a class": nn.Linear, "word": "x",
    "half": X.half(), "meta": X.to("meta"), "ids": torch.ones(4, 6, dtype=torch.long), "number": 3,
    "a loader": DataLoader([X]),  # type: ignore[arg-type]
}  # fmt: skip
RECIPES: dict[str, Any] = {
    "weight": WEIGHT, "channel": CHANNEL, "neuron": {"structure": "neuron", "target": 0.5},
    "block": {"structure": "block", "target": 0.5}, "by loss": BY_LOSS, "a number": 0.5,
    "2:4": {"structure": "2:4", "allocation": "uniform"}, "None": None, "a list": [WEIGHT, WEIGHT],
    "head": {"structure": "head", "target": 0.5}, "hidden": {"structure": "hidden", "target": 0.5},
    "everything": {**WEIGHT, "scope": {"include": ["*"]}}, "a word": "one_shot", "no word": "a\0b",
    "long": "x" * 300, "a model": mlp(), "numbers": {1: 2}, "one name": {"scope": {"include": "0"}},
    "names": {"scope": ["0"]}, "modules": {"structure": {"name": "layer", "modules": ["*"]}},
    "in rounds": {**WEIGHT, "rounds": 2, "schedule": "linear"},
}  # fmt: skip
MASKS: dict[str, Any] = {
    "right": masks_of(KEPT), "int": masks_of(KEPT.int()), "float": masks_of(KEPT.float()),
    "half": masks_of(KEPT * 0.5), "meta": masks_of(KEPT.to("meta")), "list": [1], "None": None,
    "numpy": {"0.weight": KEPT.numpy()}, "unknown": {"9.weight": KEPT}, "numbered": {0: KEPT},
    "shape": {"0.weight": KEPT[:3]}, "gone": masks_of(KEPT & False), "empty": {}, "tensor": KEPT,
    "sparse": {"0.bias": KEPT.float().to_sparse()}, "words": {"0.bias": "kept"},
}  # fmt: skip
ODD = st.sampled_from([
    None, 0, -1, 0.5, "x", "", (), [], {}, nn.Linear, X, torch.nan, True, X.numpy(), b"x", 10**30,
    object(), [X], {1: 2}, Ellipsis, torch.tensor(3), np.float32(1), iter(()), [None],
])  # fmt: skip
"""Values for an argument that wants something else."""
FUNCTIONS = st.one_of(
    ODD,
    st.sampled_from([
        lambda: 1.0, lambda m: 1.0, lambda m: None, lambda m: "x", lambda m: (1, 2),
        lambda m: torch.nan, lambda m, b: m(b).sum(), lambda m, b: m(b).sum(1), lambda m, b: None,
        lambda m, b: m(b).sum().detach(), lambda m, b: 1.0, lambda m, b: {"loss": m(b).sum()},
    ]),
)  # fmt: skip


def optimizers(model: Any) -> Any:
    own = isinstance(model, nn.Module)
    return torch.optim.SGD((model if own else mlp()).parameters(), 0.1)


def odd_settings(draw: Any, **usual: Any) -> dict[str, Any]:
    """Arguments of which at most one is odd."""
    odd = draw(st.sampled_from([None, None, *usual]))
    return {k: draw(ODD) if k == odd else v for k, v in usual.items()}


def a_prune(draw: Any, model: Any, example: Any) -> Any:
    recipe = RECIPES[draw(st.sampled_from([*RECIPES]))]
    kinds = ("evaluate", "loss", "train", "on_event", "should_stop", "test")
    more = {k: draw(FUNCTIONS) for k in draw(st.sets(st.sampled_from(kinds), max_size=1))}
    calibration = draw(st.sampled_from([None, [X], (X for _ in range(2)), 3, X, []]))
    folder = draw(st.sampled_from([None, None, None, "run", 3, "a\0", "x" * 300]))
    return prunus.prune(
        model, recipe, example=example, calibration=calibration, folder=folder, progress=False,
        **more,
    )  # fmt: skip


def a_compact(draw: Any, model: Any, example: Any) -> Any:
    masks = MASKS[draw(st.sampled_from([*MASKS]))]
    return prunus.compact(model, masks, example, heads=draw(st.sampled_from([None, "dims", "x"])))


def a_measurement(draw: Any, model: Any, example: Any) -> Any:
    masks = MASKS[draw(st.sampled_from([*MASKS, "None", "None"]))]
    more = odd_settings(draw, batch_sizes=[4], threads=1, baseline=None)
    return prunus.measure(model, example, masks=masks, seconds=0.001, **more)


def an_enforcement(draw: Any, model: Any, example: Any) -> Any:
    masks = MASKS[draw(st.sampled_from([*MASKS]))]
    more = odd_settings(draw, optimizer=optimizers(model), copies=())
    stop = prunus.enforce(model, masks, **more)
    stop()


def a_low_rank(draw: Any, model: Any, example: Any) -> Any:
    masks = MASKS[draw(st.sampled_from([*MASKS]))]
    more = odd_settings(draw, masks=masks, include=None, seed=0)
    with prunus.low_rank(model, draw(st.sampled_from([1, 3, 0, "a", None])), **more) as numbers:
        assert numbers


def a_pruner(draw: Any, model: Any, example: Any) -> Any:
    recipe = RECIPES[draw(st.sampled_from([*RECIPES]))]
    more = odd_settings(draw, optimizer=optimizers(model), steps=4, evaluate=None, calibration=None)
    pruner = prunus.Pruner(model, recipe, example=example, **more)
    pruner.load_state_dict(draw(st.sampled_from([pruner.state_dict(), {}, None, {"recipe": 1}])))


def a_file(draw: Any, model: Any, example: Any) -> Any:
    path = draw(st.sampled_from(["m.safetensors", "no/such/place", ".", 3, None, "a\0"]))
    more = odd_settings(draw, sparse=True, values=None)
    prunus.save(model, path, **more)
    prunus.load(path, draw(st.sampled_from([mlp(), None, nn.Linear, nn.Linear(2, 2), X])))


def a_deployment(draw: Any, model: Any, example: Any) -> Any:
    more = odd_settings(draw, runtime="eager", batch_sizes=(4,), threads=1, max_drop=0.1,
                        baseline=None, better="higher", calibration=(), evaluate=None)  # fmt: skip
    return prunus.deploy(model, example=example, seconds=0.001, **more)


def a_scan(draw: Any, model: Any, example: Any) -> Any:
    batches = draw(st.sampled_from([[X], (X for _ in range(2)), [], 3, None]))
    recipe = draw(st.sampled_from([None, "weight", "channel", "a number", "head", "numbers"]))
    return prunus.scan(
        model, batches, draw(FUNCTIONS), recipe=recipe and RECIPES[recipe], example=example
    )


def some_blocks(draw: Any, model: Any, example: Any) -> Any:
    blocks = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    recipe = draw(st.sampled_from([{}, {"solver": "wanda"}, {"structure": "1:2"}, None, 3, "x"]))
    batches = draw(st.sampled_from([[example], [X], [], 3, None, [None], [X[0, 0]]]))
    return prunus.prune_blocks(draw(st.sampled_from([model, blocks])), recipe, batches)


def some_batches(draw: Any, model: Any, example: Any) -> Any:
    tensors = draw(st.sampled_from([(X,), (X, X[:2]), (3,), (), (X[:0],), (X.numpy(),)]))
    return list(prunus.Batches(*tensors, size=draw(ODD), shuffle=draw(ODD)))


REPAIRS = ("batch_norm", "bias_correction", "least_squares", {"name": "reconstruct", "steps": 1})


def a_repair(draw: Any, model: Any, example: Any) -> Any:
    more = odd_settings(draw, repair=draw(st.sampled_from(REPAIRS)), reference=mlp(), seed=0,
                        masks=None, loss=None)  # fmt: skip
    batches = draw(st.sampled_from([[X], [(X,)], [{"x": X}], [X.numpy()], [None], [], 3, [X[0]]]))
    return prunus.repair(model, batches, **more)


def a_lesson(draw: Any, model: Any, example: Any) -> Any:
    more = odd_settings(draw, temperature=2.0, weight=1.0, mix=False, objective="mse", hidden=(),
                        hidden_weight=1.0, kept=None, loss=None)  # fmt: skip
    teacher = draw(st.sampled_from([mlp(), mlp().half(), nn.Linear(2, 2), 3, None]))
    return prunus.distill(model, teacher, draw(st.sampled_from([X, (X,), {"x": X}, None])), **more)


def a_sweep(draw: Any, model: Any, example: Any) -> Any:
    pytest.importorskip("optuna")
    return prunus.sweep.sweep(3, draw(ODD), trials=draw(ODD), folder=draw(ODD))  # type: ignore[arg-type]


def a_task(draw: Any, model: Any, example: Any) -> Any:
    task = prunus.Task(
        model=lambda: model, optimizer=draw(ODD), loss=draw(FUNCTIONS), metric=draw(FUNCTIONS),
        train=draw(ODD), validation=[X],
    )  # fmt: skip
    return prunus.prune(task, {"target": 0.5, "rounds": 1, "retrain": "1it"}, progress=False)


CALLS = (
    some_batches, a_repair, a_lesson, a_sweep, a_task,
    a_scan, some_blocks, a_low_rank,
    lambda draw, model, example: prunus.Scores(draw(ODD), draw(ODD), draw(ODD)),
    a_prune, a_compact, a_measurement, an_enforcement, a_pruner, a_file, a_deployment,
    lambda draw, model, example: prunus.units(model, example),
    lambda draw, model, example: prunus.repair(model, draw(ODD)),
    lambda draw, model, example: prunus.distill(model, draw(ODD), X, weight=1.0),
    lambda draw, model, example: prunus.load(draw(ODD), model),
    lambda draw, model, example: prunus.resume(draw(ODD)),
    lambda draw, model, example: prunus.Recipe.load(draw(ODD), draw(ODD)),
)  # fmt: skip


@given(data=st.data())
@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@pytest.mark.filterwarnings("ignore")
def test_no_public_call_ends_in_an_exception_of_another_kind(data: Any) -> None:
    call = data.draw(st.sampled_from(CALLS))
    # One side is odd, or both, and the right ones often enough that work is begun.
    name = data.draw(st.sampled_from(["right"] * 8 + [*MODELS]))
    example = EXAMPLES[data.draw(st.sampled_from(["right"] * 8 + [*EXAMPLES]))]
    model = MODELS[name]()
    said = "it works"
    try:
        call(data.draw, model, example)
    except PrunusError as error:
        said = str(error)
    assert len(said) > 7
    assert not said.startswith(("TypeError", "KeyError"))


BY_NAME: dict[str, tuple[Callable[[], Any], str]] = {
    "repair's name": (lambda: prunus.repair(mlp(), [X], repair={"name": 3}), "repair"),
    "repair's batches": (lambda: prunus.repair(mlp(), [(X, X)]), "give loss"),
    "repair's reference": (
        lambda: prunus.repair(mlp(), [X], repair="bias_correction", reference=[]),  # type: ignore[arg-type]
        "reference takes a model",
    ),
    "a seed": (lambda: prunus.repair(mlp(), [X], seed=-1), "seed is -1"),
    "a batch's size": (lambda: prunus.Batches(X, size="x", shuffle=True), "size is 'x'"),  # type: ignore[arg-type]
    "what is batched": (lambda: prunus.Batches(3, size=1, shuffle=True), "not int 3"),  # type: ignore[arg-type]
    "a folder for a file": (lambda: prunus.save(mlp(), "."), "is a folder"),
    "rounded values": (lambda: prunus.save(mlp(), "m", sparse=True, values={}), "is unknown"),  # type: ignore[arg-type]
    "groups": (lambda: prunus.Scores(torch.ones(2), groups=...), "give a name for each"),  # type: ignore[arg-type]
    "the dense model": (
        lambda: prunus.deploy(mlp(), example=X, baseline=0.5, runtime="eager"),  # type: ignore[arg-type]
        "baseline takes a model",
    ),
    "hidden states": (lambda: prunus.distill(mlp(), mlp(), X, weight=1, hidden=0.5), "hidden is"),  # type: ignore[arg-type]
    "a teacher's type": (lambda: prunus.distill(mlp(), mlp().half(), X, weight=1), "teacher: "),
    "integers as inputs": (lambda: prunus.units(mlp(), X.long()), "does not take this example"),
    "a tensor of one row": (
        lambda: prunus.enforce(changed(torch.randn(1, 6).expand(8, 6)), {}, None),
        "lie in one place",
    ),
    "a task's loss": (
        lambda: prunus.prune(
            prunus.Task(mlp, optimizers, None, len, [X], [X]), {"target": 0.5}  # type: ignore[arg-type]
        ),
        "Task: loss is None",
    ),
    "a sweep's space": (lambda: prunus.sweep.sweep("one_shot", 3), "the space is int 3"),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("what", BY_NAME)
def test_what_is_wrong_is_named(what: str) -> None:
    call, says = BY_NAME[what]
    if "sweep" in what:
        pytest.importorskip("optuna")
    with pytest.raises(InputError, match=says):
        call()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["of inference", "partly scripted", "transposed", "shared"])
def test_odd_models_are_looked_at_and_left_as_they_were(kind: str) -> None:
    model = MODELS[kind]()
    before = {n: p.clone() for n, p in model.named_parameters()}
    measured = prunus.measure(model, X, seconds=0.001, batch_sizes=[4])
    assert measured.model.params == sum(p.numel() for p in model.parameters())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def trained(tamper: Callable[..., Any], loader: Any) -> Callable[..., Any]:
    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        run.attach(optimizer)
        for i, (x, y) in enumerate(run.batches(loader)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            tamper(model, optimizer, i)

    return train


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.ones(6), 1)] * 8)


BATCHES = [(X, torch.zeros(4, dtype=torch.long))] * 4
ROUNDS = {"target": 0.5, "rounds": 2, "retrain": "6it"}


def test_a_stream_without_a_length_trains() -> None:
    loader = DataLoader(Stream(), batch_size=4)
    train = trained(lambda *_: None, loader)
    assert prunus.prune(mlp(), ROUNDS, train=train, progress=False).sparsity == 0.5
    with pytest.raises(InputError, match=r"of a loader without a len\(\) give steps_per_epoch"):
        prunus.prune(mlp(), {**ROUNDS, "retrain": "1ep"}, train=train, progress=False)
    with pytest.raises(InputError, match="the training loader is int 3"):
        prunus.prune(mlp(), ROUNDS, train=trained(lambda *_: None, 3), progress=False)


def test_what_training_does_to_the_model_ends_in_words() -> None:
    def adds(model: nn.Module, optimizer: Any, i: int) -> None:
        if i == 1:
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})

    def removes(model: Any, optimizer: Any, i: int) -> None:
        model[0] = nn.Identity()

    assert prunus.prune(mlp(), ROUNDS, train=trained(adds, BATCHES), progress=False).sparsity == 0.5
    with pytest.raises(PrunusError, match=r"pruned|in the model"):
        prunus.prune(mlp(), ROUNDS, train=trained(removes, BATCHES), progress=False)


def test_what_the_callers_own_code_raised_reaches_the_caller() -> None:
    def breaks(*_: Any) -> Any:
        raise ZeroDivisionError("mine")

    for more in (
        {"evaluate": breaks},
        {"train": trained(breaks, BATCHES)},
        {"calibration": [X], "loss": breaks},
    ):
        recipe = {**ROUNDS, "criterion": "sensitivity"} if "loss" in more else ROUNDS
        with pytest.raises(ZeroDivisionError, match="mine") as found:
            prunus.prune(mlp(), recipe, progress=False, **more)  # type: ignore[arg-type]
        assert found.traceback[-1].name == "breaks"


def test_a_model_that_raises_on_its_example_is_named_and_its_traceback_kept() -> None:
    class Picky(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise LookupError("no rows of that kind")

    for call in (
        lambda: prunus.prune(Picky(6, 3), WEIGHT, example=X),
        lambda: prunus.prune(Picky(6, 3), CHANNEL, example=X),
        lambda: prunus.compact(Picky(6, 3), masks_of(KEPT) and {}, X),
        lambda: prunus.units(Picky(6, 3), X),
        lambda: prunus.measure(Picky(6, 3), X),
        lambda: prunus.deploy(Picky(6, 3), example=X),
    ):
        with pytest.raises(InputError, match="no rows of that kind"):
            call()
    with pytest.raises(InputError) as found:
        prunus.prune(Picky(6, 3), WEIGHT, example=X)
    assert isinstance(found.value.__cause__, LookupError)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: prunus.prune(mlp(), [WEIGHT, WEIGHT]), "one recipe is taken.*list of 2"),
        (lambda: prunus.prune(mlp(), 0.5), "write {'target': 0.5}"),  # type: ignore[arg-type]
        (lambda: prunus.prune(WEIGHT, mlp()), "the model first"),  # type: ignore[arg-type]
        (lambda: prunus.prune(nn.Linear, WEIGHT), "Linear is a class"),  # type: ignore[arg-type]
        (lambda: prunus.prune(mlp(), WEIGHT, example=X[:, :5]), r"float32 \(4, 5\)"),
        (lambda: prunus.prune(nn.ModuleList([nn.Linear(4, 4)]), CHANNEL, example=X), "no forward"),
        (lambda: prunus.prune(nn.GRUCell(4, 8), {"structure": "neuron", "target": 0.5}),
         "neuron finds no unit"),
        (lambda: prunus.prune(nn.Linear(6, 3, device="meta"), WEIGHT), "meta device"),
        (lambda: prunus.prune(MODELS["lazy"](), WEIGHT), "'0.weight' of Sequential is lazy"),
        (lambda: prunus.prune(MODELS["meta"](), WEIGHT), "meta device and has no values"),
        (lambda: prunus.prune(mlp(), WEIGHT, evaluate=lambda: 1.0),  # type: ignore[arg-type,misc]
         r"called evaluate\(model\)"),
        (lambda: prunus.prune(mlp(), WEIGHT, folder=3), "folder is int 3"),  # type: ignore[arg-type]
        (lambda: prunus.prune(mlp(), BY_LOSS, calibration=[X], loss=lambda m, b: m(b).sum(1)),
         "loss returned 4 values"),
        (lambda: prunus.prune(mlp(), BY_LOSS, calibration=[X], loss=lambda m, b: b.sum()),
         "without a gradient"),
        (lambda: prunus.prune(mlp(), {**WEIGHT, "scope": ["0"]}), "include"),
        (lambda: prunus.measure(nn.LSTM(6, 8), X[None], batch_sizes=["a"]), "whole numbers"),
        (lambda: prunus.compact(mlp(), MASKS["half"], X), "other numbers than 0 and 1"),
        (lambda: prunus.enforce(mlp(), MASKS["right"], None), "no torch.optim|not a torch.optim"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_thing_and_the_next_step(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()


def test_files_of_torch_save_are_said_to_be_such() -> None:
    torch.save(mlp().state_dict(), "new.pt")
    torch.save(mlp().state_dict(), "old.pt", _use_new_zipfile_serialization=False)
    Path("own.pkl").write_bytes(pickle.dumps({}))
    for name in ("new.pt", "old.pt", "own.pkl"):
        with pytest.raises(InputError, match=r"torch.save.*prunus.save\("):
            prunus.load(name, mlp())


def test_masks_of_any_type_are_the_same_masks() -> None:
    for name in ("right", "int", "float"):
        assert prunus.compact(mlp(), MASKS[name], X).units == 3
        model = mlp()
        prunus.enforce(model, MASKS[name], optimizers(model))
        assert not model[0].weight[:3].any()


def test_a_mapping_can_be_the_one_input_and_a_tensor_be_given_twice() -> None:
    example = {"x": X, "y": X}
    result = prunus.prune(Named(), CHANNEL, example=example)
    assert result.compaction is not None
    assert tuple(result.model(example)._fields) == ("logits", "number")
    assert prunus.units(Named(), example).total == 8


def test_a_generator_of_batches_serves_every_round() -> None:
    recipe = {**BY_LOSS, "rounds": 3, "schedule": "linear"}
    result = prunus.prune(
        mlp(), recipe, calibration=(X for _ in range(2)), loss=lambda m, b: m(b).sum(),
        evaluate=lambda m: 1.0,
    )  # fmt: skip
    assert len(result.rounds) == 4


def test_one_pattern_need_not_be_in_a_list() -> None:
    result = prunus.prune(mlp(), {**WEIGHT, "scope": {"include": "0"}})
    assert list(result.masks) == ["0.weight"]


def test_every_public_function_is_among_the_calls() -> None:
    functions = {n for n in prunus.__all__ if inspect.isfunction(getattr(prunus, n))}
    assert functions == {
        "compact", "deploy", "distill", "enforce", "load", "low_rank", "measure", "prune",
        "prune_blocks", "repair", "resume", "save", "scan", "units",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_scripted_models_and_empty_layers_are_refused_or_left_out() -> None:
    with pytest.raises(InputError, match="ScriptModule"):
        prunus.prune(MODELS["scripted"](), WEIGHT)
    with pytest.raises(InputError, match="no prunable weights"):
        prunus.prune(nn.Linear(0, 4), WEIGHT)
    nothing_out = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 0))
    channels = {"structure": "channel", "target": 0.5, "compact": "end"}
    small: Any = prunus.prune(nothing_out, channels, example=X).model
    assert (small[0].out_features, small(X).shape) == (4, (len(X), 0))
    beside = nn.ModuleDict({"empty": nn.Linear(6, 0), "full": nn.Linear(6, 4)})
    assert list(prunus.prune(beside, WEIGHT).masks) == ["full.weight"]


def test_a_model_made_in_inference_mode_is_pruned_and_not_cut() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    channels = {"structure": "channel", "target": 0.5}
    with pytest.raises(InputError, match=r"'0\.weight' was made under torch\.inference_mode"):
        prunus.prune(model, {**channels, "compact": "end"}, example=X)
    with pytest.raises(RunError, match="nan"):
        prunus.prune(model, channels, example=X, evaluate=lambda m: float("nan"))
    prunus.scan(model, [X], lambda m, x: m(x).square().mean())
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    masks = prunus.prune(model, channels, example=X).masks
    with pytest.raises(InputError, match="inference_mode"):
        prunus.compact(model, masks, X)
    assert prunus.compact(copy.deepcopy(model), masks, X).units == 4


@pytest.fixture
def nested() -> Tensor:
    with warnings.catch_warnings():  # torch says once a process that these are a prototype
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.randn(3, 6), torch.randn(2, 6)])


def test_a_nested_tensor_is_refused_as_an_example_and_elsewhere_nobodys_business(
    nested: Tensor,
) -> None:
    for call in (
        lambda: prunus.prune(mlp(), WEIGHT, example=nested),
        lambda: prunus.units(mlp(), nested),
        lambda: prunus.compact(mlp(), masks_of(KEPT), {"input": nested}),
        lambda: prunus.measure(mlp(), nested),
        lambda: prunus.deploy(mlp(), example=(nested,), runtime="eager"),
    ):
        with pytest.raises(InputError, match="a nested tensor has no sizes"):
            call()
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = prunus.Pruner(model, WEIGHT, optimizer, steps=1)
    model(X).sum().backward()
    optimizer.step()
    pruner.finish()
    assert pruner.sparsity == 0.5


def test_a_sparse_example_keeps_its_layout_and_its_zeros() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            assert x.layout is torch.sparse_coo
            return self.inner(x.to_dense())  # type: ignore[no-any-return]

    edges = torch.eye(6)[:4].to_sparse()
    assert prunus.deploy(Graph(), example=edges, runtime="eager", batch_sizes=(1, 4))


@pytest.mark.filterwarnings("ignore:.*jit.*:DeprecationWarning")
def test_a_file_opens_into_a_model_with_compiled_parts(tmp_path: Path) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 8), torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)))
        )

    pruned = model()
    prunus.prune(pruned, WEIGHT)
    pruned(X)
    prunus.save(pruned, tmp_path / "model.safetensors")
    again = prunus.load(tmp_path / "model.safetensors", model=model())
    assert torch.equal(again(X), pruned.eval()(X))


def test_a_layer_alone_that_cannot_be_pruned_is_left_out_by_its_weights_name() -> None:
    with pytest.raises(InputError, match=r"scope.exclude: \['weight'\]"):
        prunus.prune(nn.Linear(4, 4, dtype=torch.complex64), {"target": 0.5})
