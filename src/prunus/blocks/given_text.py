"""Batches for a folder: given ones, or windows of text by its tokenizer."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus._common.given import given_batches
from prunus.blocks.folder import Folder
from prunus.blocks.recipe import BlockRecipe
from prunus.blocks.text import batches, halves, paired, token_ids, windows
from prunus.errors import InputError

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
HELD = 10
"""One token of so many of the calibration text is held out, where no other text judges."""


def given_text(
    source: Folder, how: BlockRecipe, calibration: Any, held: Any
) -> tuple[list[Any], list[Any]]:
    """Batches that choose, and batches that judge: given ones, or windows of text.

    Raises:
        InputError: if there is not enough text, or it is of another vocabulary.
    """
    if not isinstance(calibration, (str, Path)):
        given = given_batches(calibration, "calibration")
        if given is None or isinstance(held, (str, Path)):
            raise InputError("calibration is text, or batches; held is then the same")
        return list(given), list(given_batches(held, "held") or ())
    tokenizer = tokenizer_of(source)
    _refuse_other(source)
    if source.model.config.is_encoder_decoder:
        return _of_coder(source, how, tokenizer, Path(calibration), held)
    start = _beginning(source, tokenizer)
    text = how.text
    ids = token_ids(Path(calibration), tokenizer, clean=text.clean)
    if held is None and text.held:
        ids, judging = _parted(ids)
    elif isinstance(held, (str, Path)):
        judging = token_ids(Path(held), tokenizer, clean=text.clean)
    else:
        judging = None
    chosen = windows(ids, text.windows, text.length, start=start, seed=how.seed)
    if judging is None:
        return _checked(source, chosen), list(held or ())
    judged = windows(judging, text.held, text.length, start=start, seed=None)
    return _checked(source, chosen), _checked(source, judged)


def _refuse_other(source: Folder) -> None:
    """See that the model reads tokens."""
    reads = getattr(source.model, "main_input_name", "input_ids")
    if reads != "input_ids":
        raise InputError(
            f"a {type(source.model).__name__} reads {reads}, which no text is: give batches to "
            "prunus.prune_blocks(folder, recipe, batches, out=…)"
        )


def _of_coder(
    source: Folder, how: BlockRecipe, tokenizer: Any, calibration: Path, held: Any
) -> tuple[list[Any], list[Any]]:
    """Pairs of what an encoder reads and its decoder writes, or halves of windows."""
    text, config = how.text, source.model.config.get_text_config()
    start = getattr(config, "decoder_start_token_id", None)
    start = config.pad_token_id if start is None else start
    if start is None:
        raise InputError("config.json has no decoder_start_token_id: what begins a decoder's text?")

    def made(path: Path) -> list[dict[str, Tensor]]:
        return paired(path, tokenizer, length=text.length, start=start, clean=text.clean)

    pairs, judging = made(calibration), [] if held is None else made(Path(held))
    if not pairs:
        ids = token_ids(calibration, tokenizer, clean=text.clean)
        other = None if held is None else token_ids(Path(held), tokenizer, clean=text.clean)
        if other is None and text.held:
            ids, other = _parted(ids)
        chosen = windows(ids, text.windows, text.length, start=None, seed=how.seed)
        judged = None if other is None or not text.held else windows(
            other, text.held, text.length, start=None, seed=None
        )  # fmt: skip
        for rows in (chosen, *(() if judged is None else (judged,))):
            _checked(source, rows)
        return halves(chosen, start), [] if judged is None else halves(judged, start)
    if held is None and text.held:
        cut = len(pairs) - len(pairs) // HELD
        pairs, judging = pairs[:cut], pairs[cut:]
    if len(judging) < text.held or not pairs:
        raise InputError(
            f"{text.held} pairs judge, and there are {len(judging)} for it: give more, or a "
            "smaller text.held"
        )
    for pair in (*pairs, *judging):
        for ids in pair.values():
            _checked(source, ids)
    generator = torch.Generator().manual_seed(how.seed)
    order = torch.randperm(len(pairs), generator=generator)[: text.windows].tolist()
    return [pairs[i] for i in order], judging[: text.held]


def learning_rows(
    source: Folder, how: BlockRecipe, calibration: Any, held: Any, chosen: Sequence[Any]
) -> list[dict[str, Tensor]]:
    """A batch for each step of a recovery: windows of the text that chooses, or its batches.

    Args:
        source: of the dense model.
        how: the recipe.
        calibration: text, or batches.
        held: text that judges; without it the end of the other is left out.
        chosen: the batches that chose; those are gone through where there is no text.
    """
    asked = how.recover
    assert asked is not None
    if not isinstance(calibration, (str, Path)) or source.model.config.is_encoder_decoder:
        return [dict(chosen[step % len(chosen)]) for step in range(asked.steps)]
    tokenizer = tokenizer_of(source)
    ids = token_ids(Path(calibration), tokenizer, clean=how.text.clean)
    ids = ids if held is not None or not how.text.held else _parted(ids)[0]
    rows = windows(ids, asked.steps * asked.batch, how.text.length,
                   start=_beginning(source, tokenizer), seed=how.seed + 1)  # fmt: skip
    return [{"input_ids": part} for part in rows.split(asked.batch)]


def _parted(ids: Tensor) -> tuple[Tensor, Tensor]:
    """What chooses, and the end, which judges."""
    cut = len(ids) - len(ids) // HELD
    return ids[:cut], ids[cut:]


def _checked(source: Folder, rows: Tensor) -> list[Any]:
    words = getattr(source.model.config.get_text_config(), "vocab_size", None)
    if isinstance(words, int) and int(rows.max()) >= words:
        raise InputError(
            f"the text has the token {int(rows.max())}, and the model knows {words}: tokenizer and "
            "model are of different vocabularies"
        )
    return batches(rows)


def tokenizer_of(source: Folder) -> Any:
    """The tokenizer of a folder, if it has one."""
    if not any((source.folder / name).is_file() for name in TOKENIZERS):
        return None
    library: Any = importlib.import_module("transformers")
    try:
        return library.AutoTokenizer.from_pretrained(str(source.folder), local_files_only=True)
    except Exception as error:  # of transformers, on files from anyone
        raise InputError(f"the tokenizer of '{source.folder}' cannot be opened: {error}") from error


def _beginning(source: Folder, tokenizer: Any) -> int | None:
    for holder in (tokenizer, source.model.config.get_text_config()):
        found = getattr(holder, "bos_token_id", None)
        if isinstance(found, int):
            return found
    return None
