"""The command line: the commands in the order in which one needs them.

A new command is a file in ``prunus.cli`` and a word here. torch is imported only once a
command needs it.
"""

from __future__ import annotations

import click

from prunus.cli.compare import compare
from prunus.cli.deploy import deploy
from prunus.cli.init import init
from prunus.cli.list_ import list_
from prunus.cli.llm import llm
from prunus.cli.measure import measure
from prunus.cli.plan import plan
from prunus.cli.report import report
from prunus.cli.run import resume, run
from prunus.cli.scan import scan
from prunus.cli.sweep import sweep
from prunus.cli.units import units

COMMANDS = (
    run, resume, sweep, llm, report, compare, measure, deploy, plan, units, scan, init, list_,
)  # fmt: skip


class _Help(click.Group):
    """Commands in the order in which one needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Help, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="prunus", prog_name="prunus")
def cli() -> None:
    """Progressive pruning for PyTorch: judged, rolled back, resumable, exact.

    \b
    Examples:
      prunus run iterative                          the embedded digits, in rounds, to 95 %
      prunus run gradual task=mnist target=0.98     another task and target
      prunus run my/recipe.yaml task=my/task.py     your own model and data
      prunus sweep iterative target=0.8,0.9,0.95    the same with other values, side by side
      prunus plan iterative                         what would happen, without training
      prunus list                                   everything that can be named in a recipe
    """


for _command in COMMANDS:
    cli.add_command(_command)
