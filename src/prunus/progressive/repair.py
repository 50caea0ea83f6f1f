"""What brings accuracy back between a cut and the training after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from prunus._common import rng as randomness
from prunus._common.activations import is_affine
from prunus._common.given import given_batches, given_hooks, given_model, not_taken
from prunus._common.inputs import Inputs, called
from prunus._common.kinds import given_number
from prunus._common.modules import detached_copy, evaluating
from prunus._common.traces import without_trace
from prunus.deployment.calibration import passes_of
from prunus.errors import InputError
from prunus.methods.repairs import RepairContext
from prunus.methods.repairs._affine import bias_of, kernel_rows
from prunus.methods.traits import trait
from prunus.progressive.engine import PruningEngine
from prunus.progressive.state import RunContext, RunState
from prunus.pruning.masks import apply, copy_of, match_names, put_back
from prunus.recipe.load import explain
from prunus.recipe.resolve import bind
from prunus.recipe.specs import Spec
from prunus.types import Masks


def repair(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    repair: str | Mapping[str, Any] = "batch_norm",
    reference: nn.Module | None = None,
    masks: Masks | None = None,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    seed: int = 0,
) -> None:
    """Bring back without training what a cut cost, in place.

    Args:
        model: masked; for ``batch_norm`` a smaller one too.
        calibration: batches, of training data: what is measured on them is fitted to them.
        repair: ``batch_norm`` (statistics estimated anew), ``bias_correction`` (means of outputs
            too), ``least_squares`` (what is left of each layer fitted to what the whole gave),
            ``reconstruct`` (blocks trained toward what they gave), ``second_order`` (weights
            moved along blocks of the Fisher matrix), or a mapping with settings.
            ``prunus list repairs`` shows all.
        reference: the model before the cut, which all but the first need.
        masks: what must stay zero; by default every weight that is zero, and the bias of units
            of which nothing is left.
        loss: ``(model, batch) -> scalar``, which knows how to call the model, and which
            ``second_order`` needs; without it a batch is what the model is called with.
        seed: of noise in the model.

    Raises:
        InputError: for what cannot be used. The model is then as it was given.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> repair(model, [torch.randn(8, 2), torch.randn(8, 2)])
    >>> bool(model[1].running_mean.any())
    True
    """
    given = repair if isinstance(repair, Mapping) else {"name": repair}
    try:
        spec = Spec.model_validate(dict(given))
    except ValidationError as error:
        raise InputError("repair:\n" + "\n".join(explain(error, Spec))) from None
    function = bind("repairs", spec)
    given_model(model, "repair", values=True, code=True)
    if reference is not None:
        given_model(reference, "repair: reference", values=True)
    given_number(seed, "seed", least=0, whole=True)
    given_hooks(loss=loss)
    calibration = given_batches(calibration, "calibration")
    if calibration is None:
        raise InputError("repair passes batches through the model: give calibration, not None")
    if masks is None:
        masks = _zeros_of(model)
    else:
        masks = match_names(model, masks)
    before = copy_of(model)
    try:
        passes = passes_of(model, loss, calibration)
        if loss is None:
            _refuse_batch(model, passes[0])
        with randomness.preserve_rng():
            randomness.seed(seed)
            function(
                RepairContext(model, reference, masks, lambda: passes, calibration, loss, seed)
            )
    except BaseException:
        put_back(model, before)
        raise


def _zeros_of(model: nn.Module) -> Masks:
    """What is zero by a cut: a bias alone is not, behind a row without a weight it is."""
    masks = {n: p.detach() != 0 for n, p in model.named_parameters() if p.dim() > 1}
    names = {id(p): n for n, p in model.named_parameters()}
    for module in model.modules():
        bias = bias_of(module) if is_affine(module) else None
        if bias is not None:
            name, left = names[id(bias)], kernel_rows(module).any(dim=1) | (bias.detach() != 0)
            masks[name] = masks[name] | left if name in masks else left  # of all that share it
    return masks


def _refuse_batch(model: nn.Module, inputs: Inputs) -> None:
    """Batches that are no inputs of the model, where no loss knows what to do with them."""
    try:
        with without_trace(model, "a forward pass"), evaluating(model), torch.no_grad():
            called(model, inputs)
    except InputError:
        raise
    except Exception as error:  # of the model's code
        raise InputError(
            f"{not_taken(model, inputs, error)}; where batches are more than that, give "
            "loss(model, batch), which knows how to call the model"
        ) from error


def refuse_repair(engine: PruningEngine, train: Callable[..., Any] | None) -> None:
    """What a repair cannot go with, before work starts.

    Raises:
        InputError: with the reason.
    """
    recipe = engine.recipe
    if recipe.repair is None:
        return
    if train is not None and not recipe.in_rounds:
        raise InputError(
            f"repair: {recipe.repair.name} acts between a cut and the training after it, and "
            "gradual pruning cuts between the steps of an optimizer: set rounds"
        )
    if engine.selector.calibration is None:
        raise InputError(
            f"repair: {recipe.repair.name} passes batches through the model: give calibration "
            "(batches of training data; with loss, unless they are the model's inputs)"
        )
    if engine.selector.loss is None and trait("repairs", recipe.repair.name, "NEEDS_LOSS"):
        raise InputError(
            f"repair: {recipe.repair.name} reads gradients: pass loss(model, batch), or take "
            "least_squares, which needs none"
        )


def before_cut(engine: PruningEngine) -> nn.Module | None:
    """The model as it stands, if the repair compares with it."""
    repair = engine.recipe.repair
    needed = repair is not None and trait("repairs", repair.name, "NEEDS_REFERENCE")
    return detached_copy(engine.model) if needed else None


def repaired(job: RunContext, at: RunState, reference: nn.Module | None) -> None:
    """Repair what the cut of this round left."""
    engine, began = job.engine, time.monotonic()
    function, spec = engine.selector.methods.repair, engine.recipe.repair
    if function is None or spec is None:
        return
    passes: list[Inputs] = passes_of(
        engine.model, engine.selector.loss, engine.selector.calibration or ()
    )
    with randomness.preserve_rng():
        randomness.seed(engine.recipe.seed, 11, at.index)
        function(
            RepairContext(
                engine.model, reference, engine.masks, lambda: passes,
                engine.selector.calibration or (), engine.selector.loss, engine.recipe.seed,
            )
        )  # fmt: skip
    apply(engine.model, engine.masks)
    job.journal.write("repaired", repair=spec.name, seconds=round(time.monotonic() - began, 3))
    job.on_event({"event": "repaired", "repair": spec.name})
