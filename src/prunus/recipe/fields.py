"""The fields of a recipe and their types: plain values, each checked by itself."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    PrivateAttr,
    field_validator,
    model_serializer,
    model_validator,
)

from prunus.methods.catalog import names, own_file
from prunus.methods.traits import trait
from prunus.recipe.parts import Arm, Deploy, Frozen, Teacher, UnitScore, changed
from prunus.recipe.specs import Length, Regrow, Regularize, Schedule, Spec

AXIS = {
    "structure": "structures",
    "criterion": "criteria",
    "allocation": "allocations",
    "schedule": "schedules",
    "repair": "repairs",
    "regrow": "regrowths",
    "regularize": "regularizers",
    "restore": "restore",
    "learning_rate": "rates",
    "dense.learning_rate": "rates",
}
"""Fields that name a method, and the folder of it."""


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Patterns = Annotated[tuple[str, ...], BeforeValidator(_several), PlainSerializer(list)]


class Scope(Frozen):
    """Patterns of parameter or module names."""

    include: Patterns = ()
    exclude: Patterns = ()

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, (str, list, tuple)):
            raise ValueError(f"say what it is for: {{include: {value!r:.60}}}, or exclude")
        return value


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


Part = Annotated[float, Field(ge=0, le=1)]


class Bounds(Frozen):
    """The smallest and the largest sparsity that a parameter may get."""

    least: Part = 0.0
    most: Part = 1.0

    @model_validator(mode="before")
    @classmethod
    def _both(cls, value: Any) -> Any:
        if not isinstance(value, Mapping | BaseModel) or value == {}:
            raise ValueError("write {most: 0.3}, {least: 0.1} or both: sparsities from 0 to 1")
        return value

    @model_validator(mode="after")
    def _in_order(self) -> Bounds:
        if self.least > self.most:
            raise ValueError(f"least {self.least:g} is above most {self.most:g}")
        return self

    @model_serializer
    def _written(self) -> Any:
        return {key: value for key, value in self if key in self.model_fields_set}


class Target(Frozen):
    """Where pruning ends: a sparsity, a bound on a cost, or as far as the guard allows.

    A bound below 1 is a fraction of the dense model's cost, any other an absolute number; of
    ``max_latency_ms`` an absolute number below 1 is written with its unit, ``0.4ms``. ``layers``
    has sparsities of single layers by pattern, which end there whatever the whole gets; of
    ``layers`` alone, all others stay as they are. Where the guard decides, ``adapt`` lets a
    rejected round say which groups were cut too far: they go on in smaller steps than the others.
    """

    sparsity: Annotated[float, Field(ge=0, le=1)] | None = None
    max_macs: Annotated[float, Field(gt=0)] | None = None
    max_params: Annotated[float, Field(gt=0)] | None = None
    max_bytes: Annotated[float, Field(gt=0)] | None = None
    max_latency_ms: (
        Annotated[Annotated[float, Field(gt=0)] | str, BeforeValidator(_milliseconds)] | None
    ) = None
    layers: dict[str, Part] = Field(default_factory=dict)
    step: Annotated[float, Field(gt=0, lt=1)] = 0.3
    smallest: Annotated[float, Field(gt=0, lt=1)] = 0.02
    adapt: bool = False

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
    def layers_alone(self) -> bool:
        """Whether single layers have targets and the whole has none."""
        return bool(self.layers) and all(getattr(self, k) is None for k in ENDS)

    @property
    def latency(self) -> tuple[float, bool] | None:
        """The bound on a latency, and whether it is a part of the dense model's."""
        given = self.max_latency_ms
        if isinstance(given, str):
            return float(given.removesuffix("ms")), False
        return None if given is None else (given, given < 1)


BOUNDS = ("max_macs", "max_params", "max_bytes")
ENDS = ("sparsity", *BOUNDS, "max_latency_ms")


class Guard(Frozen):
    """When a round is accepted: its metric may fall by at most ``max_drop`` from dense.

    With ``confidence`` that must be shown on the items that are judged; no class or slice may lose
    more than ``worst_class``. Both need an ``evaluate`` that returns :class:`prunus.Scores`.
    """

    better: Literal["higher", "lower"] = "higher"
    max_drop: Annotated[float, Field(ge=0)] = 0.01
    relative: bool = False
    worst_class: Annotated[float, Field(ge=0)] | None = None
    confidence: Annotated[float, Field(gt=0.5, lt=1)] | None = None

    @model_serializer
    def _written(self) -> Any:
        return {key: value for key, value in self if value is not None}

    @property
    def says_better(self) -> bool:
        """Whether the recipe says which metric is better, rather than take the default."""
        return "better" in self.model_fields_set


