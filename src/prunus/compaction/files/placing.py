"""Where the contents of a file go in a model: all is found and fits before anything is changed."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.former_module import PLAIN
from prunus._common.modules import canonical_names, held, joined
from prunus._common.names import inner_key
from prunus._common.narrow_list import NarrowList
from prunus.compaction.files.unpack import Packed, whole
from prunus.compaction.slicing.attention import NarrowAttention, Narrowing
from prunus.compaction.slicing.attributes import Attribute
from prunus.compaction.slicing.norms import Widening, width_of
from prunus.errors import InputError, did_you_mean

Place = tuple[nn.Module, str, Tensor | Packed]


def check_replaced(model: nn.Module, names: list[Any]) -> None:
    """Names of modules that graphs and zeros stand for: each there, once, none within another."""
    modules = dict(model.named_modules())
    for name in names:
        if not isinstance(name, str) or not name or name not in modules:
            raise InputError(f"the model has no module {shown(name)}, which the file replaces")
    every = set(names)
    for name in names:
        parts = name.split(".")
        above = {".".join(parts[:i]) for i in range(1, len(parts))}
        if names.count(name) > 1 or above & every:
            raise InputError(f"the file replaces the module {shown(name)} twice: it is damaged")


def shown(value: Any) -> str:
    """Something from a file, short enough for a message."""
    return repr(value[:80]) if isinstance(value, str) else reprlib.repr(value)


def changes(model: nn.Module, given: list[Any]) -> list[Attribute]:
    """The numbers that modules keep and the file changes.

    Args:
        model: still the dense one.
        given: of ``[module, name, number]``, from anyone.

    Raises:
        InputError: if a module or its number is not there, or would become something else.
    """
    found = []
    modules = dict(model.named_modules())
    for entry in given:
        if not isinstance(entry, list) or len(entry) != 3:
            raise InputError("the manifest contains a damaged attribute")
        path, name, after = entry
        if not isinstance(path, str) or path not in modules:
            near = did_you_mean(path[:80], modules) if isinstance(path, str) else "names are text"
            raise InputError(
                f"the file does not fit this {type(model).__name__}, which has no module "
                f"{shown(path)}: {near}"
            )
        before = _found(modules[path], name)
        after = tuple(after) if isinstance(after, list) and type(before) is not list else after
        sizes = [len(v) if isinstance(v, (tuple, list)) else 0 for v in (before, after)]
        if type(before) is not type(after) or not is_number(after) or sizes[0] != sizes[1]:
            raise InputError(
                f"{shown(path)} has no attribute {shown(name)} that can become {shown(after)}"
            )
        found.append(Attribute(path, name, before, after))
    return found


def narrow(model: nn.Module, given: dict[str, Any], replaced: Iterable[str]) -> list[Narrowing]:
    """The attentions of torch's that hold fewer or narrower heads in the file.

    Args:
        model: still the dense one.
        given: the heads that stay by module, from anyone.
        replaced: modules that will not be there.

    Raises:
        InputError: if a module is not there or is no attention of torch's own, or has not these.
    """
    found = []
    modules = dict(model.named_modules())
    gone = tuple(f"{name}." for name in replaced)
    for path, heads in given.items():
        module = None if f"{path}.".startswith(gone) else modules.get(path)
        if type(module) not in (nn.MultiheadAttention, NarrowAttention):
            raise InputError(
                f"the file does not fit this {type(model).__name__}, which has no "
                f"nn.MultiheadAttention {shown(path)}"
            )
        assert isinstance(module, nn.MultiheadAttention)
        before = module.heads if isinstance(module, NarrowAttention) else None
        every = range(module.num_heads) if before is None else before
        whole_numbers = isinstance(heads, list) and all(type(head) is int for head in heads)
        if not heads or not whole_numbers or heads != sorted({*heads} & {*every}):
            raise InputError(
                f"{shown(path)} has the heads {[*every]}, of which {shown(heads)} cannot stay"
            )
        found.append(Narrowing(path, before, tuple(heads)))
    return found


def widened(model: nn.Module, given: dict[str, Any], replaced: Iterable[str]) -> list[Widening]:
    """The norms that count the width that they had in the dense model.

    Args:
        model: still the dense one.
        given: that width by module, from anyone.
        replaced: modules that will not be there.

    Raises:
        InputError: if a module is not there, is no norm, or has another width.
    """
    found = []
    modules = dict(model.named_modules())
    gone = tuple(f"{name}." for name in replaced)
    for path, counted in given.items():
        module = None if f"{path}.".startswith(gone) else modules.get(path)
        width = None if module is None else width_of(module)
        if width is None or type(counted) is not int or width != counted:
            raise InputError(
                f"the file does not fit this {type(model).__name__}, which has no norm "
                f"{shown(path)} of the width {shown(counted)}"
            )
        found.append(Widening(path, None, counted))
    return found


def taken_out(model: nn.Module, given: dict[str, Any], replaced: Iterable[str]) -> list[str]:
    """The entries of lists of modules that are not in the file, by name.

    Args:
        model: still the dense one.
        given: the keys that stay by list, from anyone.
        replaced: modules that will not be there.

    Raises:
        InputError: if a list is not there, or has not these entries.
    """
    found = []
    modules = dict(model.named_modules())
    gone = tuple(f"{name}." for name in replaced)
    for path, keys in given.items():
        module = None if f"{path}.".startswith(gone) else modules.get(path)
        if type(module) not in (nn.ModuleList, NarrowList):
            raise InputError(
                f"the file does not fit this {type(model).__name__}, which has no nn.ModuleList "
                f"{shown(path)}"
            )
        assert isinstance(module, nn.Module)
        every = list(module._modules)
        known = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not known or not keys or keys != [key for key in every if key in keys]:
            raise InputError(
                f"{shown(path)} has the entries {shown(', '.join(every))}, of which {shown(keys)} "
                "cannot stay"
            )
        found += [joined(path, key) for key in every if key not in keys]
    return found


def is_number(value: Any) -> bool:
    """What modules remember of their sizes: a word could name code to be fetched, later."""
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return all(type(part) in (int, float) for part in parts)


def _found(owner: Any, name: Any) -> Any:
    """A plain attribute of a module, or of an object that it holds (``config.num_heads``)."""
    parts = name.split(".") if isinstance(name, str) else ["__"]
    for part in parts:
        shared = isinstance(owner, (type, ModuleType, FunctionType))  # by more than this model
        if shared or not is_plain(part, 0) or not hasattr(owner, "__dict__"):
            return None
        owner = vars(owner).get(part)
    return owner


def is_plain(key: object, value: Any) -> bool:
    """Whether this is an attribute that a file may name: plain data under an ordinary name."""
    own = isinstance(key, str) and key.isidentifier() and not key.startswith("__")
    return own and type(value) in PLAIN and key != "training"


def places_of(
    model: nn.Module,
    tensors: Mapping[str, Tensor | Packed],
    replaced: Iterable[str],
) -> list[Place]:
    """Where each tensor goes: the module that owns it, and under which name.

    Args:
        model: the dense one.
        tensors: of the file, by their first names.
        replaced: modules whose tensors are not looked for.

    Raises:
        InputError: if a tensor is missing, or does not fit.
    """
    places = []
    done: set[int] = set()
    names = canonical_names(model)
    inside = tuple(f"{g}." for g in replaced)
    for path, module in model.named_modules(remove_duplicate=False):
        for key, old in (*module._parameters.items(), *module._buffers.items()):
            full = joined(path, key)
            if old is None or any(full.startswith(i) for i in inside):
                continue
            optional = key in module._non_persistent_buffers_set or inner_key(module) is not None
            if optional and names[full] not in tensors:  # a wrapper's own count, too
                continue
            value = tensors.get(names[full])
            if value is None or not _fits(value, old):
                raise InputError(
                    f"the file does not fit this {type(model).__name__}: '{full}' is "
                    f"{'missing' if value is None else f'{value.dtype} {tuple(value.shape)}'}; "
                    f"the model's is {old.dtype} {tuple(old.shape)}"
                )
            if isinstance(old, nn.Parameter) and id(old) in done:
                continue
            done.add(id(old))
            places.append((module, key, value))
    return places


def _fits(value: Tensor | Packed, old: Tensor) -> bool:
    """Of the same type and rank; a parameter is a slice of the dense model's, never larger."""
    if value.dtype != old.dtype or len(value.shape) != old.dim():
        return False
    pairs = zip(value.shape, old.shape, strict=True)
    return not isinstance(old, nn.Parameter) or all(n <= m for n, m in pairs)


