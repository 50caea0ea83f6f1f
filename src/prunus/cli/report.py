"""``prunus report``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from prunus.cli import completion
from prunus.cli.shared import JSON, says_errors


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), shell_complete=completion.runs)
@JSON
@says_errors
def report(folder: Path, as_json: bool) -> None:
    """Write the HTML report and the PNG pictures of the run in FOLDER again.

    \b
    Example:
      prunus report runs/iterative-1a2b3c4d
    """
    from prunus.report.page import write_report

    path = str(write_report(folder))
    click.echo(json.dumps({"event": "report", "path": path}) if as_json else path)
