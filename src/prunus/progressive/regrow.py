"""Drop and regrow between optimizer steps, at the same density."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunus._common.distributed import assert_same, mean
from prunus._common.topk import keep_largest
from prunus.errors import InputError
from prunus.methods.signals import SignalContext, collect, settings_of
from prunus.methods.signals.latent import follow
from prunus.pruning.decide import kept_units
from prunus.pruning.enforce import Enforcer
from prunus.pruning.masks import apply, beside
from prunus.pruning.space import PruningSpace
from prunus.pruning.units import member_mask, unit_scores
from prunus.recipe import duration
from prunus.recipe.schema import Recipe
from prunus.types import Group, Masks


class Regrowth:
    """Which optimizer steps of a training drop and regrow, and what.

    Args:
        recipe: says how, if it does.
        grows: the regrowth, by which removed weights are ranked.
        enforcer: sees the gradients of removed weights.

    Attributes:
        place: steps between two of them (0: none), the step after which none follows, and the
            optimizer steps so far.
        latent: what is behind removed weights, where the regrowth reads it; zero at those left.
    """

    def __init__(
        self, recipe: Recipe, grows: Callable[..., Tensor] | None, enforcer: Enforcer
    ) -> None:
        self._recipe, self._grows, self._enforcer = recipe, grows, enforcer
        self._reads = recipe.regrow is not None and recipe.trait("regrow", "CAPTURED")
        self._follows = recipe.regrow is not None and recipe.trait("regrow", "LATENT")
        self.place = (0, 0, 0)
        self.latent: dict[str, Tensor] = {}

    def begin(self, steps: int, per_epoch: int | None) -> None:
        """Go over the next training, of so many steps.

        Raises:
            InputError: if a length is no length of it.
        """
        how, self.place = self._recipe.regrow, (0, 0, 0)
        if how is not None and steps:
            every, last = (
                duration.parse(d).steps(per_epoch=per_epoch, whole=steps)
                for d in (how.every, how.end)
            )
            if every < 1 or last > steps:
                raise InputError(
                    f"regrow: every {how.every} and end {how.end} are {every} and {last} of "
                    f"{steps} steps: 1 or more, and no more than all, are needed"
                )
            self.place = every, last, 0
        self.capture()

    def state(self) -> dict[str, Any]:
        """To go on from."""
        if self._recipe.regrow is None:
            return {}
        behind = {"behind": dict(self.latent)} if self._follows else {}
        return {"regrowth": self.place, **behind}

    def load(self, values: Mapping[str, Any], model: nn.Module) -> None:
        """Return to where a state of a model was."""
        every, last, step = values.get("regrowth", (0, 0, 0))
        self.place = every, last, step
        self.latent = beside(dict(model.named_parameters()), values.get("behind", {}))
        self.capture()

    @property
    def _next_is_due(self) -> bool:
        every, last, step = self.place
        return every > 0 and (step + 1) % every == 0 and step + 1 < last

    def capture(self) -> None:
        """Keep the gradients of the next step, those of removed weights too, if they are read."""
        _, last, step = self.place
        read = (self._follows and step + 1 < last) or (self._reads and self._next_is_due)
        self._enforcer.captured = {} if read else None

    @torch.no_grad()
    def keep(self, model: nn.Module, masks: Masks) -> None:
        """Keep what a cut is about to zero, where that is read."""
        for name, mask in masks.items() if self._follows else ():
            weight = model.get_parameter(name).detach()
            past, mask = self.latent.get(name), mask.to(weight.device)
            now = weight if past is None or past.shape != weight.shape else weight + past
            self.latent[name] = now.masked_fill(mask, 0)

    def exchange(
        self, model: nn.Module, optimizers: Iterable[Optimizer], before: Masks, after: Masks
    ) -> None:
        """Apply masks that dropped and regrew: what came starts at what was behind it, or zero."""
        with torch.no_grad():
            for name in self.latent:
                model.get_parameter(name).add_(self.latent[name])
                self.latent[name] = torch.zeros_like(self.latent[name])
        self.keep(model, after)
        apply(model, after)
        begin_anew(optimizers, model, before, after)

    def _follow(self, model: nn.Module, masks: Masks, gradients: Mapping[str, Tensor]) -> None:
        """What is behind removed weights goes on by a step."""
        assert self._grows is not None
        groups = [g for one in self._enforcer.optimizers for g in one.param_groups]
        group_of = {id(p): g for g in groups for p in g["params"]}
        seen = mean({name: gradients[name] for name in self.latent if name in gradients})
        for name, gradient in seen.items():
            group = group_of.get(id(model.get_parameter(name)), {"lr": 0.0})
            pace = {"rate": float(group["lr"]), "decay": float(group.get("weight_decay", 0.0))}
            how = {**settings_of(self._grows), **pace}
            self.latent[name] = follow(self.latent[name], gradient, masks[name], **how)

    def after_step(
        self, model: nn.Module, space: PruningSpace, masks: Masks, given: Masks
    ) -> Masks | None:
        """Count a step; the masks from now on if it drops and regrows.

        Args:
            model: as it is.
            space: its units.
            masks: that hold.
            given: what the model came without, which does not grow.
        """
        due, (every, last, step) = self._next_is_due, self.place
        self.place = every, last, step + 1
        found, seen = None, self._enforcer.captured
        if self._follows and seen:
            self._follow(model, masks, seen)
            seen = self.latent
        if due and self._grows is not None:
            part, seed = self._part(), self._recipe.seed + 1_000_003 * (step + 1)
            found = regrown(
                model, space, masks, given, self._grows, part=part, seed=seed, gradients=seen
            )
        self.capture()
        return found

    def _part(self) -> float:
        """α / 2 · (1 + cos(π t / T)) of what is left with the fraction α, or α."""
        how, (_, last, step) = self._recipe.regrow, self.place
        assert how is not None
        if how.decay == "none":
            return how.fraction
        return how.fraction / 2 * (1 + math.cos(math.pi * step / last))


def regrown(
    model: nn.Module,
    space: PruningSpace,
    masks: Masks,
    given: Masks,
    grows: Callable[..., Tensor],
    *,
    part: float,
    seed: int,
    gradients: Mapping[str, Tensor] | None,
) -> Masks:
    """Masks of the same density: the smallest of what is left goes, and as many others come.

    Per group, counted in units; one that has no gradient stays as it is where that is read.

    Args:
        model: as it is.
        space: its units.
        masks: that hold now.
        given: what the model came without, which does not grow.
        grows: the regrowth.
        part: of the units left that is replaced.
        seed: of this step.
        gradients: of the step, or what is behind removed weights, where they are read.
    """
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    groups = [g for g in space.groups if gradients is None or _known(g, gradients)]
    names = {m.name for g in groups for m in g.members if m.scored}
    parameters = {n: p for n, p in model.named_parameters() if n in names}
    look = SignalContext(model, parameters, None, None, seed, gradients, groups)
    growth = collect(grows, look) if groups else None
    left = kept_units(groups, masks, shapes)
    could = kept_units(groups, given, shapes)
    chosen: Masks = {}
    for group in groups:
        alive = left[group]
        if alive is None or growth is None or bool(alive.all()):
            continue
        size = unit_scores(group, lambda n: parameters[n].detach().abs()).clone()
        kept = int(alive.sum())
        stays, _ = keep_largest(size.masked_fill_(~alive, -torch.inf), kept - int(part * kept))
        allowed = could[group]
        free = ~stays if allowed is None else ~stays & allowed
        come = min(int(part * kept), int(free.sum()))
        scores = unit_scores(group, growth).clone().masked_fill_(~free, -torch.inf)
        keep = stays | (keep_largest(scores, come)[0] & free)
        for member in group.members:
            mask = member_mask(member, keep, shapes[member.name])
            known = chosen.get(member.name)
            chosen[member.name] = mask if known is None else known & mask
    for name, mask in given.items():
        if name in chosen:
            chosen[name] = chosen[name] & mask
    return assert_same({**masks, **chosen}, "masks")


def _known(group: Group, gradients: Mapping[str, Tensor]) -> bool:
    return all(m.name in gradients for m in group.members if m.scored)


@torch.no_grad()
def begin_anew(
    optimizers: Iterable[Optimizer], model: nn.Module, before: Masks, after: Masks
) -> None:
    """Momenta of what has grown are zero."""
    for name, mask in after.items():
        weight = model.get_parameter(name)
        if name not in before:
            continue
        grown = (mask & ~before[name]).to(weight.device).expand(weight.shape)
        for optimizer in optimizers:
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.masked_fill_(grown, 0)
