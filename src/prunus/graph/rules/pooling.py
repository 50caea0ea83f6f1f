"""Pooling and resampling: positions in space stay, channels pass through."""

from __future__ import annotations

from torch import Tensor

from prunus.graph.call import Call, Found
from prunus.graph.labels import Dim, Fixed, Value

_POOLS = ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool",
          "_adaptive_avg_pool", "fractional_max_pool")  # fmt: skip
_UPS = (
    "upsample_nearest",
    "upsample_linear",
    "upsample_bilinear",
    "upsample_bicubic",
    "upsample_trilinear",
    "_upsample_nearest_exact",
    "_upsample_bilinear",
    "_upsample_bicubic",
)
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
    samples = call.value("random_samples")  # [batch, channel, place]
    if samples is not None:
        for dim, sample in zip(x.dims[-number - 1 :: -1], samples.dims[1::-1], strict=False):
            call.labels.tie(dim, sample)

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


def unpool(call: Call) -> Found:
    """Each value goes back to the place in its channel that it came from."""
    x, places = call.value("self"), call.value("indices")
    if x is None or places is None:
        return None
    number = int(call.name[-2])
    why = f"{call.where}: positions in space"
    for dim in (*x.dims[-number:], *places.dims[-number:]):
        call.labels.pin(dim, why)
    kept = zip(x.dims[:-number], places.dims[:-number], strict=True)
    dims: list[Dim] = [call.labels.join(*pair) for pair in kept]
    zero = [*x.zero[:-number], *(False for _ in range(number))]
    return call.result([*dims, *(Fixed(why) for _ in range(number))], zero)


def affine_grid(call: Call) -> Found:
    """Places in space from a matrix for each picture."""
    theta = call.value("theta")
    if theta is None:
        return None
    why = f"{call.where}: positions in space"
    for dim in theta.dims[1:]:
        call.labels.pin(dim, why)
    rest: list[Dim] = [Fixed(why) for _ in call.out.shape[1:]]
    return call.result([theta.dims[0], *rest], [False] * call.out.dim())


def col2im(call: Call) -> Found:
    """Patches laid over each other: a column counts through channels, then places in a patch."""
    x = call.value("self")
    if x is None or len(x.dims) != 3:
        return None
    why = f"{call.where}: positions in space"
    call.labels.pin(x.dims[2], why)
    channels = int(call.out.shape[1])
    out = call.labels.made([channels])[0]
    patch = Fixed(why)
    call.labels.factors(call.where, x.dims[1], (out, patch), (channels, x.shape[1] // channels))
    return call.result([x.dims[0], out, Fixed(why), Fixed(why)], [False, x.zero[1], False, False])


RULES = {
    f"{stem}{n}d{tail}": spatial
    for stem in (*_POOLS, *_UPS, *_PADS)
    for n in (1, 2, 3)
    for tail in ("", "_with_indices", "_aa")
} | {
    "grid_sampler": grid_sampler,
    "grid_sampler_2d": grid_sampler,
    "grid_sampler_3d": grid_sampler,
    "max_unpool2d": unpool,
    "max_unpool3d": unpool,
    "affine_grid_generator": affine_grid,
    "col2im": col2im,
}
