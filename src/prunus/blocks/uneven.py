"""Folders of models whose blocks have lost different numbers of units: prunus opens them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.files import write_json
from prunus._common.modules import canonical_names, joined
from prunus.blocks.shards import Shards, write_shard
from prunus.compaction.files.artifact import FORMAT
from prunus.compaction.files.placing import changes, is_number, is_plain
from prunus.compaction.files.pretrained import CONFIG, FILE
from prunus.compaction.slicing.surgery import own_holders, refresh
from prunus.errors import InputError

Changes = list[tuple[str, str, Any]]
"""A module, one of its numbers, and what it is in the smaller model."""
KEY = "prunus"
"""Of the manifest in a file's metadata."""


def changes_of(dense: nn.Module, fresh: nn.Module, block: str) -> Changes:
    """The numbers that the modules of a block remember otherwise in a smaller model.

    Args:
        dense: a model.
        fresh: a smaller one of the same class.
        block: the name of the block in both.

    >>> changes_of(nn.Sequential(nn.Linear(4, 2)), nn.Sequential(nn.Linear(4, 1)), "0")
    [('0', 'out_features', 1)]
    """
    found: Changes = []
    for path, module in dense.get_submodule(block).named_modules():
        full = joined(block, path) if path else block
        other = fresh.get_submodule(full)
        found += [(full, key, after) for key, after in _numbers(module, other)]
        config = getattr(module, "config", None)
        if hasattr(config, "__dict__"):
            own = _numbers(config, getattr(other, "config", None))
            found += [(full, f"config.{key}", after) for key, after in own]
    return found


def _numbers(before: Any, after: Any) -> Iterator[tuple[str, Any]]:
    for key, value in vars(before).items():
        new = vars(after).get(key)
        good = is_plain(key, value) and type(value) is type(new)
        if good and is_number(value) and is_number(new) and value != new:
            yield key, new


def write_uneven(
    out: Path,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    attributes: Changes,
    *,
    config: Any,
) -> None:
    """Write a folder as :func:`prunus.hf.save` does; what is mapped does not come into memory.

    Args:
        out: the folder.
        model: the dense one, on any device.
        tensors: of the smaller one, by their first names.
        attributes: numbers of its modules.
        config: of the dense one, as plain values.
    """
    names = canonical_names(model)
    manifest = {
        "format": FORMAT, "class": type(model).__name__, "graphs": {}, "dropped": [],
        "attributes": [list(one) for one in attributes],
        "tied": {n: f for n, f in names.items() if n != f and f in tensors},
    }  # fmt: skip
    write_shard(out / FILE, tensors, {KEY: json.dumps(manifest)})
    kinds = [t.dtype for t in tensors.values() if t.is_floating_point()]
    dtype = str(max(set(kinds), key=kinds.count)).removeprefix("torch.")
    plain = {k: v for k, v in config.items() if k != "torch_dtype"}
    write_json(out / CONFIG, {**plain, "dtype": dtype})


def narrowed(model: nn.Module, folder: Path) -> nn.Module:
    """A dense model without weights as the smaller one of a folder that prunus wrote.

    Args:
        model: of the folder's configuration; it is changed.
        folder: that :func:`write_uneven` or :func:`prunus.hf.save` wrote.

    Raises:
        InputError: if modules in it became graphs, which are no blocks any more.
    """
    shards = Shards(folder)
    metadata = Shards.metadata(folder / FILE)
    manifest = json.loads(metadata.get(KEY, "{}"))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest["graphs"]:
        raise InputError(
            f"'{folder / FILE}' holds modules that are of no class of transformers any more: open "
            "it by prunus.load"
        )
    attributes = changes(model, manifest["attributes"])
    own_holders(model, attributes)
    for attribute in attributes:
        attribute.set(model)
    for name, tensor in model.state_dict(keep_vars=True).items():
        stored = shards.tensors.get(name)
        if stored is not None and stored.shape != tuple(tensor.shape):
            made = torch.empty(stored.shape, dtype=tensor.dtype, device="meta")
            path, _, key = name.rpartition(".")
            module = model.get_submodule(path)
            if key in module._buffers:  # what is added to a router's answers
                module._buffers[key] = made
            else:
                module._parameters[key] = nn.Parameter(made, requires_grad=tensor.requires_grad)
    refresh(model)
    return model
