"""A loss by which a model learns from another's answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from prunus._common.given import given_hooks, given_model, not_taken
from prunus._common.inputs import Inputs, arguments, called
from prunus._common.kinds import given_choice, given_number, kind_of
from prunus._common.modules import detached_copy, evaluating
from prunus._common.nested import map_tensors, own_containers, tensors_of
from prunus.compaction.files.artifact import load
from prunus.errors import InputError, RunError, first_line
from prunus.progressive.hidden import hidden_modules, hidden_states, states_apart
from prunus.pruning.followers import ours
from prunus.recipe.resolve import teacher_file
from prunus.recipe.schema import Recipe
from prunus.types import Kept

Loss = Callable[[nn.Module, Any], Tensor]


def distill(
    model: nn.Module,
    teacher: Any,
    batch: Any,
    *,
    loss: Loss | None = None,
    temperature: float = 2.0,
    weight: float = 0.9,
    mix: bool = False,
    objective: str = "kl",
    hidden: Sequence[str] = (),
    hidden_weight: float = 1.0,
    kept: Kept | None = None,
    top: int | None = None,
) -> Tensor:
    """The loss of a batch, of which a teacher's answers are a part.

    (1 − weight) · loss + weight · (T² · Σ_c p_c log(p_c / q_c) + hidden_weight · H), the mean over
    items (and places), with p = softmax(teacher / T) and q = softmax(model / T). ``objective: mse``
    takes the squared difference of the answers in place of the divergence. H is the mean over the
    modules in ``hidden`` of ‖h − t‖² / ‖t‖², for a hidden state h and the teacher's t. The teacher
    runs in eval mode and without gradients; its parameters are never changed.

    Args:
        model: that learns; called once.
        teacher: takes the same inputs and gives answers of the same shape; or the
            :class:`prunus.Pruner` of a loop of one's own, whose recipe names a ``teacher`` and has
            the settings below: before its first cut the loss is all.
        batch: as ``loss`` takes it; without a ``loss`` what the model is called with.
        loss: ``(model, batch) -> scalar``; it may be left out where ``weight`` is 1.
        temperature: T.
        weight: of the teacher's part, 0 to 1.
        mix: whether both see mixtures of two inputs, λ x + (1 − λ) x′ with one λ ~ U(0, 1) for
            each item; such have no label, so ``weight`` must be 1.
        hidden: names of modules, with ``*``, or ``all`` blocks.
        hidden_weight: of H beside the answers.
        kept: what is left of a smaller model (``result.kept``, ``pruner.kept``), for ``hidden``.
        objective: ``kl`` for scores of classes (the last dimension; dimension 1 of answers of
            four dimensions or more), ``mse`` for any.
        top: of many classes (words), those of which p is largest at each place, and no others; p
            and q sum to one over them. By default all.

    Returns:
        A scalar with gradients.

    Raises:
        InputError: for settings that do not go together, or if a loss does not call the model.
        RunError: if the answers have no such form.

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531; mixtures: Beyer et al. 2022,
    arXiv:2106.05237.

    >>> model, teacher = nn.Linear(2, 3), nn.Linear(2, 3)
    >>> x = torch.ones(4, 2)
    >>> bool(distill(model, model, x, weight=1.0).abs() < 1e-6)
    True
    >>> bool(distill(model, teacher, x, weight=1.0) > 0)
    True
    """
    given_hooks(loss=loss)
    if (teaches := getattr(teacher, "_teaches", None)) is not None:  # a Pruner
        taught: Tensor = teaches(given_model(model, "distill"), batch, loss)
        return taught
    for given in (model, teacher):
        given_model(given, "distill")
    given_number(weight, "weight", least=0)
    given_number(temperature, "temperature", least=0, above=True)
    given_number(hidden_weight, "hidden_weight", least=0)
    given_choice(mix, "mix", (True, False))
    given_choice(objective, "objective", ("kl", "mse"))
    if top is not None:
        given_number(top, "top", whole=True, least=2)
        if objective != "kl":
            raise InputError("top: classes are compared by divergence alone: objective kl")
    names = (hidden,) if isinstance(hidden, str) else hidden
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise InputError(f"hidden is {kind_of(hidden)}: give names of modules in a list")
    if kept is not None and not isinstance(kept, Mapping):
        raise InputError(f"kept is {kind_of(kept)}: give result.kept or pruner.kept")
    lessons = Lessons(
        teacher, temperature, weight, mix, objective, names, hidden_weight, kept or {}, top
    )
    return lessons.loss(model, batch, loss)


@dataclass(frozen=True)
class Lessons:
    """A teacher, and how a model learns from it: the settings of :func:`distill`."""

    teacher: nn.Module
    temperature: float = 2.0
    weight: float = 0.9
    mix: bool = False
    objective: str = "kl"
    hidden: Sequence[str] = ()
    hidden_weight: float = 1.0
    kept: Kept = field(default_factory=dict)
    top: int | None = None

    def loss(self, model: nn.Module, batch: Any, loss: Loss | None) -> Tensor:
        """The loss of a batch."""
        if loss is None and self.weight < 1:
            raise InputError(
                "distill: without a loss the teacher's answers are all: set weight to 1"
            )
        if self.mix and self.weight < 1:
            raise InputError("distill: a mixture of two inputs has no label: set weight to 1")
        own = None
        with hidden_states(model, self.names(model)) as states:
            if self.mix or loss is None:
                inputs = arguments(batch) if loss is None else _inputs(model, loss, batch)
                inputs = _mixed(inputs) if self.mix else inputs
                try:
                    answers = called(model, inputs)
                except Exception as error:  # of the model's code
                    if loss is not None:
                        raise
                    raise not_taken(model, batch, error) from error
            else:
                with _heard(model) as calls:
                    own = loss(model, batch)
                if not calls:
                    raise InputError(
                        "distill: loss does not call the model, so its answers are unknown"
                    )
                inputs, answers = calls[0]
        return self.joined(own, self.part(model, inputs, answers, states))

    def names(self, model: nn.Module) -> list[str]:
        """The modules whose hidden states are compared."""
        return hidden_modules(model, self.hidden)

    def part(
        self, model: nn.Module, inputs: Inputs, answers: Any, states: Mapping[str, Tensor]
    ) -> Tensor:
        """The teacher's part of the loss of a pass that is over.

        Args:
            model: that learns.
            inputs: what it was called with.
            answers: what it gave.
            states: what its modules gave, by name.
        """
        names = list(states)
        with evaluating(self.teacher), torch.no_grad(), hidden_states(self.teacher, names) as goals:
            try:
                wanted = called(self.teacher, inputs)
            except InputError:
                raise
            except Exception as error:  # of the teacher's code, which is called as the model was
                raise InputError(f"teacher: {not_taken(self.teacher, inputs, error)}") from error
        scores = scores_of(answers), scores_of(wanted)
        found = difference(*scores, self.temperature, self.objective, top=self.top)
        if not self.hidden:
            return found
        return found + self.hidden_weight * states_apart(model, states, goals, self.kept)

    def joined(self, own: Tensor | None, part: Tensor) -> Tensor:
        """The loss on the labels and the teacher's part."""
        if own is None or self.weight == 1:
            return part
        return (1 - self.weight) * own + self.weight * part


