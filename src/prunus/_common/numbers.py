"""Numbers as people read them; ``None`` is a dash everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable

NONE = "–"


def _or_dash(form: Callable[[float], str]) -> Callable[[float | None], str]:
    @functools.wraps(form)
    def formatted(value: float | None) -> str:
        return NONE if value is None else form(value)

    return formatted


@_or_dash
def count(value: float) -> str:
    """A number with its thousands apart.

    >>> count(38282), count(1234567.0), count(None)
    ('38,282', '1,234,567', '–')
    """
    return f"{value:,.0f}"


@_or_dash
def size(value: float) -> str:
    """Bytes in decimal units, three digits.

    >>> size(153), size(153128), size(25.6e6)
    ('153 B', '153 kB', '25.6 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1e3
    return f"{digits(value)} {unit}"


@_or_dash
def digits(value: float) -> str:
    """Three significant digits, never an exponent.

    >>> digits(0.02134), digits(2.0), digits(153.128), digits(12345.6)
    ('0.0213', '2.00', '153', '12,346')
    """
    if value == 0 or value >= 99.95:
        return f"{value:,.0f}"
    places = 2
    while abs(value) * 10**places < 99.5 and places < 12:
        places += 1
    return f"{value:.{places if abs(value) < 9.995 else 1}f}"


@_or_dash
def milliseconds(value: float) -> str:
    """Of a latency.

    >>> milliseconds(0.173)
    '0.173 ms'
    """
    return f"{digits(value)} ms"


@_or_dash
def percent(value: float) -> str:
    """Of a fraction.

    >>> percent(0.126)
    '13 %'
    """
    return f"{100 * value:.0f} %"


@_or_dash
def times(value: float) -> str:
    """A ratio.

    >>> times(4)
    '4.00×'
    """
    return f"{digits(value)}×"


@_or_dash
def metric(value: float) -> str:
    """A metric or a fraction: four decimals.

    >>> metric(0.97333333), metric(-0.01), metric(None)
    ('0.9733', '-0.0100', '–')
    """
    return f"{value:.4f}"


@_or_dash
def error(value: float) -> str:
    """A small number of which the magnitude matters.

    >>> error(1.234e-7)
    '1.2e-07'
    """
    return f"{value:.1e}"


@_or_dash
def megabytes(value: float) -> str:
    """Bytes, where the unit stands in the head of the column.

    >>> megabytes(153128)
    '0.15'
    """
    return f"{value / 1e6:.2f}"


@_or_dash
def short(value: float) -> str:
    """Any number in a place without a unit: whole ones in full, others with four digits.

    >>> short(153128), short(0.97333333), short(0.5), short(1461.1378)
    ('153,128', '0.9733', '0.5', '1,461.1')
    """
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if abs(value) < 100 else f"{value:,.1f}"


@_or_dash
def figure(value: float) -> str:
    """The same where numbers stand below each other: four decimals.

    >>> figure(153128), figure(0.97333333), figure(0.5), figure(1461.1378)
    ('153,128', '0.9733', '0.5000', '1,461.1')
    """
    if float(value).is_integer() and abs(value) >= 2:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4f}"
