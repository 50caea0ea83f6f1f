"""What a run's recognizers are worth as streams: error rate, state, time for a piece of 40 ms.

python examples/spoken_sequences/stream.py runs/spoken_sequences-1a2b3c4d
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
from prunus.progressive.folder import recipe_of
from prunus.tasks._files import load_weights
from prunus.tasks.find import task_of

EVERY = 4


class Streamed(nn.Module):
    """A recognizer that hears a recording piece by piece; it answers as a whole pass does."""

    def __init__(self, model: nn.Module, frames: int = EVERY) -> None:
        super().__init__()
        self.model, self.frames = model, frames

    def forward(self, features: Tensor) -> Tensor:
        """``[b, n, bands]`` to ``[b, n/4, digits + 1]``."""
        model: Any = self.model
        state, found = model.begin(len(features)), []
        for piece in features.split(self.frames, dim=1):
            scores, state = model.hear(piece, state)
            found.append(scores)
        return torch.cat(found, 1)


@torch.no_grad()
def main(folder: Path) -> None:
    """Print it all."""
    task = task_of(recipe_of(folder))
    dense = load_weights("spoken_sequences", task.model(), folder / "dense.safetensors")
    models: dict[str, Any] = {"dense": dense, "pruned": prunus.load(folder, model=task.model())}
    assert task.test is not None
    test = list(task.test)
    found = {n: task.metric(Streamed(m.eval(), 10 * EVERY), test) for n, m in models.items()}
    print(f"word error rate as a stream: {MetricEstimate.of(found['pruned'], found['dense'])}")
    piece = test[0]["features"][:1, :EVERY]
    works = {}
    for name, model in models.items():
        state = model.begin(1)
        for _ in range(30):
            _, state = model.hear(piece, state)
        print(f"{name}: {sum(t.numel() for t in state):,} numbers in its state")
        works[name] = lambda m=model, s=state: m.hear(piece, s)
    times = interleaved(works, seconds=4.0)
    print("; ".join(f"{n}: {t.median_ms:.3f} ms for 40 ms of sound" for n, t in times.items()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
