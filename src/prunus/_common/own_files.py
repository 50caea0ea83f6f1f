"""Which files a Python file of a user's own runs in turn, read from its text: nothing runs.

What lies beside a file can be imported by it, as when it is run as a script: modules and packages
of its folder. A file may also be named by a path that is written from ``__file__``, such as
``Path(__file__).with_name("net.py")``.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

MODULE, PACKAGE = ".py", "__init__.py"


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def beside(path: Path) -> dict[str, Path]:
    """The other files that a file runs, and those that these run, by their paths seen from it.

    Of a package every file counts: what it imports may depend on names that only running tells.
    """
    start = path.resolve()
    found = _reached([start], start.parent)
    return {Path(os.path.relpath(p, start.parent)).as_posix(): p for p in sorted(found - {start})}


def _reached(starts: Sequence[Path], home: Path) -> set[Path]:
    """Files, and all that they run."""
    found = set(starts)
    queue = [(start, home) for start in starts]
    while queue:
        file, home = queue.pop()
        for other, its_home in _named(file, home):
            if other not in found:
                found.add(other)
                queue.append((other, its_home))
    return found


BESIDE = " > "
"""Between a file's name and the path, seen from it, of one that it runs."""


def digests(name: str, path: Path) -> dict[str, str]:
    """Of a file by its name, and of those that it runs in turn by ``name > path``."""
    others = {f"{name}{BESIDE}{rest}": digest(other) for rest, other in beside(path).items()}
    return {name: digest(path), **others}


