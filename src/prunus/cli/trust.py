"""Code of others: said with its digest before it runs, and asked for unless this user knows it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from prunus.errors import InputError, RunError

_META = "prunus.trust"


def _keep(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.meta[_META] = value


TRUST = click.option(
    "--trust", is_flag=True, envvar="PRUNUS_TRUST", expose_value=False, callback=_keep,
    help="Run the Python files that are named without asking; so does PRUNUS_TRUST=1.",
)  # fmt: skip


def announce(code: Mapping[str, str]) -> None:
    """Say which files run, on standard error, and remember them: this user runs them.

    Args:
        code: SHA-256 by file, as :func:`prunus.recipe.resolve.code_that_runs` gives it: of files
            that are named, and of what these run in turn.
    """
    for file, sha in code.items():
        click.echo(f"runs code from {file} (sha256 {sha[:12]})", err=True)
    remember(code)


def ask(code: Mapping[str, str]) -> None:
    """Say which files would run, and ask about those that this user has not run or confirmed.

    Raises:
        InputError: if the answer is no, or nobody is there to give one.
    """
    new = {file: sha for file, sha in code.items() if not (_folder() / sha).is_file()}
    trusted = click.get_current_context().meta.get(_META, False)
    if not new or trusted:
        announce(code)
        return
    files = [f"{file} (sha256 {sha[:12]})" for file, sha in new.items()]
    says = f"{', '.join(files)}: code that you have not run or confirmed before"
    if not _at_a_terminal():
        raise InputError(f"{says}. Read it, then add --trust, or set PRUNUS_TRUST=1")
    if not click.confirm(f"{says}. Run {'it' if len(new) == 1 else 'them'}?", err=True):
        raise InputError(f"{', '.join(new)}: not run")
    announce(code)


def ask_file(name: str) -> None:
    """The same for what a command names: ``my/model.py:make``; a name without a file is prunus's.

    Raises:
        InputError: if the answer is no, or nobody is there to give one.
    """
    from prunus._common.own_files import beside, digest
    from prunus.methods.catalog import own_file

    file = own_file(name)
    if file is not None and Path(file).is_file():
        others = {str(path): digest(path) for path in beside(Path(file)).values()}
        ask({file: digest(Path(file)), **others})


def _at_a_terminal() -> bool:
    return sys.stdin.isatty()


def _folder() -> Path:
    """Files of this user's, each called by the digest of code that the user ran or confirmed."""
    return Path(click.get_app_dir("prunus")) / "trusted"


def remember(code: Mapping[str, str]) -> None:
    """Of files that this user runs, the digests; they are not asked for any more."""
    if not code:
        return
    from prunus._common.files import write_atomically

    folder = _folder()
    with contextlib.suppress(OSError, RunError):  # then it is asked for again
        folder.mkdir(parents=True, exist_ok=True)
        for sha in code.values():
            if not (folder / sha).exists():
                write_atomically(folder / sha, b"")
