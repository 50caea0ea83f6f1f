"""``prunus init``."""

from __future__ import annotations

from pathlib import Path

import click

from prunus.cli.shared import says_errors


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("."))
@says_errors
def init(folder: Path) -> None:
    """Write task.py and recipe.yaml into FOLDER, ready to run and to edit.

    \b
    Example:
      prunus init my_project && prunus run my_project/recipe.yaml
    """
    from prunus.cli.template import write_template

    for path in write_template(folder):
        click.echo(f"wrote {path}")
    click.echo(f"next: edit both, then: prunus run {folder / 'recipe.yaml'}")
