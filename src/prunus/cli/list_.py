"""``prunus list``."""

from __future__ import annotations

import json

import click

from prunus.cli.shared import JSON, says_errors
from prunus.errors import InputError


@click.command(name="list")
@click.argument("axis", required=False)
@JSON
@says_errors
def list_(axis: str | None, as_json: bool) -> None:
    """Everything that a recipe can name, one line each, with its source; and the runtimes.

    \b
    Examples:
      prunus list
      prunus list criteria
      prunus list runtimes
    """
    from prunus.errors import did_you_mean
    from prunus.methods.catalog import AXES, entries, recipe_entries

    sections = {name: entries(name) for name in (*AXES, "tasks")}
    sections["recipes"] = recipe_entries()
    sections["runtimes"] = entries("runtimes")
    if axis is not None and axis not in sections:
        raise InputError(f"there is no '{axis}' to list; {did_you_mean(axis, sections)}")
    for section, found in sections.items():
        if axis not in (None, section):
            continue
        if as_json:
            for e in found:
                more = {"pip": _pip(e.name)} if section == "runtimes" else {}
                click.echo(json.dumps({"axis": section, **vars(e), **more}))
            continue
        click.secho(section, bold=True)
        for e in found:
            settings = f" ({', '.join(e.settings)})" if e.settings else ""
            source = f"  [{e.source}]" if e.source else ""
            lacks = _pip(e.name) if section == "runtimes" else None
            how = f"  [not installed: {lacks}]" if lacks else ""
            click.echo(f"  {e.name}{settings}: {e.line}{source}{how}")
        click.echo()


def _pip(runtime: str) -> str | None:
    """How to install what a runtime lacks; ``None`` where it is all there."""
    from prunus._common.packages import missing, pip_line
    from prunus.methods.catalog import constant

    lacking = missing(constant("runtimes", runtime, "FACTS")["needs"])
    return pip_line(lacking) if lacking else None
