"""Two directives: everything that a task and a recipe can say, and every public name."""

from __future__ import annotations

from docutils import nodes
from keys import page
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import prunus


class RecipeKeys(SphinxDirective):
    """``recipe-keys``: the tables of :mod:`keys`."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(page(), allow_section_headings=True)


class PublicNames(SphinxDirective):
    """``public-names``: what ``prunus`` offers, of one kind: function, class or exception."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        kind = self.arguments[0]
        found = [name for name in prunus.__all__ if kind_of(getattr(prunus, name)) == kind]
        lines = []
        for name in found:
            lines += [f".. auto{kind}:: prunus.{name}", *_MEMBERS[kind], ""]
        return self.parse_text_to_nodes("\n".join(lines))


_MEMBERS = {"function": (), "class": ("   :members:",), "exception": ()}


def kind_of(value: object) -> str:
    """What Sphinx calls such a value."""
    if not isinstance(value, type):
        return "function"
    return "exception" if issubclass(value, Exception) else "class"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("recipe-keys", RecipeKeys)
    app.add_directive("public-names", PublicNames)
    return {"parallel_read_safe": True}
