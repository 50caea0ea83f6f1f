"""``prunus compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from prunus.cli.shared import JSON, says_errors
from prunus.errors import InputError


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@JSON
@says_errors
def compare(folders: tuple[Path, ...], as_json: bool) -> None:
    """Set two or more runs beside each other.

    \b
    Example:
      prunus compare runs/iterative-1a2b3c4d runs/gradual-5e6f7a8b
    """
    from prunus.report.compare import compare as rows_of

    if len(folders) < 2:
        raise InputError("compare needs two runs or more: prunus compare RUN RUN")
    _print_rows(rows_of(folders), as_json)


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    import json

    from rich.console import Console
    from rich.table import Table

    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for row in rows:
        table.add_column(str(row["name"]), justify="right", overflow="fold")
    for key in rows[0]:
        if key != "name":
            table.add_row(key.replace("_", " "), *(_cell(row[key]) for row in rows))
    Console(highlight=False).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