class Dense(Frozen):
    """Training of round 0."""

    length: Length = 0
    learning_rate: Spec = Spec(name="constant")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return value if isinstance(value, Mapping | BaseModel) else {"length": value}

    @model_serializer
    def _written(self) -> Any:
        return dict(self) if "learning_rate" in changed(self) else self.length


def _no_path(name: str) -> str:
    """A folder is called so."""
    if not re.fullmatch(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,99}", name):
        raise ValueError(
            "a name is part of a folder's name: 1 to 100 characters, no slash, no dot in front"
        )
    return name


class RecipeFields(Frozen):
    """The values of a recipe, which may not go together yet; see :class:`prunus.Recipe`."""

    version: Literal[1, 2] = 1
    name: Annotated[str, AfterValidator(_no_path)] | None = None
    task: Spec | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    dense: Dense = Dense()
    structure: Spec = Spec(name="weight")
    scope: Scope = Scope()
    criterion: Spec = Spec(name="magnitude")
    unit_score: UnitScore = UnitScore()
    allocation: Spec = Spec(name="global")
    schedule: Schedule = Schedule(name="early")
    rounds: Annotated[int, Field(ge=1, le=10_000)] | None = None
    retrain: Length = 0
    last_retrain: Length | None = None
    target: Target | None = None
    limits: dict[str, Bounds] = Field(default_factory=dict)
    guard: Guard | None = None
    repair: Spec | None = None
    regrow: Regrow | None = None
    regularize: Regularize | None = None
    teacher: Teacher | None = None
    restore: Spec = Spec(name="keep")
    learning_rate: Spec | None = None
    order: Literal["all", "bottom_up"] = "all"
    compact: Literal["none", "end", "every_round"] = "none"
    quantize: Literal["none", "int8"] = "none"
    deploy: Deploy | None = None
    keep: Literal["last", "front"] = "last"
    controls: list[Arm] = Field(default_factory=list)
    sparse_training: bool = False
    limit: Length | None = None
    snapshot: Length = "1ep"

    _files: dict[str, str] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any) -> None:
        """Take over where the files lie that are named, which is no part of the values."""
        self._files = dict((context or {}).get("files", {}))

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
        """The methods that it names, by field; those in files by where these lie."""
        found = {field: attrgetter(field)(self) for field in AXIS}
        return {field: self.located(spec) for field, spec in found.items() if spec is not None}

    def written(self) -> list[Spec]:
        """The methods and the task that it names, as they are written."""
        found = [attrgetter(field)(self) for field in ("task", *AXIS)]
        return [spec for spec in found if spec is not None]

    def located(self, spec: Spec) -> Spec:
        """A method or a task of this recipe, by the path of its file if it is in one."""
        file = own_file(spec.name) or spec.name
        if file not in self._files:
            return spec
        function = spec.name.removeprefix(file) or f":{'task' if own_file(file) else file}"
        return spec.model_copy(update={"name": f"{self._files[file]}{function}"})

    def path_of(self, file: str) -> Path:
        """Where a file lies that is named."""
        return Path(self._files.get(file, file))

    def place_of(self, text: str) -> Path:
        """Where the path lies that a setting of the task, or the teacher's, says."""
        return Path(self._files.get(f"task: {text}", text)).absolute()

    def trait(self, field: str, key: str) -> Any:
        """What the method of a field declares; see :data:`prunus.methods.traits.TRAITS`."""
        spec = self.located(attrgetter(field)(self))
        return trait(AXIS[field], spec.name, key, spec.settings)

    @property
    def in_rounds(self) -> bool:
        """Whether it prunes in rounds; otherwise gradually."""
        return self.rounds is not None or self.until_guard

    @property
    def until_guard(self) -> bool:
        """Whether the target is as far as the guard allows."""
        target = self.target
        if target is None or target.layers_alone:
            return False
        return target.sparsity is None and target.bound is None

    @property
    def sparsity(self) -> float:
        """The sparsity to reach; the most there is where the guard or single layers decide."""
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
        if self.guard is not None and not self.guard.says_better:
            del changed["guard"]["better"]  # what is not said is asked for, once it matters
        return {"version": self.version, **changed}


def _usual_schedule(rounds: Any) -> str:
    """Rounds take the same share of what is left; gradual pruning leaves time to recover."""
    return "early" if rounds is None else "geometric"
