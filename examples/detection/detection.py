"""Detection: where are the cells? An anchor-free detector of three scales, judged by mean AP."""

from __future__ import annotations

import contextlib
import io
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prunus import Scores
from prunus.errors import InputError
from prunus.tasks._files import find_folder, open_zip, read_image
from prunus.tasks._part import some, started
from prunus.tasks.base import Task

HEIGHT, WIDTH = 192, 256
"""Of the images as the network sees them, pixels."""
STRIDES = (8, 16, 32)
"""Pixels between the points of each scale."""
CANDIDATES, TOP = 0.01, 100
"""Scores below are no boxes; boxes of an image at most."""
OVERLAP = 0.6
"""Of two boxes of a class that overlap more, the one with the lower score goes."""
EVERY = 9
"""A box is learned by so many points at most."""


def detection(
    *,
    folder: Path | None = None,
    weights: Path | None = None,
    batch: int = 16,
    rate: float = 0.002,
    width: int = 12,
    part: float = 1.0,
) -> Task:
    """Blood cells: boxes of red cells, white cells and platelets; AdamW.

    ``bccd.zip`` in ``folder`` or ``$PRUNUS_DATA/blood-cells`` is a Pascal VOC tree:
    ``*/JPEGImages``, ``*/Annotations``, and ``*/ImageSets/Main/train.txt``, ``val.txt`` and
    ``test.txt``. Boxes without an area are left out. The metric is the mean average precision of
    COCO (0.50:0.95, by pycocotools); its items are the classes in each image, so that
    ``guard.worst_class`` holds each class. ``width`` is that of the first convolution; ``part`` of
    the training images train; ``weights`` is a file to start from (the ``dense.safetensors`` of a
    run).

    Source: Tian et al. 2019, arXiv:1904.01355; Feng et al. 2021, arXiv:2108.07755 (who learns
    what); Lin et al. 2014, arXiv:1405.0312 (the metric).
    """
    place = find_folder("detection", folder, "blood-cells", "bccd.zip")
    names, parts = read(place / "bccd.zip")
    train = parts["train"].of(some("detection", len(parts["train"].pixels), part))

    def plain(cells: Cells) -> Plain:
        return Plain(cells, names, size=24)

    def model() -> nn.Module:
        return Detector(len(names), width)

    return Task(
        model=started("detection", model, weights),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate, weight_decay=0.02),
        loss=loss,
        metric=precision,
        train=Moved(train, size=batch),
        validation=plain(parts["val"]),
        test=plain(parts["test"]),
        example=scaled(train.pixels[:2]),
        calibration=list(Moved(train, size=batch, still=True))[:8],
        train_sample=plain(train.of(torch.arange(min(72, len(train.pixels))))),
        metric_name="mean average precision",
    )


# --- the network


