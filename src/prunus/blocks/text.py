"""Text as windows of token ids."""

from __future__ import annotations

import gzip
import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from prunus.errors import InputError

SUFFIXES = (".txt", ".jsonl", ".json", ".gz", ".pt", ".safetensors")
TOKENS_AT_A_TIME = 2048


PAIRS = (("source", "target"), ("prompt", "completion"), ("input_ids", "labels"))
"""What an encoder reads, and what its decoder is to write, in a line of a ``.jsonl``."""


def documents(source: Path, *, pairs: bool = False) -> Iterator[Any]:
    """The texts of a file, or of a folder of them: strings, lists of messages, or lists of ids.

    Args:
        source: of them.
        pairs: whether lines that hold what an encoder reads and its decoder writes are tuples.

    A ``.txt`` is one text. A line of a ``.jsonl`` is an object with ``text``, ``messages`` (a
    chat), ``prompt`` and ``completion``, or ``input_ids``; or a string, or a list of ids. A folder
    that ``datasets`` saved has columns of these names. Files may end in ``.gz``.

    Raises:
        InputError: if there is none, or one is none of these.
    """
    if source.is_dir():
        if (source / "dataset_info.json").is_file() or list(source.glob("*.arrow")):
            yield from (_of_object(row, str(source), pairs) for row in _saved(source))
            return
        files = sorted(p for p in source.rglob("*") if p.is_file() and _kind(p))
        if not files:
            raise InputError(f"'{source}' has no .txt or .jsonl file")
        for file in files:
            yield from documents(file, pairs=pairs)
        return
    if not source.is_file():
        raise InputError(f"there is no '{source}'")
    kind = _kind(source)
    if not kind:
        raise InputError(f"'{source}' is no .txt, .jsonl (or .gz of them), nor a folder of them")
    try:
        with _opened(source) as text:
            if kind == ".txt":
                yield text.read()
                return
            for number, line in enumerate(text, 1):
                if line.strip():
                    row = _parsed(line, source, number)
                    yield _of_object(row, f"{source}, line {number}", pairs)
    except UnicodeDecodeError as error:
        raise InputError(f"'{source}' is not UTF-8: {error}") from error
    except (OSError, EOFError) as error:
        raise InputError(f"'{source}' cannot be read: {error}") from error


def _opened(source: Path) -> TextIO:
    if source.suffix == ".gz":
        return gzip.open(source, "rt", encoding="utf-8")
    return source.open(encoding="utf-8")


