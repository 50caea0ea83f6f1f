"""The fields of a recipe and their types: plain values, each checked by itself."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from operator import attrgetter
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_serializer,
    model_validator,
)

from prunus.methods.catalog import names
from prunus.methods.traits import trait
from prunus.recipe import duration

AXIS = {
    "structure": "structures",
    "criterion": "criteria",
    "allocation": "allocations",
    "schedule": "schedules",
    "restore": "restore",
    "learning_rate": "rates",
    "dense.learning_rate": "rates",
}
"""Fields that name a method, and the folder of it."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _changed(model: BaseModel) -> dict[str, Any]:
    """The values that differ from the defaults, and settings that a method alone knows."""
    fields = type(model).model_fields
    return {key: v for key, v in model if key not in fields or v != fields[key].default}


def _length(value: Any) -> Any:
    duration.parse(value)
    return value


Length = Annotated[str | float | int, BeforeValidator(_length)]
"""A length of training: ``3ep``, ``500it`` or a part from 0 to 1."""


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
        return value

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})

    @model_serializer
    def to_dict(self) -> Any:
        """As it is written in a file: by its name alone where that says all."""
        more = {key: value for key, value in _changed(self).items() if key != "name"}
        return {"name": self.name, **more} if more else self.name


Patterns = Annotated[tuple[str, ...], PlainSerializer(list)]


class Scope(_Frozen):
    """Patterns of parameter or module names."""

    include: Patterns = ()
    exclude: Patterns = ()


class Schedule(Spec):
    """How sparsity grows; ``start``, ``end`` and ``every`` are lengths within the retraining."""

    start: Length = 0.0
    end: Length = 1.0
    every: Length | None = None


def _milliseconds(value: Any) -> Any:
    text = value.strip() if isinstance(value, str) else ""
    if not isinstance(value, str):
        return value
    number = text.removesuffix("ms").strip()
    try:
        found = float(number)
    except ValueError:
        found = 0.0
    if not text.endswith("ms") or not 0 < found < math.inf:
        raise ValueError(
            f"'{value}' is not a time: write, for example, '0.4ms', or 0.5 for half of dense"
        )
    return f"{found:g}ms"


