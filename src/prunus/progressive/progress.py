"""What a run shows while it goes: a bar for each training, a line for each judged round."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from prunus._common.distributed import rank
from prunus._common.numbers import metric
from prunus.progressive.result import Round
from prunus.progressive.state import OnEvent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


@contextlib.contextmanager
def shown(on_event: OnEvent | None, progress: bool) -> Iterator[OnEvent]:
    """The caller's hook; without one bars, where a terminal or a notebook shows them.

    Args:
        on_event: of the caller, who then shows what should be shown.
        progress: whether bars are wanted.
    """
    if rank() != 0:
        yield lambda event: None
        return
    console = _console() if on_event is None and progress else None
    if console is None:
        yield on_event or (lambda event: None)
        return
    with contextlib.closing(Bars(console)) as bars:
        yield bars


def _console() -> Console | None:
    """Where somebody looks; ``None`` in a file, in a pipe, and without rich."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(stderr=True, highlight=False)
    return console if console.is_terminal or console.is_jupyter else None


class Bars:
    """Shows the events of a run on a console of rich."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = console
        # In a notebook rich draws bars with ipywidgets; without them lines have to do.
        hidden = console.is_jupyter and find_spec("ipywidgets") is None
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"), TimeRemainingColumn(),
            console=console, transient=True, disable=hidden,
        )  # fmt: skip
        self._task: TaskID | None = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            self._step(event)
        elif event["event"] == "judged":
            if self._task is not None:
                self._progress.remove_task(self._task)
                self._task = None
            self._console.print(round_line(event["row"]), markup=False)
        elif event["event"] == "note":
            self._console.print(event["text"], markup=False)

    def _step(self, event: Mapping[str, Any]) -> None:
        name = "train dense"
        if event["sparsity"] is not None:
            name = f"round {event['round']}, sparsity {event['sparsity']:.3f}"
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(name, total=event["steps"])
        self._progress.update(
            self._task, completed=event["done"], total=event["steps"], description=name
        )

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()


def round_line(row: Round) -> str:
    """A judged round in one line."""
    found = "" if row.metric is None else f"  metric {metric(row.metric)}"
    return f"round {row.index:>2}  {_reached(row)}{found}  {row.verdict}  {row.seconds:.1f} s"


def _reached(row: Round) -> str:
    if row.target == "sparsity":
        return f"sparsity {metric(row.achieved)} (requested {metric(row.requested)})"
    gone = f"{metric(row.achieved)} of the {row.target} gone (requested {metric(row.requested)})"
    return gone if row.sparsity is None else f"{gone}, sparsity {metric(row.sparsity)}"
