"""BLEU by sacrebleu, sentence by sentence in counts that add up to the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunus import Scores


def scores(said: Sequence[str], references: Sequence[str]) -> Scores:
    """Counts ``[n, 10]`` of each sentence, and BLEU, 0 to 100, of their sum.

    The counts: tokens said, tokens of the reference, and of n-grams of 1 to 4 tokens how many are
    right and how many there are. Source: Papineni et al. 2002; Post 2018, arXiv:1804.08771.

    """
    count = counter()
    rows = []
    for one, reference in zip(said, references, strict=True):
        found = count.corpus_score([one], [[reference]])
        rows.append([found.sys_len, found.ref_len, *found.counts, *found.totals])
    return Scores(torch.tensor(rows, dtype=torch.float64), better="higher", figure=figure)


def figure(counts: Tensor) -> float:
    """BLEU of counts ``[n, 10]``."""
    sums = [round(v) for v in counts.sum(0).tolist()]
    found = counter().compute_bleu(sums[2:6], sums[6:], sums[0], sums[1], smooth_method="exp")
    return float(found.score)


def signature(said: Sequence[str], references: Sequence[str]) -> str:
    """What sacrebleu says of how it counted."""
    count = counter()
    count.corpus_score(list(said), [list(references)])
    return str(count.get_signature())


def counter() -> Any:
    """sacrebleu's BLEU, with its own settings.

    Raises:
        ModuleNotFoundError: if sacrebleu is not installed.
    """
    from sacrebleu.metrics import BLEU

    return BLEU()
