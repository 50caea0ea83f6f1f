"""Names in files: a model's own, without what wraps it, so that others of its kind open them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from prunus._common.names import matched, module_names, plain_names, shared_prefix
from prunus.errors import InputError

T = TypeVar("T")

_BY_NAME = ("graphs", "heads", "norms", "lists")
"""What a manifest holds by the names of modules."""


def names_for_file(model: nn.Module) -> Callable[[str], str]:
    """What a file calls a module, parameter or buffer of a model.

    Raises:
        InputError: if two would have the same name.

    >>> names_for_file(nn.DataParallel(nn.Linear(1, 1)))("module.weight")
    'weight'
    """
    tensors = plain_names(model)
    own = {id(t): n for n, t in (*model.named_parameters(), *model.named_buffers())}
    taken: dict[str, str] = {}
    for name in own.values():
        other = taken.setdefault(tensors[name], name)
        if other != name:
            raise InputError(
                f"'{other}' and '{name}' would both be '{tensors[name]}' in a file, without what "
                "wraps the model: save the model inside the wrapper"
            )
    return _with_prefixes(module_names(model))


def _with_prefixes(modules: Mapping[str, str]) -> Callable[[str], str]:
    """A change of the module's path at the beginning of a name."""
    deepest = max(path.count(".") + 1 for path in modules)

    def renamed(name: str) -> str:
        parts = name.split(".")
        for i in range(min(deepest, len(parts)), -1, -1):
            path = ".".join(parts[:i])
            if path in modules:
                return ".".join(p for p in (modules[path], *parts[i:]) if p)
        return name

    return renamed


def rename_manifest(manifest: Mapping[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """The same manifest with other names of modules and tensors; what is damaged stays so."""

    def one(name: Any) -> Any:
        return rename(name) if isinstance(name, str) else name

    def first(entry: Any) -> Any:
        return [one(entry[0]), *entry[1:]] if isinstance(entry, list) and entry else one(entry)

    def keys(values: Any) -> Any:
        return {one(k): v for k, v in values.items()} if isinstance(values, dict) else values

    changed = {
        "attributes": [first(entry) for entry in manifest["attributes"]],
        "dropped": [first(entry) for entry in manifest["dropped"]],
        "tied": {one(name): one(of) for name, of in manifest["tied"].items()},
        **{key: keys(manifest[key]) for key in _BY_NAME if key in manifest},
    }
    limits = manifest.get("limits")
    if isinstance(limits, dict) and isinstance(limits.get("unread"), list):
        changed["limits"] = {**limits, "unread": [one(name) for name in limits["unread"]]}
    return {**manifest, **changed}


def for_model(
    manifest: Mapping[str, Any], tensors: Mapping[str, T], model: nn.Module
) -> tuple[dict[str, Any], dict[str, T]]:
    """A file's contents under the names that a model has for them, wrapped or not.

    Raises:
        InputError: if a name could mean two.
    """
    modules, own = module_names(model), plain_names(model)
    inner = {plain: path for path, plain in modules.items()}  # the innermost one comes last
    prefix = shared_prefix(tensors)
    prefix = f"{prefix}." if prefix and prefix not in modules else ""
    inside = _with_prefixes(inner)
    names = matched((name.removeprefix(prefix) for name in tensors), own)

    def rename(name: str) -> str:
        return inside(f"{name}.".removeprefix(prefix).removesuffix("."))

    renamed = {names[n.removeprefix(prefix)] or rename(n): t for n, t in tensors.items()}
    return rename_manifest(manifest, rename), renamed