def _kind(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return next((kind for kind in (".txt", ".jsonl") if name.endswith(kind)), "")


def _parsed(line: str, source: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(f"'{source}', line {number} is no JSON: {error}") from error


def _of_object(value: Any, where: str, pairs: bool = False) -> Any:
    if isinstance(value, dict):
        for keys in PAIRS if pairs else ():
            if all(key in value for key in keys):
                return tuple(value[key] for key in keys)
        for key in ("messages", "input_ids", "text"):
            if key in value:
                return value[key]
        if "prompt" in value and "completion" in value:
            return value["prompt"] + value["completion"]
        raise InputError(
            f"{where}: an object with text, messages, prompt and completion, or input_ids is "
            f"needed; it has {', '.join(map(str, value))[:80]}"
        )
    if isinstance(value, (str, list)):
        return value
    raise InputError(f"{where}: a text, a chat or a list of token ids is needed")


def _saved(folder: Path) -> Iterator[Any]:
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise InputError(f"'{folder}' is read by datasets: pip install datasets") from error
    found = datasets.load_from_disk(str(folder))
    rows = found if not isinstance(found, dict) else next(iter(found.values()))
    yield from rows


def token_ids(source: Path, tokenizer: Any, *, clean: Sequence[str] = ()) -> Tensor:
    """All of a source as one row of ids, each text behind the beginning of a sequence.

    Args:
        source: as :func:`documents`.
        tokenizer: of transformers; not needed for ids.
        clean: what is taken out of texts first.

    Raises:
        InputError: if there is no tokenizer, or no text.
    """
    rows = []
    for document in documents(source):
        rows.append(_ids(document, tokenizer, clean, source))
    found = torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64)
    if not found.numel():
        raise InputError(f"'{source}' holds no text")
    return found


def _ids(document: Any, tokenizer: Any, clean: Sequence[str], source: Path) -> Tensor:
    if isinstance(document, list) and all(isinstance(n, int) for n in document):
        return torch.tensor(document, dtype=torch.int64)
    if tokenizer is None:
        raise InputError(f"'{source}' is text, and the model's folder has no tokenizer: give ids")
    if isinstance(document, list):
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(f"'{source}' holds chats, and the tokenizer has no template for them")
        document = tokenizer.apply_chat_template(document, tokenize=False)
    for part in clean:
        document = document.replace(part, "")
    found = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(found, dtype=torch.int64)


def paired(
    source: Path, tokenizer: Any, *, length: int, start: int, clean: Sequence[str] = ()
) -> list[dict[str, Tensor]]:
    """A batch for each pair of what an encoder reads and its decoder writes; empty: there is none.

    Args:
        source: as :func:`documents`.
        tokenizer: of transformers; not needed for ids.
        length: tokens of each at most.
        start: the id that begins what the decoder writes.
        clean: what is taken out of texts first.

    Raises:
        InputError: if some lines are pairs and others are not, or there is no tokenizer.
    """
    found = []
    others = 0
    for document in documents(source, pairs=True):
        if not isinstance(document, tuple):
            others += 1
            continue
        read, written = (_special(part, tokenizer, clean, source)[:length] for part in document)
        begun = torch.cat([torch.tensor([start]), written])[:length]
        if len(read) and len(begun) > 1:
            found.append({"input_ids": read[None], "decoder_input_ids": begun[None]})
    if found and others:
        raise InputError(f"'{source}': {len(found)} lines are pairs and {others} are not")
    return found


def _special(document: Any, tokenizer: Any, clean: Sequence[str], source: Path) -> Tensor:
    """The ids of a text as the tokenizer ends it."""
    if not isinstance(document, str) or tokenizer is None:
        return _ids(document, tokenizer, clean, source)
    for part in clean:
        document = document.replace(part, "")
    return torch.tensor(tokenizer(document, verbose=False)["input_ids"], dtype=torch.int64)


def halves(rows: Tensor, start: int) -> list[dict[str, Tensor]]:
    """Windows of a text without pairs: an encoder reads the first half, its decoder the second.

    >>> halves(torch.arange(8).view(2, 4), 9)[0]["decoder_input_ids"].tolist()
    [[9, 2, 3], [9, 6, 7]]
    """
    middle = rows.shape[1] // 2
    begin = torch.full((len(rows), 1), start, dtype=rows.dtype)
    return [
        {"input_ids": part["input_ids"], "decoder_input_ids": torch.cat([one, other], 1)}
        for part, one, other in zip(
            batches(rows[:, :middle]),
            begin.split(_many(middle)), rows[:, middle:].split(_many(middle)), strict=True,
        )
    ]  # fmt: skip


def windows(ids: Tensor, count: int, length: int, *, start: int | None, seed: int | None) -> Tensor:
    """Windows of a row of ids, ``[count, length]``.

    Args:
        ids: of a text.
        count: how many windows.
        length: of each.
        start: the id that begins each of them; ``None``: none does.
        seed: they begin at random places; ``None``: one after the other from the beginning.

    Raises:
        InputError: if there is not enough text.

    >>> windows(torch.arange(10), 2, 4, start=99, seed=None).tolist()
    [[99, 0, 1, 2], [99, 3, 4, 5]]
    """
    own = length - (start is not None)
    if len(ids) < own or (seed is None and len(ids) < own * count):
        raise InputError(
            f"{count} windows of {length} tokens need {own * count if seed is None else own} "
            f"tokens of text, and there are {len(ids)}: give more text, or fewer or shorter windows"
        )
    if seed is None:
        begins = torch.arange(count) * own
    else:
        generator = torch.Generator().manual_seed(seed)
        begins = torch.randint(0, len(ids) - own + 1, (count,), generator=generator)
    rows = torch.stack([ids[int(b) : int(b) + own] for b in begins])
    if start is None:
        return rows
    return torch.cat([torch.full((count, 1), start, dtype=rows.dtype), rows], dim=1)


def batches(rows: Tensor) -> list[dict[str, Tensor]]:
    """Windows in batches of about two thousand tokens, as a model is called with them.

    >>> [len(b["input_ids"]) for b in batches(torch.zeros(5, 1024, dtype=torch.int64))]
    [2, 2, 1]
    """
    return [{"input_ids": part} for part in rows.split(_many(rows.shape[1]))]


def _many(length: int) -> int:
    """Windows in a batch."""
    return max(1, TOKENS_AT_A_TIME // length)
