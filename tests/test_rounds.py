"""The loop: guard, restore, rates, limits; its promises to the caller."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from helpers import NEEDED, Fused, Heads, quick, tiny_task
from prunus.errors import InputError, RunError
from prunus.methods import catalog as folder
from prunus.methods.traits import trait
from prunus.progressive.engine import PruningEngine
from prunus.progressive.guard import next_progress
from prunus.progressive.phase import Run
from prunus.progressive.result import Round
from prunus.recipe.schema import Recipe


def judged(*verdicts: tuple[float, str], asked: float = 0.0) -> list[Round]:
    rows = [Round(0, 0, 0.0, 0.0, 0.0, 1.0, "dense")]
    rows += [Round(i + 1, 0, p, p, p, 1.0, v) for i, (p, v) in enumerate(verdicts)]
    return rows


def following(rows: list[Round], **values: Any) -> float | None:
    recipe = quick(rounds=4, target=0.8, guard={"max_drop": 0.1}, **values)
    return next_progress(rows, recipe, lambda p: 0.8 * p)[0]


def test_rounds_go_in_even_steps_to_the_end() -> None:
    assert following(judged()) == 0.25
    assert following(judged((0.25, "accepted"))) == 0.5
    assert following(judged(*((p / 4, "accepted") for p in range(1, 5)))) is None


def test_rounds_that_only_retrain_are_rounds_too() -> None:
    """Cut early, then recover: the schedule is at its end after the second of eight rounds."""
    recipe = quick(schedule="early", rounds=8, retrain="1it", dense="1it")
    result = prunus.prune(tiny_task(), recipe)
    assert [r.requested for r in result.rounds] == pytest.approx([0, 0.4375, *[0.5] * 7])
    assert result.reason == "the target is reached"


def test_a_threshold_ends_when_it_has_taken_the_target() -> None:
    """One asked of in full from the first round on takes its share of what is left in each."""
    rule = {"name": "threshold", "theta": 0.7, "form": "mean"}
    recipe = quick(schedule="one_shot", rounds=9, retrain="1it", dense="1it", allocation=rule)
    result = prunus.prune(tiny_task(), recipe)
    found = [r.achieved for r in result.rounds[1:]]
    assert 1 < len(found) < 9
    assert found[-2] < 0.5 - 1e-3
    assert found[-1] == pytest.approx(0.5, abs=1e-3)
    assert result.reason == "the target is reached"


def test_rounds_are_progressive_where_no_schedule_is_named() -> None:
    assert (prunus.Recipe(rounds=4).schedule.name, prunus.Recipe().schedule.name) == (
        "geometric",
        "early",
    )
    for name in ("early", "geometric", "linear"):
        for rounds in (None, 4):
            recipe = prunus.Recipe(schedule=name, rounds=rounds)
            assert Recipe.load(recipe.to_dict()) == recipe
    assert prunus.Recipe(rounds=4).to_dict() == {"version": 1, "rounds": 4}


def test_epochs_of_accumulated_gradients_are_passes_over_the_data_or_a_note_says_how_many() -> None:
    loader = [torch.randn(2, 4) for _ in range(6)]
    lengths = []

    def prune(**how: int) -> prunus.Result:
        def train(model: nn.Module, run: Run) -> None:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            lengths.append(run.steps_of(loader, **how))
            run.attach(optimizer, torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr=0.1, total_steps=1 + lengths[-1]))  # fmt: skip
            for i, batch in enumerate(run.batches(loader)):
                model(batch).sum().backward()
                if i % 3 == 2:
                    optimizer.step()

        recipe = {"target": 0.5, "rounds": 1, "retrain": "2ep"}
        return prunus.prune(nn.Linear(4, 3), recipe, train=train)

    told, right = prune(), prune(steps_per_epoch=2)
    assert ([r.rounds[-1].step for r in (told, right)], lengths) == ([12, 4], [12, 4])
    assert "counted as 6 optimizer steps and had 2" in told.notes[0]
    assert right.notes == ()


def test_what_has_begun_keeps_its_length_whatever_loader_follows() -> None:
    def train(model: nn.Module, run: Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run.attach(optimizer)
        for number in (6, 60):
            for i, batch in enumerate(run.batches([torch.randn(2, 4) for _ in range(number)])):
                model(batch).sum().backward()
                optimizer.step()
                if number == 6 and i == 5:
                    break

    recipe = {"target": 0.5, "rounds": 1, "retrain": "2ep"}
    assert prunus.prune(nn.Linear(4, 3), recipe, train=train).rounds[-1].step == 12


def test_a_length_in_epochs_that_is_asked_for_too_early_says_what_to_ask() -> None:
    def train(model: nn.Module, run: Run) -> None:
        run.steps  # noqa: B018

    with pytest.raises(InputError, match=r"run.steps_of\(loader\)"):
        prunus.prune(nn.Linear(4, 3), {"rounds": 1, "retrain": "2ep"}, train=train)


def test_a_round_is_one_line() -> None:
    said = "<Round 1: sparsity 0.5000 (requested 0.5000), not judged>"
    made = prunus.prune(nn.Linear(4, 2), {"target": 0.5, "rounds": 1}).rounds[-1]
    assert repr(made) == said


def test_a_rejection_halves_the_step_and_starts_from_the_last_accepted_round() -> None:
    rows = judged((0.25, "accepted"), (0.5, "rejected"))
    assert following(rows) == 0.375
    rows = judged((0.25, "accepted"), (0.5, "rejected"), (0.375, "accepted"))
    assert following(rows) == 0.5
    rows = judged((0.25, "accepted"), (0.5, "rejected"), (0.375, "rejected"))
    assert following(rows) == 0.3125


def test_a_cut_that_was_just_rejected_is_not_trained_again() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    trained = []

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        run.attach(optimizer)
        for x in run.batches([torch.randn(4, 8)]):
            trained.append(run.round)
            model(x).sum().backward()
            optimizer.step()

    def dense(model: nn.Module) -> float:
        first = model[0].weight  # type: ignore[index]
        return float(len(first) == 16 and bool((first != 0).any(1).all()))

    recipe = {"structure": {"name": "channel", "multiple_of": 8}, "target": {"max_params": 0.55},
              "schedule": "linear", "rounds": 2, "retrain": "1it", "guard": {"max_drop": 0.1},
              "compact": "every_round"}  # fmt: skip
    result = prunus.prune(model, recipe, train=train, evaluate=dense, example=torch.randn(2, 8))
    verdicts = [r.verdict for r in result.rounds]
    assert verdicts[:3] == ["dense", "rejected", "rejected"]
    assert result.rounds[1].achieved == result.rounds[2].achieved
    assert result.rounds[1].requested > result.rounds[2].requested
    assert trained == [1]
    assert len(result.model[0].weight) == 16  # type: ignore[index]


@pytest.mark.parametrize(("name", "better", "noted"), [
    ("absolute error", "higher", True), ("absolute error", "lower", False),
    ("accuracy", "higher", False),
])  # fmt: skip
def test_a_guard_that_seems_upside_down_is_noted(name: str, better: str, noted: bool) -> None:
    events: list[Any] = []
    recipe = quick(guard={"better": better, "max_drop": 1.0})
    prunus.prune(dataclasses.replace(tiny_task(), metric_name=name), recipe, on_event=events.append)
    said = [e["text"] for e in events if e["event"] == "note"]
    assert any("guard.better=lower" in text for text in said) == noted


def test_it_ends_below_the_smallest_step() -> None:
    rows = judged(*((0.25 / 2**i, "rejected") for i in range(4)))
    assert following(rows, restore="keep") is None


def test_a_schedule_that_asks_the_same_again_is_not_tried_twice() -> None:
    rows = judged((0.25, "rejected"))
    recipe = quick(rounds=4, schedule="one_shot", guard={"max_drop": 0.1})
    progress, why = next_progress(rows, recipe, lambda p: 0.25)
    assert progress is None
    assert "0.25" in why


def test_as_far_as_the_guard_allows_takes_a_share_of_the_rest() -> None:
    recipe = quick(rounds=None, target="guard", guard={"max_drop": 0.1})
    step = 0.3
    progress, _ = next_progress(judged(), recipe, lambda p: p)
    assert progress == pytest.approx(step)
    progress, _ = next_progress(judged((0.3, "accepted")), recipe, lambda p: p)
    assert progress == pytest.approx(0.3 + step * 0.7)
    progress, _ = next_progress(judged((0.3, "rejected")), recipe, lambda p: p)
    assert progress == pytest.approx(step / 2)
    rows = judged(*((0.3 / 2**i, "rejected") for i in range(4)))
    assert next_progress(rows, recipe, lambda p: p)[0] is None


def scripted(values: list[float]) -> Any:
    """An evaluate that returns the values in turn; the first is the check before training."""
    left = iter(values)
    return lambda model: next(left)


def test_a_rejected_round_is_rolled_back_to_the_bit() -> None:
    task = tiny_task()
    evaluate = scripted([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    seen: list[torch.Tensor] = []

    def watch(event: Any) -> None:
        if event["event"] == "judged" and event["row"].index == 1:
            seen.append(masked())

    pruners: list[Any] = []
    original = PruningEngine.cut

    def cut(self: Any, *args: Any) -> float:
        pruners.append(self)
        return original(self, *args)

    def masked() -> torch.Tensor:
        return pruners[-1].model[0].weight.detach().clone()  # type: ignore[no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PruningEngine, "cut", cut)
        recipe = quick(guard={"max_drop": 0.1})
        result = prunus.prune(task, recipe, evaluate=evaluate, on_event=watch)
    assert [r.verdict for r in result.rounds][:3] == ["dense", "accepted", "rejected"]
    assert torch.equal(result.model[0].weight, seen[0])  # type: ignore[index]
    assert result.sparsity == result.rounds[1].achieved
    assert result.reason.startswith("the guard")


def test_the_test_metric_is_computed_once_and_evaluate_is_tried_before_training() -> None:
    calls: list[str] = []

    def evaluate(model: nn.Module) -> float:
        calls.append("evaluate")
        return 1.0

    def test(model: nn.Module) -> float:
        calls.append("test")
        return 0.5

    def watch(event: Any) -> None:
        if event["event"] == "step":
            calls.append("step")

    result = prunus.prune(tiny_task(), quick(), evaluate=evaluate, test=test, on_event=watch)
    assert result.test == 0.5
    assert "test 0.5000" in str(result)
    assert str(result).startswith(f"sparsity {result.sparsity:.4f} after")
    assert calls.count("test") == 1
    assert calls[-1] == "test"
    assert calls[0] == "evaluate"
    assert calls[1] == "step"
    assert calls.count("evaluate") == 1 + len(result.rounds)


def run_and_record(recipe: prunus.Recipe, **task: Any) -> tuple[prunus.Result, list[Any]]:
    """Weights of the first layer after every optimizer step, with the round."""
    made = tiny_task(**task)
    history: list[Any] = []

    def train(model: nn.Module, run: Run) -> None:
        optimizer = made.optimizer(model.parameters())
        run.attach(optimizer)
        model.train()
        history.append((run.round, "begin", model[0].weight.detach().clone()))  # type: ignore[index]
        for batch in run.batches(made.train):
            optimizer.zero_grad()
            made.loss(model, batch).backward()
            optimizer.step()
            history.append((run.round, optimizer.param_groups[0]["lr"],
                            model[0].weight.detach().clone()))  # type: ignore[index]  # fmt: skip

    return prunus.prune(made, recipe, train=train), history


def begins(history: list[Any]) -> list[torch.Tensor]:
    return [w for _, kind, w in history if kind == "begin"]


def test_rewind_returns_to_step_k_under_the_mask() -> None:
    recipe = quick(restore={"name": "rewind", "k": "5it"})
    result, history = run_and_record(recipe)
    dense = [w for r, kind, w in history if r == 0 and kind != "begin"]
    for started in begins(history)[1:]:
        kept = started != 0
        assert torch.equal(started[kept], dense[4][kept])
    assert int((begins(history)[2] == 0).sum()) > 0
    assert result.sparsity == 0.5


def test_rewind_to_zero_is_the_lottery_ticket() -> None:
    _, history = run_and_record(quick(restore={"name": "rewind", "k": 0}))
    first, *later = begins(history)
    for started in later:
        assert torch.equal(started[started != 0], first[started != 0])


def test_reinitialize_is_fresh_under_the_mask() -> None:
    _, history = run_and_record(quick(restore="reinitialize"))
    first, second, third = begins(history)
    assert int((second == 0).sum()) > 0
    kept = (second != 0) & (third != 0)
    assert not torch.equal(second[kept], first[kept])
    assert not torch.equal(second[kept], third[kept])


def test_soft_pruning_lets_zeros_train_until_the_last_cut_which_is_hard() -> None:
    recipe = quick(restore={"name": "revive", "values": "zero", "when": "before"})
    result, history = run_and_record(recipe)
    first_round = [w for r, kind, w in history if r == 1]
    assert int((first_round[0] == 0).sum()) > 0
    assert int((first_round[-1] == 0).sum()) == 0
    last = [w for r, kind, w in history if r == 2]
    assert all(torch.equal(w == 0, last[0] == 0) for w in last)
    assert result.rounds[1].achieved == pytest.approx(0.25, abs=0.01)


def test_the_metric_of_a_soft_round_is_the_masked_models() -> None:
    seen: list[float] = []

    def evaluate(model: nn.Module) -> float:
        seen.append(float((model[0].weight == 0).float().mean()))  # type: ignore[index]
        return 1.0

    recipe = quick(restore={"name": "revive"}, allocation="uniform")
    prunus.prune(tiny_task(), recipe, evaluate=evaluate)
    assert seen == pytest.approx([0, 0, 0.25, 0.5])


def test_reviving_from_the_start_brings_the_first_values_back() -> None:
    recipe = quick(restore={"name": "revive", "values": "start", "when": "before"})
    _, history = run_and_record(recipe)
    first, second, _ = begins(history)
    same = second == first
    assert 0.2 < float(same.float().mean()) < 0.3  # the quarter that was cut
    assert int((second == 0).sum()) == 0


def test_dense_sparse_dense_revives_after_retraining_and_trains_before_the_next_cut() -> None:
    recipe = quick(
        restore={"name": "revive", "values": "cut", "when": "after"}, retrain="4it", rounds=2
    )
    _, history = run_and_record(recipe)
    phases = begins(history)
    assert len(phases) == 4  # dense, masked, revived, masked
    assert int((phases[1] == 0).sum()) > 0
    assert int((phases[2] == 0).sum()) == 0
    assert int((phases[3] == 0).sum()) > int((phases[1] == 0).sum())
    steps = [r for r, kind, _ in history if kind != "begin"]
    assert steps.count(2) == 4  # two revived, two masked


def test_a_learning_rate_is_held_and_then_falls_to_nearly_nothing() -> None:
    recipe = quick(learning_rate={"name": "hold_decay", "tail": 0.5}, retrain="8it", rounds=1)
    _, history = run_and_record(recipe)
    rates = [kind for r, kind, _ in history if r == 1 and kind != "begin"]
    assert rates == pytest.approx([0.2] * 5 + [0.15, 0.1, 0.05])


def test_rewinding_the_rate_repeats_that_of_the_dense_training() -> None:
    recipe = quick(
        dense={"length": "8it", "learning_rate": "hold_decay"}, learning_rate="rewind",
        retrain="8it", rounds=1,
    )  # fmt: skip
    _, history = run_and_record(recipe)
    rates = [[k for r, k, _ in history if r == i and k != "begin"] for i in (0, 1)]
    assert rates[0] == rates[1]
    assert rates[0][-1] < rates[0][0]


def test_without_a_plan_the_rate_is_the_loops_own() -> None:
    _, history = run_and_record(quick())
    assert {kind for _, kind, _ in history if kind != "begin"} == {0.2}


@pytest.mark.parametrize("limit", ["20it", "2.5ep"])
def test_a_limit_on_training_ends_the_run_with_what_there_is(limit: str) -> None:
    result = prunus.prune(tiny_task(), quick(rounds=6, target=0.6, limit=limit))
    assert "limit" in result.reason
    assert result.rounds[-1].step <= 24
    assert 0 < result.sparsity < 0.6


def test_a_limit_on_time_ends_the_run() -> None:
    result = prunus.prune(tiny_task(), quick(rounds=50, target=0.6, limit="0.05s"))
    assert "limit" in result.reason


def test_a_plain_train_is_enough_for_rounds() -> None:
    task = tiny_task()

    def train(model: nn.Module) -> None:
        optimizer = task.optimizer(model.parameters())
        for batch in task.train:
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()

    model = task.model()
    result = prunus.prune(model, quick(dense=0), train=train)
    assert result.sparsity == 0.5
    assert [r.verdict for r in result.rounds] == ["dense", "not judged", "not judged"]
    assert result.rounds[-1].step == 16


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": None},
        {"restore": {"name": "rewind", "k": "2it"}},
        {"learning_rate": "hold_decay"},
        {"restore": "revive"},
        {"criterion": "fisher_running"},
    ],
)
def test_what_a_plain_train_cannot_do_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"train\(model\)"):
        prunus.prune(tiny_task().model(), quick(**changes), train=lambda model: None)


@pytest.mark.parametrize(("changes", "end"), [
    (["target=0.5", "target.max_macs=0.3"], {"max_macs": 0.3}),
    (["target=guard", "target.max_params=0.3"], {"max_params": 0.3}),
    (["target={max_macs: 0.3}", "target.sparsity=0.5"], {"sparsity": 0.5}),
    (["deploy=eager", "target={max_macs: 0.3, step: 0.2}", "target.max_latency_ms=0.5"],
     {"max_latency_ms": 0.5, "step": 0.2}),
])  # fmt: skip
def test_a_new_end_of_pruning_takes_the_old_ones_place(
    changes: list[str], end: dict[str, float]
) -> None:
    target = Recipe.load("channels", changes).target
    assert target is not None
    assert {key: getattr(target, key) for key in target.model_fields_set} == end


def test_a_train_that_trains_a_copy_is_an_error_and_changes_nothing() -> None:
    task = tiny_task()

    def train(model: nn.Module) -> None:
        other = task.model()
        optimizer = task.optimizer(other.parameters())
        task.loss(other, next(iter(task.train))).backward()
        optimizer.step()

    model = task.model()
    before = model[0].weight.detach().clone()  # type: ignore[index]
    with pytest.raises(RunError, match="no optimizer step touched"):
        prunus.prune(model, quick(dense=0), train=train)
    assert torch.equal(model[0].weight, before)  # type: ignore[index]


def test_an_error_in_the_middle_gives_the_model_back_as_it_was() -> None:
    task = tiny_task()
    model = task.model()
    model.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random_before = torch.get_rng_state()

    def evaluate(model: nn.Module) -> float:
        if float((model[0].weight == 0).float().mean()) > 0.3:  # type: ignore[index]
            raise ValueError("my own mistake")
        return 1.0

    def train(model: nn.Module, run: Run) -> None:
        optimizer = task.optimizer(model.parameters())
        run.attach(optimizer)
        model.train()
        for batch in run.batches(task.train):
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()

    with pytest.raises(ValueError, match="my own mistake"):
        prunus.prune(model, quick(), train=train, evaluate=evaluate)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not model.training
    assert torch.equal(torch.get_rng_state(), random_before)


def test_a_loop_of_ones_own_gives_the_masks_of_the_one_call() -> None:
    task = tiny_task()
    recipe = Recipe.load("gradual", ["dense=0", "retrain=3ep", "target=0.7", "learning_rate=null"])
    torch.manual_seed(5)
    model = task.model()
    start = {k: v.clone() for k, v in model.state_dict().items()}
    batches: list[Any] = []

    def train(model: nn.Module, run: Run) -> None:
        optimizer = task.optimizer(model.parameters())
        run.attach(optimizer)
        model.train()
        for batch in run.batches(task.train):
            batches.append(batch)
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()

    result = prunus.prune(model, recipe, train=train, evaluate=lambda m: 1.0)
    own = task.model()
    own.load_state_dict(start)
    optimizer = task.optimizer(own.parameters())
    pruner = prunus.Pruner(own, recipe, optimizer, steps=len(batches))
    own.train()
    for batch in batches:
        optimizer.zero_grad()
        task.loss(own, batch).backward()
        optimizer.step()
    assert pruner.sparsity == pytest.approx(0.7, abs=0.005)
    assert all(torch.equal(result.masks[k], m) for k, m in pruner.masks.items())
    assert torch.equal(own[0].weight, result.model[0].weight)  # type: ignore[index]


def test_a_pruner_goes_on_from_its_state_in_ones_own_checkpoint() -> None:
    task = tiny_task(noise=0.3)
    recipe = {"target": 0.6, "criterion": "fisher_running", "schedule": "linear"}

    def start() -> tuple[nn.Module, torch.optim.Optimizer, prunus.Pruner]:
        torch.manual_seed(5)
        model = task.model()
        optimizer = task.optimizer(model.parameters())
        return model, optimizer, prunus.Pruner(model, recipe, optimizer, steps=20)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for i in steps:
            torch.manual_seed(i)
            optimizer.zero_grad()
            task.loss(model, next(iter(task.train))).backward()
            optimizer.step()

    model, optimizer, pruner = start()
    train(model, optimizer, range(9))
    saved = [x.state_dict() for x in (model, optimizer, pruner)]
    saved = torch.load(_saved(saved), weights_only=True)
    train(model, optimizer, range(9, 20))
    other, other_optimizer, other_pruner = start()
    other.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    other_pruner.load_state_dict(saved[2])
    train(other, other_optimizer, range(9, 20))
    assert torch.equal(model[0].weight, other[0].weight)  # type: ignore[index]
    assert other_pruner.sparsity == pruner.sparsity == 0.6


def _saved(value: Any) -> str:
    torch.save(value, "checkpoint.pt")
    return "checkpoint.pt"


_READS = ("CALIBRATION", "RUNNING", "BY_UNIT", "READS_EXAMPLE", "READS_INPUTS")
KINDS = {
    tuple(bool(trait("criteria", name, key)) for key in _READS): name
    for name in folder.names("criteria")
}
"""A criterion of each kind, by what it reads; the laws hold for every one of them."""
AXES: dict[str, list[Any]] = {
    "structure": folder.names("structures"),
    "allocation": folder.names("allocations"),
    "restore": folder.names("restore"),
    "order": ["all", "bottom_up"],
    "rounds": [None, 2],
    "criterion": list(KINDS.values()),
    "schedule": folder.names("schedules"),
    "learning_rate": [*folder.names("rates"), None],
}


PLAIN = {
    "allocation": "uniform", "restore": "keep", "order": "all", "rounds": 2, "schedule": "linear",
    "criterion": "magnitude", "learning_rate": None,
}  # fmt: skip


def all_pairs(axes: dict[str, list[Any]], seed: int) -> list[dict[str, Any]]:
    """Few combinations with every pair of values of any two axes in one of them."""
    chance = random.Random(seed)
    missing = dict.fromkeys(
        frozenset(((a, x), (b, y)))
        for a, b in itertools.combinations(axes, 2)
        for x, y in itertools.product(axes[a], axes[b])
    )

    def gain(picked: dict[str, Any], name: str, value: Any) -> int:
        return sum(frozenset(((name, value), other)) in missing for other in picked.items())

    def full() -> dict[str, Any]:
        picked = dict(chance.choice([*missing]))
        for name in chance.sample([n for n in axes if n not in picked], len(axes) - 2):
            gains = {v: (gain(picked, name, v), chance.random()) for v in axes[name]}
            picked[name] = max(gains, key=lambda v, g=gains: g[v])
        return picked

    made = []
    while missing:
        best = max(
            (full() for _ in range(10)),
            key=lambda picked: sum(p in missing for p in _pairs(picked)),
        )
        for pair in _pairs(best):
            missing.pop(pair, None)
        made.append(best)
    return made


def _pairs(values: dict[str, Any]) -> list[frozenset[tuple[str, Any]]]:
    return [*map(frozenset, itertools.combinations(values.items(), 2))]


@functools.cache
def combinations() -> list[dict[str, Any]]:
    """Every pair twice, in other company: one of the two may be refused for what is beside it."""
    return [*all_pairs(AXES, 0), *all_pairs(AXES, 1)]


def test_every_pair_of_values_is_in_one_of_the_combinations() -> None:
    axes = {n: AXES[n] for n in ("allocation", "rounds", "schedule")}
    made = all_pairs(axes, 0)
    assert len(made) < math.prod(map(len, axes.values()))
    for one, two in itertools.combinations(axes, 2):
        assert {(m[one], m[two]) for m in made} == set(itertools.product(axes[one], axes[two]))


def normed() -> nn.Module:
    """A width that a norm counts."""
    return nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 2))


@pytest.mark.parametrize("structure", folder.names("structures"))
def test_any_idea_goes_with_any_other_or_is_refused_before_training(structure: str) -> None:
    tried = [c for c in combinations() if c["structure"] == structure]
    tried += [{**PLAIN, "structure": structure}]  # which goes with every structure
    subset = {"neurons": {"0": [1, 3]}}
    layer = {"modules": ["*"]}
    special = {**NEEDED, "subset": subset, "layer": layer}
    worked = refused = 0
    for picked in tried:
        name = picked["allocation"]
        values = {
            **picked,
            "structure": {"name": structure, **special.get(structure, {})},
            "allocation": {"name": name, **special.get(name, {})},
            "dense": "4it",
            "retrain": "6it",
            "target": {"n_m": None, "layer": 0.9}.get(structure, 0.5),
        }
        if structure == "expert" and picked["rounds"] is not None:
            values["compact"] = "every_round"
        models = {"head": Heads, "hidden": normed,
                  "expert": lambda: nn.Sequential(Fused(), nn.Linear(8, 2))}  # fmt: skip
        task = tiny_task(**({"model": models[structure]} if structure in models else {}))
        steps: list[Any] = []
        try:
            result = prunus.prune(task, values, on_event=steps.append)
        except InputError:
            assert [e for e in steps if e["event"] == "step"] == []
            refused += 1
            continue
        worked += 1
        assert 0 <= result.sparsity <= 0.91
        assert math.isfinite(result.metric or 0)
        for name, mask in result.masks.items():
            weight = result.model.get_parameter(name)
            if name not in result.kept:  # what is left has no zeros, and another shape
                assert bool((weight.masked_fill(mask, 0) == 0).all())
    assert worked > 0
    assert worked + refused == len(tried)


def test_without_train_it_is_one_shot_and_returns_at_once() -> None:
    model = tiny_task().model()
    result = prunus.prune(model, Recipe.load("iterative", ["task=null"]))
    assert result.model is model
    assert [r.verdict for r in result.rounds] == ["dense", "not judged"]
    assert result.sparsity == 0.95
    assert result.folder is None


def test_without_train_the_guard_can_still_say_how_far() -> None:
    task = tiny_task()
    trained = prunus.prune(task, quick(rounds=1, target=0.0)).model
    recipe = {"target": "guard", "guard": {"max_drop": 0.05}}
    result = prunus.prune(trained, recipe, evaluate=lambda m: task.metric(m, task.validation))
    assert 0.3 < result.sparsity < 1
    assert result.rounds[-1].verdict == "rejected"
    assert result.metric is not None
    assert result.metric >= (result.rounds[0].metric or 0) - 0.05


def test_restoring_what_was_never_trained_is_refused() -> None:
    with pytest.raises(InputError, match="no train was given"):
        prunus.prune(tiny_task().model(), {"target": 0.5, "rounds": 1, "restore": "reinitialize"})


def test_a_model_with_state_of_its_own_kind_is_pruned() -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"calls": 3}

        def set_extra_state(self, state: Any) -> None:
            assert state == {"calls": 3}

    assert prunus.prune(nn.Sequential(Counting(6, 4)), {"target": 0.5}).sparsity == 0.5
