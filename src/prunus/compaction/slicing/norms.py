"""Norms over what is left of a hidden width, which give the masked model's numbers.

A removed index is a zero before the norm, and the norm of the masked model counts it: it divides
by the old width D, not by what is left of it, d. So does a norm of these classes. From outside it
is the original, with its parameters under their names; the module stays the same object.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from prunus.compaction.cut import IndexCut
from prunus.compaction.rewriting.counting import counts_on
from prunus.compaction.slicing.attributes import Attribute
from prunus.graph.call import module_path

COUNTED = "counted"
"""The attribute of a wide norm that a plain one has not: the width that it counts."""


class Wide:
    """What all wide norms share.

    Attributes:
        counted: D, the width that is counted.
        narrow: the class that it was made from.
    """

    counted: int
    narrow: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Most of these classes are made when they are needed: copies name what they come from."""
        return _empty, (self.narrow,), vars(self)

    def extra_repr(self) -> str:
        """What the original says, and the width that is counted."""
        said = super().extra_repr()  # type: ignore[misc]
        return ", ".join([*([said] if said else []), f"{COUNTED}={self.counted}"])

    def _with_zeros(self, tensor: Tensor | None, like: Tensor, dim: int = -1) -> Tensor | None:
        """A tensor with as many zeros at its end as indices of ``like`` are gone."""
        return None if tensor is None else F.pad(tensor, (0, self.counted - like.shape[dim]))


class WideLayerNorm(Wide, nn.LayerNorm):
    """A layer norm over d indices that counts D − d zeros beside them.

        y = (x − μ) / √(σ² + eps)·w + b,  μ = Σx / D,  σ² = (Σ(x − μ)² + (D − d)·μ²) / D

    The zeros are appended, and cut off again, so that torch's own kernel sums in its own precision.
    A norm becomes one by :class:`Widening`.

    Source: Ba, Kiros, Hinton (2016), arXiv:1607.06450; the rest is arithmetic.

    >>> norm = nn.LayerNorm(2)
    >>> Widening("", None, 4).set(norm)
    >>> type(norm).__name__, norm.counted
    ('WideLayerNorm', 4)
    >>> import torch
    >>> x = torch.tensor([[1.0, 3.0]])
    >>> torch.allclose(norm(x), nn.LayerNorm(4)(torch.tensor([[1.0, 0, 3, 0]]))[:, ::2])
    True
    """

    narrow = nn.LayerNorm

    def forward(self, input: Tensor) -> Tensor:
        """``[…, d]`` to ``[…, d]``."""
        weight, bias = (self._with_zeros(t, input) for t in (self.weight, self.bias))
        whole = F.layer_norm(
            F.pad(input, (0, self.counted - input.shape[-1])),
            (self.counted,), weight, bias, self.eps,
        )  # fmt: skip
        return whole[..., : input.shape[-1]]


class WideRMSNorm(Wide, nn.RMSNorm):
    """The same of torch's RMS norm: y = x / √(Σx² / D + eps)·w.

    Source: Zhang, Sennrich (2019), arXiv:1910.07467.
    """

    narrow = nn.RMSNorm

    def forward(self, x: Tensor) -> Tensor:
        """``[…, d]`` to ``[…, d]``."""
        padded = F.pad(x, (0, self.counted - x.shape[-1]))
        weight = self._with_zeros(self.weight, x)
        return F.rms_norm(padded, (self.counted,), weight, self.eps)[..., : x.shape[-1]]


class WideGroupNorm(Wide, nn.GroupNorm):
    """The same of a group norm whose only group is all channels.

    Source: Wu, He (2018), arXiv:1803.08494.
    """

    narrow = nn.GroupNorm

    def forward(self, input: Tensor) -> Tensor:
        """``[N, d, …]`` to ``[N, d, …]``."""
        weight, bias = (self._with_zeros(t, input, 1) for t in (self.weight, self.bias))
        gone = self.counted - input.shape[1]
        padded = F.pad(input, (*(0,) * (2 * input.dim() - 4), 0, gone))
        return F.group_norm(padded, 1, weight, bias, self.eps)[:, : input.shape[1]]


class WideScaled(Wide):
    """Any other RMS norm without a shift, by its own code.

    With a mean over d, Σx²/D + eps = d/D·(Σx²/d + eps·D/d): its eps became eps·D/d, and what it
    gives is multiplied by √(D/d).
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``[…, d]`` to ``[…, d]``."""
        normed: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return normed * math.sqrt(self.counted / x.shape[-1])


