"""What a run's networks are worth in use: BLEU greedy and by beams, and tokens a second.

    python examples/translation/figures.py runs/translation-1a2b3c4d

compares the run's dense and pruned network on the test sentences (paired bootstrap), times both in
turn while they decode with a cache, and shows some of what they say.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus._common.metrics import MetricEstimate
from prunus._common.timing import interleaved
from prunus.methods.catalog import module_at
from prunus.progressive.folder import recipe_of
from prunus.tasks._files import load_weights
from prunus.tasks.base import Task
from prunus.tasks.find import task_of

HERE = Path(__file__).parent
text, decoding, bleu = (module_at(HERE / f"{name}.py") for name in ("text", "decoding", "bleu"))
TOKENS = 20
"""Steps of decoding that are timed, whatever is said."""


def both(folder: Path) -> tuple[Task, dict[str, nn.Module]]:
    """The task of a run, and its networks."""
    task = task_of(recipe_of(folder))
    dense = load_weights("translation", task.model(), folder / "dense.safetensors")
    pruned = prunus.load(folder, model=task.model())
    return task, {"dense": dense.eval(), "pruned": pruned.eval()}


def said(task: Task, model: nn.Module, *, beams: int) -> tuple[list[str], list[str], list[str]]:
    """What a network says of the test sentences, beside what it read and what people said."""
    found, english, german = [], [], []
    for batch in task.test or ():
        source: Tensor = batch["source"]
        tokens = (
            decoding.greedy(model, source) if beams == 1
            else decoding.beam(model, source, width=beams)
        )  # fmt: skip
        found += decoding.texts(task.test.tokenizer, tokens)  # type: ignore[union-attr]
        english += batch["english"]
        german += batch["german"]
    return found, english, german


@torch.no_grad()
def paced(model: Any, source: Tensor) -> None:
    """``TOKENS`` steps with a cache, the likeliest token each time."""
    cache = model.start(source)
    tokens = torch.full((len(source),), text.BEGIN)
    for place in range(TOKENS):
        scores, cache = model.step(tokens, place, cache)
        tokens = scores.argmax(1)


def main(folder: Path) -> None:
    """Print it all."""
    task, models = both(folder)
    answers = {}
    for beams in (1, 4):
        for name, model in models.items():
            answers[name], english, german = said(task, model, beams=beams)
        counts = {name: bleu.scores(found, german) for name, found in answers.items()}
        print(f"beam {beams}: BLEU {MetricEstimate.of(counts['pruned'], counts['dense'])}")
        print(f"  {MetricEstimate.of(counts['dense'])} is the dense network's")
    print(bleu.signature(answers["pruned"], german))
    batch = next(iter(task.validation))
    for size in (1, 32):
        source = batch["source"][:size]
        works = {n: lambda m=m, s=source: paced(m, s) for n, m in models.items()}
        times = {name: t.median_ms for name, t in interleaved(works, seconds=4.0).items()}
        rates = ", ".join(f"{n} {1000 * size * TOKENS / ms:,.0f}" for n, ms in times.items())
        print(f"tokens a second, {size} sentence(s) at a time: {rates}"
              f" ({times['dense'] / times['pruned']:.2f} times as fast)")  # fmt: skip
    for i in range(0, len(english), max(1, len(english) // 8)):
        print(f"\n{english[i]}\n  people  {german[i]}")
        for name, found in answers.items():
            print(f"  {name:7} {found[i]}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