class Target(_Frozen):
    """Where pruning ends: a sparsity, a bound on a cost, or as far as the guard allows.

    A bound below 1 is a fraction of the dense model's cost, any other an absolute number; of
    ``max_latency_ms`` an absolute number below 1 is written with its unit, ``0.4ms``.
    """

    sparsity: Annotated[float, Field(ge=0, le=1)] | None = None
    max_macs: Annotated[float, Field(gt=0)] | None = None
    max_params: Annotated[float, Field(gt=0)] | None = None
    max_bytes: Annotated[float, Field(gt=0)] | None = None
    max_latency_ms: (
        Annotated[Annotated[float, Field(gt=0)] | str, BeforeValidator(_milliseconds)] | None
    ) = None
    step: Annotated[float, Field(gt=0, lt=1)] = 0.3
    smallest: Annotated[float, Field(gt=0, lt=1)] = 0.02

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {"sparsity": value}
        if value == "guard":
            return {}
        if isinstance(value, str):
            raise ValueError(
                "write a sparsity such as 0.9, or 'guard' to go as far as the guard allows"
            )
        return value

    @model_validator(mode="after")
    def _one(self) -> Target:
        given = [k for k in ENDS if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot be combined: keep one")
        return self

    @model_serializer
    def _written(self) -> Any:
        given = {key: value for key, value in self if key in self.model_fields_set}
        return given if set(given) - {"sparsity"} else given.get("sparsity", "guard")

    @property
    def bound(self) -> tuple[str, float] | None:
        """The name of the bounded cost and its bound.

        Of a latency the macs, whose bound is found by measuring: until then nearly all may stay.
        """
        if self.max_latency_ms is not None:
            return "macs", 1 - 1e-9
        return next(
            ((k.removeprefix("max_"), b) for k in BOUNDS if (b := getattr(self, k)) is not None),
            None,
        )

    @property
    def latency(self) -> tuple[float, bool] | None:
        """The bound on a latency, and whether it is a part of the dense model's."""
        given = self.max_latency_ms
        if isinstance(given, str):
            return float(given.removesuffix("ms")), False
        return None if given is None else (given, given < 1)


BOUNDS = ("max_macs", "max_params", "max_bytes")
ENDS = ("sparsity", *BOUNDS, "max_latency_ms")


class Guard(_Frozen):
    """When a round is accepted: its metric may fall by at most ``max_drop`` from dense."""

    better: Literal["higher", "lower"] = "higher"
    max_drop: Annotated[float, Field(ge=0)] = 0.01
    relative: bool = False


class Deploy(_Frozen):
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
        given = _changed(self)
        return given if set(given) - {"runtime"} else self.runtime


class Dense(_Frozen):
    """Training of round 0."""

    length: Length = 0
    learning_rate: Spec = Spec(name="constant")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return value if isinstance(value, Mapping | BaseModel) else {"length": value}

    @model_serializer
    def _written(self) -> Any:
        return dict(self) if "learning_rate" in _changed(self) else self.length


def _no_path(name: str) -> str:
    """A folder is called so."""
    if not re.fullmatch(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,99}", name):
        raise ValueError(
            "a name is part of a folder's name: 1 to 100 characters, no slash, no dot in front"
        )
    return name


class RecipeFields(_Frozen):
    """The values of a recipe, which may not go together yet; see :class:`prunus.Recipe`."""

    version: Literal[1] = 1
    name: Annotated[str, AfterValidator(_no_path)] | None = None
    task: Spec | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    dense: Dense = Dense()
    structure: Spec = Spec(name="weight")
    scope: Scope = Scope()
    criterion: Spec = Spec(name="magnitude")
    allocation: Spec = Spec(name="global")
    schedule: Schedule = Schedule(name="early")
    rounds: Annotated[int, Field(ge=1, le=10_000)] | None = None
    retrain: Length = 0
    last_retrain: Length | None = None
    target: Target | None = None
    guard: Guard | None = None
    restore: Spec = Spec(name="keep")
    learning_rate: Spec | None = None
    order: Literal["all", "bottom_up"] = "all"
    compact: Literal["none", "end", "every_round"] = "none"
    quantize: Literal["none", "int8"] = "none"
    deploy: Deploy | None = None
    limit: Length | None = None
    snapshot: Length = "1ep"

    @model_validator(mode="before")
    @classmethod
    def _progressive(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("schedule") is None:
            return {**values, "schedule": _usual_schedule(values.get("rounds"))}
        return values

    @field_validator("structure", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if not isinstance(value, str) or ":" not in value:
            return value
        for name in names("structures"):
            match = re.fullmatch(trait("structures", name, "SHORT") or "(?!)", value)
            if match:
                return {"name": name, **{k: int(v) for k, v in match.groupdict().items()}}
        return value

    def specs(self) -> dict[str, Spec]:
        """The methods that it names, by field."""
        found = {field: attrgetter(field)(self) for field in AXIS}
        return {field: spec for field, spec in found.items() if spec is not None}

    def trait(self, field: str, key: str) -> Any:
        """What the method of a field declares; see :data:`prunus.methods.traits.TRAITS`."""
        spec = attrgetter(field)(self)
        return trait(AXIS[field], spec.name, key, spec.settings)

    @property
    def in_rounds(self) -> bool:
        """Whether it prunes in rounds; otherwise gradually."""
        return self.rounds is not None or self.until_guard

    @property
    def until_guard(self) -> bool:
        """Whether the target is as far as the guard allows."""
        target = self.target
        return target is not None and target.sparsity is None and target.bound is None

    @property
    def sparsity(self) -> float:
        """The sparsity to reach; the most there is when the guard decides."""
        fixed = self.trait("structure", "N_OF_M")
        if fixed is not None:
            return float(1 - fixed[0] / fixed[1])
        if self.target is None:
            return 0.9
        if self.target.bound is not None:  # an absolute bound is known when the model is
            return max(0.0, 1 - self.target.bound[1])
        return 1.0 if self.target.sparsity is None else self.target.sparsity

    def to_dict(self) -> dict[str, Any]:
        """The values that differ from the defaults, as they are written in a file."""
        usual = RecipeFields().model_dump() | {"schedule": _usual_schedule(self.rounds)}
        changed = {key: value for key, value in self.model_dump().items() if value != usual[key]}
        return {"version": self.version, **changed}


def _usual_schedule(rounds: Any) -> str:
    """Rounds take the same share of what is left; gradual pruning leaves time to recover."""
    return "early" if rounds is None else "geometric"