def given_teacher(
    teacher: nn.Module | str | Path | None, model: nn.Module, recipe: Recipe
) -> nn.Module | None:
    """A teacher of the caller's or of the recipe: a model, or a file that holds one.

    Raises:
        InputError: for what is neither, or if both name one.
    """
    if (file := teacher_file(recipe)) is not None:
        if teacher is not None:
            raise InputError(
                f"teacher: the recipe names '{file}', and teacher= is another: leave out one"
            )
        teacher = file
    if isinstance(teacher, (str, Path)):
        teacher = _opened(Path(teacher), detached_copy(model))
    return None if teacher is None else given_model(teacher, "teacher", values=True)


def _opened(path: Path, model: nn.Module) -> nn.Module:
    """What prunus wrote, or a file of the model's weights alone, as a run's dense.safetensors."""
    try:
        with safe_open(path, framework="pt") as file:
            written = "prunus" in (file.metadata() or {})
        if not written:
            model.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise InputError(
            f"teacher: '{path}' is not of this model: {first_line(error, kind=False)[:300]}"
        ) from error
    return load(path, model) if written else model


def own_teacher(recipe: Recipe, model: nn.Module, taught_by: nn.Module | None) -> nn.Module | None:
    """A copy that will hold the dense model, where that teaches."""
    own = recipe.teacher is not None and taught_by is None
    return ours(detached_copy(model).eval()) if own else None


