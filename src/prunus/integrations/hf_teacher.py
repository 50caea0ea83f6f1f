"""A teacher inside a Hugging Face Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn
from torch import is_grad_enabled as grad_enabled

from prunus._common.given import given_model
from prunus.errors import InputError
from prunus.integrations.callback import optional
from prunus.progressive.distill import Lessons
from prunus.progressive.hidden import hidden_states
from prunus.pruning.enforce import enforce
from prunus.recipe.load import explain
from prunus.recipe.parts import Teacher
from prunus.types import Kept, Masks

_TrainerCallback: Any = optional("transformers", "TrainerCallback", ["transformers", "accelerate"])


class TeacherCallback(_TrainerCallback):
    """Lets the model of a ``transformers.Trainer`` learn from another one; nothing more is pruned.

    ``Trainer(model=small, callbacks=[TeacherCallback(dense, {"top": 64})])``: for a model that
    :func:`prunus.prune_blocks` or :func:`prunus.prune` has left. The teacher's part joins the loss
    that the model gives, on each process of its own.

    Args:
        teacher: the dense model, on the device of the other; its parameters are never changed.
        settings: as a recipe's ``teacher`` has them: ``temperature``, ``weight``, ``objective``,
            ``hidden``, ``hidden_weight``, ``top``.
        masks: that hold meanwhile, True = kept (``result.masks``).
        kept: of a smaller model, what is left, for ``hidden`` (``result.kept``).

    Raises:
        InputError: for settings that do not go together.
    """

    def __init__(
        self,
        teacher: nn.Module,
        settings: Mapping[str, Any] | None = None,
        *,
        masks: Masks | None = None,
        kept: Kept | None = None,
    ) -> None:
        try:
            how = Teacher.model_validate(dict(settings or {}))
        except ValidationError as error:
            raise InputError("teacher:\n" + "\n".join(explain(error, Teacher))) from None
        if how.mix or how.file is not None or (how.top and how.objective != "kl"):
            raise InputError(
                "teacher: the Trainer gives the model its inputs, the teacher is given, and top is "
                "for objective kl: leave mix and model out, or top"
            )
        plain = {key: value for key, value in how if key != "model"}
        self._lessons = Lessons(given_model(teacher, "teacher"), kept=kept or {}, **plain)
        self._masks, self._held = masks, ExitStack()

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Begin to listen."""
        self._held.close()
        if self._masks:
            self._held.callback(enforce(model, self._masks, optimizer))
        self._held.callback(Learning(model, lambda: self._lessons, args).remove)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take everything off."""
        self._held.close()


class Learning:
    """Hooks by which the loss that a model gives while it trains is the one with the teacher.

    Where the model counts a step's items itself, the Trainer adds up the losses of a step.

    Args:
        model: that learns.
        taught: the lessons of a pass; ``None``: nobody teaches yet.
        args: of the Trainer.
    """

    def __init__(self, model: nn.Module, taught: Callable[[], Lessons | None], args: Any) -> None:
        self._taught, self._several = taught, args.gradient_accumulation_steps
        self._states: dict[str, Tensor] = {}
        self._inside = ExitStack()
        self._hooks = (
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end, with_kwargs=True),
        )

    def _begin(self, model: nn.Module, *_: Any) -> None:
        self._inside.close()  # of a pass that failed
        self._lessons = self._taught() if model.training and grad_enabled() else None
        if self._lessons is not None:
            names = self._lessons.names(model)
            self._states = self._inside.enter_context(hidden_states(model, names))

    def _end(self, model: nn.Module, args: Any, kwargs: dict[str, Any], answers: Any) -> Any:
        self._inside.close()
        lessons, self._lessons = self._lessons, None
        if lessons is None:
            return None
        own = answers.get("loss") if isinstance(answers, Mapping) else None
        if own is None:
            raise InputError(
                "teacher: the model gives no loss while it trains, to which the teacher's part "
                "could be added: give it labels, or compute the loss by prunus.distill(model, "
                "callback.pruner, batch, loss=loss)"
            )
        plain = {k: v for k, v in kwargs.items() if k not in ("labels", "num_items_in_batch")}
        part = lessons.part(model, (args, plain), answers, self._states)
        together = "num_items_in_batch" in kwargs
        answers["loss"] = lessons.joined(own, part / self._several if together else part)
        return answers

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
