"""What people look at after a run: one HTML file, the same pictures as PNG, a comparison."""

from __future__ import annotations

from prunus._common.packages import lacking


def why_not() -> str | None:
    """Why no page and no picture can be made here; ``None`` where they can."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        return lacking(error)
    return None
