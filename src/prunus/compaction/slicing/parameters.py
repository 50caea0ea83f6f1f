"""Parameters and the state of their optimizer, made smaller in place, so that training goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from prunus._common.gathering import along
from prunus._common.memory import LARGE
from prunus._common.nested import tensors_of
from prunus.compaction.cut import put, same_indices, take
from prunus.errors import InputError, RunError, did_you_mean
from prunus.pruning.optimizers import AnyOptimizer, Together, real_optimizer
from prunus.types import Indices, Kept

_FACTORED = "it keeps statistics of whole rows and columns, which mix kept and removed weights"
_MATRIX = "it transforms the update of a whole matrix, so no weight has a state of its own"
_REFUSED = {
    "adafactor": _FACTORED,
    "sm3": _FACTORED,
    "muon": _MATRIX,
    "shampoo": _MATRIX,
    "soap": _MATRIX,
    "galore": _MATRIX,
    "kfac": _MATRIX,
    "lbfgs": "it keeps past steps of all parameters in one vector",
    "zeroredundancy": "it keeps parts of its state on other ranks",
}
_ADVICE = (
    "use SGD, Adam or AdamW, or shrink without an optimizer and build a new one for the smaller "
    "parameters"
)


@dataclass(frozen=True)
class _Cut:
    """A parameter or buffer that becomes smaller."""

    name: str
    tensor: Tensor
    indices: Indices


def refuse_optimizer(optimizer: Optimizer) -> None:
    """An error if the state of an optimizer cannot be sliced with its parameters.

    State can be sliced if every tensor of it is a scalar or belongs to a parameter and has its
    shape: s[k] is then the state of p[k]. Wrappers are looked through.

    Raises:
        InputError: naming the optimizer, or the state, and what to do.

    >>> refuse_optimizer(torch.optim.AdamW(nn.Linear(2, 2).parameters()))
    >>> refuse_optimizer(torch.optim.Adafactor(nn.Linear(2, 2).parameters()))
    Traceback (most recent call last):
    ...
    prunus.errors.InputError: Adafactor cannot continue with smaller parameters: it keeps \