class Detector(nn.Module):
    """A backbone, its last three scales joined downward and upward, and a head on each."""

    def __init__(self, classes: int = 3, width: int = 16) -> None:
        super().__init__()
        a, b, c, d, e = width, 2 * width, 4 * width, 6 * width, 8 * width
        self.stem = nn.Sequential(conv(3, a, 3, 2), conv(a, b, 3, 2), Split(b, b, 1))
        self.fine = nn.Sequential(conv(b, c, 3, 2), Split(c, c, 2))
        self.middle = nn.Sequential(conv(c, d, 3, 2), Split(d, d, 2))
        self.coarse = nn.Sequential(conv(d, e, 3, 2), Pools(e), Split(e, e, 1))
        self.narrow = conv(e, d, 1)
        self.down_middle, self.down_fine = Split(2 * d, d, 1), Split(d + c, c, 1)
        self.step_middle, self.step_coarse = conv(c, c, 3, 2), conv(d, d, 3, 2)
        self.up_middle, self.up_coarse = Split(c + d, d, 1), Split(2 * d, e, 1)
        self.heads = nn.ModuleList(Head(n, c, classes) for n in (c, d, e))
        points, strides = grid()
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("strides", strides, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[b, 3, h, w]`` to scores ``[b, points, classes]`` (logits) and boxes
        ``[b, points, 4]``: left, top, right, bottom in pixels."""
        fine = self.fine(self.stem(images))
        middle = self.middle(fine)
        coarse = self.narrow(self.coarse(middle))
        middle = self.down_middle(torch.cat([doubled(coarse), middle], 1))
        fine = self.down_fine(torch.cat([doubled(middle), fine], 1))
        middle = self.up_middle(torch.cat([self.step_middle(fine), middle], 1))
        coarse = self.up_coarse(torch.cat([self.step_coarse(middle), coarse], 1))
        found = [head(x) for head, x in zip(self.heads, (fine, middle, coarse), strict=True)]
        scores = torch.cat([s for s, _ in found], 1)
        far = F.softplus(torch.cat([d for _, d in found], 1)) * self.strides
        return scores, torch.cat([self.points - far[..., :2], self.points + far[..., 2:]], -1)


class Split(nn.Module):
    """Half of the channels go through blocks, half pass by, and both are joined (CSP)."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        half = outputs // 2
        self.through, self.past = conv(inputs, half, 1), conv(inputs, half, 1)
        self.blocks = nn.ModuleList(conv(half, half, 3) for _ in range(blocks))
        self.join = conv(2 * half, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, inputs, h, w]`` to ``[b, outputs, h, w]``."""
        through = self.through(x)
        for block in self.blocks:
            through = through + block(through)
        return self.join(torch.cat([through, self.past(x)], 1))  # type: ignore[no-any-return]


class Pools(nn.Module):
    """The same features at four sizes of window, joined (SPP)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow, self.join = conv(width, width // 2, 1), conv(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, width, h, w]`` to the same."""
        found = [self.narrow(x)]
        for _ in range(3):
            found.append(F.max_pool2d(found[-1], 5, 1, 2))
        return self.join(torch.cat(found, 1))  # type: ignore[no-any-return]


class Head(nn.Module):
    """What it is and where it ends, each by layers of its own."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.stem = conv(inputs, width, 1)
        self.what = nn.Sequential(conv(width, width, 3), nn.Conv2d(width, classes, 1))
        self.where = nn.Sequential(conv(width, width, 3), nn.Conv2d(width, 4, 1))
        nn.init.constant_(self.what[1].bias, -4.0)  # at first nearly nothing is a cell
        nn.init.constant_(self.where[1].bias, 1.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[b, inputs, h, w]`` to logits ``[b, h·w, classes]`` and distances ``[b, h·w, 4]``."""
        x = self.stem(x)
        return self.what(x).flatten(2).mT, self.where(x).flatten(2).mT


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, SiLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    )


def doubled(x: Tensor) -> Tensor:
    """Every pixel four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def grid() -> tuple[Tensor, Tensor]:
    """The points of all scales ``[n, 2]`` (x, y) and their strides ``[n, 1]``.

    >>> grid()[0].shape
    torch.Size([1008, 2])
    """
    points, strides = [], []
    for stride in STRIDES:
        y, x = torch.meshgrid(
            torch.arange(HEIGHT // stride), torch.arange(WIDTH // stride), indexing="ij"
        )
        points.append((torch.stack([x, y], -1).flatten(0, 1) + 0.5) * stride)
        strides.append(torch.full((len(points[-1]), 1), float(stride)))
    return torch.cat(points), torch.cat(strides)


# --- what it learns


def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Cross-entropy of the scores against what boxes are worth, and 1 − GIoU of the boxes.

    Both are weighted by what is wanted of each point: where a box is learned, its overlap with the
    truth, as far as the point is among the best for it.
    """
    images, boxes, classes = batch
    scores, found = model(images)
    points = grid()[0].to(found.device)
    rows, wanted, truths = [], [], []
    for i in range(len(images)):
        there = classes[i] >= 0
        row, want, truth = assigned(
            scores[i].detach(), found[i].detach(), boxes[i][there], classes[i][there], points
        )
        rows.append(row + i * len(points))
        wanted.append(want)
        truths.append(truth)
    want, chosen = torch.stack(wanted), torch.cat(rows)
    total = want.sum().clamp_min(1.0)
    named = F.binary_cross_entropy_with_logits(scores, want, reduction="sum")
    far = 1 - overlap(found.flatten(0, 1)[chosen], torch.cat(truths), hull=True)
    placed = (far * want.flatten(0, 1)[chosen].sum(-1)).sum()
    return (named + 2.0 * placed) / total


def assigned(
    scores: Tensor, found: Tensor, boxes: Tensor, classes: Tensor, points: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Which points learn which box of one image, and what they are worth.

    A point inside a box is worth t = score^½ · IoU⁶ for it; the best ``EVERY`` learn it, and a
    point that two boxes want goes to the one it overlaps more. It is asked for a score of
    t ÷ max t · max IoU.

    Args:
        scores: ``[points, classes]``, logits.
        found: boxes ``[points, 4]``.
        boxes: the truth ``[m, 4]``.
        classes: of the truth ``[m]``.
        points: ``[points, 2]``.

    Returns:
        The points that learn a box ``[k]``, the scores asked for ``[points, classes]``, and the
        boxes of these points ``[k, 4]``.
    """
    want = torch.zeros_like(scores)
    if not len(boxes):
        return torch.zeros(0, dtype=torch.long), want, boxes
    iou = overlap(found[None], boxes[:, None]).clamp_min(0)  # [m, points]
    inside = torch.cat([points - boxes[:, None, :2], boxes[:, None, 2:] - points], -1).amin(-1) > 0
    worth = scores.sigmoid()[:, classes].T.sqrt() * iou**6 + 1e-9
    worth = worth * inside
    best = worth.topk(min(EVERY, len(points)), dim=1).indices
    learns = torch.zeros_like(inside).scatter_(1, best, True) & inside
    owner = torch.where(learns, iou, -1.0).argmax(0)  # [points]
    rows = learns.any(0).nonzero().flatten()
    owner = owner[rows]
    kept = torch.zeros_like(worth)
    kept[owner, rows] = worth[owner, rows]
    near = torch.zeros_like(iou)
    near[owner, rows] = iou[owner, rows]
    share = kept / kept.amax(1, keepdim=True).clamp_min(1e-9) * near.amax(1, keepdim=True)
    want[rows, classes[owner]] = share[owner, rows]
    return rows, want, boxes[owner]


def overlap(a: Tensor, b: Tensor, *, hull: bool = False) -> Tensor:
    """Intersection over union of boxes ``[..., 4]``; with ``hull`` the generalized one.

    GIoU = IoU − (hull − union) ÷ hull, from −1 to 1.

    Source: Rezatofighi et al. 2019, arXiv:1902.09630.

    >>> overlap(torch.tensor([0.0, 0, 2, 2]), torch.tensor([1.0, 0, 3, 2]))
    tensor(0.3333)
    """
    size_a, size_b = ((x[..., 2:] - x[..., :2]).clamp_min(0).prod(-1) for x in (a, b))
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    both = (high - low).clamp_min(0).prod(-1)
    union = (size_a + size_b - both).clamp_min(1e-6)
    if not hull:
        return both / union
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    around = (high - low).clamp_min(0).prod(-1).clamp_min(1e-6)
    return both / union - (around - union) / around


# --- what it is judged by


@dataclass(frozen=True)
class Found:
    """What was found in one image, best first.

    Attributes:
        boxes: ``[n, 4]``, pixels.
        classes: ``[n]``.
        scores: ``[n]``, 0 to 1.
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor


def chosen(scores: Tensor, boxes: Tensor) -> Found:
    """The boxes of one image, without those that say the same (greedy, by class).

    Args:
        scores: ``[points, classes]``, logits.
        boxes: ``[points, 4]``.
    """
    rows, classes = (scores.sigmoid() > CANDIDATES).nonzero().unbind(1)
    best, order = scores.sigmoid()[rows, classes].sort(descending=True, stable=True)
    boxes = boxes[rows[order]].clamp_min(0).minimum(torch.tensor([WIDTH, HEIGHT] * 2))
    classes = classes[order]
    apart = boxes + classes[:, None] * 2.0 * WIDTH  # so that classes never meet
    gone = torch.zeros(len(best), dtype=torch.bool)
    keep: list[int] = []
    while len(keep) < TOP and not gone.all():
        keep.append(int((~gone).int().argmax()))  # the best that is left
        gone |= overlap(apart[keep[-1]], apart) > OVERLAP
        gone[keep[-1]] = True
    return Found(boxes[keep], classes[keep], best[keep])


def found_in(model: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> list[Found]:
    """What a model finds in each image."""
    every: list[Found] = []
    for images, *_ in batches:
        scores, boxes = (answer.float().cpu() for answer in model(images))
        every += [chosen(s, b) for s, b in zip(scores, boxes, strict=True)]
    return every


def precision(model: nn.Module, batches: Plain) -> Scores:
    """COCO's mean average precision; its items are the classes in each image."""
    return matched(found_in(model, batches), batches.cells, batches.names)


def matched(found: list[Found], cells: Cells, names: list[str]) -> Scores:
    """The same of boxes that were found.

    Raises:
        InputError: if pycocotools is not installed.
    """
    rows = torch.zeros(len(names), len(found), 2 + 2 * TOP)
    for (c, i), seen in matches(found, cells, len(names)).items():
        bits = (seen["dtMatches"] > 0).T @ (1 << np.arange(len(seen["dtMatches"])))
        rows[c, i, 1] = len(seen["gtIds"])
        rows[c, i, 2 : 2 + len(bits)] = torch.tensor(seen["dtScores"])
        rows[c, i, 2 + TOP : 2 + TOP + len(bits)] = torch.from_numpy(bits).float()
    rows[:, :, 0] = torch.arange(len(names))[:, None]
    groups = [name for name in names for _ in found]
    return Scores(rows.flatten(0, 1), groups, "higher", figure=average_precision)


def average_precision(rows: Tensor) -> float:
    """Mean precision at 101 recalls and ten overlaps, 0.50 to 0.95, then over the classes.

    Args:
        rows: ``[n, 2 + 2·TOP]``: of a class in an image its number and its true boxes; the scores
            of what was found, and at which overlaps each is right, a bit for each.

    Source: Lin et al. 2014; the same figure as ``COCOeval.accumulate`` gives.
    """
    found = [_of_class(rows[rows[:, 0] == c].numpy()) for c in rows[:, 0].unique()]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else 0.0


def _of_class(rows: NDArray[np.float64]) -> float | None:
    """Of one class; ``None`` where these images have none of it."""
    scores, bits = rows[:, 2 : 2 + TOP].ravel(), rows[:, 2 + TOP :].ravel().astype(np.int64)
    total, there = rows[:, 1].sum(), scores > 0
    if not total:
        return None
    order = np.argsort(-scores[there], kind="mergesort")
    right = (bits[there][order] >> np.arange(10)[:, None]) & 1  # [overlaps, n]
    hits = np.cumsum(right, axis=1)
    sure = hits / np.arange(1, len(order) + 1)
    sure = np.maximum.accumulate(sure[:, ::-1], axis=1)[:, ::-1]
    sure = np.concatenate([sure, np.zeros((10, 1))], axis=1)
    wanted = np.linspace(0, 1, 101)
    each = [s[np.searchsorted(h / total, wanted)] for h, s in zip(hits, sure, strict=True)]
    return float(np.mean(np.mean(each, axis=1)))


def matches(
    found: list[Found], cells: Cells, classes: int
) -> dict[tuple[int, int], dict[str, Any]]:
    """What pycocotools says of each class in each image, where there is any of it.

    Raises:
        InputError: if pycocotools is not installed.
    """
    judge = judged(found, cells, classes)
    return {(e["category_id"], e["image_id"]): e for e in judge.evalImgs if e is not None}


def judged(found: list[Found], cells: Cells, classes: int) -> Any:
    """A ``COCOeval`` of boxes that were found, which has matched them with the true ones.

    Raises:
        InputError: if pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise InputError(
            "task detection: its metric is that of pycocotools: pip install pycocotools"
        ) from error
    there = (cells.classes >= 0).nonzero().tolist()
    truth = [(i, int(cells.classes[i, j]), cells.boxes[i, j], 1.0) for i, j in there]
    told = [
        (i, c, box, s)
        for i, one in enumerate(found)
        for box, c, s in zip(one.boxes, one.classes.tolist(), one.scores.tolist(), strict=True)
    ]
    both = []
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        for boxes in (truth, told):
            coco = COCO()
            coco.dataset = {
                "images": [{"id": i} for i in range(len(found))],
                "categories": [{"id": c} for c in range(classes)],
                "annotations": _as_coco(boxes),
            }
            coco.createIndex()
            both.append(coco)
        judge = COCOeval(*both, "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.params.maxDets = [TOP]
        judge.evaluate()
    return judge


def _as_coco(boxes: list[tuple[int, int, Tensor, float]]) -> list[dict[str, Any]]:
    plain = [(i, c, *box.tolist(), s) for i, c, box, s in boxes]
    return [
        {"id": n, "image_id": i, "category_id": c, "bbox": [x, y, right - x, bottom - y],
         "area": (right - x) * (bottom - y), "iscrowd": 0, "score": s}
        for n, (i, c, x, y, right, bottom, s) in enumerate(plain, 1)
    ]  # fmt: skip


# --- the data


@dataclass(frozen=True)
class Cells:
    """Images and what is in them.

    Attributes:
        pixels: ``[n, HEIGHT, WIDTH, 3]``, bytes.
        boxes: ``[n, m, 4]``: left, top, right, bottom, in pixels of these images.
        classes: ``[n, m]``, -1 where there is no box.
    """

    pixels: Tensor
    boxes: Tensor
    classes: Tensor

    def of(self, rows: Tensor) -> Cells:
        """Some of them."""
        return Cells(self.pixels[rows], self.boxes[rows], self.classes[rows])


class Plain:
    """Batches of images, boxes and classes in their order, which remember where they come from."""

    def __init__(self, cells: Cells, names: list[str], *, size: int) -> None:
        self.cells, self.names, self.size = cells, names, size

    def __len__(self) -> int:
        return -(-len(self.cells.pixels) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for rows in torch.arange(len(self.cells.pixels)).split(self.size):
            yield scaled(self.cells.pixels[rows]), self.cells.boxes[rows], self.cells.classes[rows]


class Moved:
    """Batches that are mirrored, zoomed, shifted, lighter or darker, by chance.

    Everything random comes from torch's generator, which a run sets from (seed, epoch).
    """

    def __init__(self, cells: Cells, *, size: int, still: bool = False) -> None:
        if size < 1:
            raise InputError(f"task detection: batch is {size}; it must be above 0")
        self.cells, self.size, self.still = cells, min(size, len(cells.pixels)), still

    def __len__(self) -> int:
        return len(self.cells.pixels) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        count = len(self.cells.pixels)
        order = torch.arange(count) if self.still else torch.randperm(count)
        for rows in order[: len(self) * self.size].split(self.size):
            images, classes = scaled(self.cells.pixels[rows]), self.cells.classes[rows]
            boxes = self.cells.boxes[rows]
            yield (images, boxes, classes) if self.still else moved(images, boxes, classes)


def moved(images: Tensor, boxes: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Another view of each image: x' = zoom·sign·x + shift from the middle, and another light.

    What lies outside is gray: cells mirrored there would be cells without a box.

    Boxes are cut at the borders; one of which less than a third is left is no box.
    """
    count = len(images)
    zoom = (0.75 + 0.6 * torch.rand(count, 1)) * torch.sign(torch.rand(count, 2) - 0.5)
    shift = (torch.rand(count, 2) - 0.5) * 0.5  # of half the image
    turn = torch.zeros(count, 2, 3)
    turn[:, [0, 1], [0, 1]], turn[:, :, 2] = 1 / zoom, -shift / zoom
    where = F.affine_grid(turn, list(images.shape), align_corners=False)
    light = 1 + 0.3 * (torch.rand(count, 1, 1, 1) - 0.5)
    tint = 0.3 * (torch.rand(count, 3, 1, 1) - 0.5)
    seen = F.grid_sample(images, where, align_corners=False, padding_mode="zeros")
    half = torch.tensor([WIDTH, HEIGHT]) / 2
    corners = boxes.unflatten(-1, (2, 2))  # [b, m, corner, xy]
    corners = (corners - half) * zoom[:, None, None] + half * (1 + shift[:, None, None])
    low, high = corners.amin(2), corners.amax(2)
    whole = (high - low).prod(-1)
    low, high = (x.clamp_min(0).minimum(2 * half) for x in (low, high))
    left = (high - low).prod(-1) >= whole / 3
    kept = torch.where(left, classes, -1)
    return seen * light + tint, torch.cat([low, high], -1), kept


def scaled(pixels: Tensor) -> Tensor:
    """Bytes ``[..., h, w, 3]`` to floats ``[..., 3, h, w]``, -1 to 1."""
    return pixels.movedim(-1, -3).float().div_(127.5).sub_(1)


def read(path: Path) -> tuple[list[str], dict[str, Cells]]:
    """The classes' names, and the images of ``train``, ``val`` and ``test``.

    Raises:
        InputError: if the archive or one of its lists is missing or empty, an annotation or its
            image is not there or cannot be read, or a box is outside its image.
    """
    parts = {}
    known: set[str] = set()
    with open_zip("detection", path) as archive:
        inside = archive.namelist()
        for part in ("train", "val", "test"):
            end = f"ImageSets/Main/{part}.txt"
            lists = [n for n in inside if n.endswith(end)]
            try:
                ids = archive.read(lists[0]).decode().split() if lists else []
            except (UnicodeDecodeError, zipfile.BadZipFile) as error:
                raise InputError(f"task detection: '{path}': '{end}': {error}") from None
            if not ids:
                what = f"'{end}' is empty" if lists else f"it has no '{end}'"
                raise InputError(
                    f"task detection: '{path}': {what}: a name of an image in each line"
                )
            twice = {one for one in ids if ids.count(one) > 1} or set(ids) & known
            if twice:
                raise InputError(
                    f"task detection: '{path}': {min(twice)} is listed twice: an image belongs to "
                    "one of train, val and test"
                )
            known.update(ids)
            root = lists[0].removesuffix(end)
            parts[part] = [_image(archive, path, root, one) for one in ids]
    empty = [part for part, images in parts.items() if not any(boxes for _, boxes in images)]
    if empty:
        raise InputError(f"task detection: '{path}': no annotation of {empty[0]} has a box")
    names = sorted({name for part in parts.values() for _, boxes in part for name, _ in boxes})
    return names, {part: _together(images, names) for part, images in parts.items()}


Boxes = list[tuple[str, list[float]]]


def _together(images: list[tuple[NDArray[np.uint8], Boxes]], names: list[str]) -> Cells:
    most = max(1, *(len(boxes) for _, boxes in images))
    boxes, classes = torch.zeros(len(images), most, 4), torch.full((len(images), most), -1)
    for i, (_, there) in enumerate(images):
        for j, (name, box) in enumerate(there):
            boxes[i, j], classes[i, j] = torch.tensor(box), names.index(name)
    return Cells(torch.from_numpy(np.stack([p for p, _ in images])), boxes, classes)


def _image(
    archive: zipfile.ZipFile, path: Path, root: str, name: str
) -> tuple[NDArray[np.uint8], Boxes]:
    """The pixels of one image at the network's size, and its boxes there."""
    from PIL import Image

    where = f"task detection: '{path}': {name}"
    try:
        tree = ElementTree.fromstring(archive.read(f"{root}Annotations/{name}.xml"))
    except (KeyError, ElementTree.ParseError, zipfile.BadZipFile) as error:
        raise InputError(f"{where}.xml: {error}") from None
    try:
        content = archive.read(f"{root}JPEGImages/{name}.jpg")
    except KeyError:
        raise InputError(f"{where}.xml has no image: there is no {name}.jpg") from None
    except zipfile.BadZipFile as error:
        raise InputError(f"{where}.jpg cannot be read: {error}") from None
    image = read_image(f"{where}.jpg", content)
    pixels = image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    boxes: Boxes = []
    for thing in tree.iter("object"):
        sides = [thing.findtext(f"bndbox/{k}", "") for k in ("xmin", "ymin", "xmax", "ymax")]
        try:
            box = [float(side) for side in sides]
        except ValueError:
            raise InputError(f"{where}.xml: a box is {sides}: four numbers are needed") from None
        wide, high = image.size
        if not (0 <= box[0] <= box[2] <= wide and 0 <= box[1] <= box[3] <= high):
            raise InputError(f"{where}.xml: the box {box} is outside the image, {wide}×{high}")
        if not thing.findtext("name"):
            raise InputError(f"{where}.xml: the box {box} has no name")
        if box[0] < box[2] and box[1] < box[3]:
            scale = np.array([WIDTH / wide, HEIGHT / high] * 2)
            boxes.append((thing.findtext("name", ""), (box * scale).tolist()))
    return np.asarray(pixels), boxes
