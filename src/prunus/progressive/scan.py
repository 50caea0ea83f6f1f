"""A sensitivity scan: what removing part of each group alone would cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunus._common import rng as randomness
from prunus._common.files import write_atomically, write_json
from prunus._common.given import given_batches, given_example, given_hooks, given_model
from prunus._common.numbers import metric
from prunus._common.tables import Table, page
from prunus.errors import InputError
from prunus.progressive.engine import PruningEngine
from prunus.progressive.state import RunContext, RunState
from prunus.recipe.schema import Recipe
from prunus.types import Damage

SHOWN = (0.5, 0.7, 0.9)
"""Parts that the table has columns for."""


@dataclass(frozen=True)
class Scan:
    """The calibration loss with part of one group removed and all others whole.

    Attributes:
        loss: of the model as it is.
        groups: by name, how many units (weights, channels, …) it has, and the loss by the part of
            them that is removed.
        seconds: that it took.

    >>> found = Scan(1.0, {"fc": (10, {0.5: 1.25, 0.9: 3.0})}, 0.1)
    >>> print(found.table())
    group  units  loss at 0.5 removed      0.9
    fc        10              +0.2500  +2.0000
    """

    loss: float
    groups: Mapping[str, tuple[int, Mapping[float, float]]]
    seconds: float

    def table(self) -> Table:
        """A row a group: the rise of the loss, the tenderest group first."""
        parts = [p for p in SHOWN if any(self._at(n, p) is not None for n in self.groups)]
        names = sorted(self.groups, key=lambda n: -(self._at(n, parts[-1]) or 0) if parts else 0)
        heads = [f"loss at {p:g} removed" if p is parts[0] else f"{p:g}" for p in parts]
        rows = [
            (n, f"{self.groups[n][0]:,}", *(_rise(self._at(n, p), self.loss) for p in parts))
            for n in names
        ]
        return Table(("group", "units", *heads), rows)

    def _at(self, name: str, part: float) -> float | None:
        """The loss at the nearest part that was measured."""
        known = self.groups[name][1]
        near = min(known, key=lambda p: abs(p - part), default=None)
        return None if near is None or abs(near - part) > 0.1 else known[near]

    def picture(self) -> Any:
        """A figure of matplotlib: a curve a group.

        Raises:
            InputError: without matplotlib.
        """
        try:
            from prunus.progressive.picture import scan_curves
        except ImportError:
            raise InputError("a picture needs matplotlib: the extra 'report' brings it") from None
        return scan_curves(self.loss, self.groups)

    def save(self, folder: str | Path) -> Path:
        """Write ``scan.json``, and ``scan.png`` where matplotlib is installed."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / "scan.json", self.to_dict())
        try:
            from prunus._common.pictures import as_png

            write_atomically(place / "scan.png", as_png(self.picture()))
        except (ImportError, InputError):
            pass
        return place / "scan.json"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        groups = {
            name: {"units": units, "losses": [[p, x] for p, x in losses.items()]}
            for name, (units, losses) in self.groups.items()
        }
        return {"loss": self.loss, "groups": groups, "seconds": round(self.seconds, 3)}

    def __repr__(self) -> str:
        return f"<Scan: loss {self.loss:.4f} as it is\n{self.table()}\nnext: allocation: measured>"

    def _repr_html_(self) -> str:
        """For notebooks."""
        return page(f"Scan: loss {self.loss:.4f} as it is", self.table().html())


def _rise(loss: float | None, whole: float) -> str:
    return "" if loss is None else f"{'+' if loss >= whole else '−'}{metric(abs(loss - whole))}"


def scan(
    model: nn.Module,
    calibration: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    example: Any = None,
    on_group: Callable[[str], None] | None = None,
) -> Scan:
    """Measure what removing part of each group alone would cost; the model is not changed.

    For each group l and each part p the units that the criterion scores lowest are set to zero,

    .. math:: d_l(p) = L(w \\odot m_l(p)) - L(w)

    on the calibration data, in eval mode. ``allocation: measured`` chooses by these curves.

    Args:
        model: a trained one.
        calibration: batches, not those that judge.
        loss: ``(model, batch) -> scalar``.
        recipe: its structure, scope and criterion count; by default single weights by magnitude.
        example: an input, for channels and heads.
        on_group: told the name of each group before it is measured.

    Raises:
        InputError: for what cannot be used.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = scan(net, [torch.ones(3, 4)], lambda m, x: m(x).square().mean())
    >>> list(found.groups)
    ['0.weight', '2.weight']

    Source: Li et al. 2017, arXiv:1608.08710; Frantar & Alistarh 2022, arXiv:2201.13096.
    """
    given_model(model, "scan", values=True, code=True)
    given_hooks(loss=loss, on_group=on_group)
    batches = given_batches(calibration, "calibration")
    if batches is None:
        raise InputError("scan measures the loss on batches: give calibration, not None")
    if loss is None:
        raise InputError("scan measures a loss: give loss(model, batch) -> scalar")
    how = Recipe.load({} if recipe is None else recipe)
    began = time.monotonic()
    with randomness.preserve_rng():
        randomness.seed(how.seed)
        engine = PruningEngine(
            model, how, calibration=batches, loss=loss, example=given_example(model, example)
        )
        told = on_group or (lambda name: None)
        found = engine.selector.scan(
            model,
            engine.space,
            engine.masks,
            engine.running.tensors,
            lambda group: told(group.name),
        )
    return _of(found, time.monotonic() - began)


def _of(found: Damage, seconds: float) -> Scan:
    whole = next((pairs[0][1] for pairs in found.values()), float("nan"))
    groups = {
        group.name: (
            group.units,
            {round(1 - kept / group.units, 6): loss for kept, loss in pairs[1:]},
        )
        for group, pairs in found.items()
    }
    return Scan(whole, groups, seconds)


def scanned(job: RunContext, at: RunState) -> Damage:
    """The curves before a cut: what a killed run has measured is read from its journal."""
    engine = job.engine
    groups = {g.name: g for g in engine.space.groups}
    done = [e for e in job.journal.events if e["event"] == "scan" and e["round"] == at.index]
    if done and done[-1]["step"] == at.step and done[-1]["curves"].keys() == groups.keys():
        plain = done[-1]["curves"]
        return {groups[n]: tuple((int(k), float(x)) for k, x in plain[n]) for n in plain}
    began, number = time.monotonic(), iter(range(1, len(groups) + 1))

    def on_group(group: Any) -> None:
        job.on_event({"event": "scan", "group": group.name, "done": next(number),
                      "of": len(groups)})  # fmt: skip

    found = engine.selector.scan(
        engine.model, engine.space, engine.removed, engine.running.tensors, on_group
    )
    seconds = time.monotonic() - began
    curves = {group.name: [list(pair) for pair in pairs] for group, pairs in found.items()}
    took = round(seconds, 3)
    job.journal.write("scan", round=at.index, step=at.step, curves=curves, seconds=took)
    job.note(f"scan: {len(groups)} groups measured in {seconds:.1f} s")
    return found
