"""What zeros pay: our sparse kernels and the fastest dense engines, in turn in one run.

    make bench-sparse        (an hour of a core, and half an hour of two)
    make bench-sparse-avx2   (the same, with our kernels for AVX2)
    python benchmarks/sparse.py --rows linear_128,linear_1 --threads 1 --out benchmarks/sparse.jsonl
    python benchmarks/sparse.py --missing --out benchmarks/sparse.jsonl    (only what is not there)
    python benchmarks/sparse.py --table benchmarks/sparse.jsonl > benchmarks/sparse.md

Every row is one model or layer at one sparsity: its engines take turns, the order rotates, medians
are reported. Zeros are random single ones unless said. Rows of different machines never share a
table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.environment import describe
from prunus._common.timing import no_denormals
from prunus.kernels import SparseLinear, library
from prunus.kernels.conv_training import ConvLayouts
from prunus.kernels.native import VARIABLE
from sparse_convs import POINTWISE, SQUARE, convolutions, whole
from sparse_opponents import DENSE, INT8, Call, engines

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
SHAPES = ((768, 768), (3072, 768), (768, 3072))
"""Of BERT-base's linear layers, rows and columns."""
COLD = 96 * 2**20
"""Bytes that are read between two calls where weights shall come from memory."""
Row = Callable[[float], Iterator[tuple[str, nn.Module, Any]]]


def pruned(model: nn.Module, sparsity: float, *, block: int = 1) -> nn.Module:
    """With random zeros in every linear layer; what is left keeps the size of the sums."""
    make = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                if weight.dim() < 2 or isinstance(module, nn.Embedding) or "bias" in name:
                    continue
                rows = weight.shape[0] // block
                kept = torch.rand(rows, *weight.shape[1:], generator=make) >= sparsity
                weight *= kept.repeat_interleave(block, 0) / math.sqrt(max(1 - sparsity, 1e-3))
    return model.eval()


def linear(tokens: int, block: int = 1) -> Row:
    """The three layers of BERT-base at a number of tokens."""

    def row(sparsity: float) -> Iterator[tuple[str, nn.Module, Any]]:
        for rows, cols in SHAPES:
            torch.manual_seed(0)
            layer = pruned(nn.Linear(cols, rows), sparsity, block=block)
            yield f"{rows}×{cols}", layer, torch.randn(tokens, cols)

    return row


def stacks(sparsity: float) -> Iterator[tuple[str, nn.Module, Any]]:
    """One token through stacks of the same layers, whose weights are more than caches hold."""
    for name, shapes, count in (("48 × 768×768", SHAPES[:1], 48),
                                ("12 × 3072×768, 768×3072", SHAPES[1:], 12)):  # fmt: skip
        torch.manual_seed(0)
        layers = [nn.Linear(cols, rows) for _ in range(count) for rows, cols in shapes]
        yield name, pruned(nn.Sequential(*layers), sparsity), torch.randn(1, shapes[0][1])


class Lstm(nn.Module):
    """Two layers over 128 steps of 256 numbers, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(256, 512, 2, batch_first=True)
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, steps, 256]`` to ``[b, 10]``."""
        return self.head(self.lstm(x)[0][:, -1])


def lstm(sparsity: float) -> Iterator[tuple[str, nn.Module, Any]]:
    """An LSTM at batch 1."""
    torch.manual_seed(0)
    yield "LSTM 2×512", pruned(Lstm(), sparsity), torch.randn(1, 128, 256)


def bert(sparsity: float) -> Iterator[tuple[str, nn.Module, Any]]:
    """BERT-base on 128 tokens, as transformers builds it."""
    import transformers

    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)
    tokens = torch.randint(30_000, (1, 128))
    example = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    yield "BERT-base", pruned(model, sparsity), example


ROWS: dict[str, tuple[str, Row, bool]] = {
    "linear_128": ("linear, 128 tokens", linear(128), False),
    "blocks_4x1": ("linear, 4×1 blocks", linear(128, 4), False),
    "linear_16": ("linear, 16 tokens", linear(16), False),
    "linear_1": ("linear, 1 token, cold", stacks, True),
    "conv_1x1": ("1×1 convolution", convolutions(POINTWISE, 1, pruned), False),
    "conv_3x3": ("3×3 convolution (MNN counted)", convolutions(SQUARE, 3, pruned), False),
    "resnet50": ("ResNet-50, batch 1, whole model", whole(pruned), False),
    "bert": ("BERT-base, 128 tokens, whole model", bert, False),
    "lstm": ("two-layer LSTM, batch 1", lstm, False),
}
"""What is measured: title, models, and whether weights come from memory."""
TRAINING = {
    "training": "training step, linear, over torch",
    "training_conv": "training step, 3×3 convolution, over torch",
}
"""Rows of forward and backward, against torch's dense layer under its mask."""


