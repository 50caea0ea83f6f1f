"""A smaller Hugging Face model as a folder: the dense configuration, and what is left of the model.

::

    config.json              of the dense model, by whose class it is opened
    compact.safetensors      the file that prunus.save writes
    generation_config.json   where the model generates
    tokenizer…               where one was given

There is no pickle in it. The file is none that ``from_pretrained`` looks for, which would draw
fresh weights where sizes differ.
"""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus._common.files import placed
from prunus._common.given import given_model
from prunus._common.kinds import given_path
from prunus._common.rng import preserve_rng
from prunus.compaction.files import artifact
from prunus.compaction.files.packed import Values
from prunus.compaction.reopening import is_pretrained
from prunus.compaction.slicing.attributes import changed
from prunus.errors import InputError

CONFIG, FILE, GENERATION = "config.json", "compact.safetensors", "generation_config.json"


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    config: Any = None,
    tokenizer: Any = None,
    sparse: bool = False,
    values: Values | None = None,
) -> Path:
    """Write a smaller model of transformers so that :func:`load` opens it, whatever its sizes.

    Args:
        model: that :func:`prunus.prune` or :func:`prunus.compact` gave.
        folder: is made where it is missing.
        config: the dense model's configuration, for a model that became a graph and has none.
        tokenizer: or a processor: anything with ``save_pretrained``; it is written beside.
        sparse: as for :func:`prunus.save`.
        values: as for :func:`prunus.save`.

    Returns:
        The folder.

    Raises:
        InputError: if the model has no configuration of transformers and none is given.

    Example::

        result = prunus.prune(model, recipe, example=batch)
        prunus.hf.save(result.model, "small", tokenizer=tokenizer)
        model = prunus.hf.load("small")
    """
    folder = given_path(folder, "folder")
    given_model(model, "prunus.hf.save", values=True)
    dense = _dense_config(model) if config is None and is_pretrained(model) else config
    if not callable(getattr(dense, "save_pretrained", None)):
        raise InputError(
            f"a {type(model).__name__} has no configuration of transformers: pass the dense "
            "model's, config=model.config, or write a file with prunus.save"
        )
    if is_pretrained(model):
        dense.architectures = [type(model).__name__]
        dense.dtype = next((str(p.dtype).removeprefix("torch.") for p in model.parameters()), None)
    folder.mkdir(parents=True, exist_ok=True)
    with placed(folder) as place:
        for part in (dense, getattr(model, "generation_config", None), tokenizer):
            if part is not None:
                part.save_pretrained(str(place))
    artifact.save(model, folder / FILE, sparse=sparse, values=values)
    return folder


def load(folder: str | Path, model: nn.Module | None = None, *, kind: Any = None) -> nn.Module:
    """Open a folder that :func:`save` wrote. Nothing in it is executed.

    Args:
        folder: to open.
        model: the dense model, freshly made; by default it is made from ``config.json``.
        kind: the model's class, where it is none of transformers' own.

    Returns:
        The model in eval mode.

    Raises:
        InputError: if the folder is none of ours, is damaged, or names no class of transformers.
    """
    folder = given_path(folder, "folder")
    if not is_folder(folder):
        raise InputError(
            f"'{folder}' is no folder of prunus.hf.save (it needs {CONFIG} and {FILE}): one of "
            "save_pretrained is opened by from_pretrained"
        )
    if model is None and not artifact.needs_no_model(folder / FILE):
        model = _fresh(folder, kind)
    opened = artifact.load(folder / FILE, model)
    if (folder / GENERATION).is_file() and hasattr(opened, "generation_config"):
        generation: Any = importlib.import_module("transformers").GenerationConfig
        opened.generation_config = generation.from_pretrained(str(folder))
    return opened


def is_folder(folder: Path) -> bool:
    """Whether :func:`save` wrote it."""
    return (folder / CONFIG).is_file() and (folder / FILE).is_file()


def _dense_config(model: Any) -> Any:
    """The configuration as it was before pruning changed numbers in it."""
    memo: dict[int, Any] = {}
    dense = copy.deepcopy(model.config, memo)
    for attribute in changed(model):
        head, _, rest = attribute.name.partition(".")
        if head != "config" or not rest:
            continue
        *path, last = rest.split(".")
        holder = model.get_submodule(attribute.module).config
        for key in path:
            holder = getattr(holder, key, None)
        if id(holder) in memo:
            setattr(memo[id(holder)], last, attribute.before)
    return dense


def _fresh(folder: Path, kind: Any) -> nn.Module:
    try:
        library: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise InputError(
            f"'{folder}' is opened by transformers: pip install transformers"
        ) from error
    try:
        plain = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config = (
            library.AutoConfig.from_pretrained(str(folder), local_files_only=True)
            if (kind is None or getattr(kind, "config_class", None) is None)
            else kind.config_class.from_pretrained(str(folder))
        )
        made = kind or class_of(library, plain)
        with preserve_rng():
            fresh: nn.Module = made(config)
    except InputError:
        raise
    except Exception as error:  # of transformers, on a configuration from anyone
        raise InputError(f"'{folder / CONFIG}' makes no model: {error}") from error
    dtype = getattr(torch, str(plain.get("dtype")), None)
    return fresh.to(dtype) if isinstance(dtype, torch.dtype) else fresh


def class_of(
    library: Any, plain: Any, otherwise: str = ": pass it, prunus.hf.load(folder, kind=…)"
) -> Any:
    """The class that a configuration names first; code beside it is not run.

    Args:
        library: transformers.
        plain: what ``config.json`` holds.
        otherwise: the end of the message: what to do where it is no class of transformers.

    Raises:
        InputError: if it is none.
    """
    names = plain.get("architectures") if isinstance(plain, dict) else None
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    found = getattr(library, name, None) if name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, library.PreTrainedModel)):
        raise InputError(
            f"{CONFIG} names the class {name[:80]!r}, which is no model of transformers{otherwise}"
        )
    return found
