"""Methods as a recipe names them: a name, the method's settings, and when it acts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_serializer,
    model_validator,
)

from prunus._common.kinds import kind_of
from prunus.recipe import duration
from prunus.recipe.parts import changed


def _length(value: Any) -> Any:
    duration.parse(value)
    return value


Length = Annotated[str | float | int, BeforeValidator(_length)]
"""A length of training: ``3ep``, ``500it`` or a part from 0 to 1."""


def _plain(value: Any) -> Any:
    """A value as a file has it: of a path its text, of a number of numpy's the number."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else list(value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
        return _plain(value.item())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise ValueError(
        f"{kind_of(value)} cannot be written into a file: give numbers, texts, lists and mappings"
    )


class Spec(BaseModel):
    """A method and its settings: ``magnitude`` or ``{name: magnitude, p: 2}``."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return {"name": str(value)}
        if isinstance(value, Mapping) and "name" not in value:
            raise ValueError(f"a name is missing: write {{name: …, {', '.join(map(str, value))}}}")
        return _plain(value) if isinstance(value, Mapping) else value

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})

    @model_serializer
    def to_dict(self) -> Any:
        """As it is written in a file: by its name alone where that says all."""
        more = {key: value for key, value in changed(self).items() if key != "name"}
        return {"name": self.name, **more} if more else self.name


class Schedule(Spec):
    """How sparsity grows; ``start``, ``end`` and ``every`` are lengths within the retraining."""

    start: Length = 0.0
    end: Length = 1.0
    every: Length | None = None


class Regularize(Spec):
    """What pulls weights toward zero after each optimizer step; ``during``: of which trainings."""

    during: Literal["all", "dense", "retrain"] = "all"


class Regrow(Spec):
    """What grows while as much goes; ``every`` and ``end`` are lengths within each retraining.

    ``fraction`` of the weights that are left is replaced, at first: by ``cosine`` it falls to zero
    at the ``end``.
    """

    every: Length = "100it"
    end: Length = 0.75
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    decay: Literal["cosine", "none"] = "cosine"