def difference(
    given: Tensor,
    wanted: Tensor,
    temperature: float,
    objective: str,
    *,
    top: int | None = None,
) -> Tensor:
    """The teacher's part of the loss.

    >>> same = torch.tensor([[1.0, 2.0]])
    >>> float(difference(same, same + 3, 1.0, "kl")), float(difference(same, same + 3, 1.0, "mse"))
    (0.0, 9.0)
    """
    if given.shape != wanted.shape:
        raise RunError(
            f"distill: the model answers with {tuple(given.shape)} and the teacher with "
            f"{tuple(wanted.shape)}"
        )
    if objective == "mse":
        return functional.mse_loss(given, wanted)
    if given.dim() < 2 or given.shape[dim := -1 if given.dim() < 4 else 1] < 2:
        raise RunError(
            f"distill: answers of shape {tuple(given.shape)} are no scores of classes: set "
            "objective to mse"
        )
    if top is not None and top < wanted.shape[dim]:
        wanted, which = wanted.topk(top, dim)
        given = given.gather(dim, which)
    known = functional.log_softmax(wanted / temperature, dim)
    found = functional.log_softmax(given / temperature, dim)
    return temperature**2 * (known.exp() * (known - found)).sum(dim).mean()


def scores_of(answers: Any) -> Tensor:
    """The answers that are compared: those called logits, else the first that is no single number.

    Raises:
        RunError: if there are none.
    """
    named = answers.get("logits") if isinstance(answers, Mapping) else None
    found = getattr(answers, "logits", None) if named is None else named
    for tensor in tensors_of(answers if found is None else found):
        if tensor.is_floating_point() and tensor.dim():
            return tensor
    raise RunError("distill: the model answers with no tensor of real numbers")


@contextmanager
def _heard(model: nn.Module) -> Iterator[list[tuple[Inputs, Any]]]:
    """The calls of a model inside, with their answers."""
    calls: list[tuple[Inputs, Any]] = []
    given: list[Inputs] = []  # before the pass, which may take things out

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        given.append(own_containers((args, kwargs)))

    def leave(module: nn.Module, args: Any, answers: Any) -> None:
        calls.append((given.pop(), answers))

    before = model.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
    after = model.register_forward_hook(leave)
    try:
        yield calls
    finally:
        before.remove()
        after.remove()


class _Called(BaseException):
    """Ends a loss where it calls the model; no ``except Exception`` catches it."""


def _inputs(model: nn.Module, loss: Loss, batch: Any) -> Inputs:
    """What a loss calls the model with, which does not run."""
    calls: list[Inputs] = []

    def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append((args, kwargs))
        raise _Called

    hook = model.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        loss(model, own_containers(batch))
    except _Called:
        return calls[0]
    finally:
        hook.remove()
    raise InputError("distill: loss does not call the model, so its inputs are unknown")


def _mixed(inputs: Inputs) -> Inputs:
    """Each item of real numbers with another one."""
    real = [t for t in tensors_of(inputs) if t.is_floating_point() and t.dim()]
    if len(real) != len(tensors_of(inputs)):
        raise InputError("distill: mix needs inputs of real numbers alone: words cannot be mixed")
    items = len(real[0])
    other = torch.randperm(items).to(real[0].device)
    shares = torch.rand(items).to(real[0].device)

    def one(tensor: Tensor) -> Tensor:
        share = shares.to(tensor.dtype).view(-1, *[1] * (tensor.dim() - 1))
        return share * tensor + (1 - share) * tensor[other]

    made: Inputs = map_tensors(one, inputs)
    return made
