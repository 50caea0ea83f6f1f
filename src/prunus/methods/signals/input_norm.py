"""How large the numbers are that each weight is multiplied by."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.activations import is_affine, layers_of, read_by
from prunus._common.calibrating import calibrating
from prunus._common.distributed import gather, total
from prunus._common.names import unwrapped
from prunus._common.nested import own_containers
from prunus._common.unfolding import at_once, columns, of_weight_rows, spatial, weight_rows
from prunus.errors import InputError
from prunus.methods.signals import SignalContext

CALIBRATION = True
READS_INPUTS = True


def input_norm(context: SignalContext) -> Mapping[str, Tensor]:
    """√(mean of x_j²) over calibration batches, for the weights that multiply input x_j.

    Of a linear layer x is its input, of a convolution each of the windows that a filter sees, of
    a weight that layers share what all of them read; the model is in eval mode. One number for
    each column of a layer is held while batches pass.

    Raises:
        InputError: without calibration or loss, or for a parameter that is not the weight of a
            linear layer or convolution which the loss runs.
    """
    if context.calibration is None or context.loss is None:
        raise InputError(
            "this criterion reads the inputs of layers: pass calibration (batches) and loss (a "
            "function of model and batch)"
        )
    model = unwrapped(context.model)
    names = {id(p): n for n, p in context.parameters.items()}
    layers = layers_of(names, filter(is_affine, model.modules()))
    _refuse(set(context.parameters) - set(layers), "is no weight of a linear layer or convolution")
    _refuse({n for n, own in layers.items() if len(set(map(_groups, own))) > 1},
            "is shared by layers of other groups")  # fmt: skip
    sums = {n: _zeros(own[0]) for n, own in layers.items()}
    counts = dict.fromkeys(layers, 0)
    with ExitStack() as hooks:
        for name, module in ((n, m) for n, own in layers.items() for m in own):

            def note(
                layer: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name
            ) -> None:
                given = read_by(args, kwargs).detach()
                for part in given.split(at_once(layer, given, output)):
                    read = columns(layer, part, places=spatial(layer, output)).double()
                    sums[name] += read.square().sum(dim=1)
                    counts[name] += read.shape[1]

            hooks.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        given = context.model, context.calibration, context.loss, context.seed
        with calibrating(*given) as inner:
            for batch in context.calibration:
                context.loss(inner, own_containers(batch))
    every = gather(counts)
    seen = {name: sum(rank[name] for rank in every) for name in counts}
    if not any(seen.values()):
        raise InputError("calibration contains no batch (an exhausted iterator? pass a list)")
    _refuse({n for n, count in seen.items() if not count}, "belongs to a layer that does not run")
    total(list(sums.values()))
    return {n: _spread(layers[n][0], (sums[n] / seen[n]).sqrt()) for n in layers}


def _zeros(module: nn.Module) -> Tensor:
    rows = weight_rows(module, module.get_parameter("weight"))
    return rows.new_zeros((_groups(module), rows.shape[1]), dtype=torch.float64)


def _groups(module: nn.Module) -> int:
    return int(getattr(module, "groups", 1))


def _spread(module: nn.Module, norms: Tensor) -> Tensor:
    """A number for each column of each group, ``[groups, columns]``, at every weight of it."""
    weight = module.get_parameter("weight")
    rows = norms[:, None].expand(-1, len(weight_rows(module, weight)) // len(norms), -1)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return of_weight_rows(module, rows.flatten(0, 1)).to(dtype)


def _refuse(names: set[str], why: str) -> None:
    if names:
        some = ", ".join(f"'{n}'" for n in sorted(names)[:3])
        raise InputError(
            f"input_norm: {some}{' and others' * (len(names) > 3)} {why}, so what it multiplies is "
            "unknown: leave it out with scope.exclude, or use another criterion"
        )
