"""What two models of a walk cost, counted without their weights."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunus._common import numbers
from prunus._common.nested import map_tensors
from prunus._common.rng import preserve_rng
from prunus._common.tables import Table
from prunus.blocks.folder import skeleton
from prunus.blocks.serving import Work, reading, writing
from prunus.blocks.shards import Shards
from prunus.costs.macs import macs_of_pass


@dataclass(frozen=True)
class Costs:
    """What a model of a folder costs as it stands.

    Attributes:
        params: of it, a tied tensor once.
        bytes: of its weights in the files.
        macs_prefill: of a text that is read at once, with the logits of its last token; ``None``
            where the counter does not follow the model.
        macs_token: of one token after it, with its cache.
        length: of the text, in tokens; 0: it reads something else.
    """

    params: int
    bytes: int
    macs_prefill: int | None
    macs_token: int | None
    length: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def costs_of(folder: Path, batch: Any) -> Costs:
    """Counted on the meta device: no weight is read.

    Args:
        folder: of transformers.
        batch: of which the first item is the text.
    """
    model: Any = skeleton(folder).to("meta")
    if hasattr(model, "set_experts_implementation"):
        with contextlib.suppress(Exception):  # of models without experts
            model.set_experts_implementation("batched_mm")  # whose products the counter knows
    meta = map_tensors(lambda t: t.to("meta"), batch)
    whole = reading(model, meta)
    token = None
    with contextlib.suppress(Exception), preserve_rng():  # of the model's code, which reads values
        token = writing(model, meta)
    stored = Shards(folder).tensors.values()
    return Costs(
        sum(p.numel() for p in model.parameters()), sum(t.size for t in stored),
        _macs(whole), None if token is None else _macs(token), whole.tokens,
    )  # fmt: skip


def _macs(work: Work) -> int | None:
    return macs_of_pass(work.model, ((), work.example), {})[0]


def table_of(dense: Mapping[str, Any], small: Mapping[str, Any]) -> Table:
    """Two models beside each other.

    >>> one = Costs(10, 40, 100, None, 4).to_dict()
    >>> print(table_of(one, {**one, "params": 5}))
                                  dense  smaller   part
    parameters                       10        5  0.500
    bytes                        40.0 B   40.0 B  1.000
    macs, 4 tokens read at once     100      100  1.000
    macs, one token after them        –        –      –
    """
    length = dense["length"]
    read = f"macs, {length:,} tokens read at once" if length else "macs, one item"
    rows = (
        ("params", "parameters", numbers.count),
        ("bytes", "bytes", numbers.size),
        ("macs_prefill", read, numbers.count),
        ("macs_token", "macs, one token after them", numbers.count),
    )
    made = []
    for key, said, form in rows:
        one, other = dense[key], small[key]
        part = f"{other / one:.3f}" if one and other is not None else numbers.NONE
        made.append((said, form(one), form(other), part))
    return Table(("", "dense", "smaller", "part"), made)
