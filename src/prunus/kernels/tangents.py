"""Forward-mode derivatives, which the operators have none of: torch would call them zero."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from prunus.errors import InputError


def refuse_tangents(*given: Tensor | None) -> None:
    """End a pass that asks for them.

    Args:
        given: what an operator reads.

    Raises:
        InputError: under ``torch.func.jvp`` and the like, with respect to any of these.

    >>> refuse_tangents(torch.ones(1), None)  # of a pass that asks for none
    """
    if torch.compiler.is_compiling():
        return
    if any(t is not None and unpack_dual(t).tangent is not None for t in given):
        raise InputError(
            "sparse layers have no forward-mode derivatives: take them of the dense model"
        )