_TORCHS: tuple[Any, ...] = (WideLayerNorm, WideRMSNorm, WideGroupNorm)


def _empty(narrow: type[nn.Module]) -> nn.Module:
    wide = wide_class(narrow)  # type: ignore[arg-type]
    return wide.__new__(wide)


@functools.cache
def wide_class(narrow: Any) -> type[nn.Module]:
    """The wide norm of a class of norms: a subclass of it.

    >>> wide_class(nn.LayerNorm).__name__
    'WideLayerNorm'
    """
    for torchs in _TORCHS:
        if narrow is torchs.narrow:
            return torchs  # type: ignore[no-any-return]
    own = next((w for w in _TORCHS if issubclass(narrow, w.narrow)), None)
    bases = (WideScaled, narrow) if own is None else (narrow, own)  # whose super() is the wide one
    return type(f"Wide{narrow.__name__}", bases, {"narrow": narrow, "__doc__": Wide.__doc__})


class Widening(Attribute):
    """A norm becomes a wide one, or that one a plain norm again.

    Args:
        module: its name.
        before: the width that it counted; ``None``: its own.
        after: the one that it is to count.
    """

    def __init__(self, module: str, before: int | None, after: int | None) -> None:
        super().__init__(module, COUNTED, before, after)

    def set(self, model: nn.Module, *, back: bool = False) -> None:
        """Make the change, or take it back; the module stays the same object."""
        module = model.get_submodule(self.module)
        counted = self.before if back else self.after
        if isinstance(module, Wide) and counted is None:
            module.__class__ = module.narrow  # type: ignore[assignment]
        elif not isinstance(module, Wide) and counted is not None:
            module.__class__ = wide_class(type(module))  # type: ignore[arg-type]
        vars(module).pop(COUNTED, None)
        if counted is not None:
            vars(module)[COUNTED] = counted


def width_of(module: nn.Module) -> int | None:
    """The width that a norm counts; ``None`` if this is no norm that can be a wide one.

    >>> width_of(nn.LayerNorm(3)), width_of(nn.Linear(3, 3))
    (3, None)
    """
    if isinstance(module, Wide):
        return module.counted
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return int(module.normalized_shape[-1]) if len(module.normalized_shape) == 1 else None
    if isinstance(module, nn.GroupNorm):
        return module.num_channels if module.num_groups == 1 else None
    sizes = [p.numel() for p in module.parameters()]
    return sizes[0] if len(sizes) == 1 and _eps(module) and not module._modules else None


def _eps(module: nn.Module) -> dict[str, float]:
    """What a norm adds to its variance, by the attribute's name."""
    return {k: v for k, v in vars(module).items() if "eps" in k and type(v) is float}


def widenings(model: nn.Module, cut: IndexCut, nodes: Iterable[fx.Node]) -> list[Attribute]:
    """The norms that count what goes, and what becomes of their numbers.

    Modules of another kind that count it (a mean in their own code, an eps that no attribute holds)
    are left alone.

    Args:
        model: before the cut.
        cut: what goes.
        nodes: operators of the graph that the cut changes.
    """
    sizes: dict[str, set[tuple[int, int]]] = {}
    for node in nodes:
        for d, gone in counts_on(cut, node).items():
            width = cut.value(node.args[0]).shape[d]
            sizes.setdefault(module_path(node), set()).add((width, width - gone))
    modules = dict(model.named_modules())
    found: list[Attribute] = []
    for path, (size, *others) in sizes.items():
        module = modules.get(path)
        if module is not None and not others and width_of(module) is not None:
            found += _widened(path, module, *size)
    return found


def _widened(path: str, module: nn.Module, width: int, left: int) -> Sequence[Attribute]:
    changes: list[Attribute] = []
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        shape = tuple(module.normalized_shape)
        changes.append(Attribute(path, "normalized_shape", shape, (shape[0] - width + left,)))
    elif isinstance(module, nn.GroupNorm):
        changes.append(Attribute(path, "num_channels", width, left))
    else:
        changes += [Attribute(path, k, v, v * width / left) for k, v in _eps(module).items()]
    return changes if isinstance(module, Wide) else [*changes, Widening(path, None, width)]