statistics of whole rows and columns, which mix kept and removed weights; use SGD, Adam or AdamW, \
or shrink without an optimizer and build a new one for the smaller parameters
    """
    for layer in _layers(optimizer):
        _refuse(layer, _names(layer))


def unsliceable(optimizer: Optimizer) -> str | None:
    """Why the state of an optimizer cannot be sliced with its parameters, if it cannot.

    >>> unsliceable(torch.optim.Adafactor(nn.Linear(2, 2).parameters()))
    'it keeps statistics of whole rows and columns, which mix kept and removed weights'
    """
    return next(filter(None, (_why(la, _names(la)) for la in _layers(optimizer))), None)


def shrink(
    model: nn.Module,
    optimizer: AnyOptimizer | None,
    kept: Kept,
    *,
    gone: Sequence[str] = (),
) -> None:
    """Cut parameters, and the state that an optimizer has of them, to the indices that stay.

    p ← p[k₁ × k₂ × …] and s ← s[k₁ × k₂ × …] for every state s with the shape of p; scalars (the
    step) stay. A parameter remains the same object, so its place in the optimizer, in lists for
    clipping and its hooks live on; its ``grad`` becomes ``None``. A buffer is replaced in every
    module that has it. Memory formats are preserved.

    Training goes on as under masks if the removed weights are zero and the optimizer treats each
    weight by itself; one that scales by the norm of a layer (LAMB, LARS) does so once momentum
    of removed weights has died away.

    Call it between two steps, outside any graph that is still to run backward, once for all names:
    with several optimizers, the state of those not given keeps the old shapes. Everything is
    checked and sliced before anything is changed, which needs room for the slices; but a large
    parameter of which only zeros go is sliced and let go before the next one, and has them again
    if a later one fails.

    Args:
        model: whose parameters and buffers ``kept`` names; not inside DistributedDataParallel.
        optimizer: that goes on training, perhaps in a wrapper, or several together; it may hold
            other parameters too.
        kept: by name, per dimension the int64 indices that stay, ascending, ``None`` for all. A
            tied parameter needs one of its names.
        gone: modules that are taken out behind it, of whose tensors nothing needs to stay.

    Raises:
        InputError: for unknown names, indices that do not fit, state that cannot be sliced.
        RunError: if slicing fails, such as for want of memory. Nothing was changed in either case.

    >>> model = nn.Linear(3, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> model(torch.ones(1, 3)).sum().backward()
    >>> optimizer.step()
    >>> weight = model.weight
    >>> shrink(model, optimizer, {"weight": (None, torch.tensor([0, 2]))})
    >>> model.weight is weight, weight.shape, optimizer.state[weight]["momentum_buffer"].shape
    (True, torch.Size([2, 2]), torch.Size([2, 2]))
    """
    cuts = _cuts(model, kept, gone)
    layers = [] if optimizer is None else _layers(optimizer)
    names = {id(p): name for name, p in model.named_parameters()}
    for layer in layers:
        _refuse(layer, _names(layer) | names)
    states = _smaller_states(layers, cuts)
    alone = [cut for cut in cuts.values() if _only_zeros_go(cut)]
    smaller = _slices({k: cut for k, cut in cuts.items() if all(cut is not a for a in alone)})
    _one_by_one(alone)
    for key, cut in cuts.items():
        if key in smaller and isinstance(cut.tensor, nn.Parameter):
            resize(cut.tensor, smaller[key])
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if id(buffer) in cuts:
                module._buffers[name] = smaller[id(buffer)]
    for entry, name, state in states:
        entry[name] = state


def _only_zeros_go(cut: _Cut) -> bool:
    """Whether a large parameter can be cut and made whole again without a copy of it."""
    tensor = cut.tensor.detach()
    integer = _INTEGERS.get(tensor.element_size())
    if not isinstance(cut.tensor, nn.Parameter) or tensor.nbytes < LARGE or integer is None:
        return False
    if tensor.is_complex() or tensor.is_meta:
        return False
    for dim, index in enumerate(cut.indices):
        if index is not None:
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
            gone[index.cpu()] = False
            places = gone.nonzero().flatten().to(tensor.device)
            going = along(tensor, dim, places).view(integer)
            if len(places) and any(map(bool, torch.aminmax(going))):
                return False
    return True


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _one_by_one(cuts: Sequence[_Cut]) -> None:
    """Cut large parameters, of which zeros go, each in the room that the one before left."""
    done: list[tuple[_Cut, torch.Size, Sequence[int], Tensor | None]] = []
    try:
        for cut in cuts:
            small = _sliced(f"'{cut.name}'", cut.tensor, cut.indices)
            done.append((cut, cut.tensor.shape, cut.tensor.stride(), cut.tensor.grad))
            assert isinstance(cut.tensor, nn.Parameter)
            resize(cut.tensor, small)
            del small
    except BaseException:
        for cut, shape, strides, grad in reversed(done):
            part = cut.tensor.detach()
            whole = torch.empty_strided(shape, strides, dtype=part.dtype, device=part.device)
            put(whole.zero_(), cut.indices, part)
            assert isinstance(cut.tensor, nn.Parameter)
            resize(cut.tensor, whole)
            cut.tensor.grad = grad
        raise


def slices(model: nn.Module, kept: Kept, *, bare: bool = False) -> dict[int, Tensor]:
    """What :func:`shrink` would make of a model's tensors, by identity; nothing is changed.

    Args:
        model: whose tensors ``kept`` names.
        kept: as there.
        bare: matrices without values or memory, for a model that is called with others in their
            place; NaN, if somebody reads them all the same.

    Raises:
        InputError: for unknown names and indices that do not fit.
        RunError: if slicing fails.

    >>> model = nn.Linear(3, 2, bias=False)
    >>> slices(model, {"weight": (None, torch.tensor([0, 2]))})[id(model.weight)].shape
    torch.Size([2, 2])
    """
    cuts = _cuts(model, kept)
    hollow = {key: _hollow(cut) for key, cut in cuts.items() if bare and _is_matrix(cut.tensor)}
    made = {**hollow, **_slices({key: cut for key, cut in cuts.items() if key not in hollow})}
    for key, cut in cuts.items():
        if isinstance(cut.tensor, nn.Parameter):
            made[key] = nn.Parameter(made[key], requires_grad=cut.tensor.requires_grad)
    return made


def _is_matrix(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and tensor.dim() > 1


def _hollow(cut: _Cut) -> Tensor:
    """A tensor of the smaller shape, all of one number."""
    pairs = zip(cut.tensor.shape, cut.indices, strict=True)
    shape = [size if index is None else len(index) for size, index in pairs]
    return torch.tensor(float("nan"), dtype=cut.tensor.dtype, device=cut.tensor.device).expand(
        shape
    )


def _slices(cuts: Mapping[int, _Cut]) -> dict[int, Tensor]:
    return {key: _sliced(f"'{cut.name}'", cut.tensor, cut.indices) for key, cut in cuts.items()}


def _cuts(model: nn.Module, kept: Kept, gone: Sequence[str] = ()) -> dict[int, _Cut]:
    """What is cut, by identity: once, whatever names it has."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise InputError(
            "DistributedDataParallel keeps buckets of the old sizes: shrink its module, then wrap "
            "it again"
        )
    known: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    known |= model.named_parameters(remove_duplicate=False)
    cuts: dict[int, _Cut] = {}
    for name, indices in kept.items():
        if name not in known:
            raise InputError(
                f"the model has no parameter or buffer '{name}': {did_you_mean(name, known)}"
            )
        empty = name.startswith(tuple(f"{path}." for path in gone))
        _check(name, known[name], indices, may_be_empty=empty)
        first = cuts.setdefault(id(known[name]), _Cut(name, known[name], indices))
        if not same_indices(first.indices, indices):
            raise InputError(
                f"'{first.name}' and '{name}' are one tensor but keep different indices: pass "
                "the same for both, or name only one"
            )
    return {key: cut for key, cut in cuts.items() if any(k is not None for k in cut.indices)}


