"""The call: a masked model in, a smaller and equal one out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from prunus import costs
from prunus._common.batch import find_batch
from prunus._common.given import given_example, given_model, refuse_inference
from prunus._common.inputs import arguments
from prunus._common.kinds import given_choice
from prunus._common.memory import LARGE, close_holes
from prunus._common.modules import detached_copy
from prunus._common.numbers import count, percent
from prunus._common.steps import takes_steps
from prunus._common.tables import Table, page
from prunus.compaction.cut import IndexCut, cut_of, leaves_zeros, left_of_mask, nothing_left
from prunus.compaction.files.artifact import save
from prunus.compaction.files.packed import Values
from prunus.compaction.reopening import reopening
from prunus.compaction.rewriting.compact_graph import take_mode_of_operators, untrainable
from prunus.compaction.search import ROUTES, CompactionPlan, find_plan
from prunus.compaction.slicing.attributes import Attribute
from prunus.compaction.slicing.optimizer_copy import optimizer_copy, refuse_stranger
from prunus.compaction.slicing.parameters import refuse_optimizer, shrink
from prunus.compaction.slicing.rescaling import rescale
from prunus.compaction.slicing.surgery import adopt, plain_attributes
from prunus.errors import InputError
from prunus.graph.analysis import analyze
from prunus.graph.passes import trace_all
from prunus.graph.solve import Heads
from prunus.pruning.masks import match_names, zero
from prunus.pruning.optimizers import AnyOptimizer, real_optimizer
from prunus.types import Kept, Masks


@dataclass(frozen=True)
class Compact:
    """A smaller model and what was shown of it.

    Attributes:
        model: the smaller model.
        route: ``sliced``, ``attributes``, ``modules`` or ``graph`` (see ``ROUTES``).
        error: largest difference from the masked model in float64, relative to its outputs.
        effect: how far the masks moved the dense model's outputs, by the same measure.
        units: units removed.
        before: params, macs, bytes and more of the dense model.
        after: the same of the compact model.
        kept: the indices that stay, by tensor and dimension.
        attributes: numbers that modules keep and that changed.
        notes: what to know beside.
        optimizer: that goes on with the smaller model, if one was given.
    """

    model: nn.Module
    route: str
    error: float
    effect: float
    units: int
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    kept: Kept = field(repr=False)
    notes: tuple[str, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    optimizer: Optimizer | None = field(default=None, repr=False)

    def save(self, path: str | Path, *, sparse: bool = False, values: Values | None = None) -> Path:
        """Write the model, without pickle; :func:`prunus.load` opens it.

        ``sparse`` and ``values`` are those of :func:`prunus.save`.
        """
        return save(self.model, path, self.attributes, sparse=sparse, values=values)

    def __repr__(self) -> str:
        after = "small.save('model.safetensors'), prunus.deploy(small.model, example=…)"
        return f"<Compact: {self}\nnext: {after}>"

    def _repr_html_(self) -> str:
        """For notebooks."""
        costs = [
            (key, count(old), count(new), percent(1 - new / old))
            for key in ("params", "macs", "bytes")
            if (old := self.before[key]) and (new := self.after[key]) is not None
        ]
        return page(repr(self), Table(("", "dense", "compact", "fewer"), costs).html())

    def __str__(self) -> str:
        lines = [
            f"{self.units} units removed; route: {self.route} ({ROUTES[self.route]})",
            f"equal to the masked model within {self.error:.1e} in float64; "
            f"the masks moved the outputs by {self.effect:.1e}",
        ]
        for key in ("params", "macs", "bytes"):
            old, new = self.before[key], self.after[key]
            if old and new is not None:
                lines.append(f"{key:<7}{old:>16,.0f} -> {new:>14,.0f}  ({1 - new / old:.1%} fewer)")
        return "\n".join([*lines, *(f"note: {n}" for n in self.notes)])


@takes_steps
def compact(
    model: nn.Module, masks: Masks, example: Any, *,
    heads: Heads | None = None, optimizer: object = None,
) -> Compact:  # fmt: skip
    """Remove what whole-unit masks set to zero: a smaller model that computes the same.

    Units are found by analysis; a unit goes when the masks remove all of its slices. Other zeros
    stay as they are. The given model is not changed.

    Args:
        model: dense or masked; the masks are applied to a copy.
        masks: parameter name to bool, True = kept.
        example: an input, a tuple of inputs, or a mapping of keyword arguments.
        heads: at attention, whether masks remove ``whole`` heads or the same ``dims`` of every
            head; by default whatever removes more.
        optimizer: of the model, if training is to go on: the result has a copy of it for the
            smaller model, its state sliced, which takes the steps that it would have taken
            under the masks. Hooks and schedulers stay with the one given, which is not changed.

    Returns:
        The smaller model, verified: of the same class where that is possible, otherwise with
        some modules, or all of it, as a ``torch.fx.GraphModule``.

    Raises:
        InputError: if the masks do not fit, remove no whole unit, the model cannot be traced, or
            the optimizer's state cannot be sliced (Adafactor's: it names what to do).
        RunError: if the result does not equal the masked model; it names the operator.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> keep = torch.tensor([True, False, True])
    >>> masks = {"0.weight": keep[:, None], "0.bias": keep, "2.weight": keep[None]}
    >>> small = compact(model, masks, torch.ones(1, 4))
    >>> small.model[0], small.route, small.units
    (Linear(in_features=4, out_features=2, bias=True), 'sliced', 1)
    """
    masks = match_names(given_model(model, "compact"), masks)
    refuse_inference(model, "compact")
    example = given_example(model, example)
    given_choice(heads, "heads", (None, "whole", "dims"))
    if optimizer is not None:
        refuse_stranger(optimizer, model)
        refuse_optimizer(real_optimizer(optimizer))
    cut = whole_units(model, masks, example, heads)
    if not cut.units():
        raise InputError(
            "these masks remove no whole unit, so nothing can be made smaller: single zeros stay "
            "where they are (prune with structure: channel or head; prunus.units shows the units)"
        )
    batch = find_batch(model, arguments(example))
    before = costs.measure(model, example, batch=batch)
    small, plan, attributes, going_on = smaller_pair(model, masks, cut, example, optimizer)
    return Compact(
        model=small,
        route=plan.route,
        error=plan.comparison.error,
        effect=plan.comparison.effect,
        units=cut.units(),
        before=before,
        after=costs.measure(small, example, batch=batch),
        kept=plan.surgery.kept,
        notes=(
            *plan.notes,
            *costs.notes(model, example, before["macs"], batch),
            *reopening(small, example),
        ),
        attributes=attributes,
        optimizer=going_on,
    )


def smaller_pair(
    model: nn.Module, masks: Masks, cut: IndexCut, example: Any, optimizer: object = None
) -> tuple[nn.Module, CompactionPlan, tuple[Attribute, ...], Optimizer | None]:
    """A copy of a model without units that are known, and of its optimizer, if it has one.

    Returns:
        The copy, what was done, what it took, and the copied optimizer. With one, norms stay as
        they train on.

    Raises:
        InputError: if the smaller model could not be trained by the optimizer.
        RunError: if the result does not equal the masked model.
    """
    twin = _on_the_same_memory(model)
    own = dict(twin.named_parameters(remove_duplicate=False))
    copied = None if optimizer is None else optimizer_copy(optimizer, model, twin)
    plan = replace(find_plan(twin, cut, example), traced=())  # which holds slices of its own
    if copied is not None and plan.comparison.gradient:
        raise InputError(untrainable(type(model).__name__, plan.comparison.gradient))
    small = perform(twin, plan, copied)
    _let_go_of(model, own.values())
    for name, mask in masks.items():  # what is left of them: zeros that are no whole unit
        kept = plan.surgery.kept.get(cut.analysis.names.get(name, name))
        if kept is None or not nothing_left(kept):
            zero(own[name].detach(), mask if kept is None else left_of_mask(mask, kept))
    changed = rescale(small) if copied is None else ()
    return small, plan, (*plan.surgery.attributes, *changed), copied


def _on_the_same_memory(model: nn.Module) -> nn.Module:
    """A copy with parameters of its own, whose values are the model's until they are sliced."""
    plain = [p for p in model.parameters() if type(p) is nn.Parameter]
    return detached_copy(model, {id(p): nn.Parameter(p.data, p.requires_grad) for p in plain})


