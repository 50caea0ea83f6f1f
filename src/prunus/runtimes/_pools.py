"""Adaptive pooling as means and windows, while a model is exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from prunus._common.instead import Instead


class Plain(Instead):
    """Adaptive averages are taken as what they are, where the sizes say that.

    To one number each they are means. PyTorch gives those of a channels_last network strides that
    ONNX cannot say: its exporter would look every number up in a flat list, and OpenVINO then had
    wrong answers in int8. In three dimensions, of which the exporter knows no adaptive pooling,
    they are windows wherever the output's size divides the input's.
    """

    def found(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """What pools so, in other words."""
        dims = {F.adaptive_avg_pool2d: 2, F.adaptive_avg_pool3d: 3}.get(func)
        return None if dims is None else _pooled(dims, *args, **kwargs)


def _pooled(dims: int, input: Tensor, output_size: Any) -> Tensor | None:
    given = input.shape[-dims:]
    wanted = list(output_size) if isinstance(output_size, (tuple, list)) else [output_size] * dims
    if all(w == 1 for w in wanted):
        return input.mean(tuple(range(-dims, 0)), keepdim=True)
    sizes = [g if w is None else w for g, w in zip(given, wanted, strict=True)]
    if dims == 3 and all(g % w == 0 for g, w in zip(given, sizes, strict=True)):
        return F.avg_pool3d(input, [g // w for g, w in zip(given, sizes, strict=True)])
    return None
