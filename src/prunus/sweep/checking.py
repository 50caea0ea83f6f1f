"""What can be known of a sweep before work starts."""

from __future__ import annotations

from dataclasses import dataclass

from prunus.errors import InputError, RefusedError
from prunus.progressive.prune import Source
from prunus.progressive.state import OnEvent
from prunus.recipe.resolve import code_that_runs, resolve
from prunus.recipe.schema import Recipe
from prunus.sweep.space import Space
from prunus.tasks.base import Task
from prunus.tasks.find import task_of

CORNERS = 256
"""Combinations of a space with ranges that are looked at."""


@dataclass(frozen=True)
class Checked:
    """What all trials share.

    Attributes:
        first: the recipe of the first trial that the rules allow.
        metric_name: what the task calls the metric.
        better: ``higher`` or ``lower``.
        counts: what the targets count: ``sparsity`` or a cost.
        guarded: whether any trial has a guard.
    """

    first: Recipe
    metric_name: str
    better: str
    counts: str
    guarded: bool


def check(
    source: Source, space: Space, *, trials: int | None, task: Task | None, on_event: OnEvent
) -> Checked:
    """Load every recipe of a grid, or those at the ends of ranges.

    Raises:
        InputError: for a value that is wrong by itself, for trials that cannot be compared, or if
            the recipe's rules refuse all of them.
    """
    recipes: list[Recipe] = []
    refusals: dict[str, None] = {}
    for texts in space.corners(trials if space.grid else CORNERS):
        try:
            recipes.append(Recipe.load(source, space.changes(texts)))
        except RefusedError as error:
            refusals[str(error)] = None
    if not recipes:
        raise InputError("no combination can be run. " + "\n".join(list(refusals)[:3]))
    _comparable(recipes)
    first = recipes[0]
    if task is None and first.task is None:
        raise InputError("the recipe names no task: add task=digits, or task=my/task.py")
    for file, digest in {k: v for r in recipes for k, v in code_that_runs(r).items()}.items():
        text = f"runs code from {file} (sha256 {digest[:12]})"
        on_event({"event": "note", "text": text, "code": {file: digest}})
    for recipe in recipes:
        resolve(recipe)
    if task is None:
        task = task_of(first)
    return Checked(
        first=first,
        metric_name=task.metric_name,
        better=_better(first),
        counts=_counts(first),
        guarded=any(r.guard is not None for r in recipes),
    )


def _comparable(recipes: list[Recipe]) -> None:
    for of, what in (
        (lambda r: None if r.task is None else str(r.task.to_dict()), "task: metrics of tasks"),
        (_better, "guard.better: directions"),
        (_counts, "target: a sparsity and bounds on other costs"),
    ):
        found = list(dict.fromkeys(of(r) for r in recipes))
        if len(found) > 1:
            raise InputError(
                f"{what} cannot be compared ({', '.join(map(str, found))}): sweep each alone"
            )


def _better(recipe: Recipe) -> str:
    return "higher" if recipe.guard is None else recipe.guard.better


def _counts(recipe: Recipe) -> str:
    bound = None if recipe.target is None else recipe.target.bound
    return "sparsity" if bound is None else bound[0]
