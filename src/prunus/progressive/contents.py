"""What the files of a run hold, as types: a stranger's or a damaged one ends in one clear line."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictStr, TypeAdapter, ValidationError

from prunus.errors import InputError
from prunus.progressive.result import Round, as_named

STORED = r"\d{6}-[A-Za-z0-9_-]+"
"""Names of the values that a journal keeps beside it."""
_Count = Annotated[int, Field(ge=0)]
_Numbers = dict[StrictStr, float | None]
_Texts = list[StrictStr]


class _Contents(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=False)


class _Timed(_Contents):
    median_ms: float


class _Runtime(_Contents):
    runtime: StrictStr
    model: StrictStr
    refused: StrictStr | None
    error: float | None
    latency: dict[_Count, _Timed]
    bytes: _Count | None
    metric: float | None
    notes: _Texts


class _Deployed(_Contents):
    rows: list[_Runtime]
    runtime: StrictStr
    threads: _Count
    machine: StrictStr
    advice: _Texts
    offers: dict[StrictStr, StrictStr]


class _Compaction(_Contents):
    route: StrictStr
    units: _Count
    error: float
    effect: float
    notes: _Texts


class _Tested(_Contents):
    metric: float
    interval: tuple[float, float] | None
    dense: float | None
    change: tuple[float, float, float] | None


class _Result(_Contents):
    why: StrictStr = ""
    metric_name: StrictStr = ""
    test: float | None = None
    tested: _Tested | None = None
    cost_before: _Numbers = {}
    cost_after: _Numbers = {}
    compaction: _Compaction | None = None
    deployment: _Deployed | None = None


class _Identity(_Contents):
    recipe: StrictStr = ""
    code: dict[StrictStr, StrictStr] = {}
    parameters: dict[StrictStr, list[int]] = {}
    weights: StrictStr = ""


class _Origin(_Contents):
    folder: StrictStr
    code: dict[StrictStr, StrictStr]


class _Run(_Contents):
    identity: _Identity = _Identity()
    origin: _Origin | None = None
    environment: dict[StrictStr, StrictStr] = {}


class _Snapshot(_Contents):
    name: Annotated[StrictStr, Field(pattern=f"^{STORED}$")]
    digest: StrictStr
    keep: list[Annotated[StrictStr, Field(pattern=f"^{STORED}$")]]


class _End(_Contents):
    tested: _Tested | None


class _Latency(_Contents):
    when: StrictStr
    part: float
    ms: float
    dense_ms: float
    measured: _Count


class _Line(_Contents):
    event: StrictStr
    n: _Count


class _Other(_Contents):
    """An event that nothing is read from."""


FILES: Mapping[str, type[BaseModel]] = {
    "run.json": _Run,
    "result.json": _Result,
    "deploy.json": _Deployed,
}
EVENTS: Mapping[str, Any] = {
    "round": Round,
    "snapshot": _Snapshot,
    "end": _End,
    "latency": _Latency,
}


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def wrong(kind: Any, value: Any) -> str | None:
    """The first thing in a value that is not as its type says; ``None`` if all is well.

    >>> wrong(_Timed, {"median_ms": "soon"})
    "median_ms: Input should be a valid number, unable to parse string as a number (got 'soon')"
    """
    try:
        _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where + ': ' if where else ''}{first['msg']} (got {first['input']!r:.60})"
    return None


def is_event(value: Any) -> bool:
    """Whether a journal's line says what its event needs."""
    if wrong(_Line, value):
        return False
    kind = EVENTS.get(value["event"], _Other)
    return wrong(kind, as_named(kind, value) if kind is Round else value) is None


def checked(name: str, value: Any, path: Any) -> dict[str, Any]:
    """The contents of a file of that name.

    Raises:
        InputError: with the first place that is wrong.
    """
    found = wrong(FILES[name], value)
    if found is not None:
        raise InputError(f"'{path}' is damaged: {found}")
    return dict(value)
