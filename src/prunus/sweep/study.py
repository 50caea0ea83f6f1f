"""The ledger of a sweep: an Optuna study, shared by every process that works on it."""

from __future__ import annotations

import contextlib
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from prunus.errors import InputError
from prunus.recipe.resolve import short_hash
from prunus.sweep.locks import held, is_held
from prunus.sweep.space import Choices, Range, Space
from prunus.sweep.types import Point, Trial

BEAT, GRACE = 60, 240
"""Seconds between signs of life in a database, and without one until a trial is given away."""
_TAKEN = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
Work = Callable[[int, Mapping[str, str]], Trial]
"""Runs a trial: its number and its values as they are written."""


@dataclass(frozen=True)
class Terms:
    """What all processes of a sweep must agree on.

    Attributes:
        name: of the study.
        identity: of recipe, code and space.
        space: what varies.
        better: of the metric, ``higher`` or ``lower``.
        trials: how many in all; of a grid, by default every combination.
        seed: of what is drawn.
    """

    name: str
    identity: str
    space: Space
    better: str
    trials: int | None
    seed: int


@contextlib.contextmanager
def open_ledger(terms: Terms, folder: Path, storage: str | BaseStorage | None) -> Iterator[Ledger]:
    """The ledger in a storage: a database's address, the path of a journal, or an Optuna object.

    Raises:
        InputError: if it cannot be opened, or holds another sweep under this name.
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    worker = folder / ".workers" / uuid.uuid4().hex
    worker.parent.mkdir(parents=True, exist_ok=True)
    place: BaseStorage | None = None
    try:
        try:
            place = _storage(storage, folder)
            study = _study(terms, place)
        except InputError:
            raise
        except Exception as error:  # Optuna's, or of the database's driver
            text = " ".join(str(error).split())[:200]
            raise InputError(f"--storage: it cannot be opened: {text}") from error
        with held(worker):
            yield Ledger(terms, study, worker, own=storage is None)
    finally:
        worker.unlink(missing_ok=True)
        if place is not None:
            place.remove_session()
        if isinstance(place, RDBStorage) and place is not storage:
            place.engine.dispose()
        optuna.logging.set_verbosity(verbosity)


def _storage(storage: str | BaseStorage | None, folder: Path) -> BaseStorage:
    if isinstance(storage, BaseStorage):
        return storage
    url = f"sqlite:///{folder / 'study.db'}" if storage is None else storage
    if "://" not in url:
        return JournalStorage(JournalFileBackend(url))
    wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return RDBStorage(url, engine_kwargs=wait, heartbeat_interval=BEAT, grace_period=GRACE)


def _study(terms: Terms, place: BaseStorage) -> Study:
    way = StudyDirection.MAXIMIZE if terms.better == "higher" else StudyDirection.MINIMIZE
    study = optuna.create_study(
        storage=place,
        study_name=terms.name,
        directions=[way, StudyDirection.MINIMIZE],
        sampler=_Drawn(terms.seed),
        load_if_exists=True,
    )
    if not study.get_trials(deepcopy=False) and "prunus" not in study.user_attrs:
        study.set_user_attr("prunus", terms.identity)
    theirs = study.user_attrs.get("prunus")
    if theirs != terms.identity or study.directions[0] is not way:
        raise InputError(
            f"the study '{terms.name}' is another sweep's (other recipe, code or values): name "
            "another with --study, or another --folder"
        )
    return study


class Ledger:
    """Hands out trials, each once, and keeps what became of them."""

    def __init__(self, terms: Terms, study: Study, worker: Path, *, own: bool) -> None:
        self._terms, self._study, self._worker, self._own = terms, study, worker, own
        self._failed: set[str] = set()  # here; another start tries them again

    @property
    def name(self) -> str:
        """Of the study."""
        return self._terms.name

    def work(self, work: Work) -> bool:
        """Run one more trial, or say that there is none left to take.

        Between choosing it and writing down whose it is, no other process of the folder chooses.
        """
        with contextlib.ExitStack() as choosing:
            choosing.enter_context(held(self._worker.parent / "choosing"))
            self._give_back_lost()
            values = self._next()
            if values is None:
                return False
            if values:
                self._study.enqueue_trial(dict(values))

            def objective(trial: optuna.Trial) -> Point:
                return self._try(trial, work, choosing.close)

            self._study.optimize(objective, n_trials=1, catch=(_FailedError,))
        return True

    def finished(self) -> list[Trial]:
        """Those that have ended."""
        return [t for t in self.trials() if t.point is not None]

    def trials(self) -> list[Trial]:
        """What became of each combination so far."""
        found: dict[str, Trial] = {}
        for frozen in self._all():
            texts = self._texts(frozen)
            if texts is None or "duplicate" in frozen.user_attrs:
                continue
            state = "running" if frozen.state is TrialState.RUNNING else "unfinished"
            row = Trial(**frozen.user_attrs.get("row", {"number": 0, "values": {}, "state": state}))
            found[_key(texts)] = replace(row, number=frozen.number, values=texts)
        return sorted(found.values(), key=lambda t: t.number)

    def _all(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _texts(self, trial: FrozenTrial) -> dict[str, str] | None:
        """Its values, once it has all of them."""
        space = self._terms.space
        whole = all(x.field in trial.params for x in space.axes)
        return space.texts(trial.params) if whole else None

    def _give_back_lost(self) -> None:
        """Trials of processes that are gone: of this folder at once, of others after a while."""
        for trial in self._all():
            mine = self._worker.with_name(trial.user_attrs.get("worker", "-"))
            here = self._own or mine.exists()
            if trial.state is TrialState.RUNNING and here and not is_held(mine):
                with contextlib.suppress(ValueError):  # its own process has told it just now
                    self._study.tell(trial.number, state=TrialState.FAIL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)

    def _next(self) -> Mapping[str, Any] | None:
        """Values to try next, nothing in particular, or ``None`` for no more."""
        space, limit = self._terms.space, self._terms.trials
        every = self._all()
        if any(t.state is TrialState.WAITING for t in every):
            return {}
        known = {_key(x): t for t in every if (x := self._texts(t)) is not None}
        taken = {k for t in every if t.state in _TAKEN and (x := self._texts(t)) is not None
                 for k in [_key(x)]} | self._failed  # fmt: skip
        if space.grid:
            return next((c for c in space.corners(limit) if _key(c) not in taken), None)
        for key, trial in known.items():
            if key not in taken:
                return trial.params
        counted = sum(t.state in _TAKEN or "duplicate" in t.user_attrs for t in every)
        assert limit is not None
        return {} if counted + len(self._failed) < limit else None

    def _try(self, trial: optuna.Trial, work: Work, chosen: Callable[[], None]) -> Point:
        space = self._terms.space
        texts = space.texts({x.field: _suggest(trial, x) for x in space.axes})
        trial.set_user_attr("worker", self._worker.name)
        if self._has_twin(trial.number, texts):
            trial.set_user_attr("duplicate", True)
            raise _FailedError
        chosen()
        row = work(trial.number, texts)
        trial.set_user_attr("row", row.to_dict())
        if row.point is not None:
            return row.point
        if row.state == "failed":
            self._failed.add(_key(texts))
            raise _FailedError
        raise optuna.TrialPruned

    def _has_twin(self, number: int, texts: Mapping[str, str]) -> bool:
        """Whether another trial has these values; of two that run, the first goes on."""
        return any(
            t.state in _TAKEN
            and (t.number < number or (t.number > number and t.state is not TrialState.RUNNING))
            and self._texts(t) == texts
            for t in self._all()
        )


class _FailedError(Exception):
    """Tells Optuna that a trial has no values."""


def _key(texts: Mapping[str, str]) -> str:
    return short_hash(dict(texts))


def _suggest(trial: optuna.Trial, axis: Choices | Range) -> Any:
    if isinstance(axis, Choices):
        return trial.suggest_categorical(axis.field, axis.texts)
    if axis.whole:
        return trial.suggest_int(axis.field, int(axis.low), int(axis.high), log=axis.log)
    return trial.suggest_float(axis.field, axis.low, axis.high, log=axis.log)


class _Drawn(TPESampler):
    """A tree-structured Parzen estimator whose draws depend on seed, trial number and history
    alone: a sweep that goes on in another process does not draw its first trials again.

    Source: Bergstra 2011; of several objectives: Ozaki 2022.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self._first = seed

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Begin anew with a seed of the trial's own."""
        super().__init__(seed=int(short_hash([self._first, trial.number]), 16))
