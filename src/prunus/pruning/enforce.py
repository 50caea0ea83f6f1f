"""Removed weights stay zero while optimizers train: weights and gradients, step by step."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from prunus._common.given import given_copies, given_model
from prunus._common.nested import tensors_of
from prunus.errors import InputError, RunError
from prunus.pruning.copies import (
    Copy,
    Mark,
    Place,
    leave_mark,
    mark,
    marks_on,
    places_in,
    places_of,
    written,
)
from prunus.pruning.gradient_hooks import GradientHooks
from prunus.pruning.masks import apply, match_names
from prunus.pruning.mirrors import mirrored, zero_mirrors
from prunus.pruning.optimizers import (
    AnyOptimizer,
    Movement,
    each_of,
    has_gradient,
    is_inner_step,
    optimizer_of,
    overflowed,
    parameters_of,
    uncompiled,
)
from prunus.pruning.scope import tied_names
from prunus.pruning.zeroing import zeroer
from prunus.types import Masks


class _Weight(NamedTuple):
    """A masked parameter, where it lies, and what zeroes tensors like it."""

    place: Place
    weight: Tensor
    mask: Tensor
    zero: Callable[[Tensor], None]


class Enforcer:
    """Keeps removed weights at zero while optimizers train.

    Weights after every step of any optimizer that has one of them (torch's public post-step
    hooks), gradients as they accumulate, so that clipping never sees those of removed weights;
    of frozen layers too, once they are unfrozen. Copies that were named, and state of the
    optimizers that mirrors the weights, likewise. What is removed of weights is cleared bit by
    bit: exact zeros without a sign, from NaN too.
    """

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self.masks: Masks = {}
        self.optimizers: tuple[Optimizer, ...] = ()
        self.others: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.copies: list[Copy] = []
        self._made: dict[int, _Weight] | None = None
        self._places: list[tuple[Place, Tensor]] = []  # where they were, those of tied names too
        self._tied: dict[str, list[str]] = {}
        self._movements: dict[Optimizer, Movement] = {}
        self._replaced = False  # perhaps: they were looked for anew
        self._first: dict[str, int] = {}  # by id: what can be trained is held in ``_hooked``
        self._in_copies: list[tuple[Place, Tensor]] = []
        self._mirrors: weakref.WeakKeyDictionary[Optimizer, set[str]] = weakref.WeakKeyDictionary()
        self._hooked = GradientHooks()
        self._removers: list[Callable[[], None]] = []
        self._mark: Mark | None = None
        self._told: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._fresh = self._ever = False  # gradients since the last step, and at all
        self.captured: dict[str, Tensor] | None = None  # of this step, with those of the removed

    @property
    def installed(self) -> bool:
        """Whether hooks are on."""
        return bool(self._removers)

    def set_masks(self, model: nn.Module, masks: Masks) -> None:
        """Take new masks; the hooks that are installed use them from now on."""
        self.model, self.masks, self._made = model, dict(masks), None
        if self.installed:
            self._hook_gradients()
            self._find_in_copies()
            self._look_for_mirrors()
            self._hold_others()

    @property
    def _weights(self) -> dict[int, _Weight]:
        """The masked parameters as they are now, by ``id``: one may have taken another's place."""
        made = self._made
        if made is not None and all(place.holds(weight) for place, weight in self._places):
            return made
        every = {} if self.model is None else places_in(self.model, twice=True)
        found: dict[int, _Weight] = {}  # put in place whole: other threads look, too
        places: list[tuple[Place, Tensor]] = []
        for first, mask in self.masks.items():
            for name in (first, *self._tied.get(first, ())):
                place = every.get(name)
                weight = None if place is None else place.tensor
                if place is None or weight is None:
                    if name == first:
                        self._made = None
                        raise _gone(name)
                    continue
                places.append((place, weight))
                if id(weight) not in found:
                    found[id(weight)] = _Weight(place, weight, mask, zeroer(weight, mask))
        self._made, self._places, self._replaced = found, places, True
        if made is not None and self.installed:
            self._hook_gradients()
        return found

    def install(
        self,
        optimizer: AnyOptimizer | None,
        model: nn.Module,
        copies: Iterable[Copy] = (),
    ) -> None:
        """Hook the steps of optimizers and the parameters' gradients.

        Args:
            optimizer: that trains the model; ``None`` where it is not known yet.
            model: whose masks were set.
            copies: of it, to keep masked as well.
        """
        self._refuse_untrained(optimizer, model)
        self.copies = list(copies)
        self._find_in_copies()
        self._hold_others()
        named = model.named_parameters(remove_duplicate=False)
        self._first = {name: id(p) for name, p in named}
        self.optimizers = () if optimizer is None else each_of(optimizer)
        self._hook_gradients()
        self._movements = {one: Movement(one) for one in self.optimizers}
        for one, movement in self._movements.items():
            self._removers.append(one.register_step_pre_hook(uncompiled(_before(movement))).remove)
            self._removers.append(one.register_step_post_hook(uncompiled(self._after_step)).remove)
        everywhere = register_optimizer_step_post_hook(uncompiled(_passed_on(weakref.ref(self))))
        weakref.finalize(self, everywhere.remove)
        self._mark, unmark = mark(model, lambda: self.masks, self._loaded)
        self._removers += [everywhere.remove, unmark]

    def _refuse_untrained(self, optimizer: AnyOptimizer | None, model: nn.Module) -> None:
        self.model, self._made = model, None
        self._tied = {name: others for name, (_, *others) in tied_names(model).items() if others}
        held = set() if optimizer is None else parameters_of(optimizer)
        for w in self._weights.values() if optimizer is not None else ():
            if w.weight.requires_grad and id(w.weight) not in held:
                raise InputError(
                    f"'{w.place.name}' is pruned and trainable, but the optimizer does not have "
                    "it: build the optimizer from the parameters of this model, or pass all of "
                    "them, [first, second]"
                )

    def remove(self) -> None:
        """Take all hooks off."""
        for remove in self._removers:
            remove()
        self._hooked.remove()
        self._removers, self._movements = [], {}
        self.optimizers, self._mark = (), None

    # --- what happens while it trains

    def took_step(self, optimizer: Optimizer) -> bool:
        """Whether a step that was just called changed anything.

        A fused optimizer skips one inside its kernel if a gradient overflowed, one of the user's
        own for its own reasons; and where no gradient came since the last one (a loop that skips
        a batch), there was nothing to do. One that another calls (``super().step()``) is part of
        that.
        """
        if is_inner_step(optimizer):
            return False
        movement = self._movements.get(optimizer)
        if movement is not None and not movement.after(optimizer):
            return False
        fresh = self._fresh or has_gradient(optimizer)
        self._fresh, self._ever = False, self._ever or fresh
        return (fresh or not self._ever) and not overflowed(optimizer)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        """Zero removed weights, in the model, its copies, and where the state mirrors it."""
        weights = self._weights
        if self._replaced:
            self._refuse_replaced()
        for w in weights.values():
            w.zero(w.weight.data)
        if self._hooked.may_be_lost():
            self._hook_gradients()
        if weights and optimizer not in self._mirrors:
            self._look_for_mirrors()
        self._hold_others()

    def after_any_step(self, optimizer: Optimizer) -> None:
        """Another optimizer stepped: if it has a weight of ours, hold that one, too."""
        if any(one is optimizer for one in self.optimizers):
            return
        self.others.add(optimizer)
        trained = parameters_of(optimizer)
        try:
            ours = not trained.isdisjoint(self._weights)
        except RunError:  # a weight is gone: for steps of its own optimizer to say, and the end
            return
        if ours:
            self._after_step(optimizer)
        self._tell_of_trained_copies(trained)

    def hold(self) -> list[str]:
        """Zero everything now; returns the weights of which something removed was not zero."""
        if self.model is None:
            return []
        names = written(self.model, self.masks)
        if names:  # else left alone: it may be between a forward and a backward pass
            apply(self.model, self.masks)
        self._look_for_mirrors()
        self._hold_others()
        return names

    @torch.no_grad()
    def _hold_others(self) -> None:
        for place, removed in self._in_copies:
            tensor = place.tensor
            if tensor is not None:
                tensor.masked_fill_(removed.to(tensor.device), 0)
        for optimizer, keys in list(self._mirrors.items()):
            for w in self._weights.values() if keys else ():
                zero_mirrors(optimizer, w.weight, w.mask, keys)

    def _find_in_copies(self) -> None:
        found = [place for copy in self.copies for place in places_of(copy, self.masks)]
        self._in_copies = [(place, ~mask) for place, mask in found]

    @torch.no_grad()
    def _look_for_mirrors(self) -> None:
        pairs = [(w.weight, w.mask) for w in self._weights.values()]
        for optimizer in (*self.optimizers, *self.others) if pairs else ():
            known = self._mirrors.setdefault(optimizer, set())
            known |= mirrored(optimizer, pairs)

    def _refuse_replaced(self) -> None:
        self._replaced = False
        held = {i for one in (*self.optimizers, *self.others) for i in parameters_of(one)}
        for w in self._weights.values():
            before = self._first.get(w.place.name)
            if before != id(w.weight) and w.weight.requires_grad and id(w.weight) not in held:
                raise RunError(
                    f"'{w.place.name}' is another tensor than the optimizer trains "
                    "(load_state_dict(assign=True), or a new nn.Parameter): load without assign, "
                    "or build optimizer and pruner after it"
                )

    def _loaded(self) -> None:
        """Weights were loaded: other tensors may be in place of the parameters."""
        self._made = None
        if self.installed:
            self._hook_gradients(anew=True)

    def _hook_gradients(self, *, anew: bool = False) -> None:
        assert self.model is not None
        self._hooked.put_on(self.model, uncompiled(self._mask_gradient), anew=anew)

    def _mask_gradient(self, weight: Tensor) -> None:
        self._fresh = True
        if weight.grad is None:
            return
        w = (self._weights if self._made is None else self._made).get(id(weight))
        if w is not None and weight.grad.is_sparse:
            raise InputError("sparse gradients cannot be masked: set sparse=False on the layer")
        if w is None:
            return
        if self.captured is not None:
            self._capture(w, weight.grad)
        w.zero(weight.grad)

    @torch.no_grad()
    def _capture(self, w: _Weight, grad: Tensor) -> None:
        """Gradients add up over the batches of a step, but those of removed weights are zeroed."""
        assert self.captured is not None
        past = self.captured.get(w.place.name)
        now = grad.detach().clone()
        if past is not None:
            now += past.masked_fill_(w.mask.to(past.device), 0)
        self.captured[w.place.name] = now

    def known_tensors(self) -> set[int]:
        """What optimizers train, and their state, by ``id``."""
        found: set[int] = set()
        for one in (*self.optimizers, *self.others):
            trained = [p for group in one.param_groups for p in group["params"]]
            found |= {id(t) for p in trained for t in (p, p.grad) if t is not None}
            found |= {id(t) for entry in one.state.values() for t in tensors_of(entry)}
        return found

    def _tell_of_trained_copies(self, trained: set[int]) -> None:
        for ref in [] if self._mark is None else self._mark.copies:
            copy = ref()
            if copy is None or copy in self._told:
                continue
            if not any(id(p) in trained for p in copy.parameters()):
                continue
            if any(written(copy, own.masks()) for own in marks_on(copy)):
                self._told.add(copy)
                warnings.warn(
                    f"an optimizer trains a copy of the {type(copy).__name__} that is being "
                    "pruned, and nothing keeps the copy's removed weights at zero: call "
                    "prunus.enforce(copy, pruner.masks, its_optimizer)",
                    stacklevel=2,
                )


