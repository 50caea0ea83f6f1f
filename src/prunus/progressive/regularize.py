"""A regularizer at work: what it pulls, when, and which weights will go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.torch_internals import AnyBatchNorm
from prunus.errors import InputError
from prunus.methods.regularizers import Pull
from prunus.progressive.selector import scored
from prunus.pruning.optimizers import AnyOptimizer
from prunus.pruning.space import PruningSpace
from prunus.recipe.schema import Recipe
from prunus.types import Masks


class Regularizer:
    """Pulls weights toward zero after every step of the trainings that the recipe names.

    Args:
        recipe: says when, if it does.
        pulls: the method.
        at_target: gives the masks that the target would leave of the model as it is.
    """

    def __init__(
        self, recipe: Recipe, pulls: Callable[[Pull], None] | None, at_target: Callable[[], Masks]
    ) -> None:
        self._recipe, self._pulls, self._at_target = recipe, pulls, at_target
        self._asks = recipe.regularize is not None and recipe.trait("regularize", "GOING")
        self._active, self._step = False, 0
        self._masks: Masks | None = None  # for which it was asked what will go
        self._going: dict[str, Tensor] = {}

    def refuse(self, model: nn.Module, space: PruningSpace) -> None:
        """What the regularizer pulls and the model lacks.

        Raises:
            InputError: with the alternative.
        """
        of = self._recipe.regularize is not None and self._recipe.trait("regularize", "OF")
        if of == "norms" and not _scales(model, space):
            raise InputError(
                "regularize: of: norms pulls the scales of batch norms behind the units, and there "
                "are none: use structure: channel with batch norms, or of: weights"
            )

    def begin(self, *, dense: bool) -> None:
        """A training begins."""
        self._active = regularizes(self._recipe, dense=dense)
        self._step, self._masks, self._going = 0, None, {}

    @torch.no_grad()
    def after_step(
        self, model: nn.Module, space: PruningSpace, masks: Masks, optimizer: AnyOptimizer | None
    ) -> None:
        """Pull, once an optimizer step was taken."""
        if not self._active or self._pulls is None or optimizer is None:
            return
        self._step += 1
        groups = [(float(g["lr"]), p) for g in optimizer.param_groups for p in g["params"]]
        rate_of = {id(p): rate for rate, p in groups if p.requires_grad}
        own = {n: p.detach() for n, p in scored(model, space).items() if id(p) in rate_of}
        scales = {n: p for n, p in _scales(model, space).items() if id(p) in rate_of}
        every = dict(model.named_parameters())
        if self._asks and self._masks is not masks:
            self._masks, left = masks, self._at_target()
            self._going = {n: ~m for n, m in left.items() if n in own}
        pull = Pull(
            weights=own,
            scales={n: p.detach() for n, p in scales.items()},
            rates={n: rate_of[id(every[n])] for n in (*own, *scales)},
            groups=space.groups,
            going={n: g for n, g in self._going.items() if n in own},
            step=self._step,
        )
        self._pulls(pull)

    def state(self, masks: Masks) -> dict[str, Any]:
        """To go on from; nothing where the recipe names none.

        Args:
            masks: of now; a cut since the last step changed them, and what will go is asked anew.
        """
        if self._pulls is None:
            return {}
        return {"regularizer": (self._active, self._step, self._masks is masks, self._going)}

    def load(self, saved: Mapping[str, Any], masks: Masks) -> None:
        """Return to what :meth:`state` gave."""
        self._active, self._step, asked, going = saved.get("regularizer", (False, 0, False, {}))
        self._going, self._masks = dict(going), masks if asked else None


def regularizes(recipe: Recipe, *, dense: bool) -> bool:
    """Whether a recipe pulls in the training of round 0, or in retraining.

    >>> regularizes(Recipe(regularize={"name": "l1", "during": "retrain"}), dense=True)
    False
    """
    how = recipe.regularize
    return how is not None and how.during in ("all", "dense" if dense else "retrain")


def _scales(model: nn.Module, space: PruningSpace) -> dict[str, nn.Parameter]:
    """The scales of batch norms that fall with a unit, by name."""
    known = {id(m.weight) for m in model.modules() if isinstance(m, AnyBatchNorm)}
    own = {n: p for n, p in model.named_parameters() if id(p) in known}
    return {m.name: own[m.name] for g in space.groups for m in g.members if m.name in own}
