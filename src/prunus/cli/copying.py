"""An example of prunus's repository, as a project of one's own."""

from __future__ import annotations

import re
from pathlib import Path

from prunus._common import examples
from prunus._common.own_files import written
from prunus.cli.template import write_texts
from prunus.errors import InputError, did_you_mean


def copy_example(name: str, folder: Path) -> list[Path]:
    """Copy an example's code and recipes, so that they run wherever the folder lies.

    The recipes name the task's file beside them; what examples share lies in the folder as well.
    The example's page is about the example, and stays where it is.

    Args:
        name: of the example, or its folder.
        folder: the project's.

    Returns:
        The files; recipes last.

    Raises:
        InputError: if there is no such example, a file of that name exists, or the folder cannot
            be written.
    """
    known = examples.tasks()
    wanted = Path(name).resolve().name if "/" in name else name
    if wanted not in known:
        raise InputError(f"there is no example '{name}'; {_near(wanted, known)}")
    texts = {folder / path: text for path, text in _texts(wanted, known[wanted].parent).items()}
    for path, text in texts.items():
        if path.exists() and path.read_bytes() != text.encode():
            raise InputError(
                f"'{path}' exists; name another folder: prunus init --from {wanted} my_project"
            )
    return write_texts(folder, texts)


def _near(name: str, known: dict[str, Path]) -> str:
    if not known:
        return examples.hint().lstrip("; ")
    return did_you_mean(name, known)


def _texts(name: str, folder: Path) -> dict[str, str]:
    """What the project's files say, by their names."""
    found: dict[str, str] = {}
    files = sorted(folder.glob("*.py"))
    for path in files:  # what one shares with others comes behind them
        text = path.read_text(encoding="utf-8")
        for words, other in written(path).items():
            if other.resolve().parent != folder.resolve():
                text = text.replace(words, f'Path(__file__).with_name("{other.name}")')
                files += [] if other in files else [other]
        found[path.name] = text
    for path in sorted(folder.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        begin = r"^(task:\s*(?:\{\s*)?(?:name:\s*)?)"
        found[path.name] = re.sub(
            rf"{begin}{name}\b", rf"\g<1>{name}.py:{name}", text, flags=re.MULTILINE
        )
    return found
