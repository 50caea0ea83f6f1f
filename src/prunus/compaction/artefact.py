"""Compact models on disk: one safetensors file, its manifest in the file's own metadata.

Any safetensors reader opens the tensors under the model's names. The manifest (JSON, under the
key ``prunus``) holds what slices alone do not say: numbers that modules keep, modules that became
graphs, names of tied tensors. Nothing in it is executed or imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, fx, nn

from prunus.compaction.attributes import Attribute
from prunus.compaction.drop import Dropped
from prunus.compaction.graph_file import from_plain, to_plain
from prunus.compaction.rewrite import PLAIN, CompactGraph
from prunus.compaction.surgery import refresh
from prunus.errors import InputError, did_you_mean
from prunus.files import write_atomically
from prunus.graph.analysis import canonical_names

FORMAT = "prunus compact 1"


def save(model: nn.Module, path: str | Path, attributes: Iterable[Attribute] = ()) -> Path:
    """Write a compact model; a crash leaves the file that was there, or the new one.

    Args:
        model: a compact model, or any other.
        path: of the file; ``.safetensors`` by custom.
        attributes: numbers that modules keep and that differ from the dense model's
            (``Compact.attributes``).

    Raises:
        RunError: if the disk refuses.
    """
    path = Path(path)
    write_atomically(path, packed(model, attributes))
    return path


def packed(model: nn.Module, attributes: Iterable[Attribute] = ()) -> bytes:
    """The file's bytes."""
    graphs: dict[str, Any] = {}
    dropped: list[str] = []
    tensors: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, Dropped):
            dropped.append(name)
        if isinstance(module, fx.GraphModule):
            document, own = to_plain(module)
            plain = {k: v for k, v in vars(module).items() if _is_plain(k, v)}
            graphs[name] = {"document": document, "attributes": plain}
            tensors |= {f"{name}.{k}" if name else k: v for k, v in own.items()}
    names = canonical_names(model)
    first = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    inside = tuple(f"{g}." if g else "" for g in graphs)
    for name, tensor in first.items():
        if not any(name.startswith(g) for g in inside):
            tensors[name] = tensor
    last: dict[tuple[str, str], Attribute] = {(a.module, a.name): a for a in attributes}
    manifest = {
        "format": FORMAT,
        "class": type(model).__name__,
        "attributes": [[a.module, a.name, a.after] for a in last.values()],
        "graphs": graphs,
        "dropped": dropped,
        "tied": {n: f for n, f in names.items() if n != f and f in tensors},
    }
    plain_tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    # One key: the library writes several in a random order, and equal models are equal files.
    return safetensors.torch.save(plain_tensors, {"prunus": json.dumps(manifest)})


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Open a compact model.

    Args:
        path: of a file that :func:`save` or a run wrote.
        model: the dense model's class, freshly made; it becomes the compact one, in place. Not
            needed where the whole model became a graph.

    Returns:
        The model in eval mode.

    Raises:
        InputError: if the file is none of ours, is damaged, or does not fit the model. The model
            is as it was then.

    >>> import tempfile
    >>> from prunus.compaction.surgery import Surgery
    >>> small = nn.Linear(4, 2)
    >>> Surgery({"weight": (None, torch.tensor([0, 3]))}).apply(small)
    {}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     opened = load(save(small, Path(folder) / "small.safetensors"), nn.Linear(4, 2))
    >>> torch.equal(opened.weight, small.weight)
    True
    """
    manifest, tensors = _read(Path(path))
    whole = manifest["graphs"].get("")
    if whole is not None:
        return _graph(whole, tensors).eval()
    if model is None:
        raise InputError(
            f"'{path}' holds the tensors of a {manifest['class']}, whose code is yours: give the "
            f"dense model, load(path, model={manifest['class']}(…))"
        )
    graphs = {
        name: _graph(entry, _within(tensors, name)) for name, entry in manifest["graphs"].items()
    }
    dropped = {str(name): Dropped() for name in manifest["dropped"]}
    places = _places(model, tensors, {**graphs, **dropped})
    attributes = _attributes(model, manifest["attributes"])
    for name, graph in {**graphs, **dropped}.items():
        parent, _, last = name.rpartition(".")
        model.get_submodule(parent)._modules[last] = graph
    with torch.no_grad():
        for module, key, value in places:
            _put(module, key, value)
    for attribute in attributes:
        attribute.set(model)
    refresh(model)
    return model.eval()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("prunus")
            if text is None:
                raise InputError(f"'{path}' is a safetensors file, but prunus did not write it")
            manifest = json.loads(text)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"'{path}' cannot be read: {error}") from error
    known = {"format": str, "class": str, "attributes": list, "graphs": dict, "dropped": list,
             "tied": dict}  # fmt: skip
    if not isinstance(manifest, dict) or any(
        not isinstance(manifest.get(key), kind) for key, kind in known.items()
    ):
        raise InputError(f"'{path}' holds a damaged manifest")
    if manifest["format"] != FORMAT:
        raise InputError(f"'{path}' is written as '{manifest['format']}'; this reads '{FORMAT}'")
    return manifest, tensors


def _graph(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CompactGraph:
    if not isinstance(entry, dict) or not isinstance(entry.get("attributes"), dict):
        raise InputError("the manifest holds a damaged graph")
    opened = from_plain(entry.get("document", {}), tensors)
    graph = CompactGraph(opened, opened.graph)
    for key, value in entry["attributes"].items():
        if _is_plain(key, value) and not hasattr(graph, key):
            setattr(graph, key, value)
    return graph.eval()


def _within(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    start = f"{name}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def _is_plain(key: object, value: Any) -> bool:
    own = isinstance(key, str) and key.isidentifier() and not key.startswith("__")
    return own and type(value) in PLAIN and key != "training"


def _attributes(model: nn.Module, given: list[Any]) -> list[Attribute]:
    found = []
    for entry in given:
        if not isinstance(entry, list) or len(entry) != 3:
            raise InputError("the manifest holds a damaged attribute")
        path, name, after = entry
        modules = dict(model.named_modules())
        if path not in modules:
            raise InputError(
                f"the file does not fit this {type(model).__name__}, which has no module '{path}': "
                f"{did_you_mean(path, modules)}"
            )
        before = _found(modules[path], name)
        after = tuple(after) if isinstance(after, list) else after
        if type(before) is not type(after):
            raise InputError(f"'{path}' has no attribute '{name}' that can become {after!r}")
        found.append(Attribute(path, name, before, after))
    return found


def _found(owner: Any, name: Any) -> Any:
    """A plain attribute of a module, or of an object that it holds (``config.num_heads``)."""
    parts = name.split(".") if isinstance(name, str) else ["__"]
    for part in parts:
        if not _is_plain(part, 0) or not hasattr(owner, "__dict__"):
            return None
        owner = vars(owner).get(part)
    return owner


def _places(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    graphs: Mapping[str, nn.Module],
) -> list[tuple[nn.Module, str, Tensor]]:
    """Where each tensor goes; everything is found before anything is changed."""
    places = []
    done: set[int] = set()
    names = canonical_names(model)
    inside = tuple(f"{g}." for g in graphs)
    for path, module in model.named_modules(remove_duplicate=False):
        for key, old in (*module._parameters.items(), *module._buffers.items()):
            full = f"{path}.{key}" if path else key
            if old is None or any(full.startswith(i) for i in inside):
                continue
            if key in module._non_persistent_buffers_set and names[full] not in tensors:
                continue
            value = tensors.get(names[full])
            if value is None or value.dim() != old.dim() or value.dtype != old.dtype:
                raise InputError(
                    f"the file does not fit this {type(model).__name__}: '{full}' is "
                    f"{'missing' if value is None else f'{value.dtype} {tuple(value.shape)}'}"
                )
            if isinstance(old, nn.Parameter) and id(old) in done:
                continue
            done.add(id(old))
            places.append((module, key, value))
    for name in graphs:
        if name not in dict(model.named_modules()):
            raise InputError(f"the model has no module '{name}', which the file replaces")
    return places


def _put(module: nn.Module, key: str, value: Tensor) -> None:
    parameter = module._parameters.get(key)
    if parameter is None:
        old = module._buffers[key]
        assert old is not None
        module._buffers[key] = value.to(old.device)
    else:
        parameter.data = value.to(parameter.device)
        parameter.grad = None
