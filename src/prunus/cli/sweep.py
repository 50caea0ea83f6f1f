"""``prunus sweep``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from prunus.cli import completion
from prunus.cli.shared import DATA, JSON, THREADS, says_errors, show, stoppable
from prunus.cli.trust import remember
from prunus.errors import RunError


@click.command()
@click.argument("recipe", shell_complete=completion.recipes)
@click.argument(
    "space",
    nargs=-1,
    required=True,
    metavar="KEY=A,B,C|LOW..HIGH|VALUE...",
    shell_complete=completion.changes,
)
@click.option(
    "--trials", type=click.IntRange(1),
    help="How many in all (default: every combination of lists; 20 with a range).",
)  # fmt: skip
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False),
    help="Where all runs are kept (default: below sweeps/).",
)  # fmt: skip
@click.option(
    "--storage",
    help="A database's address, or a journal file on a shared disk, for many machines "
    "(default: SQLite in the folder).",
)
@click.option("--study", help="Its name in the storage (default: the folder's own).")
@click.option("--no-stop", is_flag=True, help="Let hopeless trials run to the end.")
@DATA
@THREADS
@JSON
@says_errors
def sweep(
    recipe: str, space: tuple[str, ...], no_stop: bool, as_json: bool, **settings: Any
) -> None:
    """Run a RECIPE with other values, and show the trials that no other dominates.

    KEY=A,B,C tries each value, KEY=LOW..HIGH numbers between two (of whole numbers whole ones;
    logarithmic where it spans more than a factor of 100, or as :log and :linear say), KEY=VALUE is
    for all. Lists alone are a grid; with a range, trials are proposed by Optuna from those before.

    Each trial is a run of its own. Run again, the same command continues: finished trials are
    skipped, a half-finished one resumes. Several processes, or machines with one --storage, share
    the work.

    A trial is stopped as hopeless once another was ahead of it after no more training, with at most
    as much left, and ended ahead of it, with at most as much left as this one aims at. Ahead means:
    better than this one's newest round (the dense one counts; of rejected ones two in a row) by
    more than the guard's max_drop. A recipe without a guard stops nothing.

    \b
    Examples:
      prunus sweep iterative target=0.8,0.9,0.95 criterion=magnitude,fisher
      prunus sweep gradual target=0.5..0.99 'schedule={name: cubic},{name: linear}' --trials 30
      prunus sweep channels target.max_macs=0.3..0.7 --storage postgresql://host/db
    """
    from prunus.cli import console
    from prunus.sweep import sweep as run_sweep

    shown = console.choose(as_json=as_json)

    def watch(event: Mapping[str, Any]) -> None:
        remember(event.get("code", {}))
        line = None if as_json else _line(event)
        shown(event if line is None else {"event": "note", "text": line})

    with stoppable() as stopped:
        try:
            done = run_sweep(recipe, space, stop_hopeless=not no_stop, on_event=watch,
                             should_stop=lambda: bool(stopped), **settings)  # fmt: skip
        finally:
            shown.close()
    _print(done, as_json)
    if done.best is None:
        raise RunError("no trial is finished")


def _line(event: Mapping[str, Any]) -> str | None:
    if event["event"] == "trial":
        values = ", ".join(f"{k}={v}" for k, v in event["values"].items())
        return f"trial {event['number']}: {values}"
    if event["event"] == "tried":
        reason = f": {event['reason']}" if event["reason"] else ""
        return f"trial {event['number']} {event['state']}{reason}"
    return None


def _print(done: Any, as_json: bool) -> None:
    from prunus.sweep.summary import summary, table

    if as_json:
        click.echo(json.dumps({"event": "sweep", "folder": str(done.folder), **done.to_dict()}))
        return
    click.echo()
    show(table(done))
    click.echo()
    for line in summary(done):
        click.echo(line)
    click.echo(f"wrote {done.folder / 'sweep.json'} and pareto.png")
