"""Modules as such: modes, copies, names."""

from __future__ import annotations

import copy
import inspect
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn

from prunus.errors import InputError, PrunusError, first_line

Named = tuple[str, Tensor, bool]
"""A tensor under its name and, for a buffer, whether it is in the state dict."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is in its own mode again.

    A module with a ``train()`` of its own is told its mode by that method: a graph switches its
    operators there, and adapters take their weights out of others again.

    >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with evaluating(model):
    ...     [m.training for m in model]
    [False, False]
    >>> [m.training for m in model]
    [True, False]
    """
    with keeping_modes(model):
        model.eval()
        yield


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, afterwards every module is in the mode that it had before.

    One that has taken another's place inside gets the mode of that one.
    """
    modes = [(module, module.training) for module in model.modules()]
    places = {name: module.training for name, module in model.named_modules()}
    try:
        yield
    finally:
        known = {id(module) for module, _ in modes}
        added = [(n, m) for n, m in model.named_modules() if id(m) not in known]
        modes += [(module, _nearest(places, name)) for name, module in added]
        for module, mode in modes:  # what encloses others comes first
            if type(module).train is not nn.Module.train:
                module.train(mode)
        for module, mode in modes:
            module.training = mode


def trains(model: nn.Module) -> bool:
    """Whether a model is in train mode, and not just what was put around one in eval mode.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.Dropout()).eval()
    >>> nn.DataParallel(model).training, trains(nn.DataParallel(model))
    (True, False)
    """
    innermost = (m for m in model.modules() if next(m.children(), None) is None)
    return model.training and any(m.training for m in innermost)


def holders(model: nn.Module) -> Counter[int]:
    """How many modules hold each parameter, by its identity: one more than one is shared.

    A module that has several names is one.

    >>> layer, other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> holders(nn.Sequential(layer, layer))[id(layer.weight)]
    1
    >>> other.weight = layer.weight
    >>> holders(nn.Sequential(layer, other))[id(layer.weight)]
    2
    """
    return Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))


def take_mode(module: nn.Module, of: nn.Module) -> None:
    """Put a module into the mode of the one whose place it takes."""
    if module.training is not of.training:
        module.train(of.training)


def _nearest(places: dict[str, bool], name: str) -> bool:
    """The mode at a path, or of the innermost module around it that was there."""
    while name not in places:
        name = name.rpartition(".")[0]
    return places[name]


def detached_copy(model: nn.Module, shared: Mapping[int, Any] | None = None) -> nn.Module:
    """A deep copy; results of an earlier pass that modules keep are detached, not refused.

    Args:
        model: any module.
        shared: by identity, what the copy holds in the place of tensors and modules.
    """
    memo: dict[int, Any] = dict(shared or {})
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach().clone())
            elif type(value) in (dict, OrderedDict, set) and not value:
                memo[id(value)] = type(value)()  # of hooks: ten a module, slow to copy one by one
    try:
        return copy.deepcopy(model, memo)
    except PrunusError:
        raise
    except Exception as error:  # copying calls the code of whatever the model holds
        raise InputError(
            f"{type(model).__name__} cannot be copied ({first_line(error)}), and prunus works on a "
            "copy: remove what copy.deepcopy refuses"
        ) from error


def shared_copy(
    model: nn.Module, *, whole: type[nn.Module] | tuple[type[nn.Module], ...] = ()
) -> nn.Module:
    """A copy of a model that holds the very same parameters and buffers.

    Args:
        model: any module.
        whole: classes of modules inside whose tables alone are copied: they keep nothing of a pass.

    >>> model = nn.Linear(1, 1)
    >>> shared_copy(model).weight is model.weight
    True
    """
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    kept = [m for m in model.modules() if isinstance(m, whole)]
    made = detached_copy(model, shared | {id(m): copy.copy(m) for m in kept})
    drop_caches(made)
    return made


def drop_caches(model: nn.Module) -> None:
    """Let modules forget tensors that they computed from parameters in eval mode.

    LeViT and its like keep them in a dictionary that their own ``train()`` empties.
    """
    for module in model.modules():
        if type(module).train is nn.Module.train or isinstance(module, fx.GraphModule):
            continue
        cached = any(
            isinstance(v, dict) and v and all(isinstance(t, Tensor) for t in v.values())
            for k, v in vars(module).items()
            if k not in ("_parameters", "_buffers")
        )
        if cached:
            mode = module.training
            module.train(True)
            module.train(mode)


def evaluation_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode with the same parameters; what a pass changes stays in the copy.

    Args:
        model: that is copied.

    Raises:
        InputError: if the model cannot be copied.
    """
    made = detached_copy(model, {id(p): p for p in model.parameters()})
    drop_caches(made)
    return made.eval()


def named_tensors(model: nn.Module) -> list[Named]:
    """Every parameter and buffer under each of its names, and whether it is in the state dict.

    >>> [(name, kept) for name, _, kept in named_tensors(nn.Linear(1, 1))]
    [('weight', True), ('bias', True)]
    """
    kept = model.state_dict().keys()
    parameters = model.named_parameters(remove_duplicate=False)
    buffers = model.named_buffers(remove_duplicate=False)
    return [(name, tensor, name in kept) for name, tensor in (*parameters, *buffers)]


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer to the first one of the same tensor.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> model[1].weight = model[0].weight
    >>> canonical_names(model)["1.weight"]
    '0.weight'
    """
    first: dict[int, str] = {}
    return {name: first.setdefault(id(t), name) for name, t, _ in named_tensors(model)}


def joined(path: str, name: str) -> str:
    """The dotted name of what a module at a path calls ``name``.

    >>> joined("head", "weight"), joined("", "weight")
    ('head.weight', 'weight')
    """
    return f"{path}.{name}" if path else name


def put_attribute(root: nn.Module, name: str, value: Any, *, persistent: bool = True) -> None:
    """Give a module a parameter, a buffer, or anything else, under a dotted name.

    Modules that lack on the way are added.

    Raises:
        KeyError, AttributeError: if the name leads through something else than modules.

    >>> model = nn.Module()
    >>> put_attribute(model, "a.b", Tensor([1.0]))
    >>> list(model.state_dict())
    ['a.b']
    """
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if isinstance(value, nn.Parameter):
        root.register_parameter(last, value)
    elif isinstance(value, Tensor):
        root.register_buffer(last, value, persistent=persistent)
    else:
        setattr(root, last, value)


def set_forward(model: nn.Module, forward: Callable[..., Any], parameters: Sequence[str]) -> None:
    """Give one model, not its class, another ``forward`` whose signature names these parameters.

    torch.export takes the names of a program's inputs from there.
    """
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in parameters])
    vars(forward)["__signature__"] = signature
    vars(model)["forward"] = forward


def held(store: Mapping[str, Any], key: str) -> Any:
    """What one of a module's dictionaries has; ``None`` for nothing. Of compiled code they have no
    ``get``.

    >>> held(nn.ReLU()._parameters, "weight") is None
    True
    """
    return store[key] if key in store else None  # noqa: SIM401
