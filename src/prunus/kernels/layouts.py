"""Layouts of the zeros of a matrix, as the kernels read them."""

from __future__ import annotations

from ctypes import byref, c_int64
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.errors import InputError
from prunus.kernels.native import (
    COLUMNS,
    DONE,
    HEADER,
    MASK,
    REFUSED,
    SLICES,
    TILES,
    WINDOWS,
    Rows,
    Shape,
    library,
)  # fmt: skip
from prunus.kernels.pattern import LARGEST, Pattern, described

LANES = 16
"""Rows of a slice."""
ROOM = 64
"""Values behind the last one that a mask's kernel may read."""
Sliced = Literal["slices", "columns", "windows"]
"""Layouts of sixteen rows beside each other."""
SLICED: tuple[Sliced, ...] = get_args(Sliced)


class Cut(NamedTuple):
    """How tiles are cut; see ``layout.h``.

    Attributes:
        side: rows of equally many weights that run through the registers together: 1, 2 or 4.
        height: 1, or 4 for blocks of four rows that share a column; ``side`` is then 1.
        width: tokens of a tile: 4, 8, 16, 32 or 64.
        band: columns whose activations stay in the first cache while all rows read them.
        panel: rows that are done before the next begin, a multiple of 16.
    """

    side: int = 2
    height: int = 1
    width: int = 64
    band: int = 192
    panel: int = 256


@dataclass(frozen=True, eq=False)
class Layout:
    """A pattern as a kernel reads it.

    Attributes:
        numbers: int32, the layout itself.
        order: int32; for each packed value its number in the pattern, −1 for padding.
    """

    numbers: Tensor
    order: Tensor

    def pack(self, values: Tensor) -> Tensor:
        """Values in the pattern's order ``[values]`` to the layout's, float32 or float64."""
        return packed(self.order, values)


class Head(NamedTuple):
    """What a layout says of itself, after it was checked."""

    kind: int
    rows: int
    cols: int
    values: int
    scales: bool


