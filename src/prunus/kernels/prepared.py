"""A layer that is ready to run: everything that can be checked before was checked."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref
from typing import Any

import torch
from torch import Tensor

from prunus.errors import InputError
from prunus.kernels.choosing import Kernel
from prunus.kernels.layouts import KINDS, checked
from prunus.kernels.native import DONE, Product, library
from prunus.kernels.pattern import described
from prunus.kernels.product import ACTIVATIONS, plain, product


class Prepared:
    """activation(x · Wᵀ + bias + residual), as ``packed_linear`` has it, without torch's way there.

    A call of an operator costs as much as a small layer; this one costs a few microseconds. It is
    for inference: what it returns has no gradient.

    Args:
        kernels: by the tokens from which on they are used, the first from 0.
        rows, cols: of W.
        bias: ``[rows]``.
        activation: what follows.

    Raises:
        InputError: if a layout is damaged or of another matrix.
    """

    def __init__(
        self, kernels: Sequence[Kernel], *, rows: int, cols: int, bias: Tensor | None = None,
        activation: str = "none",
    ) -> None:  # fmt: skip
        for kernel in kernels:
            if kernel.values.dim() == 2:
                continue
            head = checked(kernel.layout, kernel.values)
            if (head.rows, head.cols) != (rows, cols) or kernel.values.dtype == torch.float64:
                raise InputError(
                    f"a layout is of {head.rows}×{head.cols}, the layer of {rows}×{cols} in float32"
                )
        if not kernels or kernels[0].least != 0:
            raise InputError("the first kernel must be used from 0 tokens on")
        bias = None if bias is None else bias.detach().contiguous()
        if bias is not None and (bias.shape != (rows,) or bias.dtype != torch.float32):
            raise InputError(f"the bias is float32 ({rows},), not {described(bias)}")
        self.rows, self.cols, self.bias, self.activation = rows, cols, bias, activation
        self._least = [k.least for k in kernels]
        self.kernels = list(kernels)
        self._heads = [
            None if k.values.dim() == 2
            else (k.layout.data_ptr(), k.values.data_ptr(), KINDS[k.values.dtype])
            for k in kernels
        ]  # fmt: skip
        self._bias = None if bias is None else bias.data_ptr()
        self._number = ACTIVATIONS[activation]
        self._call = library().call.prunus_product

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``[…, cols]`` to ``[…, rows]``."""
        shape = x.shape
        cols = shape[-1]
        if x.dtype != torch.float32 or cols != self.cols or x.device.type != "cpu" or not cols:
            return self._slowly(x, residual)
        tokens = x.numel() // cols
        number = 0
        for i, least in enumerate(self._least):
            if least <= tokens:
                number = i
        head = self._heads[number]
        if head is None:
            weight = self.kernels[number].values
            return plain(x, weight, bias=self.bias, residual=residual, activation=self.activation)
        y = torch.empty((*shape[:-1], self.rows))
        more: Any = None
        if residual is not None:
            if residual.shape != y.shape or residual.dtype != torch.float32:
                return self._slowly(x, residual)
            residual = residual.contiguous()
            more = residual.data_ptr()
        flat = x.contiguous()
        call = Product(
            head[0], head[1], flat.data_ptr(), y.data_ptr(), self._bias, more, tokens, cols,
            self.rows, self.rows, head[2], self._number, torch.get_num_threads(), 0,
        )  # fmt: skip
        if self._call(byref(call)) != DONE:
            return self._slowly(x, residual)
        return y

    def _slowly(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Inputs that do not fit, which are refused there, and those that are not finite."""
        kernel = next((k for k in self.kernels if k.values.dim() == 1), None)
        more = {"bias": self.bias, "residual": residual, "activation": self.activation}
        if kernel is None:
            return plain(x, self.kernels[0].values, **more)  # type: ignore[arg-type]
        return product(kernel.layout, kernel.values, x, **more)  # type: ignore[arg-type]
