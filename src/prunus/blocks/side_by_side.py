"""The smaller model of a folder beside the dense one: noted, drawn, asked, timed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prunus._common.files import write_atomically, write_json
from prunus.blocks.costs import costs_of
from prunus.blocks.evaluate import Comparison, Estimate, accuracy, compare, questions_of
from prunus.blocks.folder import REPORT, Folder, skeleton
from prunus.blocks.given_text import given_text, tokenizer_of
from prunus.blocks.recipe import BlockRecipe, BlockResult
from prunus.blocks.speed import Speed, speed_of
from prunus.errors import InputError
from prunus.methods import catalog

PICTURE = "pruned.png"
"""Beside it: rates and errors by block."""


def side_by_side(
    result: BlockResult, folder: Path, held: Sequence[Any], chosen: Sequence[Any]
) -> BlockResult:
    """The result beside the dense model, on text that nothing was chosen by; noted and drawn.

    Args:
        result: of a folder that is written.
        folder: the dense model's.
        held: batches that judge.
        chosen: others, of which only the lengths count here.
    """
    out = result.folder
    assert out is not None
    found = compared(folder, out, held)
    costs = {n: costs_of(p, chosen[0]).to_dict() for n, p in (("dense", folder), ("small", out))}
    result = dataclasses.replace(result, comparison=found, costs=costs)
    noted = {} if found is None else {"comparison": found.to_dict()}
    said = json.loads((out / REPORT).read_text(encoding="utf-8"))
    write_json(out / REPORT, {**said, **noted, "costs": costs, "no_gain": no_gain(result)})
    with contextlib.suppress(ModuleNotFoundError):  # without the extra that draws
        write_atomically(out / PICTURE, picture_of(result))
    return result


def compared(folder: Path, out: Path, held: Sequence[Any]) -> Comparison | None:
    """What two models of folders say of the same text; ``None`` without one that can be compared.

    Args:
        folder: the dense model's.
        out: the smaller one's.
        held: batches.
    """
    if not held:
        return None
    with tempfile.TemporaryDirectory(dir=out) as place:
        sides = [Folder(one, out) for one in (folder, out)]
        for side in sides:
            side.scratch = Path(place)
        return compare(sides[0], sides[1], held)


def no_gain(result: BlockResult) -> str | None:
    """Why zeros make a model neither smaller nor faster; ``None`` where units are gone.

    >>> no_gain(BlockResult({}, {}, {}, 0.5, 1.0)).partition(" (")[0]
    '50% of the weights are zeros, and engines multiply zeros like any number'
    >>> no_gain(BlockResult({}, {}, {}, 0.5, 1.0, gate=0.0))
    """
    if result.gate is not None:
        return None
    every = [(n, catalog.constant("runtimes", n, "FACTS")) for n in catalog.names("runtimes")]
    skipping = [n for n, facts in every if facts.get("skips_zeros") and "cpu" in facts["devices"]]
    names = f" (but {', '.join(skipping)}: --speed {','.join(['eager', *skipping])} measures it)"
    return (
        f"{result.sparsity:.0%} of the weights are zeros, and engines multiply zeros like any "
        f"number{names if skipping else ''}: structure: {{neuron: 0.25, head: 0.25}} takes units "
        "out and makes the model smaller and faster; docs/zeros.md says where zeros are worth "
        "something"
    )


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
            tokenizer = tokenizer_of(source)
            if tokenizer is None:
                raise InputError(f"'{place}' has no tokenizer: questions are texts")
            found.append(accuracy(source, questions_of(questions, tokenizer)))
    said = json.loads((out / REPORT).read_text(encoding="utf-8"))
    write_json(out / REPORT, {**said, "questions": [vars(one) for one in found]})
    return found[0], found[1]


def refuse_questions(folder: Path) -> None:
    """See that a model continues texts.

    Raises:
        InputError: if it does not.
    """
    model: Any = skeleton(folder)
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        raise InputError(
            f"questions: a {type(model).__name__} does not continue a text, by which choices are "
            "compared"
        )


def paced(
    folder: Path,
    out: Path,
    how: BlockRecipe,
    texts: tuple[Any, Any],
    *,
    runtimes: Sequence[str],
    on_event: Callable[[str], None],
) -> Speed:
    """How fast both models are; noted in the smaller one's ``pruned.json``.

    Args:
        folder: the dense model's.
        out: what was made of it.
        how: the recipe.
        texts: as :func:`prunus.prune_blocks` takes them: calibration and held.
        runtimes: names.
        on_event: told what is done.
    """
    batches = given_text(Folder(folder, out, how.blocks), how, *texts)
    return speed_of(folder, out, batches, runtimes=runtimes, on_event=on_event)
