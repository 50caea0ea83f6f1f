"""What lies in a run's folder beside journal and snapshots."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from prunus._common import files
from prunus._common.distributed import on_rank_zero
from prunus._common.environment import describe
from prunus._common.files import is_temporary, refuse_links, remove_temporaries
from prunus._common.kinds import given_path
from prunus._common.own_files import BESIDE, beside, digests
from prunus.compaction.files.artifact import save
from prunus.errors import InputError
from prunus.methods.catalog import find, own_file
from prunus.progressive.contents import checked
from prunus.progressive.engine import PruningEngine
from prunus.progressive.journal import LOCK, SNAPSHOTS, Journal
from prunus.progressive.record import Record
from prunus.progressive.result import Result
from prunus.recipe.code_files import CODE, code_files, copy_of, settings_paths
from prunus.recipe.resolve import code_digests, teacher_digest
from prunus.recipe.schema import Recipe


@contextlib.contextmanager
def open_journal(folder: Path | None, engine: PruningEngine) -> Iterator[Journal]:
    """The journal of a run; a folder that holds another one is refused."""
    if folder is not None:
        own, text = identity(engine), engine.recipe.to_yaml().encode()
        on_rank_zero(lambda: refuse_other(folder, own, text))
    with contextlib.closing(Journal(folder)) as journal:
        if folder is not None:
            on_rank_zero(lambda: _write_identity(folder, own, text, engine.recipe))
        yield journal


def identity(engine: PruningEngine) -> dict[str, Any]:
    """What makes two runs the same: recipe, code, parameters and initial weights."""
    recipe = engine.recipe
    task = recipe.task
    code = code_digests(recipe)
    if task is not None and not own_file(task.name):
        module = inspect.getsourcefile(find("tasks", recipe.located(task).name))
        if module is not None:
            code |= digests(task.name, Path(module))
    return {
        "recipe": recipe.digest(),
        "code": code,
        "parameters": {n: list(p.shape) for n, p in engine.model.named_parameters()},
        "weights": files.tensors_digest(dict(engine.model.state_dict())),
        **({"teacher": digest} if (digest := teacher_digest(recipe)) else {}),
    }


FORMER = {
    "digits": (
        "a9ec913b6e5d0c70628a2db0cc353dcc091a86314f4bbc73e74544e6c6e92e95",
        "913dc83dc44194feac914c9be76808e8646489238c555b925365dbfcb151f549",
    ),
    "mlp": (
        "d7ab0272925e532c1c79c07e7c0f75efef2fba77307661ae0b7495bd9dc6d70d",
        "2b022ea5612d7dab363060be9a06e0861321dddb8f5f032c397460bc9fa8b711",
    ),
    "diagnosis": (
        "4a7ddd5da8de62bda75b331a1a1d96f1356bf7bd47bf3fd35e6251e7b0b93fd7",
        "63499edd7bb141d1004e8e20528a80399ec4a9154e6689bbea80415846edbe27",
    ),
    "mnist": (
        "e55a27f937f0aea5afde1907c9e0c0b668f93f4ea4ca026fc8a47efd5d7df275",
        "2bf41175548ab147bedb6c04cfc4f37630db3ce60d3931fed43b9d32dce4ae3e",
        "b7724cb1bdcda051d597f0248da300cb7fdc13bbef0fdee481013f0ec57693d1",
    ),
}
"""Digests of earlier files of tasks, which differ from today's by what they import, how a word is
spelled, that their metric was the mean of today's items and that a folder was a text: runs of those
go on. A test holds them together; who changes such a task takes its line out."""


def _since_renamed(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """An earlier identity, with the present digest of a task that only imports anew.

    Earlier ones know nothing of what a file runs in turn.
    """
    code = dict(theirs.get("code", {}))
    if not any(BESIDE in name for name in code):
        code |= {name: sha for name, sha in own["code"].items() if BESIDE in name}
    same = {name: own["code"][name] for name in code.keys() & own["code"].keys() & FORMER.keys()
            if code[name] in FORMER[name]}  # fmt: skip
    return {**theirs, "code": {**code, **same}}


RECIPE, RUN = "recipe.yaml", "run.json"
"""The first two files of a run; the second one says that it has begun."""
OWN = r"(recipe\.yaml|(run|result)\.json|journal\.jsonl(\.\d+)?|(model|masks|dense)\.safetensors)"
"""Names of files that a run writes into its folder while it holds the lock."""


def refuse_other(folder: Path, own: Mapping[str, Any], recipe: bytes) -> None:
    """Refuse a folder that another recipe's run, or another model's, lies in.

    A run that was killed before its second file was written has left nothing that another could
    want: it begins again.

    Args:
        folder: of the run.
        own: this run's identity.
        recipe: its recipe, as the folder has it.

    Raises:
        InputError: saying what differs.
    """
    refuse_links(folder)
    path = folder / RUN
    if not path.exists():
        others = [p.name for p in folder.iterdir()] if folder.exists() else []
        others = [name for name in others if not _begun(folder / name, recipe)]
        if others:
            raise InputError(
                f"'{folder}' contains other files ({others[0][:80]}): choose a new folder with "
                "--folder"
            )
        return
    try:
        written = checked("run.json", json.loads(path.read_text(encoding="utf-8")), path)
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"'{path}' cannot be read ({error}): choose another folder") from None
    theirs = _since_renamed(written.get("identity", {}), own)
    words = {
        "recipe": "another recipe",
        "code": "other code",
        "parameters": "another model",
        "weights": "other initial weights",
        "teacher": "another teacher",
    }
    differs = [words[key] for key in words if theirs.get(key) != own.get(key)]
    if differs:
        raise InputError(
            f"'{folder}' contains a run of {' and '.join(differs)}: choose another with --folder, "
            "or remove it"
        )


def _begun(path: Path, recipe: bytes) -> bool:
    """Whether this is what a run leaves that was killed before it had begun."""
    if path.name in (LOCK, SNAPSHOTS) or is_temporary(path, OWN):
        return True
    if path.name == CODE and path.is_dir():
        return all(re.fullmatch("[0-9a-f]{12}", p.name) for p in path.iterdir())
    return path.name == RECIPE and path.is_file() and path.read_bytes() == recipe


def _write_identity(folder: Path, own: Mapping[str, Any], recipe: bytes, of: Recipe) -> None:
    remove_temporaries(folder, OWN)
    if (folder / RUN).exists():
        return
    files.write_atomically(folder / RECIPE, recipe)
    code = code_files(of)
    for path in code.values():
        _keep(path.resolve(), folder)
    values = {
        "identity": own,
        "origin": {
            "folder": str(folder.resolve()),
            "code": {name: str(path.resolve()) for name, path in code.items()},
            **({"paths": paths} if (paths := settings_paths(of)) else {}),
        },
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "environment": describe(),
    }
    files.write_json(folder / RUN, values)


def _keep(file: Path, folder: Path) -> None:
    """Copy a file of code, and what it runs in turn, into the folder, which may be moved to where
    they are not."""
    others = beside(file)
    data = file.read_bytes()
    copy = folder / copy_of(file, files.digest(data), others)
    for path, place in {file: copy, **{p: copy.parent / r for r, p in others.items()}}.items():
        place = Path(os.path.normpath(place))
        place.parent.mkdir(parents=True, exist_ok=True)
        remove_temporaries(place.parent, re.escape(place.name))
        files.write_atomically(place, data if path == file else path.read_bytes())


DENSE = "dense.safetensors"
"""The file of round 0: the dense model, trained or as it was given."""


def write_result(
    folder: Path, result: Result, metric_name: str, *, dense: dict[str, Tensor] | None
) -> None:
    """Weights, masks and figures of a finished run, and the dense model's weights if known."""
    if dense is not None:
        files.write_atomically(folder / DENSE, files.save_tensors(dense))
    small = result.compaction
    attributes = small.attributes if small else ()
    save(result.model, folder / "model.safetensors", attributes, sparse=True)
    files.write_atomically(folder / "masks.safetensors", files.save_tensors(dict(result.masks)))
    summary = {
        **result.figures(metric_name),
        "compaction": None
        if small is None
        else {k: getattr(small, k) for k in ("route", "units", "error", "effect", "notes")},
        "cost_before": dict(result.cost_before),
        "cost_after": dict(result.cost_after),
        "deployment": None if result.deployment is None else result.deployment.to_dict(),
        "rounds": [r.to_dict() for r in result.rounds],
    }
    files.write_json(folder / "result.json", summary)


def recipe_of(folder: str | Path) -> Recipe:
    """The recipe of a run of a task.

    Raises:
        InputError: if the folder holds no run, or one without a task.
    """
    recipe = Record(given_path(folder, "folder")).recipe
    if recipe.task is None:
        raise InputError(
            f"the run in '{folder}' was started from Python: call prunus.prune again with the "
            "same arguments and folder"
        )
    return recipe
