"""How Sphinx builds the site from the pages of this repository: ``make docs``.

The pages are Markdown that reads well on its own; links between them, the README, the examples and
the benchmarks are the same here and there.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
ROOT = HERE.parent

project = "prunus"
copyright = "the prunus developers"
extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "public_names", "mathml",
]  # fmt: skip
html_math_renderer = "mathml"
root_doc = "docs/index"
include_patterns = [
    "docs/*.md", "docs/*.rst", "docs/migrating/*.md", "benchmarks/*.md", "examples/*/README.md",
    "README.md", "README.zh-CN.md", "CHANGELOG.md", "CONTRIBUTING.md",
]  # fmt: skip
html_theme = "furo"
html_title = "prunus"
html_extra_path = ["_site"]  # the address without a page leads to the first page
html_copy_source = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_use_rtype = False

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s:]+)\)")


def _only_pages(app: Sphinx, name: str, source: list[str]) -> None:
    """A link to a folder leads to its page, or is text: a site has no listings of folders."""
    place = (ROOT / name).parent

    def written(link: re.Match[str]) -> str:
        target = place / link[2]
        if not target.is_dir():
            return link[0]
        page = target / "README.md"
        return f"[{link[1]}]({link[2]}/README.md)" if page.is_file() else link[1]

    source[0] = _LINK.sub(written, source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _only_pages)
