"""Translation: English to German, by a transformer or by a GRU with attention."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.methods.catalog import module_at
from prunus.tasks._files import find_folder
from prunus.tasks._part import some, started
from prunus.tasks.base import Task

HERE = Path(__file__).parent
text, networks, decoding, bleu = (
    module_at(HERE / f"{name}.py") for name in ("text", "networks", "decoding", "bleu")
)


def translation(
    *,
    folder: Path | None = None,
    weights: Path | None = None,
    network: Literal["transformer", "gru"] = "transformer",
    vocabulary: int = 5000,
    width: int = 256,
    batch: int = 64,
    rate: float = 0.001,
    part: float = 1.0,
) -> Task:
    """Translation: captions from English to German, judged by BLEU; AdamW.

    ``train``, ``val`` and ``test_2016_flickr``, each ``.en`` and ``.de`` (UTF-8, .gz or not, line
    by line), in ``folder`` or ``$PRUNUS_DATA/multi30k``. ``weights`` is a file to start from (the
    ``dense.safetensors`` of a run). ``part`` of the training pairs train; the vocabulary is that
    of all of them, so that weights fit whatever the part.

    Source: Elliott et al. 2016, Multi30K, arXiv:1605.00459.
    """
    makers = {"transformer": transformer, "gru": gru}
    if network not in makers:
        raise InputError(f"task translation: network is '{network}'; use {' or '.join(makers)}")
    if width % 32:
        raise InputError(f"task translation: width is {width}; it must be a multiple of 32")
    bleu.counter()  # or its package is missed only after training
    place = find_folder("translation", folder, "multi30k", "train.en, train.de and so on")
    pairs = {name: text.read(place, name) for name in text.PARTS}
    count = len(some("translation", len(pairs["train"][0]), part))
    train = tuple(side[:count] for side in pairs["train"])
    tokenizer = text.vocabulary_of([*pairs["train"][0], *pairs["train"][1]], vocabulary)
    tokens = tokenizer.get_vocab_size()

    def model() -> nn.Module:
        return makers[network](tokens, width)

    def batches(chosen: Any, *, size: int = 128, shuffle: bool = False) -> Any:
        return text.PairBatches(chosen, tokenizer, size=size, shuffle=shuffle)

    def metric(model: nn.Module, given: Iterable[dict[str, Any]]) -> Any:
        return judged(model, given, tokenizer)

    training = batches(train, size=batch, shuffle=True)
    first = training.batch(range(min(2, count)))
    return Task(
        model=started("translation", model, weights),
        optimizer=lambda parameters: torch.optim.AdamW(
            parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01
        ),
        loss=loss,
        metric=metric,
        train=training,
        validation=batches(pairs["validation"]),
        test=batches(pairs["test"]),
        example={"source": first["source"], "target": first["target"]},
        calibration=list(batches(tuple(side[:1024] for side in train))),
        train_sample=batches(tuple(side[:500] for side in train)),
        metric_name="BLEU",
    )


def transformer(tokens: int, width: int) -> nn.Module:
    """4.5 million parameters of width 256 with 5,000 tokens: three layers read, two speak."""
    made: nn.Module = networks.Transformer(
        tokens, width=width, heads=8, inner=2 * width, layers=(3, 2), dropout=0.2
    )
    return made


def gru(tokens: int, width: int) -> nn.Module:
    """3.6 million parameters of width 256 with 5,000 tokens."""
    made: nn.Module = networks.Recurrent(tokens, width=width, hidden=width * 5 // 4, dropout=0.3)
    return made


def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """The model's own loss of a batch, in nats per token."""
    found: Tensor = model(batch["source"], batch["target"], batch["labels"])
    return found


def judged(model: nn.Module, batches: Iterable[dict[str, Any]], tokenizer: Any) -> Any:
    """BLEU of what the model says, decoded greedily, against the references."""
    said, references = [], []
    for batch in batches:
        said += decoding.texts(tokenizer, decoding.greedy(model, batch["source"]))
        references += batch["german"]
    return bleu.scores(said, references)
