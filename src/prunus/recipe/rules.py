"""What cannot go together in a recipe, each with its reason: the one place for such rules."""

from __future__ import annotations

import math
from typing import Any

from prunus.methods.catalog import is_own
from prunus.methods.traits import takes
from prunus.recipe import duration
from prunus.recipe.fields import RecipeFields


def conflicts(recipe: RecipeFields) -> list[str]:
    """A message for each pair of settings that cannot go together."""
    found = []
    structure, allocation = recipe.structure.name, recipe.allocation.name
    units, fixed = recipe.trait("structure", "UNITS"), recipe.trait("structure", "N_OF_M")
    releases = recipe.trait("restore", "RELEASES")
    if recipe.rounds is not None and recipe.schedule.every is not None:
        found.append(
            "rounds and schedule.every exclude each other: rounds cut once each, every spaces "
            "the cuts of gradual pruning; leave one out"
        )
    if recipe.until_guard and recipe.guard is None:
        found.append("target: guard needs a guard: add for example guard: {max_drop: 0.01}")
    if recipe.target is not None and recipe.target.sparsity == 1 and units != "modules":
        found.append(
            "target: 1 would remove every weight in scope: write a number below 1 (structure: "
            "layer alone can take out all, of the modules it names)"
        )
    if fixed is not None:
        n, m = fixed
        if isinstance(n, int) and isinstance(m, int) and not 0 < n < m:
            found.append(f"structure: {n}:{m} is no n:m: n of every m are kept, so 0 < n < m")
        elif recipe.target is not None and not (
            recipe.target.sparsity is not None
            and math.isclose(recipe.target.sparsity, recipe.sparsity)
        ):
            found.append(
                f"target: {n}:{m} removes {recipe.sparsity:g} of the eligible weights, no more "
                "and no less; leave target out"
            )
        if not recipe.trait("allocation", "N_OF_M"):
            found.append(
                f"allocation: n:m takes the same number from every {m} weights, which is "
                f"allocation: uniform, not {allocation}"
            )
    if recipe.trait("allocation", "WITHIN_NEURONS") and units != "weights":
        found.append(
            f"allocation: {allocation} shares out the weights of a neuron; structure {structure} "
            "removes whole ones: use uniform, global or erk"
        )
    found += _about_structure(recipe) + _about_runtime(recipe)
    if (recipe.trait("restore", "RECALLS"), releases) == ("cut", "before"):
        found.append(
            "restore: values cut with when before would undo the cut: use when: after "
            "(dense–sparse–dense), or values: zero"
        )
    if not recipe.in_rounds and (recipe.trait("restore", "NEEDS_ROUNDS") or releases == "after"):
        found.append(
            f"restore: {recipe.restore.name} returns after a whole retraining, and gradual "
            "pruning has one only: set rounds"
        )
    untrained = duration.parse(recipe.dense.length).value == 0
    if untrained and recipe.trait("restore", "REWINDS_TO") is not None:
        found.append(
            f"restore: {recipe.restore.name} returns to a step of round 0: set dense, "
            "for example 10ep"
        )
    rate = recipe.learning_rate
    if untrained and rate is not None and recipe.trait("learning_rate", "NEEDS_DENSE"):
        found.append(
            f"learning_rate: {rate.name} repeats the plan of round 0: set dense, e.g. 10ep"
        )
    if recipe.limit is not None and duration.parse(recipe.limit).unit == "part":
        found.append("limit: write a time ('20min') or a length ('30ep', '5000it')")
    if recipe.last_retrain is not None and (recipe.rounds is None or recipe.until_guard):
        found.append("last_retrain: which cut is the last is known with rounds only: set rounds")
    for key in ("dense.length", "retrain", "last_retrain", "snapshot"):
        value: Any = recipe
        for part in key.split("."):
            value = getattr(value, part)
        if value is None:
            continue
        parsed = duration.parse(value)
        if parsed.unit == "min" or (parsed.unit == "part" and parsed.value > 0):
            found.append(f"{key}: '{value}' is no length of training; write '3ep' or '500it'")
    for key in ("start", "end", "every"):
        value = getattr(recipe.schedule, key)
        if value is not None and duration.parse(value).unit == "min":
            found.append(f"schedule.{key}: '{value}' is a time; write '3ep', '500it' or a part")
    first, last = duration.parse(recipe.schedule.start), duration.parse(recipe.schedule.end)
    if first.unit == last.unit and first.value > last.value:
        found.append(f"schedule: start {first} lies after end {last}")
    whole = duration.parse(recipe.retrain)
    if last.unit == whole.unit != "part" and last.value > whole.value:
        found.append(f"schedule: end {last} lies after the end of retrain, {whole}")
    return found