def _check(name: str, tensor: Tensor, indices: Indices, *, may_be_empty: bool) -> None:
    """The indices fit the tensor, and the tensor can be sliced."""
    if is_lazy(tensor):
        raise InputError(f"'{name}' has no shape yet: run the model once first")
    if tensor.layout != torch.strided or hasattr(tensor, "device_mesh"):
        raise InputError(f"'{name}' is sparse or sharded: pass the full, dense tensor")
    if len(indices) != tensor.dim():
        raise InputError(
            f"'{name}' has {tensor.dim()} dimensions, but the kept indices are for {len(indices)}: "
            "pass one entry per dimension, None where all stay"
        )
    for dim, (size, index) in enumerate(zip(tensor.shape, indices, strict=True)):
        if index is None or (may_be_empty and not len(index)):
            continue
        if wrong := _wrong(index, size):
            raise InputError(f"the kept indices of dimension {dim} of '{name}' {wrong}")


def _wrong(index: Tensor, size: int) -> str | None:
    if index.dtype != torch.int64 or index.dim() != 1:
        return f"must be an int64 vector, not {index.dtype} of shape {tuple(index.shape)}"
    if not len(index):
        return "are empty: at least one must stay"
    if bool((index[1:] <= index[:-1]).any()):
        return "must be ascending, each index once"
    if int(index[0]) < 0 or int(index[-1]) >= size:
        return f"run from {int(index[0])} to {int(index[-1])}; 0 to {size - 1} are allowed"
    return None


def _sliced(name: str, tensor: Tensor, indices: Indices) -> Tensor:
    try:
        return take(tensor.detach(), indices)
    except (RuntimeError, TypeError) as error:
        raise RunError(f"{name} cannot be sliced; nothing was changed: {error}") from error


def resize(parameter: nn.Parameter, value: Tensor) -> None:
    """Give a parameter values of another shape; it stays the same object."""
    torch.clear_autocast_cache()  # which has a cast of the old shape
    parameter.grad = None
    if parameter.requires_grad:
        # While a loss or a wrapper is alive, so is the node that accumulates this parameter's
        # gradient, and it insists on the old shape in the next backward; a change of dtype makes
        # autograd drop it.
        other = torch.float16 if value.dtype == torch.float32 else torch.float32
        parameter.data = value.new_empty(0, dtype=other)
    parameter.data = value


def _smaller_states(
    layers: list[Optimizer], cuts: Mapping[int, _Cut]
) -> list[tuple[MutableMapping[str, Any], str, Tensor]]:
    """Where state changes, and to what; a wrapper may show the very state of what it wraps."""
    entries = {
        id(entry): (cuts[id(owner)], entry)
        for layer in layers
        for owner, entry in layer.state.items()
        if id(owner) in cuts
    }
    return [
        (entry, key, _sliced(f"'{key}' of '{cut.name}'", value, cut.indices))
        for cut, entry in entries.values()
        for key, value in entry.items()
        if isinstance(value, Tensor) and value.shape == cut.tensor.shape
    ]


def _layers(optimizer: object) -> list[Optimizer]:
    """An optimizer and those inside it, innermost first: each may have state of its own."""
    if isinstance(optimizer, Together):
        return [layer for one in optimizer.every for layer in _layers(one)]
    real_optimizer(optimizer)
    layers: list[Optimizer] = []
    while optimizer is not None:
        if isinstance(optimizer, Optimizer):
            layers.insert(0, real_optimizer(optimizer))
        optimizer = getattr(optimizer, "optimizer", None)
    return layers


def _names(optimizer: Optimizer) -> dict[int, str]:
    names = {}
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            names[id(parameter)] = f"parameter {place} of group {number}"
    return names


def _refuse(optimizer: Optimizer, names: Mapping[int, str]) -> None:
    why = _why(optimizer, names)
    if why is not None:
        start = f"{type(optimizer).__name__} cannot continue with smaller parameters"
        raise InputError(f"{start}: {why}; {_ADVICE}")


def _why(optimizer: Optimizer, names: Mapping[int, str]) -> str | None:
    for base in type(optimizer).__mro__:
        for word, why in _REFUSED.items():
            if word in base.__name__.lower():
                return why
    for owner, key, tensor in _foreign(optimizer):
        of = f" of '{names.get(id(owner), '?')}'" if isinstance(owner, Tensor) else ""
        return (
            f"'{key}'{of} in its state has the shape {tuple(tensor.shape)}, which is neither a "
            "scalar's nor the parameter's"
        )
    return None


def _foreign(optimizer: Optimizer) -> Iterator[tuple[object, str, Tensor]]:
    """Tensors in the state that are neither scalars nor of the shape of their parameter."""
    for owner, entry in optimizer.state.items():
        shape = owner.shape if isinstance(owner, Tensor) else None
        for key, value in entry.items() if isinstance(entry, Mapping) else [(owner, entry)]:
            if not isinstance(value, Tensor) or value.shape != shape:
                yield from ((owner, str(key), t) for t in tensors_of(value) if t.numel() > 1)
