"""``prunus init``."""

from __future__ import annotations

from pathlib import Path

import click

from prunus.cli import completion
from prunus.cli.shared import says_errors


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("."))
@click.option(
    "--from",
    "example",
    metavar="EXAMPLE",
    shell_complete=completion.example_names,
    help="Copy an example: its task, its recipes and its code.",
)
@says_errors
def init(folder: Path, example: str | None) -> None:
    """Write task.py and recipe.yaml into FOLDER, ready to run and to edit; or copy an example.

    \b
    Examples:
      prunus init my_project && prunus run my_project
      prunus init --from movie_reviews my_project
    """
    from prunus._common.own_files import digest
    from prunus.cli.copying import copy_example
    from prunus.cli.template import write_template
    from prunus.cli.trust import remember

    written = write_template(folder) if example is None else copy_example(example, folder)
    remember({str(path): digest(path) for path in written if path.suffix == ".py"})
    for path in written:
        click.echo(f"wrote {path}")
    recipes = [path for path in written if path.suffix == ".yaml"]
    click.echo(f"next: edit them, then: prunus run {recipes[0]}")
