"""How often what a unit gives is not zero."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.activations import is_affine, layers_of, read_by
from prunus._common.calibrating import calibrating
from prunus._common.distributed import gather, total
from prunus._common.nested import own_containers
from prunus._common.torch_internals import AnyConv, AnyTransposedConv
from prunus._common.units import numbers
from prunus.errors import InputError
from prunus.methods.signals import SignalContext
from prunus.types import Group

CALIBRATION = True
READS_INPUTS = True
BY_UNIT = True


def unit_activity(context: SignalContext) -> Mapping[Group, Tensor]:
    """Share of the numbers that other layers read of a unit that are not zero, ``[units]``.

    What linear layers and convolutions read of it, behind norm, activation and pooling; the model
    is in eval mode. Two numbers for each input of such a layer are held while batches pass.

    Raises:
        InputError: without calibration or loss, or for units of which no such layer reads.
    """
    if context.calibration is None or context.loss is None:
        raise InputError(
            "apoz counts zeros while batches pass: pass calibration (batches) and loss (a function "
            "of model and batch)"
        )
    names = {id(p): n for n, p in context.model.named_parameters()}
    readers = layers_of(names, filter(_reads, context.model.modules()))
    for group in context.groups:
        if not _columns(group, readers):
            raise InputError(
                f"apoz counts the zeros that other layers read of a unit, and of '{group.name}' no "
                "linear layer or convolution is known to read: use structure: channel, leave it "
                "out with scope.exclude, or use another criterion"
            )
    active = {n: _zeros(own[0]) for n, own in readers.items()}
    seen = dict.fromkeys(readers, 0)
    with ExitStack() as hooks:
        for name, module in ((n, m) for n, own in readers.items() for m in own):

            def note(
                layer: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name
            ) -> None:
                given = read_by(args, kwargs).detach()
                channel = given.dim() - 1 - len(getattr(layer, "kernel_size", ()))
                rest = [d for d in range(given.dim()) if d != channel]
                active[name] += given.count_nonzero(dim=rest).double()
                seen[name] += given.numel() // given.shape[channel]

            hooks.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        given = context.model, context.calibration, context.loss, context.seed
        with calibrating(*given) as inner:
            for batch in context.calibration:
                context.loss(inner, own_containers(batch))
    seen = {n: sum(rank[n] for rank in gather(seen)) for n in seen}
    if not any(seen.values()):
        raise InputError("calibration contains no batch (an exhausted iterator? pass a list)")
    total(list(active.values()))
    share = {n: active[n] / seen[n] for n in active if seen[n]}
    return {group: _mean(group, _columns(group, readers), share) for group in context.groups}


def _reads(module: nn.Module) -> bool:
    """Whether one dimension of a module's weight is that of its inputs."""
    return is_affine(module) and not (isinstance(module, AnyConv) and module.groups > 1)


def _of_inputs(module: nn.Module) -> int:
    """Which dimension."""
    return 0 if isinstance(module, AnyTransposedConv) else 1


def _zeros(module: nn.Module) -> Tensor:
    weight = module.get_parameter("weight")
    return weight.new_zeros(weight.shape[_of_inputs(module)], dtype=torch.float64)


def _columns(group: Group, readers: Mapping[str, list[nn.Module]]) -> dict[str, Tensor]:
    """Of the layers that read a group: the unit of each of their inputs, −1 of others."""
    found = {}
    for member in group.members:
        number = numbers(member)
        if member.name not in readers or number is None or number.dim() < 2:
            continue
        inputs = _of_inputs(readers[member.name][0])
        if number.shape[inputs] > 1 and number.shape[1 - inputs] == 1:
            found[member.name] = number.flatten()
    return found


def _mean(group: Group, columns: Mapping[str, Tensor], share: Mapping[str, Tensor]) -> Tensor:
    sums = torch.zeros(group.units, dtype=torch.float64)
    count = torch.zeros_like(sums)
    for name, unit in columns.items():
        if name in share:
            inside = unit >= 0
            sums.index_add_(0, unit[inside], share[name].cpu()[inside])
            count.index_add_(0, unit[inside], torch.ones(int(inside.sum()), dtype=torch.float64))
    if not bool(count.all()):
        raise InputError(
            f"apoz: the layers that read '{group.name}' do not run on the calibration batches: "
            "leave it out with scope.exclude, or use another criterion"
        )
    return sums / count