def put(place: Place, writable: set[int]) -> None:
    """Give a parameter or buffer its value; a parameter stays the same object.

    Args:
        place: module, name and value.
        writable: of :func:`own_memory`: a packed tensor of the same shape is written there.
    """
    module, key, value = place
    parameter = held(module._parameters, key)
    old = module._buffers[key] if parameter is None else parameter
    assert old is not None
    if isinstance(value, Packed) and id(old) in writable and value.shape == old.shape:
        value.whole(old.detach())
        torch.autograd.graph.increment_version(old)
    elif parameter is None:
        module._buffers[key] = whole(value).to(old.device)
    else:
        parameter.data = whole(value).to(parameter.device)
    if parameter is not None:
        parameter.grad = None


def own_memory(model: nn.Module) -> set[int]:
    """Parameters and buffers, by ``id``, that may be written over as ``load_state_dict`` does.

    Torch took their memory on the CPU for each of them alone: no other tensor of the model lies
    there, and no file or array of the user's. To write where a model already is takes no memory,
    and new memory is the slowest part of opening a packed file.
    """
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    plain = {
        key: tensor
        for key, tensor in tensors.items()
        if type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu"
    }
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in plain.values())
    return {
        key
        for key, tensor in plain.items()
        if tensor.is_contiguous()
        and not tensor.is_inference()
        and tensor.untyped_storage().resizable()
        and tensor.untyped_storage().nbytes() == tensor.nbytes
        and users[tensor.untyped_storage().data_ptr()] == 1
    }
