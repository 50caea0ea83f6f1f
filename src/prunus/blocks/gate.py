"""Whether a smaller block answers as the masked one does, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from prunus._common.modules import joined
from prunus._common.torch_internals import AnyConv, TorchDispatchMode, schema
from prunus.blocks.units import Cut, taken
from prunus.blocks.walk import Call
from prunus.compaction.verifying.verify import FLOAT64, TOLERANCE, difference, outputs
from prunus.errors import RunError


def checked(
    name: str,
    block: nn.Module,
    fresh: nn.Module,
    cut: Cut,
    x: Tensor,
    call: Call,
) -> float:
    """The largest difference of two blocks' answers, relative to the largest output.

    Args:
        name: of the block.
        block: that loses units.
        fresh: the block of a smaller model, which has no weights yet.
        cut: what goes. Experts that do are never chosen: their logit is −∞.
        x: what the block reads.
        call: its other arguments.

    Raises:
        RunError: if they answer otherwise.
    """
    state = {n: t.detach() for n, t in (*block.named_parameters(), *block.named_buffers())}
    state |= {
        n: state[n].masked_fill(~mask.to(state[n].device), 0) for n, mask in cut.masks.items()
    }
    for path, module in block.named_modules():
        if isinstance(module, AnyConv):  # which compares types before a mode sees them
            own_names = [joined(path, n) for n, _ in module.named_parameters()]
            state |= {n: state[n].double() for n in own_names}
    stored = fresh.state_dict()
    own = {n: b for n, b in fresh.named_buffers() if n not in stored}
    small = {n: taken(t, cut.kept.get(n, ())) for n, t in state.items()} | own
    inputs = ((x, *call[0]), call[1])
    never = {k.router: torch.isin(k.members[-1][2], g) for k, g in cut.gone if k.router}
    whole = dict(state)
    for kind, units in cut.gone:
        for added in kind.added:
            gone = torch.isin(kind.members[-1][2], units).to(state[added].device)
            whole[added] = state[added].masked_fill(gone, -math.inf)
    with Grouped():
        with _NeverChosen({state[n].data_ptr(): gone for n, gone in never.items()}):
            masked = outputs(block, whole, inputs, FLOAT64)
        error, problem = difference(masked, outputs(fresh, small, inputs, FLOAT64))
    if problem is not None or not error <= TOLERANCE:
        raise RunError(
            f"'{name}': the smaller block does not answer as the masked one "
            f"({problem or f'they differ by {error:.2g}'}), so none was written"
        )
    return error


class _NeverChosen(TorchFunctionMode):
    """What routers say of experts that are gone becomes −∞."""

    def __init__(self, routers: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.routers = routers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if func is not functional.linear:
            return found
        gone = self.routers.get((args[1] if len(args) > 1 else kwargs["weight"]).data_ptr())
        return found if gone is None else found.masked_fill(gone.to(found.device), -math.inf)


class Grouped(TorchDispatchMode):
    """Products of experts' matrices in float64, for which torch has none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = schema(func).name.rpartition("::")[2]
        if name != "_grouped_mm" or args[0].dtype != torch.float64 or args[0].dim() != 2:
            return func(*args, **kwargs)
        ends = (args[2] if len(args) > 2 else kwargs["offs"]).tolist()
        made = args[0].new_zeros(len(args[0]), args[1].shape[2])
        for start, end, matrix in zip([0, *ends], ends, args[1], strict=False):
            made[start:end] = args[0][start:end] @ matrix
        return made