def _about_structure(recipe: RecipeFields) -> list[str]:
    """What needs units that can be taken out of the model."""
    found = []
    name = recipe.structure.name
    coupled = takes("structures", name, "analysis")
    modules = recipe.trait("structure", "UNITS") == "modules"
    stays = not coupled and (modules or not is_own(name))  # the user's own: said when it is loaded
    if recipe.compact != "none" and stays and not (modules and recipe.compact == "end"):
        found.append(
            f"compact: {recipe.compact} takes whole units out of the model, and structure "
            f"{recipe.structure.name} only sets weights to zero: use structure: channel or head "
            "(or layer with compact: end)"
        )
    if recipe.target is not None and recipe.target.bound is not None and stays:
        what = "latency_ms" if recipe.target.latency else recipe.target.bound[0]
        found.append(
            f"target: max_{what} bounds what the model costs, and structure "
            f"{recipe.structure.name} removes zeros that are stored and multiplied all the same: "
            "use structure: channel or head"
        )
    if coupled and not recipe.trait("allocation", "COUPLED"):
        found.append(
            f"allocation: {recipe.allocation.name} shares out single weights; structure "
            f"{recipe.structure.name} removes whole units: use uniform, global or erk"
        )
    if recipe.compact == "every_round":
        if not recipe.in_rounds:
            found.append(
                "compact: every_round needs rounds: add for example rounds: 4; gradual pruning "
                "takes compact: end"
            )
        if recipe.trait("restore", "CHANGES"):
            found.append(
                f"compact: every_round takes units out for good, and restore: "
                f"{recipe.restore.name} would bring them back: use restore: keep or compact: end"
            )
    return found


def _about_runtime(recipe: RecipeFields) -> list[str]:
    """What needs a runtime."""
    found = []
    latency = recipe.target.latency if recipe.target is not None else None
    if latency is not None and (recipe.deploy is None or recipe.deploy.runtime == "auto"):
        found.append(
            "target: max_latency_ms is a time in one runtime: name it, for example "
            "deploy: onnxruntime (prunus list runtimes)"
        )
    if latency is not None and recipe.compact == "none":
        found.append("target: max_latency_ms: zeros take as long as other weights: set compact")
    if latency is not None and recipe.trait("criterion", "RUNNING"):
        found.append(
            "target: max_latency_ms measures before anything is trained, and criterion "
            f"{recipe.criterion.name} knows nothing then: use fisher or sensitivity"
        )
    return found


def own_loop_conflict(recipe: RecipeFields, *, judged: bool) -> str | None:
    """Why a recipe cannot run inside a training loop of the user's own, if it cannot.

    Args:
        recipe: to run there.
        judged: whether something evaluates the model.
    """
    if recipe.compact == "end":
        return (
            "compact: end would replace the model under your loop: leave it out, and "
            "call prunus.compact(model, pruner.masks, example) after the training"
        )
    if recipe.deploy is not None or recipe.quantize != "none":
        return (
            "deploy and quantize are of a finished model: leave them out, and call "
            "prunus.deploy(model, example=…) after the training"
        )
    if recipe.guard is not None and not judged:
        return "a guard needs something to judge with: give evaluate(model) -> float, or no guard"
    if recipe.learning_rate is not None or not recipe.trait("dense.learning_rate", "CONSTANT"):
        return (
            "learning_rate: the scheduler of your loop sets the rate, and a recipe's plan beside "
            "it would be undone: leave it out (learning_rate: null), or use prunus.prune"
        )
    return None
