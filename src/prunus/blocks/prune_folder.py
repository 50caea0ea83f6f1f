"""A folder of transformers made into another one, block by block."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus._common.files import disk_errors, refuse_links, write_atomically, write_json
from prunus._common.given import given_batches
from prunus._common.inputs import tensors_of
from prunus._common.memory import give_back
from prunus._common.modules import evaluating
from prunus._common.rng import preserve_rng, seed
from prunus.blocks.depth import Shallow, refuse_depth, shallower
from prunus.blocks.evaluate import Estimate, accuracy, compare, questions_of
from prunus.blocks.folder import REPORT, SCRATCH, Folder
from prunus.blocks.job import Job
from prunus.blocks.judge import Judge
from prunus.blocks.recipe import BLOCK, BlockRecipe, BlockResult
from prunus.blocks.source import Source
from prunus.blocks.structuring import Sizes, structure_of
from prunus.blocks.text import batches, token_ids, windows
from prunus.errors import InputError

PICTURE = "pruned.png"
"""Beside it: rates and errors by block."""
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
HELD = 10
"""One token of so many of the calibration text is held out, where no other text judges."""


def prune_folder(
    folder: Path,
    out: Path,
    how: BlockRecipe,
    calibration: Any,
    *,
    held: Any = None,
    loss: Callable[..., Tensor] | None = None,
    on_block: Callable[[str, float], None] | None = None,
) -> BlockResult:
    """Prune a folder of transformers; :func:`prunus.prune_blocks` explains the arguments.

    Raises:
        InputError: for what cannot be used, before anything is written.
        RunError: if the disk is full, or what a matrix multiplies is not finite. What is done is
            kept: the same call goes on.
    """
    began = time.process_time()
    if out.resolve() == folder.resolve():
        raise InputError(f"'{out}' is the model's own folder: name another one for the result")
    source = Folder(folder, out, how.blocks)
    calibrating, judging = given_text(source, how, calibration, held)
    if how.guard is not None and not judging:
        raise InputError("guard: it judges by data that nothing is chosen by: give held")
    asked = _fingerprint(source, how, (calibrating, judging))
    finished = _begun(out, asked)
    if finished is not None:
        return _finished(finished, folder, judging)
    sizes = _sizes(source, how, calibrating) if how.parts else None
    _room(source, out, calibrating, judging)
    give_back()
    scratch = out / SCRATCH
    with disk_errors(out):
        scratch.mkdir(parents=True, exist_ok=True)
    write_json(scratch / "asked.json", asked)
    walked: Source = source
    if BLOCK in how.parts:
        dropped = shallower(source, how, calibrating, scratch / "depth.json")
        sizes = structure_of(source, how, calibrating, dropped)
        walked, source.names = Shallow(source, dropped), sizes.names
    if sizes is not None:
        source.smaller = sizes.fresh
    with preserve_rng(), evaluating(source.model), torch.no_grad():
        seed(how.seed)
        job = Job(walked, how, calibrating, judging, Judge(loss), on_block or (lambda *_: None),
                  sizes)  # fmt: skip
        job.run(scratch / "walk.json")
    result = dataclasses.replace(job.result(time.process_time() - began), folder=out)
    said = {"asked": asked, "recipe": how.model_dump(mode="json"), "errors": dict(result.errors),
            "rates": dict(result.rates), "sparsity": result.sparsity, "loss": result.loss,
            "seconds": round(result.seconds, 1), "stayed": dict(result.stayed),
            "gate": result.gate}  # fmt: skip
    with disk_errors(out / REPORT):
        source.finish(said)
    return _finished(result, folder, judging)


def _sizes(source: Folder, how: BlockRecipe, calibration: list[Any]) -> Sizes:
    """What goes of each block; refused where a folder cannot say it."""
    if BLOCK in how.parts:
        refuse_depth(source, how, calibration)
    sizes = structure_of(source, how, calibration)
    if sizes.fresh is None:
        raise InputError(
            f"no config.json says the sizes that would be left ({sizes.why}): open the model, "
            "give it to prunus.prune_blocks, and write the result with prunus.hf.save"
        )
    return sizes


def _finished(result: BlockResult, folder: Path, held: list[Any]) -> BlockResult:
    """The result beside the dense model, on text that nothing was chosen by; noted and drawn."""
    out = result.folder
    assert out is not None
    if held:
        with tempfile.TemporaryDirectory(dir=out) as place:
            sides = [Folder(one, out) for one in (folder, out)]
            for side in sides:
                side.scratch = Path(place)
            found = compare(sides[0], sides[1], held)
        if found is not None:
            said = json.loads((out / REPORT).read_text(encoding="utf-8"))
            write_json(out / REPORT, {**said, "comparison": found.to_dict()})
            result = dataclasses.replace(result, comparison=found)
    with contextlib.suppress(ModuleNotFoundError):  # without the extra that draws
        write_atomically(out / PICTURE, picture_of(result))
    return result


def picture_of(result: BlockResult) -> bytes:
    """How much of each block went, and what it cost there, as PNG."""
    pictures: Any = importlib.import_module("prunus._common.pictures")
    figure, axes = pictures.figure_of(6.4, 3.6)
    places = range(len(result.rates))
    axes.bar(places, list(result.rates.values()), color=pictures.SERIES, alpha=0.6)
    axes.set_xlabel("block")
    axes.set_ylabel("part that went", color=pictures.SERIES)
    beside = axes.twinx()
    beside.plot(places, list(result.errors.values()), "o-", color=pictures.WARM, markersize=4)
    beside.set_ylabel("error of the block's answer", color=pictures.WARM)
    beside.set_ylim(bottom=0)
    return pictures.as_png(figure)  # type: ignore[no-any-return]


def answers_of(folder: Path, out: Path, questions: Path) -> tuple[Estimate, Estimate]:
    """How many multiple-choice questions the dense and the smaller model answer rightly.

    Args:
        folder: the dense model's.
        out: what was made of it; the answers are noted in its ``pruned.json``.
        questions: a ``.jsonl``, see :func:`prunus.blocks.evaluate.questions_of`.

    Raises:
        InputError: if there is no tokenizer, or a line is no question.
    """
    found = []
    for place in (folder, out):
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            source = Folder(place, out)
            source.scratch = Path(scratch)
            tokenizer = _tokenizer(source)
            if tokenizer is None:
                raise InputError(f"'{place}' has no tokenizer: questions are texts")
            found.append(accuracy(source, questions_of(questions, tokenizer)))
    said = json.loads((out / REPORT).read_text(encoding="utf-8"))
    write_json(out / REPORT, {**said, "questions": [vars(one) for one in found]})
    return found[0], found[1]


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
    tokenizer = _tokenizer(source)
    start = _beginning(source, tokenizer)
    text = how.text
    ids = token_ids(Path(calibration), tokenizer, clean=text.clean)
    if held is None and text.held:
        cut = len(ids) - len(ids) // HELD
        ids, judging = ids[:cut], ids[cut:]
    elif isinstance(held, (str, Path)):
        judging = token_ids(Path(held), tokenizer, clean=text.clean)
    else:
        judging = None
    chosen = windows(ids, text.windows, text.length, start=start, seed=how.seed)
    if judging is None:
        return _checked(source, chosen), list(held or ())
    judged = windows(judging, text.held, text.length, start=start, seed=None)
    return _checked(source, chosen), _checked(source, judged)


def _checked(source: Folder, rows: Tensor) -> list[Any]:
    words = getattr(source.model.config.get_text_config(), "vocab_size", None)
    if isinstance(words, int) and int(rows.max()) >= words:
        raise InputError(
            f"the text has the token {int(rows.max())}, and the model knows {words}: tokenizer and "
            "model are of different vocabularies"
        )
    return batches(rows)


def _tokenizer(source: Folder) -> Any:
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


def _fingerprint(source: Folder, how: BlockRecipe, data: Sequence[list[Any]]) -> dict[str, Any]:
    """What a walk depends on."""
    digest = hashlib.sha256()
    for tensor in tensors_of(data):
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    stored = {n: [list(t.shape), str(t.dtype)] for n, t in sorted(source.shards.tensors.items())}
    files = {t.path for t in source.shards.tensors.values()}
    ages = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files)
    shards = hashlib.sha256(json.dumps([stored, ages]).encode()).hexdigest()[:16]
    recipe = how.model_dump(mode="json", exclude_defaults=True)
    return {"recipe": recipe, "data": digest.hexdigest()[:16], "shards": shards}


def _begun(out: Path, asked: dict[str, Any]) -> BlockResult | None:
    """What is there of this walk already: its result, if it is through.

    Raises:
        InputError: if something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    refuse_links(out)
    scratch = out / SCRATCH
    try:
        if (scratch / "asked.json").is_file():
            there = json.loads((scratch / "asked.json").read_text(encoding="utf-8"))
        else:
            said = json.loads((out / REPORT).read_text(encoding="utf-8"))
            there = said["asked"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"'{out}' is there already and holds no walk of prunus: name another folder"
        ) from None
    if there != asked:
        differs = ", ".join(k for k in asked if there.get(k) != asked[k])
        raise InputError(
            f"'{out}' holds a walk with another {differs}: name another folder, or remove this one"
        )
    if (scratch / "asked.json").is_file():
        return None
    loss = said["loss"] if said["loss"] is None else (said["loss"][0], said["loss"][1])
    return BlockResult({}, said["errors"], said["rates"], said["sparsity"], said["seconds"], loss,
                       said["stayed"], out, gate=said.get("gate"))  # fmt: skip


def _room(source: Folder, out: Path, calibration: list[Any], held: list[Any]) -> None:
    """See that the result and the activations fit on the disk."""
    weights = sum(t.size for t in source.shards.tensors.values())
    config = source.model.config.get_text_config()
    width = max([int(getattr(config, n, 0) or 0) for n in ("hidden_size", "d_model", "n_embd")])
    tokens = sum(t.numel() for batch in (*calibration, *held) for t in tensors_of(batch)[:1])
    needed = weights + 5 * 4 * tokens * width
    place = next(p for p in (out, *out.resolve().parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    if (out / SCRATCH).is_dir():
        return  # part of it is there
    if needed > free:
        raise InputError(
            f"'{out}' needs {needed / 1e9:.1f} GB (weights, and activations on their way), and "
            f"{free / 1e9:.1f} GB are free"
        )
