"""The entry point of the command ``prunus``, which says what is missing where click is."""

from __future__ import annotations

import sys

from prunus._common.packages import lacking


def main() -> None:
    """Run the command, or say which extra brings it."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401

        from prunus.cli.main import cli
    except ModuleNotFoundError as error:
        sys.exit(f"Error: {lacking(error)}")
    cli()
