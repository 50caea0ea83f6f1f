"""What a training loop talks to: attach the optimizer, iterate the batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from prunus._common import loaders
from prunus._common import rng as randomness
from prunus._common.distributed import gather, on_rank_zero
from prunus._common.given import given_batches, length_of
from prunus._common.kinds import given_number, kind_of
from prunus.errors import InputError, RunError
from prunus.progressive.engine import PruningEngine
from prunus.pruning.optimizers import AnyOptimizer
from prunus.recipe import duration

Batch = TypeVar("Batch")
Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]
Teaching: TypeAlias = Callable[[nn.Module, Any, Loss | None], Tensor]
"""From a model, a batch and its loss to the loss with a teacher."""


class Run:
    """One training phase, handed to ``train(model, run)``.

    Attributes:
        round: its number; 0 trains the dense model.
        progress: 0 to 1 through this phase.
    """

    def __init__(
        self,
        engine: PruningEngine,
        *,
        round: int,
        length: duration.Duration,
        gradual: bool,
        rate: Callable[[float], float] | None,
        data_seed: int,
    ) -> None:
        self.round = round
        self._engine, self._length, self._gradual = engine, length, gradual
        self._rate, self._seed = rate, data_seed
        self._steps: int | None = None
        self._counted: int | None = None  # optimizer steps in an epoch, as train says
        self._base: list[float] = []
        self._others: dict[str, Any] = {}
        self._rng: dict[str, Any] | None = None
        self.optimizer: AnyOptimizer | None = None
        self.done = 0  # optimizer steps of this phase
        self.epoch = 0  # epochs begun in the whole run
        self.batch = 0  # batches of this epoch that were used
        self.per_epoch: int | None = None
        self.saved: dict[str, Any] | None = None  # of attached objects, to be restored
        self.carried: dict[Any, Any] | None = None  # optimizer state of the phase before
        self.holder: object = None  # of generators that train itself draws from
        self.on_attach: Callable[[AnyOptimizer], None] = lambda optimizer: None
        self.on_loader: Callable[[Any], None] = lambda loader: None
        self.on_first_batch: Callable[[int, Any], None] = lambda epoch, batch: None
        self.on_boundary: Callable[[Run], None] = lambda run: None
        self.on_epoch: Callable[[int], None] = lambda taken: None
        self.on_step: Callable[[Run], None] = lambda run: None
        self.must_stop: Callable[[], bool] = lambda: False
        self.loss: Loss | None = None
        self.teaching: Teaching | None = None
        self.taught = 0  # batches that learned from a teacher

    @property
    def steps(self) -> int:
        """Optimizer steps of this phase.

        Raises:
            InputError: if the recipe counts epochs and no loader was iterated yet.
        """
        if self._steps is None:
            if self._length.unit == "ep" and self.per_epoch is None:
                raise InputError(
                    f"'{self._length}' is in epochs, and the steps in one are known from the "
                    "first batch of run.batches(loader) on: before that, for a scheduler, take "
                    "run.steps_of(loader); of a loader without a len() give steps_per_epoch=…"
                )
            self._steps = self._length.steps(per_epoch=self.per_epoch)
        return self._steps

    def steps_of(self, loader: Iterable[Any], *, steps_per_epoch: int | None = None) -> int:
        """Optimizer steps of this phase with a loader, for a scheduler, before anything trains.

        Args:
            loader: that :meth:`batches` will iterate.
            steps_per_epoch: as there.
        """
        if steps_per_epoch is not None:
            given_number(steps_per_epoch, "steps_per_epoch", least=1, whole=True)
            self._counted = steps_per_epoch
        self.per_epoch = self._counted or length_of(loader) or self.per_epoch
        if self.done == 0:  # what has begun keeps its length, whatever other loader follows
            self._steps = None
        return self.steps

    @property
    def progress(self) -> float:
        return self.done / max(1, self.steps)

    def attach(self, optimizer: object, scheduler: Any = None, **others: Any) -> None:
        """Tell the run what trains: masks are enforced, state is saved and restored.

        Args:
            optimizer: that trains the model, or a list of all that do.
            scheduler: of the learning rate; with one the recipe's plan must be left out.
            others: anything else with ``state_dict`` and ``load_state_dict`` (a scaler); modules
                (an EMA) are kept masked, too.
        """
        if self.optimizer is not None:
            raise InputError("run.attach was called twice in one training")
        if scheduler is not None and self._rate is not None:
            raise InputError(
                "both a scheduler and the recipe's learning_rate would set the rate: leave one out"
            )
        given = {"scheduler": scheduler, **others}
        kept = {name: other for name, other in given.items() if other is not None}
        for name, other in kept.items():
            if not (hasattr(other, "state_dict") and hasattr(other, "load_state_dict")):
                raise InputError(
                    f"run.attach: {name} is {kind_of(other)}, which has no state_dict and "
                    "load_state_dict: attach what a stopped run has to go on with"
                )
        copies = [o for o in others.values() if isinstance(o, nn.Module)]
        real = self._engine.attach(optimizer, copies)
        # The rate as it was made, also when an earlier phase has lowered it.
        self._base = [
            float(group.setdefault("initial_lr", group["lr"])) for group in real.param_groups
        ]
        self.on_attach(real)
        self.optimizer = real
        self._others = kept
        if self.saved is not None:
            self._restore(self.saved)
        elif self.carried:
            carry(real, self.carried)
        self._engine.after_step = self._after_step

    def distill(
        self, batch: Any, *, model: nn.Module | None = None, loss: Loss | None = None
    ) -> Tensor:
        """The loss of a batch: what ``loss`` says and, with ``teacher`` in the recipe, the teacher.

        Args:
            batch: as ``loss`` takes it.
            model: what trains, where it is wrapped (``DistributedDataParallel``).
            loss: ``(model, batch) -> scalar``; by default the one that ``prune`` was given.

        Raises:
            InputError: without a loss.
        """
        loss, model = loss or self.loss, self._engine.model if model is None else model
        if loss is None:
            raise InputError("run.distill needs a loss: give loss(model, batch) to prunus.prune")
        if self.teaching is None:
            return loss(model, batch)
        self.taught += 1
        return self.teaching(model, batch, loss)

    def batches(
        self, loader: Iterable[Batch], *, steps_per_epoch: int | None = None
    ) -> Iterator[Batch]:
        """The loader's batches, epoch after epoch, until ``steps`` optimizer steps are taken.

        The order of an epoch depends on the recipe's seed and the epoch alone, whatever the
        model does with random numbers: generators that the loader, its sampler or its dataset
        hold are seeded for each epoch, persistent workers begin anew.

        Args:
            loader: of the training data.
            steps_per_epoch: optimizer steps in an epoch, where they are not its batches: with
                gradients accumulated over k of them, ``len(loader) // k``.
        """
        if self.optimizer is None:
            raise InputError("call run.attach(optimizer) before run.batches(loader)")
        if not isinstance(loader, Iterator):
            given_batches(loader, "the training loader")
        self.steps_of(loader, steps_per_epoch=steps_per_epoch)
        if self.done == 0:
            dense = self.round == 0
            self._engine.begin(self.steps, self.per_epoch, gradual=self._gradual, dense=dense)
        self.on_loader(loader)
        resume_at = self.batch
        while self.done < self.steps:
            before, self.batch = self.done, 0
            for number, batch in enumerate(self._epoch(loader)):
                self.batch = number + 1
                if number == 0:
                    self.on_first_batch(self.epoch, batch)
                if number < resume_at:
                    continue
                taken = self.done
                self._set_rate()
                if self._rng is not None:
                    randomness.set_state(self._rng)
                    self._rng = None
                yield batch
                if self.done > taken:  # between steps, gradients half collected would be lost
                    self.on_boundary(self)
                if self.done >= self.steps:
                    return
                if self.must_stop():
                    return
            if self.batch == 0:
                raise InputError("the training loader is empty (an exhausted iterator?)")
            if self.done == before and resume_at == 0:
                raise RunError(
                    "train took no optimizer step in a whole epoch: call optimizer.step() on the "
                    "optimizer given to run.attach"
                )
            if resume_at == 0:
                self.on_epoch(self.done - before)
            resume_at = 0
            self.epoch += 1

    def _epoch(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """One pass over the loader with random numbers of its own."""
        training = randomness.state()
        randomness.seed(self._seed, 1 + self.epoch)
        loaders.begin_epoch(loader, self._seed, self.epoch)
        iterator = iter(loader)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                randomness.set_state(training)
                return
            loading = randomness.state()
            randomness.set_state(training)
            yield batch
            training = randomness.state()
            randomness.set_state(loading)

    def first_batch(self, loader: Iterable[Any], epoch: int) -> Any:
        """The first batch of an epoch, to compare it; the run goes on as if it was not read."""
        with randomness.preserve_rng():
            randomness.seed(self._seed, 1 + epoch)
            loaders.begin_epoch(loader, self._seed, epoch)
            return next(iter(loader), None)

    def _set_rate(self) -> None:
        if self._rate is None or self.optimizer is None:
            return
        factor = self._rate(self.done / max(1, self.steps))
        for group, base in zip(self.optimizer.param_groups, self._base, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(base * factor)
            else:
                group["lr"] = base * factor

    def _after_step(self) -> None:
        self.done += 1
        self.on_step(self)

    # --- saving

    def state(self) -> dict[str, Any]:
        """Of everything attached."""
        assert self.optimizer is not None
        others = {name: other.state_dict() for name, other in self._others.items()}
        return {
            "optimizer": self.optimizer.state_dict(),
            "others": others,
            "done": self.done,
            "epoch": self.epoch,
            "batch": self.batch,
            "rng": gather(randomness.state()),
            "generators": gather(loaders.states(self.holder)),
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        assert self.optimizer is not None
        self.optimizer.load_state_dict(saved["optimizer"])
        for name, value in saved["others"].items():
            if name not in self._others:
                raise InputError(f"the run to resume had '{name}' attached; attach it again")
            self._others[name].load_state_dict(value)
        self.done, self.epoch, self.batch = saved["done"], saved["epoch"], saved["batch"]
        self._rng = randomness.of_this_rank(saved["rng"])
        if "generators" in saved:
            loaders.set_states(randomness.of_this_rank(saved["generators"]), self.holder)

    def end(self) -> None:
        """Take the hooks off; what was attached stays readable."""
        self._engine.after_step = lambda: None
        self._engine.detach()


def carry(optimizer: AnyOptimizer, state: dict[Any, Any]) -> None:
    """Go on with the momenta of the training before, if they fit this optimizer."""
    fresh = optimizer.state_dict()
    shapes = [p.shape for group in optimizer.param_groups for p in group["params"]]
    fits = all(
        isinstance(i, int) and i < len(shapes) and value.shape in (shapes[i], torch.Size([]))
        for i, values in state.items()
        for value in values.values()
        if isinstance(value, Tensor)
    )
    if fits:
        with torch.no_grad():
            optimizer.load_state_dict({"state": state, "param_groups": fresh["param_groups"]})


class Budget:
    """A bound on time or on training, over the whole run."""

    def __init__(self, text: str | float | int | None, spent_seconds: float = 0.0) -> None:
        self._length = None if text is None else duration.parse(text)
        self.spent = spent_seconds
        self._since = time.monotonic()
        self.text = text

    @property
    def seconds(self) -> float:
        """Time used by the run so far, earlier attempts included."""
        return self.spent + time.monotonic() - self._since

    def reached(self, steps: int, per_epoch: int | None) -> bool:
        """Whether the run must end now; of several ranks, by the clock of the first."""
        if self._length is None:
            return False
        if self._length.unit == "min":
            most = self._length.value * 60
            return on_rank_zero(lambda: self.seconds >= most)
        if self._length.unit == "ep" and per_epoch is None:
            return False
        return steps >= self._length.steps(per_epoch=per_epoch)
