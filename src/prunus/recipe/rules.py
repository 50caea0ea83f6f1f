"""What cannot go together in a recipe, each with its reason: the one place for such rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter
from typing import Any, TypeAlias

from prunus.methods.catalog import is_own
from prunus.methods.traits import takes
from prunus.recipe.duration import Duration, parse
from prunus.recipe.fields import RecipeFields

Rule: TypeAlias = tuple[Callable[[RecipeFields], object], str]
"""What finds settings that cannot go together (else it gives a false value), and a message: the
reason and the way out, with values of the recipe ``r`` and of what was ``found``."""


def conflicts(recipe: RecipeFields) -> list[str]:
    """A message for each rule that a recipe breaks."""
    found = [(broken(recipe), message) for broken, message in RULES]
    return [message.format(r=recipe, found=it) for it, message in found if it]


def _length(key: str) -> Rule:
    def broken(r: RecipeFields) -> bool:
        length = parse(attrgetter(key)(r) or 0)
        return length.unit == "min" or (length.unit == "part" and length.value > 0)

    return broken, f"{key}: '{{r.{key}}}' is not a length of training; write '3ep' or '500it'"


def _place(key: str) -> Rule:
    message = f"schedule.{key}: '{{r.schedule.{key}}}' is a time; write '3ep', '500it' or a part"
    return lambda r: parse(getattr(r.schedule, key) or 0).unit == "min", message


RULES: tuple[Rule, ...] = (
    (lambda r: r.rounds is not None and r.schedule.every is not None,
     "rounds and schedule.every cannot be combined: rounds cut once each, every spaces "
     "the cuts of gradual pruning; leave one out"),
    (lambda r: r.until_guard and r.guard is None,
     "target: guard needs a guard: add, for example, guard: {{max_drop: 0.01}}"),
    (lambda r: r.target and r.target.sparsity == 1 and _units(r) != "modules",
     "target: 1 would remove every weight in scope: write a number below 1 (only "
     "structure: layer can remove all, of the modules it names)"),
    (lambda r: r.target and r.target.adapt and not r.until_guard,
     "target.adapt: rejected rounds teach where the guard says how far to go: leave the sparsity "
     "or the bound out, as in target: {{adapt: true}}"),
    (lambda r: r.target and r.target.adapt and (_units(r) == "experts" or _rotates(r)),
     "target.adapt: with structure {r.structure.name} no group is cut by itself: leave adapt out"),
    (lambda r: not _is_n_of_m(r) and _n_of_m(r),
     "structure: {found[0]}:{found[1]} is not an n:m: n of every m are kept, so 0 < n < m"),
    (lambda r: r.target and _is_n_of_m(r) and _asks_for_more(r) and _n_of_m(r),
     "target: {found[0]}:{found[1]} removes {r.sparsity:g} of the eligible weights, no more "
     "and no less; leave target out"),
    (lambda r: _n_of_m(r) and _of_layers(r),
     "{found}: n:m takes the same from every few weights of every layer: name layers that should "
     "stay dense in scope.exclude, and leave {found} out"),
    (lambda r: not r.trait("allocation", "N_OF_M") and _n_of_m(r),
     "allocation: n:m takes the same number from every {found[1]} weights, which is "
     "allocation: uniform, not {r.allocation.name}"),
    (lambda r: r.trait("allocation", "WITHIN_NEURONS") and _units(r) != "weights",
     "allocation: {r.allocation.name} shares out the weights of a neuron; structure "
     "{r.structure.name} removes whole ones: use uniform, global or erk"),
    (lambda r: r.compact != "none" and _stays(r)
     and not (r.compact == "end" and _units(r) == "modules"),
     "compact: {r.compact} takes whole units out of the model, and structure "
     "{r.structure.name} only sets weights to zero: use structure: channel or head "
     "(or layer with compact: end)"),
    (lambda r: r.target and r.target.bound and _stays(r)
     and ("latency_ms" if r.target.latency else r.target.bound[0]),
     "target: max_{found} bounds what the model costs, and structure {r.structure.name} "
     "leaves zeros, which are stored and multiplied as before: use structure: channel or head"),
    (lambda r: _coupled(r) and not r.trait("allocation", "COUPLED"),
     "allocation: {r.allocation.name} shares out single weights; structure "
     "{r.structure.name} removes whole units: use uniform, global or erk"),
    (lambda r: r.unit_score.reduce != "mean" and r.trait("criterion", "BY_UNIT"),
     "unit_score: criterion {r.criterion.name} scores whole units, so there is nothing to reduce: "
     "leave reduce out (normalize stays)"),
    (lambda r: r.unit_score != type(r.unit_score)() and _rotates(r),
     "unit_score: with rotate the variance of activations orders the indices: leave unit_score "
     "out, or rotate"),
    (lambda r: r.compact != "every_round" and _units(r) == "experts",
     "structure: {r.structure.name} makes the router forget experts, which no mask of weights "
     "does: add compact: every_round (with rounds, 1 or more), so that they go with each cut"),
    (lambda r: _rotates(r) and r.criterion != RecipeFields().criterion,
     "criterion: with rotate the variance of calibration activations orders the indices, and "
     "{r.criterion.name} would not be asked: leave criterion out, or rotate"),
    (lambda r: _rotates(r) and r.trait("restore", "CHANGES"),
     "restore: {r.restore.name} brings back weights from before the rotation, which belong to "
     "other indices: use restore: keep, or leave rotate out"),
    (lambda r: r.compact == "every_round" and not r.in_rounds,
     "compact: every_round needs rounds: add, for example, rounds: 4; gradual pruning "
     "takes compact: end"),
    (lambda r: r.compact == "every_round" and r.trait("restore", "CHANGES"),
     "compact: every_round removes units for good, but restore: {r.restore.name} would "
     "bring them back: use restore: keep or compact: end"),
    (lambda r: r.repair and (r.trait("restore", "CHANGES") or _releases(r)),
     "repair: {r.repair.name} fits the weights that stay, and restore: {r.restore.name} makes "
     "them others: use restore: keep, or leave repair out"),
    (lambda r: r.keep == "front" and not r.in_rounds,
     "keep: front keeps models of several rounds, and gradual pruning has one: set rounds"),
    (lambda r: len(set(r.controls)) < len(r.controls), "controls: one is named twice"),
    (lambda r: r.controls and (_rotates(r) or _units(r) == "experts"),
     "controls: with structure {r.structure.name} the shape that is left is not one of masks over "
     "the model as it was given: leave controls out"),
    (lambda r: r.regrow and (_coupled(r) or _units(r) != "weights" or _n_of_m(r)),
     "regrow: {r.regrow.name} lets single weights or blocks of them grow, and a unit of structure "
     "{r.structure.name} that is zero throughout has no gradient to grow by: use structure: "
     "weight, or leave regrow out"),
    (lambda r: r.regrow and _releases(r),
     "regrow: restore: {r.restore.name} lets all removed weights train already: leave one out"),
    (lambda r: r.regrow and r.trait("regrow", "LATENT") and r.trait("restore", "CHANGES"),
     "regrow: {r.regrow.name} lets removed weights go on behind their zeros, and restore: "
     "{r.restore.name} makes the others new: use restore: keep, or regrow: rigl"),
    (lambda r: r.regularize and r.trait("regularize", "GOING")
     and (r.until_guard or r.trait("criterion", "RUNNING")),
     "regularize: {r.regularize.name} asks before the first cut which weights will go, and neither "
     "target: guard nor criterion {r.criterion.name} can tell then: set a sparsity, and magnitude "
     "or fisher"),
    (lambda r: r.regularize and r.regularize.during == "dense" and _untrained(r),
     "regularize: during: dense, but nothing is trained then: set dense, for example 10ep"),
    (lambda r: r.teacher and r.teacher.top and r.teacher.objective != "kl",
     "teacher.top: classes are compared by divergence alone: leave objective out, or top"),
    (lambda r: r.teacher and r.teacher.mix and r.teacher.weight < 1,
     "teacher: a mixture of two inputs has no label: set weight: 1 beside mix"),
    (lambda r: _latency(r) and (r.deploy is None or r.deploy.runtime == "auto"),
     "target: max_latency_ms is a time in one runtime: name it, for example "
     "deploy: onnxruntime (prunus list runtimes)"),
    (lambda r: _latency(r) and r.compact == "none",
     "target: max_latency_ms: zeros take as long as other weights: set compact"),
    (lambda r: _latency(r) and r.trait("criterion", "RUNNING"),
     "target: max_latency_ms measures before anything is trained, when criterion "
     "{r.criterion.name} has nothing to read: use fisher or sensitivity"),
    (lambda r: _releases(r) == "before" and r.trait("restore", "RECALLS") == "cut",
     "restore: values cut with when before would undo the cut: use when: after "
     "(dense–sparse–dense), or values: zero"),
    (lambda r: not r.in_rounds
     and (_releases(r) == "after" or r.trait("restore", "NEEDS_ROUNDS")),
     "restore: {r.restore.name} acts after a whole retraining, and gradual "
     "pruning has only one: set rounds"),
    (lambda r: _untrained(r) and r.trait("restore", "REWINDS_TO") is not None,
     "restore: {r.restore.name} returns to a step of round 0: set dense, for example 10ep"),
    (lambda r: _untrained(r) and r.learning_rate and r.trait("learning_rate", "NEEDS_DENSE"),
     "learning_rate: {r.learning_rate.name} repeats the plan of round 0: set dense, e.g. 10ep"),
    (lambda r: r.limit is not None and parse(r.limit).unit == "part",
     "limit: write a time ('20min') or a length ('30ep', '5000it')"),
    (lambda r: r.last_retrain is not None and (r.rounds is None or r.until_guard),
     "last_retrain: only with rounds is the last cut known: set rounds"),
    *map(_length, ("dense.length", "retrain", "last_retrain", "snapshot")),
    *map(_place, ("start", "end", "every")),
    (lambda r: r.regrow and "min" in {parse(r.regrow.every).unit, parse(r.regrow.end).unit},
     "regrow: every and end are lengths of training or parts of it: write '3ep', '500it' or 0.75"),
    (lambda r: _reversed(r.schedule.start, r.schedule.end),
     "schedule: start {found[0]} is after end {found[1]}"),
    (lambda r: parse(r.retrain).unit != "part" and _reversed(r.schedule.end, r.retrain),
     "schedule: end {found[0]} is after the end of retrain, {found[1]}"),
)  # fmt: skip


def _n_of_m(r: RecipeFields) -> Any:
    """n and m, where exactly n of every m stay; settings that are no numbers are for ``bind``."""
    fixed = r.trait("structure", "N_OF_M")
    return fixed if fixed and all(isinstance(k, int) for k in fixed) else None


def _of_layers(r: RecipeFields) -> str:
    """The key that treats single layers otherwise, where there is one."""
    return "limits" if r.limits else "target.layers" if r.target and r.target.layers else ""


def _is_n_of_m(r: RecipeFields) -> bool:
    fixed = _n_of_m(r)
    return fixed is not None and bool(0 < fixed[0] < fixed[1])


def _asks_for_more(r: RecipeFields) -> bool:
    """Whether the target is another than the sparsity that n:m has."""
    given = None if r.target is None else r.target.sparsity
    return given is None or not math.isclose(given, r.sparsity)


def _units(r: RecipeFields) -> Any:
    return r.trait("structure", "UNITS")


def _coupled(r: RecipeFields) -> bool:
    return takes("structures", r.located(r.structure).name, "analysis")


def scans_too_often(recipe: RecipeFields) -> str | None:
    """Why an allocation that measures cannot go with gradual pruning."""
    if recipe.in_rounds or not recipe.trait("allocation", "MEASURES"):
        return None
    return (
        f"allocation: {recipe.allocation.name} passes the calibration data many times for each "
        "cut, and gradual pruning cuts often: set rounds"
    )


def _rotates(r: RecipeFields) -> Any:
    return r.trait("structure", "ROTATES")


def _stays(r: RecipeFields) -> bool:
    """Whether zeros stay in the model; of the user's own structure that is said when it loads."""
    return not _coupled(r) and (_units(r) == "modules" or not is_own(r.structure.name))