def timed(
    calls: dict[str, Call], *, cold: bool, seconds: float, clock: Callable[[], float]
) -> dict[str, float]:
    """Median milliseconds of each, in turn; what is short and warm is called several times.

    Args:
        calls: by engine.
        cold: whether other memory is read before every call.
        seconds: for each engine.
        clock: of the process, which other processes do not stop, or of the wall.
    """
    other = torch.zeros(COLD // 4 if cold else 1)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    repeats = {name: 1 if cold else _repeats(call, clock) for name, call in calls.items()}
    names = list(calls)
    end, turn = perf_counter() + seconds * len(calls), 0
    while turn < 15 or (perf_counter() < end and turn < 400):
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            other.sum()  # not written: what is written goes back to memory while others read
            begin = clock()
            for _ in range(repeats[name]):
                calls[name]()
            samples[name].append((clock() - begin) / repeats[name])
        turn += 1
    return {name: 1e3 * statistics.median(taken) for name, taken in samples.items()}


def _repeats(call: Call, clock: Callable[[], float]) -> int:
    """As many calls as take two milliseconds, once it is warm."""
    taken = []
    for _ in range(10):
        begin = clock()
        call()
        taken.append(clock() - begin)
    return max(1, math.ceil(2e-3 / max(min(taken), 1e-6)))


def clock_of(threads: int) -> Callable[[], float]:
    """Of one thread the processor's time: what else the machine does is not in it."""
    return time.process_time if threads == 1 else perf_counter


def training(sparsity: float, threads: int) -> Iterator[dict[str, Any]]:
    """Forward and backward of one layer, 128 tokens, against torch's dense layer under its mask."""
    for rows, cols in SHAPES:
        torch.manual_seed(0)
        dense = pruned(nn.Linear(cols, rows), sparsity).train()
        assert isinstance(dense, nn.Linear)
        own = SparseLinear(dense.weight, dense.bias, tokens=(128,))
        x = torch.randn(128, cols, requires_grad=True)
        dy = torch.randn(128, rows)

        def step(layer: Callable[[Tensor], Tensor], x: Tensor = x, dy: Tensor = dy) -> None:
            layer(x).backward(dy)

        calls = {"eager": partial(step, dense), "sparse": partial(step, own)}
        yield {
            "case": f"{rows}×{cols}",
            "ms": timed(calls, cold=False, seconds=0.5, clock=clock_of(threads)),
        }


def training_convs(sparsity: float, threads: int) -> Iterator[dict[str, Any]]:
    """The same of convolutions, batches of as many macs as the first layers of ResNet-50 have."""
    for channels, _, size in SQUARE[:3]:
        torch.manual_seed(0)
        batch = 4 * 56 // size
        layer = pruned(nn.Conv2d(channels, channels, 3, padding=1), sparsity).train()
        assert isinstance(layer, nn.Conv2d)
        own = partial(ConvLayouts.of(layer.weight != 0), padding=(1, 1))
        x = torch.randn(batch, channels, size, size, requires_grad=True)
        dy = torch.randn(batch, channels, size, size)

        def dense(layer: nn.Conv2d = layer, x: Tensor = x, dy: Tensor = dy) -> None:
            layer(x).backward(dy)

        def sparse(
            own: Any = own, layer: nn.Conv2d = layer, x: Tensor = x, dy: Tensor = dy
        ) -> None:
            own(x, layer.weight, layer.bias).backward(dy)

        yield {
            "case": f"{channels}→{channels}, {size}×{size}, batch {batch}",
            "ms": timed({"eager": dense, "sparse": sparse}, cold=False, seconds=0.5,
                        clock=clock_of(threads)),
        }  # fmt: skip


def measure(name: str, sparsity: float, threads: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Lines of a row, one for each model."""
    if name in TRAINING:
        yield from (training if name == "training" else training_convs)(sparsity, threads)
        return
    _, row, cold = ROWS[name]
    for case, model, example in row(sparsity):
        given = example if isinstance(example, dict) else (example,)
        with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            calls = engines(model, given, Path(place), threads=threads)
            yield {
                "case": case,
                "ms": timed(calls, cold=cold, seconds=seconds, clock=clock_of(threads)),
            }


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: a table for each machine and number of threads."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["processor"], line["instructions"], str(line["threads"])].append(line)
    return "\n\n".join(_table(key, own) for key, own in groups.items())


def _table(key: tuple[str, ...], lines: Sequence[dict[str, Any]]) -> str:
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in lines:
        latest[line["row"], line["case"], line["sparsity"]] = line
    columns = sorted({k[2] for k in latest})
    titles = {name: title for name, (title, _, _) in ROWS.items()} | TRAINING
    out = [f"## {key[0]}, kernels for {key[1]}, threads: {key[2]}", ""]
    out += _rows(("over the best fp32 dense engine", *(f"{c:.0%}" for c in columns)))
    for name, title in titles.items():
        own = [[v for k, v in latest.items() if (k[0], k[2]) == (name, c)] for c in columns]
        if any(own):
            out += _rows((title, *map(_cell, own)))[:1]
    out += ["", "Milliseconds, medians; the fastest float32 dense engine is the opponent:", ""]
    known = (*DENSE, "torch CSR", *INT8, "sparse")
    out += _rows(("row", "case", "zeros", *known))
    places = {name: i for i, name in enumerate(titles)}
    for (name, case, zeros), line in sorted(latest.items(), key=lambda i: (places[i[0][0]], i[0])):
        times = [f"{line['ms'][e]:.3g}" if e in line["ms"] else "–" for e in known]
        out += _rows((titles[name], case, f"{zeros:.0%}", *times))[:1]
    return "\n".join(out)


def _rows(cells: Sequence[str]) -> list[str]:
    """A line of a table, and the one that stands below a table's head."""
    return ["| " + " | ".join(cells) + " |", "|---" * len(cells) + "|"]


def _cell(lines: Sequence[dict[str, Any]]) -> str:
    """The geometric mean over the cases of the best dense time ÷ ours; over int8 in brackets."""
    ratios = []
    short = []
    for line in lines:
        ms = line["ms"]
        dense = min(ms[e] for e in DENSE if e in ms)
        own = ms.get("sparse", dense)  # nothing won: deploy keeps the dense engine
        ratios.append(dense / own)
        short += [min(ms[e] for e in INT8 if e in ms) / own] if any(e in ms for e in INT8) else []
    if not ratios:
        return "–"
    mean = statistics.geometric_mean(ratios)
    return f"{mean:.2f}" + (f" ({statistics.geometric_mean(short):.2f})" if short else "")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join((*ROWS, *TRAINING)))
    parser.add_argument("--sparsities", default=",".join(map(str, SPARSITIES)))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.4, help="for each engine")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--missing", action="store_true", help="what --out lacks of this machine")
    parser.add_argument("--instructions", help="our kernels for these, in place of the best")
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    if given.table:
        print(HEAD + table([json.loads(text) for text in given.table.read_text().splitlines()]))
        return
    if given.instructions:
        os.environ[VARIABLE] = given.instructions
    torch.set_num_threads(given.threads)
    machine = {"processor": describe()["processor"], "instructions": library().name,
               "threads": given.threads, "torch": torch.__version__}  # fmt: skip
    there = known(given.out, machine) if given.missing and given.out else set()
    wrong = 0
    for name in given.rows.split(","):
        for sparsity in map(float, given.sparsities.split(",")):
            if (name, sparsity) in there:
                continue
            try:
                with no_denormals():
                    found = list(measure(name, sparsity, given.threads, given.seconds))
            except Exception:  # of an engine: it is printed, and the other rows go on
                traceback.print_exc()
                wrong += 1
                continue
            for each in found:
                line = {"row": name, "sparsity": sparsity, **each, **machine,
                        "date": time.strftime("%Y-%m-%d")}  # fmt: skip
                print(json.dumps(line), flush=True)
                if given.out:
                    with given.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
    if wrong:
        sys.exit(f"{wrong} rows were not measured; what went wrong stands above")


def known(path: Path, machine: Mapping[str, Any]) -> set[tuple[str, float]]:
    """Rows and sparsities that a file has of a machine, an instruction set and a thread count."""
    if not path.exists():
        return set()
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    same = ("processor", "instructions", "threads")
    return {(x["row"], x["sparsity"]) for x in lines if all(x[k] == machine[k] for k in same)}


HEAD = """# What zeros pay

`make bench-sparse`. Each cell: the fastest dense engine's time ÷ ours, in one run, with the same
zeros in the weights of both; in brackets over the fastest dense int8 engine. Linear rows are the
geometric mean of BERT-base's three shapes. A dash among the milliseconds: the engine does not take
it; of ours: no layer was faster, and `deploy` keeps the dense engine (1.00). With one thread it is
the processor's time that counts, with two the wall's. Where a table is of AVX2 on a processor that
has AVX-512, our kernels alone do without it: their opponents take what there is.

"""

if __name__ == "__main__":
    main()
