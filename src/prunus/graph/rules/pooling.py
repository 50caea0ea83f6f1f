"""Pooling and resampling: positions in space stay, channels pass through."""

from __future__ import annotations

from torch import Tensor

from prunus.graph.call import Call, Found
from prunus.graph.labels import Dim, Fixed, Value

_POOLS = ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool",
          "_adaptive_avg_pool", "fractional_max_pool")  # fmt: skip
_UPS = ("upsample_nearest", "upsample_linear", "upsample_bilinear", "upsample_bicubic",
        "upsample_trilinear", "_upsample_nearest_exact", "_upsample_bilinear_aa",
        "_upsample_nearest_exact", "_upsample_bicubic_aa")  # fmt: skip
_PADS = ("reflection_pad", "replication_pad")


def spatial(call: Call) -> Found:
    """The last one, two or three dimensions are positions; linear in every channel."""
    x = call.value("self", "input")
    if x is None:
        return None
    number = next(n for n in (1, 2, 3) if f"{n}d" in call.name)
    why = f"{call.where}: positions in space"
    for dim in x.dims[-number:]:
        call.labels.pin(dim, why)

    def found(out: Tensor) -> Value:
        dims: list[Dim] = [*x.dims[:-number], *(Fixed(why) for _ in range(number))]
        return call.result(dims, [*x.zero[:-number], *(False for _ in range(number))], out)

    if isinstance(call.out, Tensor):
        return found(call.out)
    return [found(t) for t in call.out]


def grid_sampler(call: Call) -> Found:
    """Reads an image at given places."""
    x, grid = call.value("input"), call.value("grid")
    if x is None or grid is None:
        return None
    why = f"{call.where}: positions in space"
    for dim in (*x.dims[2:], *grid.dims[1:]):
        call.labels.pin(dim, why)
    batch = call.labels.join(x.dims[0], grid.dims[0])
    fixed: list[Dim] = [Fixed(why) for _ in x.dims[2:]]
    return call.result([batch, x.dims[1], *fixed], [False, x.zero[1], *(False for _ in fixed)])


RULES = {
    f"{stem}{n}d{tail}": spatial
    for stem in (*_POOLS, *_UPS, *_PADS)
    for n in (1, 2, 3)
    for tail in ("", "_with_indices")
} | {"grid_sampler": grid_sampler, "grid_sampler_2d": grid_sampler, "grid_sampler_3d": grid_sampler}
