"""Parts of a recipe that are mappings of plain values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)


class Frozen(BaseModel):
    """Values that cannot be changed, none beside those that are known."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _a_number_is_no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """``yes``, ``on`` and ``true`` are one value in YAML, and Python counts it as 1."""
        field = cls.model_fields[info.field_name or ""]
        kinds = set(_kinds_in(field.annotation))
        if kinds & {int, float} and not kinds & {bool, Any}:
            wrong = [one for one in _values_in(value) if isinstance(one, bool)]
            if wrong:
                raise ValueError(f"{str(wrong[0]).lower()} is no number: write the number itself")
        return value


def _kinds_in(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _kinds_in(part)


def _values_in(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else (value,)


def changed(model: BaseModel) -> dict[str, Any]:
    """The values that differ from the defaults, and settings that a method alone knows."""
    fields = type(model).model_fields
    usual = {key: field.get_default(call_default_factory=True) for key, field in fields.items()}
    return {key: v for key, v in model if key not in fields or v != usual[key]}


Arm: TypeAlias = Literal["dense_longer", "same_shape_from_scratch", "random_choice"]
"""What else is trained on the budget of a run, to be set beside the pruned model."""


class Teacher(Frozen):
    """Whose answers retraining learns from: the dense model of round 0, or that of a file."""

    model: Annotated[str, Field(min_length=1)] = "dense"
    temperature: Annotated[float, Field(gt=0)] = 2.0
    weight: Annotated[float, Field(gt=0, le=1)] = 0.9
    mix: bool = False
    objective: Literal["kl", "mse"] = "kl"
    hidden: list[str] = Field(default_factory=list)
    hidden_weight: Annotated[float, Field(gt=0)] = 1.0
    top: Annotated[int, Field(ge=2)] | None = None

    @property
    def file(self) -> str | None:
        """The file that the teacher is in; ``None``: it is the dense model of round 0."""
        return None if self.model == "dense" else self.model

    @field_validator("hidden", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @model_serializer
    def _written(self) -> Any:
        given = changed(self)
        return given or self.model


class Deploy(Frozen):
    """How the result will be run: ``auto`` takes the fastest runtime that keeps the answers."""

    runtime: str = "auto"
    batch: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"runtime": value} if isinstance(value, str) else value

    @model_serializer
    def _written(self) -> Any:
        given = changed(self)
        return given if set(given) - {"runtime"} else self.runtime


class UnitScore(Frozen):
    """From the scores of weights to that of their unit, and from layers to what compares them.

    ``reduce``: of the weights of a unit, coupled members included; ``normalize``: what the scores
    of a layer's units are divided by, so that layers of any scale compete.
    """

    reduce: Literal["mean", "sum", "max", "l2"] = "mean"
    normalize: Literal["none", "mean", "max", "l2"] = "none"

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"reduce": value} if isinstance(value, str) else value

    @model_serializer
    def _written(self) -> Any:
        given = changed(self)
        return given if set(given) - {"reduce"} else self.reduce
