"""Retraining that learns from the dense model's answers, by Hinton's equation."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from helpers import quick, tiny_task
from prunus import InputError, RunError

Batch = tuple[Tensor, Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def test_two_classes_by_hand() -> None:
    model, teacher = nn.Linear(1, 2, bias=False), nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [0.0]]))
        teacher.weight.copy_(torch.tensor([[0.0], [2 * math.log(3)]]))
    batch = torch.ones(1, 1), torch.tensor([0])
    # T = 2: p = (1/4, 3/4), q = (1/2, 1/2); KL = 1/4 ln(1/2) + 3/4 ln(3/2); label: ln 2
    part = 4 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    found = prunus.distill(model, teacher, batch, loss=cross_entropy, temperature=2, weight=0.3)
    assert found.item() == pytest.approx(0.7 * math.log(2) + 0.3 * part, rel=1e-5)


@given(
    items=st.integers(1, 5), classes=st.integers(2, 6), temperature=st.floats(0.5, 8),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_the_teachers_part_is_the_divergence_in_float64(
    items: int, classes: int, temperature: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    answers = torch.randn(2, items, classes, generator=generator)
    given_, wanted = answers.double() / temperature
    p, q = wanted.softmax(1), given_.softmax(1)
    expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
    identity = nn.Identity()
    student = torch.nn.Parameter(answers[0])

    class Student(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return student + 0 * x

    found = prunus.distill(Student(), identity, answers[1], weight=1.0, temperature=temperature)
    torch.testing.assert_close(found.detach().double(), expected, rtol=1e-4, atol=1e-5)
    found.backward()
    slope = temperature * (q - p) / items
    torch.testing.assert_close(student.grad, slope.float(), rtol=1e-3, atol=1e-5)


@given(classes=st.integers(3, 9), top=st.integers(2, 12), seed=st.integers(0, 999))
def test_of_many_classes_the_teachers_likeliest_are_compared(
    classes: int, top: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    answers = torch.randn(2, 2, 3, classes, generator=generator)
    expected = 0.0
    for given_, wanted in zip(*(a.flatten(0, 1).double() / 2 for a in answers), strict=True):
        which = wanted.argsort(descending=True)[:top]
        p, q = wanted[which].softmax(0), given_[which].softmax(0)
        expected += 4 * float((p * (p / q).log()).sum()) / 6
    student = torch.nn.Parameter(answers[0])

    class Student(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return student + 0 * x

    found = prunus.distill(Student(), nn.Identity(), answers[1], weight=1.0, top=top)
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    found.backward()
    assert student.grad is not None
    others = answers[1].argsort(-1, descending=True)[..., top:]
    assert bool((student.grad.gather(-1, others) == 0).all())


def test_top_is_a_number_of_classes_to_be_compared_by_divergence() -> None:
    model, x = nn.Linear(2, 3), torch.ones(1, 2)
    with pytest.raises(InputError, match="top is 1"):
        prunus.distill(model, model, x, weight=1.0, top=1)
    with pytest.raises(InputError, match="objective kl"):
        prunus.distill(model, model, x, weight=1.0, top=2, objective="mse")
    with pytest.raises(InputError, match="compared by divergence alone"):
        prunus.Recipe.load({"target": 0.5, "rounds": 1, "retrain": "1it",
                            "teacher": {"top": 4, "objective": "mse"}})  # fmt: skip


def test_the_teacher_is_left_alone() -> None:
    teacher = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    before = copy.deepcopy(teacher.state_dict())
    model = nn.Linear(4, 4)
    x = torch.randn(8, 4)
    first = prunus.distill(model, teacher, x, weight=1.0)
    first.backward()
    assert torch.equal(first, prunus.distill(model, teacher, x, weight=1.0))  # dropout is off
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_mixtures_are_what_both_models_see() -> None:
    seen: list[Tensor] = []

    class Watching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    model, teacher = Watching(3, 2), Watching(3, 2)
    batch = torch.eye(3), torch.tensor([0, 1, 0])
    prunus.distill(model, teacher, batch, loss=cross_entropy, weight=1.0, mix=True)
    student, wanted = seen
    assert torch.equal(student, wanted)
    torch.testing.assert_close(student.sum(1), torch.ones(3))  # of two rows of the identity
    assert (student > 0).sum(1).max() <= 2


@pytest.mark.parametrize(("settings", "error", "message"), [
    ({"loss": None, "weight": 0.5}, InputError, "set weight to 1"),
    ({"mix": True}, InputError, "no label"),
    ({"loss": lambda model, batch: torch.ones(())}, InputError, "does not call the model"),
    ({"teacher": nn.Linear(3, 4)}, RunError, r"\(2, 2\) and the teacher with \(2, 4\)"),
])  # fmt: skip
def test_what_cannot_be_distilled_is_said(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    batch = torch.randn(2, 3), torch.tensor([0, 1])
    given: dict[str, Any] = {"teacher": nn.Linear(3, 2), "loss": cross_entropy, **settings}
    with pytest.raises(error, match=message):
        prunus.distill(nn.Linear(3, 2), batch=batch, **given)


def test_answers_that_are_no_scores_need_the_other_objective() -> None:
    x = torch.randn(4, 3)
    with pytest.raises(RunError, match="objective to mse"):
        prunus.distill(nn.Linear(3, 1), nn.Linear(3, 1), x, weight=1.0)
    model, teacher = nn.Linear(3, 1), nn.Linear(3, 1)
    found = prunus.distill(model, teacher, x, weight=1.0, objective="mse")
    torch.testing.assert_close(found, F.mse_loss(model(x), teacher(x)))


def test_answers_of_other_forms_are_found() -> None:
    class Named(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return {"loss": y.mean(), "features": x, "logits": y}

    x = torch.randn(4, 3)
    model = Named(3, 2)
    plain = nn.Linear(3, 2)
    plain.load_state_dict(model.state_dict())
    found = prunus.distill(model, Named(3, 2), x, weight=1.0)
    assert found > 0
    assert prunus.distill(model, model, x, weight=1.0).abs() < 1e-6


def test_a_recipes_teacher_is_the_model_of_round_0(tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []
    task = tiny_task()

    def train(model: nn.Module, run: prunus.Run) -> None:
        optimizer = task.optimizer(model.parameters())
        run.attach(optimizer)
        for batch in run.batches(task.train):
            optimizer.zero_grad()
            loss = run.distill(batch)
            gap = float((loss - task.loss(model, batch)).abs().detach())
            seen.append((run.round, gap))
            loss.backward()
            optimizer.step()

    recipe = quick(teacher={"weight": 0.5}, rounds=2)
    result = prunus.prune(task, recipe, train=train)
    assert max(gap for number, gap in seen if number == 0) == 0  # it trains the teacher itself
    assert min(gap for number, gap in seen if number > 0) > 0
    assert result.rounds[-1].achieved > 0

    def silent(model: nn.Module, run: prunus.Run) -> None:
        optimizer = task.optimizer(model.parameters())
        run.attach(optimizer)
        for batch in run.batches(task.train):
            task.loss(model, batch).backward()
            optimizer.step()

    with pytest.raises(RunError, match=r"never called run\.distill"):
        prunus.prune(task, recipe, train=silent)


@pytest.mark.parametrize("more", [{}, {"structure": "channel", "compact": "every_round"}])
def test_a_run_with_a_teacher_that_is_stopped_ends_with_the_same_bits(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    recipe = quick(teacher={"weight": 1, "mix": True}, rounds=2, snapshot="2it", **more)

    def run(stop_at: int = 0, folder: Path | None = None) -> dict[str, Tensor]:
        asked = [0]

        def stop() -> bool:
            asked[0] += 1
            return asked[0] == stop_at

        if stop_at:
            with pytest.raises(prunus.Interrupted):
                prunus.prune(tiny_task(), recipe, folder=folder, should_stop=stop)
        return prunus.prune(tiny_task(), recipe, folder=folder).model.state_dict()

    wanted = run()
    for stop_at in (12, 20):
        found = run(stop_at, tmp_path / f"{stop_at}")
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    plain = prunus.prune(tiny_task(), quick(rounds=2, **more)).model.state_dict()
    assert any(not torch.equal(plain[name], tensor) for name, tensor in wanted.items())


def test_a_teacher_without_training_is_refused() -> None:
    model = nn.Linear(4, 2)
    with pytest.raises(InputError, match="nothing trains"):
        prunus.prune(model, {"target": 0.5, "teacher": "dense"})
    with pytest.raises(InputError, match=r"run\.distill"):
        prunus.prune(
            model, {"target": 0.5, "rounds": 1, "retrain": "2it", "teacher": "dense"},
            train=lambda model: None,
        )  # fmt: skip
    with pytest.raises(InputError, match="no label"):
        prunus.Recipe.load({"target": 0.5, "teacher": {"mix": True}})
    recipe = {"target": 0.5, "teacher": {"temperature": 4.0}}
    assert prunus.Recipe.load(recipe).to_dict()["teacher"] == {"temperature": 4.0}
    assert prunus.Recipe.load({"target": 0.5, "teacher": "dense"}).to_dict()["teacher"] == "dense"
