"""Formulas as MathML, which browsers draw themselves: no script, and none from elsewhere."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def _written(display: str) -> Any:
    def visit(page: Any, node: nodes.Element) -> None:
        page.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode

    return visit, None


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", _written("inline"), _written("block"))
    return {"parallel_read_safe": True}
