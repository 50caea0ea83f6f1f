"""``prunus compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from prunus._common.numbers import short
from prunus._common.tables import Table
from prunus.cli import completion
from prunus.cli.shared import JSON, says_errors, show
from prunus.errors import InputError


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path),
                shell_complete=completion.runs)  # fmt: skip
@JSON
@says_errors
def compare(folders: tuple[Path, ...], as_json: bool) -> None:
    """Compare two or more runs side by side.

    \b
    Example:
      prunus compare runs/iterative-1a2b3c4d runs/gradual-5e6f7a8b
    """
    from prunus.report.compare import compare as rows_of

    if len(folders) < 2:
        raise InputError("compare needs at least two runs: prunus compare RUN RUN")
    rows = rows_of(folders)
    if not as_json:
        show(_table(rows))
        return
    for row in rows:
        click.echo(json.dumps(row))


def _table(rows: list[dict[str, Any]]) -> Table:
    keys = [key for key in rows[0] if key != "name"]
    return Table(
        ("", *(str(row["name"]) for row in rows)),
        [(key.replace("_", " "), *(_cell(row[key]) for row in rows)) for key in keys],
    )


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else short(value)
