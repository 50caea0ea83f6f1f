"""The sweep as a whole: check, hand out trials, end with those that nothing else beats."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunus._common.files import has_another_name, refuse_links
from prunus._common.given import given_hooks
from prunus._common.kinds import given_number, given_path
from prunus._common.packages import require
from prunus.errors import InputError, Interrupted
from prunus.progressive.prune import Source
from prunus.progressive.state import OnEvent
from prunus.recipe.resolve import code_digests, short_hash
from prunus.report import why_not
from prunus.sweep.checking import Checked, check
from prunus.sweep.pareto import choose, front
from prunus.sweep.space import from_mapping, parse
from prunus.sweep.summary import write_summary
from prunus.sweep.trial import Trials
from prunus.sweep.types import Sweep
from prunus.tasks.base import Task

if TYPE_CHECKING:
    from prunus.sweep.study import Ledger

TRIALS = 20
"""Of a space with ranges, unless said otherwise."""


def sweep(
    recipe: Source,
    space: Mapping[str, Any] | Sequence[str],
    *,
    task: Task | None = None,
    trials: int | None = None,
    folder: str | Path | None = None,
    storage: Any = None,
    study: str | None = None,
    stop_hopeless: bool = True,
    on_event: OnEvent | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Sweep:
    """Run a recipe with other values, and find the trials that no other dominates.

    Each trial is an ordinary run in a folder of its own below the sweep's. The same call goes on
    with a sweep that was stopped or killed: finished trials are skipped, a half-finished one
    resumes. Processes that share the storage share the work.

    A trial is stopped as hopeless once another was ahead of it after no more training, with at most
    as much left, and ended ahead of it, with at most as much left as this one aims at. Ahead means:
    better than this one's newest round (the dense one counts; of rejected ones two in a row) by
    more than the guard's ``max_drop``. Without a guard nothing is stopped.

    Args:
        recipe: as :func:`prunus.prune` takes it.
        space: ``{"target": [0.8, 0.9], "retrain": "1ep..9ep"}``, or the words of the command line.
        task: instead of the one that the recipe names.
        trials: how many in all, by all processes: by default every combination of lists, and 20
            where a range is in it. Fewer than a grid has are drawn at random.
        folder: of the sweep; by default below ``sweeps/``.
        storage: a database's address (``postgresql://…``), the path of a journal file on a disk
            that all machines share, or an Optuna storage; by default SQLite in the folder.
        study: its name in the storage; by default the folder's own, of recipe, code and space.
        stop_hopeless: whether hopeless trials are stopped.
        on_event: called with the events of every run, and with ``trial`` and ``tried``.
        should_stop: asked between steps; True saves and raises :class:`prunus.Interrupted`.

    Returns:
        A :class:`Sweep`; it is also in ``sweep.json`` and ``pareto.png`` in the folder.

    Raises:
        InputError: for what cannot be used, before work starts.
    """
    require("optuna", "sweep")
    from prunus.sweep.study import Terms, open_ledger

    made = from_mapping(space) if isinstance(space, Mapping) else parse(space)
    if trials is not None:
        given_number(trials, "trials", least=1, whole=True)
    given_hooks(on_event=on_event, should_stop=should_stop)
    folder = None if folder is None else given_path(folder, "folder")
    see, halt = on_event or (lambda event: None), should_stop or (lambda: False)
    limit = trials if made.grid or trials is not None else TRIALS
    common = check(recipe, made, trials=limit, task=task, on_event=see)
    if stop_hopeless and not common.guarded:
        see({"event": "note", "text": "no guard: no trial is stopped early"})
    if reason := why_not():
        see({"event": "note", "text": f"no pictures: {reason}"})
    identity = short_hash([repr(made), common.first.digest(), code_digests(common.first)])
    name = f"{common.first.name or 'recipe'}-{identity}"
    where = Path(folder) if folder is not None else Path("sweeps") / name
    _refuse_other_files(where)
    terms = Terms(study or name, identity, made, common.better, limit, common.first.seed)
    with open_ledger(terms, where, storage) as ledger:
        run = Trials(recipe, made, where, task, see, halt,
                     ledger.finished if stop_hopeless else None)  # fmt: skip

        def summary() -> Sweep:
            return _summary(ledger, common, where, None if task is not None else run)

        stopped = False
        try:
            while not halt() and ledger.work(run):
                write_summary(summary(), picture=False)
        except Interrupted:
            stopped = True
        finally:
            write_summary(summary(), picture=True)
        if stopped or halt():
            raise Interrupted(f"stopped and saved; the same command continues in '{where}'")
        return _reported(summary())


def _reported(done: Sweep) -> Sweep:
    """With the page of the best run; ``prunus report`` writes those of the others."""
    if done.best is None or why_not() is not None:
        return done
    if (done.folder / (done.best.name or "-")).is_dir():
        from prunus.report.page import write_report

        write_report(done.folder / (done.best.name or "-"))
    return done


def _refuse_other_files(folder: Path) -> None:
    ours = (folder / ".workers").is_dir()
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"'{folder}' holds other files: name a new folder with --folder")
    refuse_links(folder)
    for path in folder.glob("study.db*"):
        if has_another_name(path):
            raise InputError(
                f"'{path}' is there under another name too (a hard link), and what is written to "
                "it would change both: copy the folder (cp -r) and go on in the copy"
            )


def _summary(ledger: Ledger, common: Checked, folder: Path, run: Trials | None) -> Sweep:
    """The state of a sweep; without a command where a task was given from Python."""
    trials = ledger.trials()
    done = [t for t in trials if t.point is not None]
    numbers = [
        done[i].number for i in front([t.point for t in done if t.point], better=common.better)
    ]
    best = choose(trials, better=common.better)
    command = None
    if run is not None and best is not None and best.name is not None:
        words = [str(folder / best.name / "recipe.yaml")]
        if isinstance(run.source, str | Path):
            words = [str(run.source), *run.space.changes(best.values)]
        command = shlex.join(["prunus", "run", *words])
    return Sweep(
        name=ledger.name,
        trials=trials,
        front=numbers,
        best=best,
        command=command,
        metric_name=common.metric_name,
        better=common.better,
        counts=common.counts,
        folder=folder,
    )
