"""Adaptive pooling as means and windows, while a model is exported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Plain(TorchFunctionMode):
    """Adaptive averages are taken as what they are, where the sizes say that.

    To one number each they are means. PyTorch gives those of a channels_last network strides that
    ONNX cannot say: its exporter would look every number up in a flat list, and OpenVINO then had
    wrong answers in int8. In three dimensions, of which the exporter knows no adaptive pooling,
    they are windows wherever the output's size divides the input's.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The same call, unless it pools so."""
        kwargs = kwargs or {}
        dims = {F.adaptive_avg_pool2d: 2, F.adaptive_avg_pool3d: 3}.get(func)
        made = None if dims is None else _pooled(dims, *args, **kwargs)
        return func(*args, **kwargs) if made is None else made


def _pooled(dims: int, input: Tensor, output_size: Any) -> Tensor | None:
    given = input.shape[-dims:]
    wanted = list(output_size) if isinstance(output_size, (tuple, list)) else [output_size] * dims
    if all(w == 1 for w in wanted):
        return input.mean(tuple(range(-dims, 0)), keepdim=True)
    sizes = [g if w is None else w for g, w in zip(given, wanted, strict=True)]
    if dims == 3 and all(g % w == 0 for g, w in zip(given, sizes, strict=True)):
        return F.avg_pool3d(input, [g // w for g, w in zip(given, sizes, strict=True)])
    return None
