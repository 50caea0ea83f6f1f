"""``prunus units``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from prunus.cli.shared import DATA, JSON, says_errors
from prunus.cli.trust import TRUST, ask_file


@click.command()
@click.argument("model")
@click.option(
    "--heads",
    type=click.Choice(["whole", "dims"]),
    default="whole",
    help="At attention: whole heads, or the same dimensions of every head.",
)
@click.option("--hidden", is_flag=True, help="Count the widths that norms count as well.")
@click.option("--all", "everything", is_flag=True, help="Name every dimension, not the first four.")
@DATA
@TRUST
@JSON
@says_errors
def units(model: str, heads: Any, hidden: bool, everything: bool, as_json: bool) -> None:
    """Say what can be removed from a MODEL, and what cannot and why.

    MODEL is a task, or a function in a Python file that returns a model and an example of its
    input (or a prunus.Task).

    \b
    Examples:
      prunus units digits
      prunus units my/model.py:make --heads dims
    """
    from prunus.graph.listing import units as units_of
    from prunus.tasks.find import find_model

    ask_file(model)
    made, example = find_model(model)
    found = units_of(made, example, heads=heads, hidden=hidden)
    if not as_json:
        click.echo("\n".join(found.summary(10_000 if everything else 4)))
        return
    for kind in found.coupled:
        click.echo(json.dumps(kind.to_dict()))
    for pin in found.pinned:
        click.echo(json.dumps({"stays": asdict(pin)}))
