"""``prunus llm``."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from prunus.cli import completion
from prunus.cli.shared import JSON, THREADS, says_errors, show


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=completion.changes)
@click.option("--text", type=click.Path(path_type=Path), help="Text that chooses.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--recipe", type=click.Path(path_type=Path), help="A YAML file of the keys below.")
@click.option("--held", type=click.Path(path_type=Path), help="Text that judges (default: the last "
              "tenth of the other).")  # fmt: skip
@click.option("--questions", type=click.Path(path_type=Path), help="A .jsonl of multiple-choice "
              "questions (question, choices, answer) that both models answer.")  # fmt: skip
@click.option("--speed", metavar="RUNTIMES", help="Time both models too: auto (all that are "
              "installed), int8 (those that quantize as well), or names with commas.")  # fmt: skip
@click.option("--plan", is_flag=True, help="Say what would go, and stop.")
@THREADS
@JSON
@says_errors
def llm(
    folder: Path,
    changes: tuple[str, ...],
    text: Path | None,
    out: Path | None,
    recipe: Path | None,
    held: Path | None,
    questions: Path | None,
    speed: str | None,
    plan: bool,
    as_json: bool,
) -> None:
    """Prune a language model block by block, from a folder to a folder, without training.

    FOLDER is in the format of transformers; what is written is too, and from_pretrained opens it.
    The text chooses: a .txt, a .jsonl (text, messages, or input_ids a line; source and target for
    an encoder with a decoder), a folder of them, or one of datasets. One block at a time is in
    memory. Run again after a crash, the same command goes on at the block where it was.

    \b
    Keys (see docs/llm.md): target, structure, multiple_of, rotate, depth, solver, rates, repair,
    recover, guard, blocks, exclude, seed, text.

    \b
    Examples:
      prunus llm gemma-3-270m --text wiki.txt --out small target=0.5
      prunus llm model --text text.jsonl --out half structure=2:4 solver=alps
      prunus llm model --text texts/ --out safe target=0.6 'guard={max_loss: 0.2}' rates=measured
      prunus llm model --text texts/ --out small 'structure={neuron: 0.25, head: 0.25}'
      prunus llm model --text texts/ --out small structure=neuron --speed eager,openvino
      prunus llm model --text texts/ --out small structure=neuron 'recover={steps: 500, lora: 16}'
      prunus llm model --recipe my.yaml --plan
    """
    from prunus.blocks.costs import table_of
    from prunus.blocks.folder import REPORT
    from prunus.blocks.prune_blocks import DIFFER, prune_blocks
    from prunus.blocks.recipe import block_recipe
    from prunus.blocks.side_by_side import answers_of, no_gain, paced, refuse_questions
    from prunus.blocks.speed import room_for, runtimes_of
    from prunus.compaction.files.pretrained import is_folder
    from prunus.errors import InputError
    from prunus.recipe.load import change

    values = {} if recipe is None else _read(recipe)
    for written in changes:
        change(values, written)
    how = block_recipe(values)
    if plan:
        from prunus.blocks.plan import plan_of

        found = plan_of(folder, how)
        click.echo(json.dumps(found.to_dict()) if as_json else found.text())
        return
    source = text or how.text.source
    if source is None:
        raise InputError("which text chooses? Give --text FILE, or text.source=FILE")
    where = out or folder.with_name(f"{folder.name}-pruned")
    if questions is not None:
        refuse_questions(folder)
    runtimes = [] if speed is None else runtimes_of(speed)
    if runtimes:
        room_for(folder)
    began = time.monotonic()

    def told(name: str, error: float) -> None:
        if as_json:
            click.echo(json.dumps({"event": "pruned", "name": name, "error": error}))
        else:
            passed = time.monotonic() - began
            click.echo(f"{name}  error {error:.4g}  after {passed:.0f} s", err=True)

    if not as_json:
        click.echo(f"{folder} -> {where}, by {source}", err=True)
        if how.uneven:
            click.echo(f"{DIFFER}: then prunus.load opens the result alone", err=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=DIFFER)  # said above
        result = prune_blocks(folder, how, source, held=held, out=where, on_block=told)
    answered = None if questions is None else answers_of(folder, where, questions)
    pace = paced(
        folder, where, how, (source, held), runtimes=runtimes,
        on_event=lambda text: None if as_json else click.echo(text, err=True),
    ) if runtimes else None  # fmt: skip
    if as_json:
        said = json.loads((where / REPORT).read_text(encoding="utf-8"))
        click.echo(json.dumps({"event": "end", "folder": str(where), **said}))
        return
    show(result.table())
    click.echo()
    show(table_of(result.costs["dense"], result.costs["small"]))
    if pace is not None:
        click.echo()
        show(pace.table())
        for line in pace.notes():
            click.echo(line)
    click.echo()
    said = json.loads((where / REPORT).read_text(encoding="utf-8"))
    for label, value in [*_lines(result, answered), *_learned(said)]:
        click.echo(f"{label:12}{value}")
    click.echo(f"{'written':12}{where}")
    why = no_gain(result)
    if why is not None:
        click.echo(f"{'no gain':12}{why}")
    opens = "prunus.load" if is_folder(where) else "AutoModelForCausalLM.from_pretrained"
    click.echo(f"open it: {opens}('{where}')")


def _lines(result: Any, answered: Any) -> Iterator[tuple[str, str]]:
    """What was reached, in words."""
    if result.gate is None:
        yield "sparsity", f"{result.sparsity:.4f} of the blocks' matrices"
    else:
        yield "smaller", f"by {result.sparsity:.4f} of the blocks"
        yield "equal", f"to zeros in its place within {result.gate:.1e} in float64"
    found = result.comparison
    if found is not None:
        dense, small = math.exp(found.dense.mean), math.exp(found.small.mean)
        low, high = (math.exp(found.apart.mean + s * found.apart.within) for s in (-1, 1))
        yield (
            "perplexity",
            (
                f"{dense:.2f} -> {small:.2f}, times {small / dense:.3f} (95 %: {low:.3f} to "
                f"{high:.3f}) on {found.tokens:,} held-out tokens"
            ),
        )
        yield "divergence", f"{found.divergence.mean:.4f} ± {found.divergence.within:.4f} nats"
        yield (
            "agreement",
            f"{found.agreement.mean:.3f} ± {found.agreement.within:.3f} of next words",
        )
    if answered is not None:
        before, after = (f"{one.mean:.3f} ± {one.within:.3f}" for one in answered)
        yield "questions", f"{before} -> {after} right"
    for name, why in list(result.stayed.items())[:5]:
        yield "stays", f"{name}: {why}"


def _learned(said: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a recovery has brought."""
    done, before, after = (said.get(k) for k in ("recovered", "unrecovered", "comparison"))
    if done is not None and before is not None and after is not None:
        yield (
            "recovered",
            (
                f"perplexity {before['perplexity'][1]:.2f} -> {after['perplexity'][1]:.2f} by "
                f"{len(done['losses'])} steps"
            ),
        )


def _read(recipe: Path) -> dict[str, Any]:
    """The values of a file; the text that it names is found relative to it."""
    from prunus.recipe.load import read

    values = read(recipe)
    values.pop("name", None)
    text = values.get("text")
    if isinstance(text, dict) and isinstance(text.get("source"), str):
        values["text"] = {**text, "source": str(recipe.parent / text["source"])}
    return values
