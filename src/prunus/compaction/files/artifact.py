"""Compact models on disk: one safetensors file, its manifest in the file's own metadata.

Any safetensors reader opens the tensors under the model's names. The manifest (JSON, under the
key ``prunus``) holds what slices alone do not say: numbers that modules keep, heads that stay of
attentions, widths that norms count, modules that became graphs, names of tied tensors, tensors that
are packed. Nothing in it is executed or imported.
``docs/file_format.md`` describes the file and has a reader without prunus.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, fx, nn

from prunus._common.files import write_atomically
from prunus._common.given import given_model
from prunus._common.kinds import given_choice, given_file
from prunus._common.layers import layers_of
from prunus._common.modules import canonical_names, joined
from prunus._common.names import unwrapped
from prunus._common.narrow_list import NarrowList
from prunus.compaction.files.checked_read import LONGEST_HEADER, header_fits, read
from prunus.compaction.files.graph_json import from_plain, to_plain
from prunus.compaction.files.packed import ROUNDED, Values, pack
from prunus.compaction.files.parts import plain_parts, take_parts
from prunus.compaction.files.placing import (
    changes,
    check_replaced,
    is_number,
    is_plain,
    narrow,
    own_memory,
    places_of,
    put,
    shown,
    taken_out,
    widened,
)
from prunus.compaction.files.renaming import for_model, names_for_file, rename_manifest
from prunus.compaction.files.unpack import Packed, unpack, whole
from prunus.compaction.rewriting.compact_graph import CompactGraph
from prunus.compaction.slicing.attention import NarrowAttention, Narrowing
from prunus.compaction.slicing.attributes import Attribute, changed
from prunus.compaction.slicing.drop import LEFT, Dropped
from prunus.compaction.slicing.limits import Limits, limits_of
from prunus.compaction.slicing.norms import Wide, Widening
from prunus.compaction.slicing.surgery import narrowed, own_holders, refresh
from prunus.errors import InputError, did_you_mean
from prunus.pruning.copies import warn_of_written

FORMAT = "prunus compact 1"
PACKED_FORMAT = "prunus compact 2"
"""Of files with packed tensors, so that a prunus that cannot open them says so."""
HEADS_FORMAT = "prunus compact 3"
"""Of files with narrow attentions, for the same reason."""
NORMS_FORMAT = "prunus compact 4"
"""Of files with wide norms, likewise."""
LIMITS_FORMAT = "prunus compact 5"
"""Of files of models that refuse some calls, likewise."""
LISTS_FORMAT = "prunus compact 6"
"""Of files of models whose lists lost entries, likewise."""

_KNOWN = {"format": str, "class": str, "attributes": list, "graphs": dict, "dropped": list,
          "tied": dict, "sparse": dict, "heads": dict, "norms": dict,
          "limits": dict, "lists": dict}  # fmt: skip
_LACKING = {
    FORMAT: {"sparse", "heads", "norms", "limits", "lists"},
    PACKED_FORMAT: {"heads", "norms", "limits", "lists"},
    HEADS_FORMAT: {"norms", "limits", "lists"},
    NORMS_FORMAT: {"limits", "lists"},
    LIMITS_FORMAT: {"lists"},
    LISTS_FORMAT: set(),
}
"""Formats, and the keys of the manifest that they have not."""


def save(
    model: nn.Module,
    path: str | Path,
    attributes: Iterable[Attribute] = (),
    *,
    sparse: bool = False,
    values: Values | None = None,
) -> Path:
    """Write a compact model; a crash leaves the file that was there, or the new one.

    Args:
        model: a compact model, or any other.
        path: of the file; ``.safetensors`` by custom.
        attributes: further numbers of modules that differ from the dense model's; those that
            prunus changed are known.
        sparse: store a tensor as the mask and the values of what is not zero wherever that is
            smaller; every bit comes back. At sparsity 0.9 in float32, 13 % of the bytes.
        values: round packed weights (parameters of two or more dimensions) to ``float16``,
            ``bfloat16`` or ``int8``, this one with a scale for each output. Zeros stay zeros, and
            :func:`load` gives back the type that the model has.

    Raises:
        InputError: if a value cannot be rounded so, an attribute is no number, or the manifest
            would be longer than a reader accepts.
        RunError: if the disk refuses.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = nn.Linear(100, 100)
    ...     model.weight.data *= torch.rand(100, 100) > 0.9
    ...     file = save(model, Path(folder) / "model.safetensors", sparse=True)
    ...     again = load(file, nn.Linear(100, 100))
    >>> torch.equal(again.weight, model.weight)
    True
    """
    path = given_file(path, "path")
    given_model(model, "save", values=True)
    warn_of_written(model)
    data = packed(model, attributes, sparse=sparse, values=values)
    if not header_fits(data):
        raise InputError(
            f"the names and graphs of this {type(model).__name__} need a header of "
            f"{int.from_bytes(data[:8], 'little')} bytes; at most {LONGEST_HEADER} are allowed"
        )
    write_atomically(path, data)
    return path


def packed(
    model: nn.Module,
    attributes: Iterable[Attribute] = (),
    *,
    sparse: bool = False,
    values: Values | None = None,
) -> bytes:
    """The file's bytes."""
    _check_rounding(sparse, values)
    graphs: dict[str, Any] = {}
    dropped: list[Any] = []
    tensors: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, Dropped):
            dropped.append(name if module.left == "zeros" else [name, module.left])
        if isinstance(module, fx.GraphModule):
            document, own = to_plain(module)
            plain = {k: v for k, v in vars(module).items() if is_plain(k, v)}
            graphs[name] = {
                "document": document, "attributes": plain, "parts": plain_parts(module),
            }  # fmt: skip
            tensors |= {joined(name, k): v for k, v in own.items()}
    names = canonical_names(model)
    first = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    inside = tuple(f"{g}." if g else "" for g in graphs)
    for name, tensor in first.items():
        if not any(name.startswith(g) for g in inside):
            tensors[name] = tensor
    heads = {n: m.heads for n, m in model.named_modules() if isinstance(m, NarrowAttention)}
    norms = {n: m.counted for n, m in model.named_modules() if isinstance(m, Wide)}
    numbers = [a for a in attributes if not isinstance(a, (Narrowing, Widening))]
    last = {(a.module, a.name): a for a in (*changed(model), *numbers)}
    for attribute in last.values():
        if not is_number(attribute.after):
            raise InputError(
                f"'{attribute.module}.{attribute.name}' is {attribute.after!r}; a file can hold "
                "only numbers and tuples or lists of them"
            )
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "class": type(unwrapped(model)).__name__,
        "attributes": [[a.module, a.name, a.after] for a in last.values()],
        "graphs": graphs,
        "dropped": dropped,
        "tied": {n: f for n, f in names.items() if n != f and f in tensors},
    }
    rename = names_for_file(model)
    plain_tensors = {rename(k): v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    if sparse:
        rounded = None if values is None else {rename(n): d for n, d in _outputs(model).items()}
        plain_tensors, entries = pack(plain_tensors, values=values, rounded=rounded)
        if entries:  # else the file is the dense one, byte by byte
            manifest |= {"format": PACKED_FORMAT, "sparse": entries}
    limits = limits_of(model)
    lists = {n: [*m._modules] for n, m in model.named_modules() if isinstance(m, NarrowList)}
    if heads or norms or limits or lists:
        manifest = {"sparse": {}, **manifest, "format": HEADS_FORMAT, "heads": heads}
    if norms or limits or lists:
        manifest |= {"format": NORMS_FORMAT, "norms": norms}
    if limits or lists:
        manifest |= {"format": LIMITS_FORMAT, "limits": limits.to_plain()}
    if lists:
        manifest |= {"format": LISTS_FORMAT, "lists": lists}
    manifest = rename_manifest(manifest, rename)
    # One key: the library writes several in a random order, and equal models are equal files.
    return safetensors.torch.save(plain_tensors, {"prunus": json.dumps(manifest)})


def parts_of(data: bytes) -> tuple[str, dict[str, Tensor]]:
    """The manifest and the tensors of a file's bytes, for what keeps them elsewhere."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header["__metadata__"]["prunus"], safetensors.torch.load(data)


def joined_file(manifest: str, tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a file from what :func:`parts_of` gave."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(plain, {"prunus": manifest})


def _outputs(model: nn.Module) -> dict[str, int]:
    """Parameters of two or more dimensions, each with the one that runs over its outputs."""
    found = {name: 0 for name, p in model.named_parameters() if p.dim() > 1}
    for path, module in model.named_modules():
        found |= {k.name: k.out_dim for k in layers_of(path, module) if k.name in found}
    return found


def _check_rounding(sparse: bool, values: str | None) -> None:
    given_choice(sparse, "sparse", (True, False))
    if values is not None and (not isinstance(values, str) or values not in ROUNDED):
        raise InputError(
            f"values: {values!r} is unknown: {did_you_mean(str(values)[:80], ROUNDED)}"
        )
    if values is not None and not sparse:
        raise InputError(f"values={values!r} rounds only packed tensors: pass sparse=True as well")


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Open a compact model, or any other that prunus wrote, dense or packed.

    The file may come from anyone: nothing in it is executed or imported, and memory is taken for
    what it holds, not for what it claims.

    Args:
        path: of a file that :func:`save` or a run wrote, or of the run's folder.
        model: the dense model's class, freshly made; it becomes the compact one, in place (tensors
            of its ``state_dict()`` are written over). Not needed where the whole model became a
            graph.

    Returns:
        The model in eval mode.

    Raises:
        InputError: if the file is none of ours, is damaged, or does not fit the model. The model
            is as it was then.

    >>> import tempfile
    >>> from prunus.compaction.slicing.surgery import Surgery
    >>> small = nn.Linear(4, 2)
    >>> Surgery({"weight": (None, torch.tensor([0, 3]))}).apply(small)
    {}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     opened = load(save(small, Path(folder) / "small.safetensors"), nn.Linear(4, 2))
    >>> torch.equal(opened.weight, small.weight)
    True
    """
    manifest, stored = _read(_file(Path(path)))
    everything = manifest["graphs"].get("")
    if everything is None and model is None:
        name = manifest["class"][:80]
        name = name if name.isidentifier() else "model"
        raise InputError(
            f"'{path}' contains the tensors of a {name} but not its code: pass the "
            f"dense model, load(path, model={name}(…))"
        )
    tensors = unpack(stored, manifest.get("sparse", {}))
    if everything is not None or model is None:
        return _graph(everything, tensors)
    manifest, tensors = for_model(manifest, tensors, model)
    left = _dropped(manifest["dropped"])
    check_replaced(model, [*manifest["graphs"], *(name for name, _ in left)])
    graphs = {
        name: _graph(entry, _within(tensors, name)) for name, entry in manifest["graphs"].items()
    }
    dropped = {name: Dropped(what) for name, what in left}
    gone = taken_out(model, manifest.get("lists", {}), {**graphs, **dropped})
    absent = [*graphs, *dropped, *gone]
    places = places_of(model, tensors, absent)
    attributes = changes(model, manifest["attributes"])
    attributes += narrow(model, manifest.get("heads", {}), absent)
    attributes += widened(model, manifest.get("norms", {}), absent)
    inside = tuple(f"{name}." for name in graphs)
    attributes = [a for a in attributes if not a.module.startswith(inside)]  # of no effect there
    limits = Limits.from_plain(model, manifest.get("limits", {}), absent)
    narrowed(model, gone)
    for name, graph in {**graphs, **dropped}.items():
        model.set_submodule(name, graph)
    writable = own_memory(model)
    with torch.no_grad():
        for place in places:
            put(place, writable)
    own_holders(model, attributes)
    for attribute in attributes:
        attribute.set(model)
    limits.apply(model)
    refresh(model)
    return model.eval()


def needs_no_model(path: Path) -> bool:
    """Whether a file holds a whole model as a graph."""
    return _read(path)[0]["graphs"].get("") is not None


def _file(path: Path) -> Path:
    """The file to open for a path: of a run's folder, its model."""
    if not path.is_dir():
        return path
    file = path / "model.safetensors"
    if file.is_file():
        return file
    if (path / "run.json").is_file():
        raise InputError(
            f"the run in '{path}' has not finished, so there is no model yet: resume it with "
            f"prunus resume {path}"
        )
    raise InputError(f"'{path}' is not a run folder (it has no {file.name}): pass a file")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    manifest, tensors = read(path)
    written = manifest.get("format") if isinstance(manifest, dict) else None
    if isinstance(written, str) and written not in _LACKING:
        known = ", ".join(f"'{name}'" for name in _LACKING)
        raise InputError(f"'{path}' has the format {written[:80]!r}; this reads {known}")
    keys = set(_KNOWN) - _LACKING.get(str(written), _LACKING[PACKED_FORMAT])
    if not isinstance(manifest, dict) or set(manifest) != keys:
        raise InputError(f"'{path}' has a damaged manifest")
    for key, value in manifest.items():
        if not isinstance(value, _KNOWN[key]):
            raise InputError(f"'{path}' has a damaged manifest: {key} is {reprlib.repr(value)}")
    return manifest, tensors


def _dropped(entries: list[Any]) -> list[tuple[Any, str]]:
    """Modules that were taken out, and what stays of each: a name alone leaves zeros."""
    found = []
    for entry in entries:
        name, left = entry if isinstance(entry, list) and len(entry) == 2 else (entry, "zeros")
        if not isinstance(left, str) or left not in LEFT:
            raise InputError(f"the file leaves {shown(left)} of a module; known: {', '.join(LEFT)}")
        found.append((name, left))
    return found


def _graph(entry: Any, tensors: Mapping[str, Tensor | Packed]) -> CompactGraph:
    if not isinstance(entry, dict) or not isinstance(entry.get("attributes"), dict):
        raise InputError("the manifest contains a damaged graph")
    opened = from_plain(entry.get("document", {}), {k: whole(t) for k, t in tensors.items()})
    graph = opened if isinstance(opened, CompactGraph) else CompactGraph(opened, opened.graph)
    for key, value in entry["attributes"].items():
        if is_plain(key, value) and not hasattr(graph, key):
            setattr(graph, key, value)
    if "parts" in entry:  # of the files from before there is none
        take_parts(graph, entry["parts"])
    return graph.eval()


def _within(tensors: Mapping[str, Tensor | Packed], name: str) -> dict[str, Tensor | Packed]:
    start = f"{name}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