def _let_go_of(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Give those that still have the model's values values of their own."""
    theirs = {p.data_ptr() for p in model.parameters() if type(p) is nn.Parameter}
    for parameter in parameters:
        if type(parameter) is nn.Parameter and parameter.data_ptr() in theirs - {0}:
            parameter.data = parameter.data.clone()


def whole_units(model: nn.Module, masks: Masks, example: Any, heads: Heads | None) -> IndexCut:
    """The units that masks remove, by the policy that removes most of them."""
    traced = trace_all(model, example)
    policies: tuple[Heads, ...] = ("whole", "dims") if heads is None else (heads,)
    found = [analyze(model, example, heads=policy, traced=traced) for policy in policies]
    cuts = [cut_of(analysis, masks) for analysis in found]
    if leaves_zeros(found[0], masks):
        found = [
            analyze(model, example, heads=policy, hidden=True, traced=traced) for policy in policies
        ]
        cuts += [cut_of(analysis, masks) for analysis in found]
    return max(cuts, key=IndexCut.units)


def perform(
    model: nn.Module, plan: CompactionPlan, optimizer: AnyOptimizer | None = None
) -> nn.Module:
    """Carry a plan out on a model, in place where its class stays.

    Args:
        model: that the plan was found for.
        plan: what to do.
        optimizer: of the model; its state is sliced along.
    """
    if any(p.nbytes >= LARGE for p in model.parameters()):
        close_holes()  # of what the plan took to find: slices come next
    if plan.graph is None:
        plan.surgery.apply(model, optimizer)
        return model
    shrink(model, optimizer, plan.surgery.kept)
    adopt(plan.graph, model)
    plain_attributes(plan.graph, model)
    take_mode_of_operators(plan.graph, model)
    return plan.graph