def tiles(pattern: Pattern, cut: Cut | None = None) -> Layout:
    """For many tokens: groups of rows over bands of columns.

    Args:
        pattern: of any matrix.
        cut: how; its parts must be among those that :class:`Cut` names.
    """
    cut = cut or Cut()
    fits = (
        cut.side in (1, 2, 4) and cut.height in (1, 4) and cut.side * cut.height <= 4
        and cut.width in (4, 8, 16, 32, 64) and 1 <= cut.band <= 65536
        and cut.panel >= LANES and cut.panel % LANES == 0
    )  # fmt: skip
    if not fits:
        raise InputError(f"{cut} is not possible: see prunus.kernels.layouts.Cut for what is")
    bands, panels = -(-pattern.cols // cut.band), -(-pattern.rows // cut.panel)
    lines = min(pattern.rows * max(1, bands), pattern.values + pattern.rows) + cut.height
    most = pattern.values * cut.height
    room = HEADER + 3 * max(1, bands) * panels + (3 + cut.height) * lines + most // 2 + 8
    shape = Shape(*cut)

    def write(rows: Any, *place: Any) -> int:
        return int(library().call.prunus_tiles(byref(rows), byref(shape), *place))

    return _written(pattern, write, room, most)


def slices(pattern: Pattern, *, form: Sliced = "slices") -> Layout:
    """For one token: sixteen rows beside each other, a value of each in every step.

    Args:
        pattern: of at most 65536 columns.
        form: ``slices`` takes each row's next value wherever it is, ``columns`` those of one
            column (for blocks of sixteen rows), ``windows`` those of 32 neighboring ones; padding
            takes the place of a row that has none there.
    """
    if pattern.cols > 65536:
        raise InputError(f"slices count columns in 16 bits; the matrix has {pattern.cols}")
    starts = -(-pattern.rows // LANES)
    counts = torch.nn.functional.pad(pattern.first.diff(), (0, starts * LANES - pattern.rows))
    if form != "slices":
        most = LANES * pattern.values
    else:  # sorted within 1024 rows: never worse than every slice of the longest row's length
        most = LANES * int(
            sum(_sorted_steps(counts[i : i + 1024]) for i in range(0, len(counts), 1024))
        )
    shorts = {"slices": most, "columns": most // LANES, "windows": most // LANES + most // 2}[form]
    room = HEADER + 2 * (starts + 1) + starts * LANES + shorts // 2 + 8

    def write(rows: Any, *place: Any) -> int:
        return int(library().call.prunus_slices(byref(rows), SLICED.index(form), *place))

    return _written(pattern, write, room, most)


def _sorted_steps(counts: Tensor) -> int:
    return int(counts.sort(descending=True).values.view(-1, LANES)[:, 0].sum())


def mask(pattern: Pattern) -> Layout:
    """For one token: a bit for each place, and the values in the pattern's own order."""
    words = -(-pattern.cols // 64)
    room = HEADER + pattern.rows + 1 + 2 * words * pattern.rows
    numbers = torch.empty(room, dtype=torch.int32)
    length = library().call.prunus_mask(byref(_rows(pattern)), numbers.data_ptr(), room)
    assert length == room
    order = torch.full((pattern.values + ROOM,), -1, dtype=torch.int32)
    order[: pattern.values] = torch.arange(pattern.values, dtype=torch.int32)
    return Layout(numbers, order)


def _rows(pattern: Pattern) -> Any:
    return Rows(pattern.first.data_ptr(), pattern.column.data_ptr(), pattern.rows, pattern.cols)


def _written(pattern: Pattern, write: Any, room: int, most: int) -> Layout:
    if max(room, most) > LARGEST:
        raise InputError(f"{pattern.values} values are too many for one layout: split the matrix")
    numbers = torch.empty(room, dtype=torch.int32)
    order = torch.empty(most, dtype=torch.int32)
    count = c_int64()
    length = write(
        _rows(pattern), numbers.data_ptr(), room, order.data_ptr(), most, byref(count)
    )  # fmt: skip
    assert length > 0, (length, room, count.value, most)
    return Layout(numbers[:length].clone(), order[: count.value].clone())


def packed(order: Tensor, values: Tensor) -> Tensor:
    """Values in a layout's order; padding is zero.

    Raises:
        InputError: if they are not float32 or float64, or fewer than the layout's.
    """
    _refuse_order(order, values)
    given = values.detach().contiguous()
    made = torch.empty(len(order), dtype=values.dtype)
    status = library().call.prunus_gather(
        order.data_ptr(), len(order), given.data_ptr(), len(given), made.data_ptr(),
        KINDS[values.dtype],
    )  # fmt: skip
    if status != DONE:
        raise InputError(f"the layout has other values than the {len(given)} that were given")
    return made


def placed(order: Tensor, place: Tensor) -> Tensor:
    """An order whose numbers count other values: number i is place[i] there; padding stays −1.

    >>> placed(torch.tensor([1, -1, 0]), torch.tensor([7, 9])).tolist()
    [9, -1, 7]
    """
    if not len(place):
        return order.clone()
    own = order.numpy()
    found = place.numpy()[own].astype(np.int32)
    found[own < 0] = -1
    return torch.from_numpy(found)


def unpacked(order: Tensor, found: Tensor, count: int) -> Tensor:
    """What was computed for each value of a layout, in the pattern's order ``[count]``."""
    _refuse_order(order, found)
    made = torch.zeros(count, dtype=found.dtype)
    call = library().call.prunus_scatter
    status = DONE if len(found) >= len(order) and found.is_contiguous() else REFUSED
    if status == DONE:
        status = call(order.data_ptr(), len(order), found.data_ptr(), count, made.data_ptr(),
                      KINDS[found.dtype])  # fmt: skip
    if status != DONE:
        raise InputError(f"the layout has other values than the {count} that were given")
    return made


def _refuse_order(order: Tensor, values: Tensor) -> None:
    flat = order.dim() == values.dim() == 1 and order.is_contiguous()
    if not flat or order.dtype != torch.int32 or order.device.type != "cpu":
        raise InputError(f"an order is a flat int32 tensor on the CPU, not {described(order)}")
    if values.dtype not in FULL or values.device.type != "cpu":
        raise InputError(f"values are float32 or float64 on the CPU, not {described(values)}")


def dense(numbers: Tensor, values: Tensor) -> Tensor:
    """The matrix ``[rows, cols]`` that a layout and its values stand for.

    >>> weight = torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 3.0]])
    >>> from prunus.kernels import usable
    >>> if usable():
    ...     made = tiles(Pattern.of(weight))
    ...     assert dense(made.numbers, made.pack(weight[weight != 0])).equal(weight)
    """
    head = checked(numbers, values)
    kind = torch.float64 if values.dtype == torch.float64 else torch.float32
    out = torch.zeros(head.rows, head.cols, dtype=kind)
    library().call.prunus_dense(
        numbers.data_ptr(), values.data_ptr(), KINDS[values.dtype], out.data_ptr()
    )
    return out


KINDS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.int8: 3}
"""Types of values, as the kernels number them."""
FULL = (torch.float32, torch.float64)
SHORT = (torch.float32, torch.bfloat16, torch.int8)
"""Types that tiles take, and those of the layouts for one token."""
_CHECKED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Heads of layouts that were looked through: once for each tensor, as it takes a while."""


def head_of(numbers: Tensor) -> Head:
    """What a layout says of itself; every number in it has been looked at.

    Raises:
        InputError: if it is damaged.
    """
    head: Head | None = _CHECKED.get(numbers)
    if head is None:
        head = _CHECKED[numbers] = _looked_through(numbers)
    return head


def checked(numbers: Tensor, values: Tensor) -> Head:
    """The head of a layout that fits its values.

    Raises:
        InputError: if it is damaged, or the values are not as many as it needs, or of no type that
            its kernel knows.
    """
    head = head_of(numbers)
    tiled = head.kind == TILES
    known = FULL if tiled else SHORT
    fits = values.device.type == "cpu" and values.is_contiguous() and values.dim() == 1
    if not fits or values.dtype not in known:
        names = " or ".join(str(k).removeprefix("torch.") for k in known)
        raise InputError(
            f"the values of a layout of {NAMES[head.kind]} are flat {names} on the CPU, not "
            f"{described(values)}"
        )
    if values.numel() < head.values:
        raise InputError(f"the layout has {head.values} values; {values.numel()} were given")
    if values.dtype == torch.int8 and not head.scales:
        raise InputError("int8 values need a layout with a scale for each row")
    return head


def _looked_through(numbers: Tensor) -> Head:
    plain = numbers.dtype == torch.int32 and numbers.dim() == 1 and numbers.is_contiguous()
    if not plain or numbers.device.type != "cpu":
        raise InputError(f"a layout is a flat int32 tensor on the CPU, not {described(numbers)}")
    wrong = library().call.prunus_check(numbers.data_ptr(), numbers.numel())
    if wrong is not None:
        raise InputError(f"a sparse layout is damaged: {wrong.decode()}; pack the weights again")
    at = numbers[:8].tolist()
    return Head(at[1], at[3], at[4], at[5], bool(at[7]))


NAMES = {TILES: "tiles", MASK: "mask", SLICES: "slices", COLUMNS: "columns", WINDOWS: "windows"}
