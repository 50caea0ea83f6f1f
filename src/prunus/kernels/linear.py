"""A linear layer that keeps, computes and trains the weights that are not zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunus._common.torch_internals import version_of
from prunus.errors import InputError, did_you_mean
from prunus.kernels import operator as _operators  # noqa: F401 (defines torch.ops.prunus)
from prunus.kernels.choosing import Kernel, Values, cuts, kernels
from prunus.kernels.layouts import FULL, packed, placed, tiles
from prunus.kernels.pattern import Pattern, described
from prunus.kernels.product import ACTIVATIONS
from prunus.kernels.tangents import refuse_tangents


class SparseLinear(nn.Module):
    """y = activation(x · Wᵀ + b + residual) of the weights that are not zero.

    While it trains, its values are a parameter, and gradients are computed at their places alone;
    in eval mode, without gradients, they lie packed for the kernels. What ``torch.compile`` and
    ``torch.export`` make for inference reads them as they were at the last call of ``eval()``; so
    does a layer whose values were changed where torch does not count it (``values.data.mul_(2)``,
    and tensors that were made in inference mode). Under autocast it computes in float32.

    Args:
        weight: ``[out, in]`` float32; what is zero is left out.
        bias: ``[out]``.
        activation: ``none``, ``relu``, ``gelu`` or ``silu``.
        tokens: numbers of tokens that are expected, for each of which a kernel is prepared.
        kind: of the values where one token is computed without gradients; the others are rounded
            in the same way.
        blocks: 4 or 16 where that many rows share columns.
        kept: which weights are kept, in place of those that are not zero.

    Raises:
        InputError: if the kernels are not compiled, or the weight is none of theirs.

    >>> from prunus.kernels import usable
    >>> if usable():
    ...     weight = torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 3.0]])
    ...     layer = SparseLinear(weight, activation="relu")
    ...     assert layer(torch.tensor([[1.0, -1.0]])).tolist() == [[0.0, 0.0, 0.0]]
    """

    first: Tensor
    column: Tensor
    layout: Tensor
    order: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        activation: str = "none",
        tokens: Sequence[int] = (1, 16, 128),
        kind: Values = "float32",
        blocks: Literal[1, 4, 16] = 1,
        kept: Tensor | None = None,
    ) -> None:
        super().__init__()
        if weight.dim() != 2 or weight.dtype not in FULL or weight.device.type != "cpu":
            raise InputError(f"weight is float32 [out, in] on the CPU, not {described(weight)}")
        if kept is not None and kept.shape != weight.shape:
            raise InputError(f"kept is {described(kept)}; the weight {described(weight)}")
        if activation not in ACTIVATIONS:
            raise InputError(
                f"there is no activation '{activation}'; {did_you_mean(activation, ACTIVATIONS)}"
            )
        pattern = Pattern.of(weight if kept is None else kept)
        self.out_features, self.in_features = weight.shape
        self.activation, self.tokens, self.kind, self.blocks = (
            activation,
            tuple(tokens),
            kind,
            blocks,
        )
        self.values = nn.Parameter(weight.detach().reshape(-1)[pattern.flat()].clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.register_buffer("first", pattern.first)
        self.register_buffer("column", pattern.column)
        self.least: list[int] = []
        self._packed: tuple[Tensor, int] | None = None
        self._lay_out()
        self.register_load_state_dict_pre_hook(_refuse_others)
        self.register_load_state_dict_post_hook(_lay_out_again)

    @property
    def pattern(self) -> Pattern:
        """Where the values are."""
        return Pattern(self.first, self.column, self.out_features, self.in_features)

    def dense(self) -> Tensor:
        """The whole weight ``[out, in]``, with its zeros."""
        made = torch.zeros(self.out_features * self.in_features, dtype=self.values.dtype)
        made[self.pattern.flat()] = self.values.detach()
        return made.view(self.out_features, self.in_features)

    def _lay_out(self) -> None:
        """Layouts for the pattern: made when it is given, and again when one is loaded."""
        pattern, most = self.pattern, max(self.tokens, default=1)
        pattern.refuse()
        turned, order = pattern.transposed()
        forward, back = (tiles(p, cuts(p, tokens=most)) for p in (pattern, turned))
        own = placed(back.order, order)
        for name, value in (("layout", forward.numbers), ("order", forward.order),
                            ("turned", back.numbers), ("turned_order", own)):  # fmt: skip
            self.register_buffer(name, value, persistent=False)
        self._packed = None

    def pack(self) -> None:
        """Lay the values out for the kernels, after they changed; forward does so where it must."""
        values = self.values.detach()
        if values.dtype == torch.float64:
            made = [Kernel(0, self.layout, packed(self.order, values))]
        else:
            made = kernels(
                self.pattern, values, tokens=self.tokens, kind=self.kind, blocks=self.blocks
            )
        self.least = [k.least for k in made]
        for i, kernel in enumerate(made):
            self.register_buffer(f"kernel_{i}", kernel.layout, persistent=False)
            self.register_buffer(f"packed_{i}", kernel.values, persistent=False)
        # an alias keeps the memory, so that no other values can ever lie at this place
        self._packed = self.values.detach(), version_of(self.values)

    def _is_packed(self) -> bool:
        """Whether what is packed are the values, and unchanged as far as torch counts changes."""
        if self._packed is None:
            return False
        alias, version = self._packed
        return alias.data_ptr() == self.values.data_ptr() and version == version_of(self.values)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and files: a copy counts its changes anew."""
        return self.__dict__ | {"_packed": None}

    def train(self, mode: bool = True) -> SparseLinear:
        """As torch's; in eval mode the values are packed at once."""
        super().train(mode)
        if not mode:
            self.pack()
        return self

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``[…, in]`` to ``[…, out]``; the residual, of that shape, goes before the activation."""
        if torch.is_autocast_enabled("cpu") and self.values.dtype == torch.float32:
            x, residual = x.float(), None if residual is None else residual.float()
        given = (x, self.values, self.bias, residual)
        refuse_tangents(*given)
        trains = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
        # a graph that is compiled in training mode reads the values themselves, as they change
        if trains or (torch.compiler.is_compiling() and (self.training or not self.least)):
            found: Tensor = torch.ops.prunus.sparse_linear(
                x, self.values, self.layout, self.order, self.turned, self.turned_order,
                self.bias, residual, self.out_features, self.activation,
            )  # fmt: skip
        else:
            found = self._by_kernels(x, residual)
        return found

    def _by_kernels(self, x: Tensor, residual: Tensor | None) -> Tensor:
        if not torch.compiler.is_compiling() and not self._is_packed():
            self.pack()
        numbers = range(len(self.least))
        found: Tensor = torch.ops.prunus.packed_linear(
            x, [getattr(self, f"packed_{i}") for i in numbers],
            [getattr(self, f"kernel_{i}") for i in numbers], self.least, self.bias, residual,
            self.out_features, self.activation,
        )  # fmt: skip
        return found

    def extra_repr(self) -> str:
        """As torch's own, with what is left of the weights."""
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, "
            f"density={self.pattern.density:.3g}, activation={self.activation}"
        )


def _refuse_others(layer: SparseLinear, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
    """Before anything is loaded: a state of another number of values, or a damaged one."""
    first, column = (state.get(f"{prefix}{name}") for name in ("first", "column"))
    if first is None or column is None:
        return  # torch says what is missing
    if column.numel() != layer.column.numel():
        raise InputError(
            f"the state of '{prefix.removesuffix('.')}' has {column.numel()} values, the layer "
            f"{layer.column.numel()}: make the layer with the mask that the state was saved with"
        )
    Pattern(first, column, layer.out_features, layer.in_features).refuse()


def _lay_out_again(layer: SparseLinear, *_: Any) -> None:
    """After a state was loaded; a function with a name, which pickle can write."""
    layer._lay_out()
