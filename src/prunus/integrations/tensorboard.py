"""The rounds of a run for TensorBoard: a hook of the journal, off unless asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus._common.packages import require
from prunus.progressive.journal import read_events
from prunus.progressive.record import Record
from prunus.progressive.result import Round

FOLDER = "tensorboard"
"""Where the events lie in a run's folder."""


class Writer:
    """Writes each judged round of a run as scalars; see :func:`writer`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._board: Any = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        """One event of the run."""
        if event["event"] == "judged":
            row: Round = event["row"]
            if self._board is None:
                before = [r for r in Record(self.folder).rounds if r.index < row.index]
                self._open([*before, row], row.step if self._written else 0)
            else:
                self._write(row)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go; a run that was judged before anything was written gets all rounds."""
        if self._board is None and read_events(self.folder) and not self._written:
            self._open(Record(self.folder).rounds, 0)
        if self._board is not None:
            self._board.close()
            self._board = None

    @property
    def _written(self) -> bool:
        return any((self.folder / FOLDER).glob("events.out.tfevents.*"))

    def _open(self, rounds: Sequence[Round], step: int) -> None:
        """Take back what was written from this step on, and write it as the rounds are now."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self._board = SummaryWriter(str(self.folder / FOLDER), purge_step=step)
        if step == 0:
            recipe = Record(self.folder).yaml
            self._board.add_text("recipe", f"```yaml\n{recipe}```", 0)
        for row in rounds:
            if row.step >= step:
                self._write(row)

    def _write(self, row: Round) -> None:
        for name, value in scalars(row).items():
            self._board.add_scalar(name, value, row.step)
        self._board.flush()


def writer(folder: str | Path) -> Writer:
    """A hook that writes the judged rounds of the run in a folder to ``FOLDER/tensorboard``.

    Give it to :func:`prunus.prune` as ``watch`` beside the same folder; ``with`` closes it.
    Every round stands at its optimizer step. A resumed run writes no round twice: what a crash
    had left beyond the point from which it goes on is purged.

    Args:
        folder: of the run.

    Raises:
        InputError: if tensorboard is not installed.
    """
    require("tensorboard", "tensorboard")
    return Writer(Path(folder))


def scalars(row: Round) -> dict[str, float]:
    """What is written of a round; what nothing measured is left out.

    >>> row = Round(1, 9, 0.5, 0.4, 0.4, 0.75, "accepted", train_metric=1.0, latency={"eager": 2.0})
    >>> found = scalars(row)
    >>> found["metric/gap"], found["pruning/accepted"], found["latency_ms/eager"]
    (0.25, 1.0, 2.0)
    """
    costs = {f"cost/{name}": value for name, value in row.cost.items() if name != "l1"}
    values = {
        "metric/validation": row.metric,
        "metric/training": row.train_metric,
        "metric/gap": row.gap,
        "pruning/requested": row.requested,
        "pruning/achieved": row.achieved,
        "pruning/sparsity": row.sparsity,
        "pruning/l1": row.l1,
        "pruning/accepted": float(row.accepted),
        **costs,
        **{f"density/{name}": value for name, value in row.densities.items()},
        **{f"latency_ms/{name}": value for name, value in row.latency.items()},
    }
    return {name: float(value) for name, value in values.items() if value is not None}