def _latency(r: RecipeFields) -> object:
    return r.target and r.target.latency


def _releases(r: RecipeFields) -> Any:
    return r.trait("restore", "RELEASES")


def _untrained(r: RecipeFields) -> bool:
    return parse(r.dense.length).value == 0


def _reversed(first: str | float, last: str | float) -> tuple[Duration, Duration] | None:
    """Both, where the first certainly lies after the last."""
    one, other = parse(first), parse(last)
    return (one, other) if one.unit == other.unit and one.value > other.value else None


def own_loop_conflict(recipe: RecipeFields, *, judged: bool) -> str | None:
    """Why a recipe cannot run inside a training loop of the user's own, if it cannot.

    Args:
        recipe: to run there.
        judged: whether something evaluates the model.
    """
    if recipe.compact == "end":
        return (
            "compact: end would replace the model under your loop: leave it out, and "
            "call prunus.compact(model, pruner.masks, example, optimizer=optimizer) after training"
        )
    if _rotates(recipe):
        return (
            "structure: rotate turns all weights before a cut, and the state of your optimizer "
            "would not turn with them: leave rotate out, or use prunus.prune"
        )
    if recipe.repair is not None:
        return (
            f"repair: {recipe.repair.name} passes calibration batches between two steps of your "
            "loop: leave it out, and call prunus.repair(model, calibration) after a cut"
        )
    if (reason := scans_too_often(recipe)) is not None:
        return reason
    if recipe.keep != "last":
        return (
            "keep: your loop has no folder of a run: save the model where you like it "
            "(pruner.rounds has every round), or use prunus.prune"
        )
    if recipe.controls:
        return (
            "controls train other models, and your loop trains one: leave them out, or use "
            "prunus.prune"
        )
    if recipe.deploy is not None or recipe.quantize != "none":
        return (
            "deploy and quantize apply to a finished model: leave them out, and call "
            "prunus.deploy(model, example=…) after training"
        )
    if recipe.guard is not None and not judged:
        return "a guard needs something to judge with: pass evaluate(model) -> float, or no guard"
    if recipe.learning_rate is not None or not recipe.trait("dense.learning_rate", "CONSTANT"):
        return (
            "learning_rate: the scheduler of your loop sets the rate and would override the "
            "recipe's plan: leave it out (learning_rate: null), or use prunus.prune"
        )
    return None
