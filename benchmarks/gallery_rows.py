"""The rows of the gallery: a command each, and what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CONTROLS = "controls=[dense_longer,same_shape_from_scratch]"
HALF, QUARTER = "target={max_macs: 0.5}", "target={max_macs: 0.25}"
ONE_CUT = ("rounds=1", "schedule=one_shot", "guard=null", "deploy=null")


@dataclass(frozen=True)
class Row:
    """A command of the gallery.

    Attributes:
        name: of the row, its folder and its pictures.
        title: what it is.
        words: the recipe and its changes.
        part: ``field`` (a field of use), ``seed`` (one again, from another seed), ``data`` (a cut
            that retrains on a part of the data), ``language``, or ``dense`` (what others start
            from; not on the page).
        field: the row of the field that a seed or a part belongs to.
    """

    name: str
    title: str
    words: tuple[str, ...]
    part: str = "field"
    field: str = ""


def _dense(field: str) -> str:
    return f"task.weights=runs/gallery/{field}/dense.safetensors"


def _field(name: str, title: str, *changes: str) -> Row:
    return Row(name, title, (*(changes or (name,)), CONTROLS))


def _seeds(field: str, *changes: str, seeds: Sequence[int] = (1, 2)) -> list[Row]:
    words = changes or (field,)
    return [
        Row(f"{field}_seed_{n}", f"seed {n}", (*words, f"seed={n}"), "seed", field) for n in seeds
    ]


def _parts(field: str, *changes: str, steps: int, dense: str = "") -> list[Row]:
    """One cut of the field's dense network, retrained on 10, 30 and 100 % of the data."""
    words = (field, _dense(dense or field), "dense=0", *changes, *ONE_CUT, f"retrain={steps}it")
    return [
        Row(f"{field}_part_{share:g}", f"{share:.0%}", (*words, f"task.part={share:g}"),
            "data", field)
        for share in (0.1, 0.3, 1.0)
    ]  # fmt: skip


def _retrained(share: float) -> Row:
    words = ("cifar10_channels", f"task.part={share:g}", "dense=0", HALF, *ONE_CUT, "retrain=315it")
    return Row(f"part_{share:g}", f"{share:.0%}", words, "data", "cifar10_channels")


def _language(name: str, title: str, *changes: str) -> Row:
    words = ("shakespeare", _dense("shakespeare"), "dense=0", "criterion=magnitude",
             "retrain=400it", "guard=null", "deploy=null", "compact=none", *changes)  # fmt: skip
    return Row(name, title, words, "language")


CELLS = (_dense("detection_dense"), "dense=0", "task.rate=0.0007", "retrain=22ep")
"""A gentle rate after a dense training of its own: at the recipe's a rare class is lost."""

ROWS = (
    _field("cifar10_weights", "Images: CIFAR-10, ResNet-20, single weights"),
    _field("cifar10_channels", "Images: CIFAR-10, ResNet-20, channels"),
    _field("reviews_lstm", "Text: movie reviews, bidirectional LSTM, units"),
    _field("reviews_transformer", "Text: movie reviews, transformer, heads and neurons"),
    _field("reviews_width", "Text: movie reviews, transformer, its hidden width too",
           "reviews_transformer", "structure.hidden=true"),
    _field("spoken_digits", "Speech: spoken digits, convolutions and GRU"),
    _field("shakespeare", "Language: Shakespeare, transformer, heads and neurons"),
    Row("detection_dense", "the detector of the next two rows", ("detection", "retrain=1it",
        "guard=null", "deploy=null"), "dense"),
    _field("detection", "Medicine: blood cells, a detector of three scales, 30 % of the macs",
           "detection", *CELLS),
    _field("detection_half", "Medicine: the same, half of the macs", "detection_half", *CELLS,
           "guard=null"),
    _field("driving", "Driving: steering by PilotNet, half of its latency"),
    _field("driving_gru", "Driving: with a GRU over time, channels and units"),
    Row("translation_dense", "half of the recipe's epochs", ("translation_zeros",
        "dense.length=5ep", "retrain=1it", "target=0.001", *ONE_CUT[:3]), "dense"),
    _field("translation",
           "Translation: a transformer, heads, neurons and hidden width, half the macs"),
    _field("translation_zeros", "Translation: a transformer, 80 % of its weights zero"),
    _field("translation_gru", "Translation: a GRU with attention, states and hidden width"),
    _field("two_senses", "Two senses: a written and a spoken digit, two towers under one budget"),
    _field("spoken_sequences", "Speech: spoken sequences, a recurrent stream"),
    _field("sequences_conformer", "Speech: spoken sequences, a Conformer-like stream"),
    _field("edge_keywords", "The edge: spoken digits, depthwise-separable, int8"),
    _field("edge_images", "The edge: CIFAR-10, ResNet-8, int8"),
    _field("edge_anomalies", "The edge: strange sounds, an autoencoder, int8"),
    *_seeds("two_senses"),
    *_seeds("sequences_conformer"),
    *_seeds("driving"),
    *_seeds("edge_anomalies"),
    *_seeds("edge_keywords"),
    *_seeds("detection", "detection", *CELLS, "guard=null", "deploy=null"),
    *_seeds("detection_half", "detection_half", *CELLS, "guard=null", "deploy=null"),
    _language("shakespeare_dense", "next to nothing removed (0.1 %)", "structure=weight",
              "target=0.001", "rounds=1", "schedule=one_shot"),
    _language("shakespeare_one_shot", "one cut, half of the weights", "structure=weight",
              "target=0.5", "rounds=1", "schedule=one_shot"),
    _language("shakespeare_gradual", "gradual, half of the weights", "structure=weight",
              "target=0.5", "schedule=cubic", "rounds=null"),
    _language("shakespeare_two_four", "2:4 in one cut", "structure=2:4", "allocation=uniform",
              "target=null", "rounds=1", "schedule=one_shot"),
    *(_retrained(share) for share in (0.03, 0.1, 0.3, 1.0)),
    *_parts("reviews_lstm", HALF, steps=267),
    *_parts("spoken_digits", QUARTER, steps=230),
    *_parts("shakespeare", HALF, steps=200),
    *_parts("detection", "target={max_macs: 0.7}", "task.rate=0.0007", steps=264,
            dense="detection_dense"),
    *_parts("driving", HALF, steps=260),
    *_parts("translation", steps=227),
    *_parts("two_senses", QUARTER, steps=102),
    *_parts("sequences_conformer", HALF, steps=180),
    *_parts("edge_keywords", HALF, "quantize=none", steps=120),
    *_parts("edge_images", HALF, "quantize=none", steps=234),
    *_parts("edge_anomalies", HALF, "quantize=none", steps=120),
)  # fmt: skip
"""Steps of a part: about what two or three epochs of all of the data take."""
