"""A folder of transformers made into another one, block by block."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus._common.files import disk_errors, refuse_links, write_json
from prunus._common.memory import give_back
from prunus._common.modules import evaluating
from prunus._common.nested import tensors_of
from prunus._common.rng import preserve_rng, seed
from prunus.blocks.depth import Shallow, refuse_depth, shallower
from prunus.blocks.folder import REPORT, SCRATCH, Folder
from prunus.blocks.given_text import given_text, learning_rows
from prunus.blocks.hidden import Narrow
from prunus.blocks.job import Job
from prunus.blocks.judge import Judge
from prunus.blocks.narrowed import narrow_for, narrowed
from prunus.blocks.recipe import BLOCK, HIDDEN, BlockRecipe, BlockResult
from prunus.blocks.recovery import recover, room_for_learning
from prunus.blocks.side_by_side import compared, side_by_side
from prunus.blocks.sizes import Sizes, structure_of
from prunus.blocks.source import Source
from prunus.blocks.structuring import Structuring
from prunus.blocks.width import judged_as_a_whole, none_within, too_much, tries, width_of
from prunus.compaction.files.pretrained import is_folder
from prunus.errors import InputError, RunError

WIDTHS = "widths.json"


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
    if is_folder(folder):
        raise InputError(
            f"the blocks of '{folder}' differ in size, which no config.json says: open it by "
            "prunus.load, and give the model to prunus.prune_blocks"
        )
    source = Folder(folder, out, how.blocks)
    calibrating, judging = given_text(source, how, calibration, held)
    if how.guard is not None and not judging:
        raise InputError("guard: it judges by data that nothing is chosen by: give held")
    if how.recover is not None:
        room_for_learning(folder, how)
    rows = [] if how.recover is None else learning_rows(
        source, how, calibration, held, calibrating
    )  # fmt: skip
    asked = _fingerprint(source, how, (calibrating, judging))
    finished = _begun(out, asked)
    if finished is not None:
        return _recovered(finished, folder, how, (judging, calibrating, rows), on_block)
    why = ""
    for tried, sizes in tries(how, lambda h: _sizes(source, h, calibrating) if h.parts else None):
        _room(source, out, how, [*calibrating, *judging])
        give_back()
        with disk_errors(out):
            (out / SCRATCH).mkdir(parents=True, exist_ok=True)
        write_json(out / SCRATCH / "asked.json", asked)
        why = _rejected(out).get(str(width_of(sizes)), "")
        if why:
            continue
        job = _walk(source, tried, (calibrating, judging), sizes, Judge(loss), on_block)
        result = dataclasses.replace(job.result(time.process_time() - began), folder=out)
        why = too_much(how, result)
        if why:
            _reject(out, width_of(sizes), why)
            continue
        said = {"asked": asked, "recipe": tried.model_dump(mode="json"),
                "errors": dict(result.errors), "rates": dict(result.rates),
                "sparsity": result.sparsity, "loss": result.loss,
                "seconds": round(result.seconds, 1), "stayed": dict(result.stayed),
                "gate": result.gate}  # fmt: skip
        with disk_errors(out / REPORT):
            source.finish(said)
        return _recovered(result, folder, how, (judging, calibrating, rows), on_block)
    raise RunError(none_within(why, sizes))


def _walk(
    source: Folder,
    how: BlockRecipe,
    texts: tuple[list[Any], list[Any]],
    sizes: Sizes | Narrow | None,
    judge: Judge,
    on_block: Callable[[str, float], None] | None,
) -> Job:
    """Go through the blocks of a folder, from where an earlier call was."""
    calibrating, judging = texts
    scratch = source.out / SCRATCH
    walked: Source = source
    if BLOCK in how.parts:
        dropped = shallower(source, how, calibrating, held=judging, judge=judge,
                            saved=scratch / "depth.json")  # fmt: skip
        shallow = sizes = structure_of(source, how, calibrating, dropped)
        walked, source.names = Shallow(source, dropped), shallow.names
        source.shallow = shallow.model
    if isinstance(sizes, Sizes):
        source.smaller = sizes.whole.fresh
    if isinstance(sizes, Narrow):
        walked = narrowed(source, how, sizes, calibrating)
        source.smaller, source.narrow = sizes.fresh, sizes
    with preserve_rng(), evaluating(source.model), torch.no_grad():
        seed(how.seed)
        job = Job(walked, how, calibrating, judging, judge, on_block or (lambda *_: None), sizes)
        if isinstance(job.solving, Structuring) and how.uneven:
            source.changes = job.solving.changes
        width = f"-{width_of(sizes)}" if judged_as_a_whole(how) else ""
        job.run(scratch / f"walk{width}.json")
    return job


def _rejected(out: Path) -> dict[str, str]:
    """Widths that an earlier walk of the same call had, and why they may not be."""
    path = out / SCRATCH / WIDTHS
    if not path.is_file():
        return {}
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _reject(out: Path, width: int, why: str) -> None:
    """Note that a walk cost too much, and remove what it wrote."""
    write_json(out / SCRATCH / WIDTHS, {**_rejected(out), str(width): why})
    stays = {"asked.json", WIDTHS}
    for path in (*(out / SCRATCH).iterdir(), *out.glob("model-*.safetensors")):
        if path.is_file() and path.name not in stays:
            path.unlink()


def _recovered(
    result: BlockResult,
    folder: Path,
    how: BlockRecipe,
    texts: tuple[list[Any], list[Any], list[Any]],
    told: Callable[[str, float], None] | None,
) -> BlockResult:
    """What came out of a walk, after it has learned from the dense model, if it is to."""
    held, chosen, rows = texts

    def step(number: int, loss: float) -> None:
        if told is not None:
            told(f"recovery, step {number}", loss)

    assert result.folder is not None
    if how.recover is None:
        return side_by_side(result, folder, held, chosen)
    said = json.loads((result.folder / REPORT).read_text(encoding="utf-8"))
    if "recovered" not in said and "unrecovered" not in said:
        before = compared(folder, result.folder, held)
        plain = None if before is None else before.to_dict()
        write_json(result.folder / REPORT, {**said, "unrecovered": plain})
    with disk_errors(result.folder):
        recover(folder, result.folder, how, rows, step)
    return side_by_side(result, folder, held, chosen)


def _sizes(source: Folder, how: BlockRecipe, calibration: list[Any]) -> Sizes | Narrow:
    """What goes of each block; refused where a folder cannot say it."""
    if HIDDEN in how.parts:
        return narrow_for(source, how, calibration)
    if BLOCK in how.parts:
        refuse_depth(source, how, calibration)
    sizes = structure_of(source, how, calibration)
    if sizes.whole.fresh is None:
        raise InputError(
            f"no config.json says the sizes that would be left ({sizes.whole.why}): open the "
            "model, give it to prunus.prune_blocks, and write the result with prunus.hf.save"
        )
    return sizes


def _fingerprint(source: Folder, how: BlockRecipe, data: Sequence[list[Any]]) -> dict[str, Any]:
    """What a walk depends on."""
    digest = hashlib.sha256()
    for tensor in tensors_of(data):
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    stored = {n: [list(t.shape), str(t.dtype)] for n, t in sorted(source.shards.tensors.items())}
    files = {t.path for t in source.shards.tensors.values()}
    ages = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files)
    shards = hashlib.sha256(json.dumps([stored, ages]).encode()).hexdigest()[:16]
    recipe = how.model_dump(mode="json", exclude_defaults=True, exclude={"recover"})
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


def _room(source: Folder, out: Path, how: BlockRecipe, batches: Sequence[Any]) -> None:
    """See that the result and the activations fit on the disk."""
    weights = sum(t.size for t in source.shards.tensors.values())
    config = source.model.config.get_text_config()
    width = max([int(getattr(config, n, 0) or 0) for n in ("hidden_size", "d_model", "n_embd")])
    tokens = sum(t.numel() for batch in batches for t in tensors_of(batch)[:1])
    needed = (2 if how.uneven else 1) * weights + 5 * 4 * tokens * width
    place = next(p for p in (out, *out.resolve().parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    if (out / SCRATCH).is_dir():
        return  # part of it is there
    if needed > free:
        raise InputError(
            f"'{out}' needs {needed / 1e9:.1f} GB (weights, and activations on their way), and "
            f"{free / 1e9:.1f} GB are free"
        )