def _passed_on(to: weakref.ref[Enforcer]) -> Callable[..., None]:
    """A hook on all optimizers that keeps nobody alive."""

    def after_any_step(optimizer: Optimizer, *_: object) -> None:
        enforcer = to()
        if enforcer is not None:
            enforcer.after_any_step(optimizer)

    return after_any_step


def _before(movement: Movement) -> Callable[..., None]:
    return lambda optimizer, *_: movement.before(optimizer)


def _gone(name: str) -> RunError:
    return RunError(
        f"'{name}' is pruned, and not in the model any more: something took it away or made it a "
        "computed one (weight_norm, a parametrization); do that before pruning begins, or after"
    )


def enforce(
    model: nn.Module, masks: Masks, optimizer: object, *, copies: Iterable[Copy] = ()
) -> Callable[[], None]:
    """Go on training a pruned model: removed weights stay zero from now on.

    Args:
        model: whose weights the masks belong to; they are applied at once.
        masks: parameter name to bool, True = kept (``Result.masks``).
        optimizer: that trains ``model``, or a list of all that do.
        copies: to keep masked as well, such as an EMA of the model: modules, or mappings of
            parameter names to tensors.

    Returns:
        A function that takes the hooks off again.

    Raises:
        InputError: if a mask fits no parameter, or for an optimizer that keeps weights elsewhere.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    >>> stop = enforce(model, {"weight": torch.tensor([[True, False]])}, optimizer)
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    >>> model.weight[0, 1].item()
    0.0
    >>> stop()
    """
    matched = match_names(given_model(model, "enforce", code=True), masks)
    copies, real = given_copies(copies), optimizer_of(optimizer)
    enforcer = Enforcer()
    enforcer.set_masks(model, matched)
    enforcer._refuse_untrained(real, model)  # before anything is changed
    apply(model, matched)
    enforcer.install(real, model, copies)

    def stop() -> None:
        enforcer.remove()
        leave_mark(model, matched)

    return stop