def place_digest(place: Path, home: Path) -> str:
    """Of where a module, a package or a folder lies and of all code that it can run.

    Two projects have different ones, and so has one project after an edit.

    Args:
        place: as :func:`place_of` gives it.
        home: beside which folder it imports.
    """
    folder = place if place.is_dir() else place.parent if place.name == PACKAGE else None
    starts = [place] if folder is None else sorted(folder.rglob(f"*{MODULE}"))
    reached = sorted(_reached([start.resolve() for start in starts], home))
    told = [str(place), *(f"{path}{BESIDE}{digest(path)}" for path in reached)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def place_of(folder: Path, name: str) -> Path | None:
    """Where a module lies in a folder: its file, its package's, or a folder that is none.

    The last holds Python files without an ``__init__.py``, as Python allows.
    """
    if name in sys.builtin_module_names:
        return None
    for place in (folder / name / PACKAGE, folder / f"{name}{MODULE}"):
        if place.is_file():
            return place
    here = folder / name
    return here if here.is_dir() and any(here.glob("*.py")) else None


def imported_from(home: Path, name: str) -> Path | None:
    """Where what a file beside ``home``'s imports by a name lies; ``None``: elsewhere.

    A folder that is no package stands behind what is installed, as in Python.
    """
    place = place_of(home, name)
    if place is None or not place.is_dir():
        return place
    spec = PathFinder.find_spec(name)
    return place if spec is None or spec.loader is None else None


def _named(file: Path, home: Path) -> Iterator[tuple[Path, Path]]:
    """The files that one names itself, each with the folder beside which it imports."""
    state = file.stat()
    text = _text(file, state.st_mtime_ns, state.st_size)
    for wanted in text.imports:
        yield from ((p.resolve(), home) for p in _files(file, home, wanted))
    for path in text.paths:
        if path.is_file():
            yield path.resolve(), path.resolve().parent


def _files(file: Path, home: Path, wanted: _Import) -> Iterator[Path]:
    """Of an import, those that lie beside: of every package on the way, and the last one's."""
    folder, parts = home, wanted.parts
    for _ in range(wanted.level):
        folder = file.parent if folder == home else folder.parent
    for i, part in enumerate(parts):
        first = not wanted.level and i == 0
        place = imported_from(folder, part) if first else place_of(folder, part)
        if place is None:
            return
        yield from _inside(place, whole=first)
        if place.name != PACKAGE and not place.is_dir():
            return
        folder = place if place.is_dir() else place.parent
    for name in wanted.names if parts or wanted.level else ():
        if (place := place_of(folder, name)) is not None:
            yield from _inside(place, whole=False)


def _inside(place: Path, *, whole: bool) -> Iterator[Path]:
    if place.is_dir():
        return
    yield place
    if whole and place.name == PACKAGE:
        yield from sorted(place.parent.rglob("*.py"))


@dataclass(frozen=True)
class _Import:
    """``from ..parts import names``, with so many dots."""

    level: int
    parts: tuple[str, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Text:
    """What the text of a file says: its imports, and paths of Python files."""

    imports: tuple[_Import, ...] = ()
    paths: tuple[Path, ...] = ()


@functools.lru_cache(maxsize=4096)
def _text(file: Path, _time: int, _size: int) -> _Text:
    """Of a file as it was at a time; what is no Python names nothing."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _Text()
    return _Text(
        tuple(one for node in ast.walk(tree) for one in _imports(node)),
        tuple(dict.fromkeys(path for _, path in _paths(tree, file))),
    )


def written(file: Path) -> dict[str, Path]:
    """The Python files that a file names by paths, by the words that stand for them in its text.

    Raises:
        SyntaxError: if it is no Python.
    """
    text = file.read_text(encoding="utf-8")
    found = {
        ast.get_source_segment(text, node): path for node, path in _paths(ast.parse(text), file)
    }
    return {words: path for words, path in found.items() if words and path.is_file()}


def _paths(tree: ast.Module, file: Path) -> Iterator[tuple[ast.expr, Path]]:
    """Expressions that give the path of another Python file."""
    names = _assigned(tree, file)
    for node in ast.walk(tree):
        path = _path(node, file, names) if isinstance(node, (ast.BinOp, ast.Call)) else None
        other = path is not None and path.suffix == MODULE and path != file
        if path is not None and other and isinstance(node, ast.expr):
            yield node, path


def _imports(node: ast.AST) -> Iterator[_Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield _Import(0, tuple(alias.name.split(".")))
    elif isinstance(node, ast.ImportFrom):
        parts = tuple(node.module.split(".")) if node.module else ()
        yield _Import(node.level, parts, tuple(alias.name for alias in node.names))


def _assigned(tree: ast.Module, file: Path) -> dict[str, Path]:
    """Names of the module's own that stand for paths written from ``__file__``."""
    found: dict[str, Path] = {}
    for node in tree.body:
        targets: Sequence[ast.expr] = ()
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        value = _path(node.value, file, found) if targets else None  # type: ignore[attr-defined]
        if value is not None:
            found |= {target.id: value for target in targets if isinstance(target, ast.Name)}
    return found


def _path(node: ast.expr | None, file: Path, names: dict[str, Path]) -> Path | None:
    """The path that an expression gives, if it is written from ``__file__`` and texts alone."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        base, text = _path(node.left, file, names), _constant(node.right)
        return base / text if base is not None and isinstance(text, str) else None
    if isinstance(node, ast.Attribute) and node.attr == "parent":
        base = _path(node.value, file, names)
        return None if base is None else base.parent
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute):
        base, count = _path(node.value.value, file, names), _constant(node.slice)
        if node.value.attr != "parents" or base is None or not isinstance(count, int):
            return None
        return base.parents[count] if 0 <= count < len(base.parents) else None
    return _called(node, file, names) if isinstance(node, ast.Call) else None


def _called(node: ast.Call, file: Path, names: dict[str, Path]) -> Path | None:
    function = node.func
    word = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    if word == "Path" and len(node.args) == 1:
        given = node.args[0]
        return file if isinstance(given, ast.Name) and given.id == "__file__" else None
    base = _path(function.value, file, names) if isinstance(function, ast.Attribute) else None
    texts = [_constant(one) for one in node.args]
    if base is None or not all(isinstance(text, str) for text in texts):
        return None
    if word in ("resolve", "absolute") and not texts:
        return base
    if word == "joinpath":
        return base.joinpath(*texts)  # type: ignore[arg-type]
    if word == "with_name" and len(texts) == 1 and texts[0] and "/" not in str(texts[0]):
        return base.with_name(str(texts[0]))
    return None


def _constant(node: ast.expr) -> object:
    return node.value if isinstance(node, ast.Constant) else None
