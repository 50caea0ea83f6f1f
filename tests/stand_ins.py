"""Tiny made-up files in the forms that the tasks read."""

from __future__ import annotations

import gzip
import io
import random
import zipfile
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.io import wavfile

from prunus.methods.catalog import module_at

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    """The file of an example's task, as a module."""
    return module_at(EXAMPLES / name / f"{name}.py")


# The recipes of the gallery, and the task of each.
ROWS = {
    "cifar10_weights": "cifar10",
    "cifar10_channels": "cifar10",
    "reviews_lstm": "movie_reviews",
    "reviews_transformer": "movie_reviews",
    "spoken_digits": "spoken_digits",
    "shakespeare": "shakespeare",
    "translation": "translation",
    "translation_zeros": "translation",
    "translation_gru": "translation",
    "two_senses": "two_senses",
    "detection": "detection",
    "detection_half": "detection",
    "driving": "driving",
    "driving_gru": "driving",
    "spoken_sequences": "spoken_sequences",
    "sequences_conformer": "spoken_sequences",
    "edge_keywords": "edge",
    "edge_images": "edge",
    "edge_anomalies": "edge",
}


def cifar10(folder: Path) -> None:
    """Two classes of 32×32 images: bright above, bright below."""
    source = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 8)):
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            for name, rows in (("above", slice(0, 16)), ("below", slice(16, 32))):
                for i in range(count):
                    pixels = source.integers(0, 60, (32, 32, 3), dtype=np.uint8)
                    pixels[rows] += 150
                    out = io.BytesIO()
                    Image.fromarray(pixels).save(out, "JPEG")
                    archive.writestr(f"{part}/{name}/{i:03}.jpg", out.getvalue())


def movie_reviews(folder: Path) -> None:
    """Sentences of good words, and of bad ones."""
    source = random.Random(0)
    words = {"pos": ["fine", "great", "warm", "clever"], "neg": ["dull", "slow", "cold", "thin"]}
    for kind, own in words.items():
        lines = [
            " ".join(source.choice([*own, "film", "the", "a"]) for _ in range(8)) + " é ."
            for _ in range(60)
        ]
        text = "\n".join(lines) + "\n"
        (folder / f"rt-polarity.{kind}.gz").write_bytes(gzip.compress(text.encode("latin-1")))


def speech_digits(folder: Path) -> None:
    """Each digit a tone of its own."""
    source = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "recordings.zip", "w") as archive:
        for digit in range(10):
            for index in range(10):
                time = np.arange(3000 + 100 * index) / 8000
                tone = 8000 * np.sin(2 * np.pi * (300 + 300 * digit) * time)
                sound = (tone + source.normal(0, 100, len(time))).astype(np.int16)
                out = io.BytesIO()
                wavfile.write(out, 8000, sound)
                archive.writestr(f"recordings/{digit}_nobody_{index}.wav", out.getvalue())


def mnist(folder: Path, side: int = 28) -> None:
    """Each digit a bar in a row of its own."""
    source = np.random.default_rng(0)
    for part, count in (("train", 180), ("t10k", 40)):
        digits = (np.arange(count) % 10).astype(np.uint8)
        images = source.integers(0, 60, (count, side, side), dtype=np.uint8)
        for image, digit in zip(images, digits, strict=True):
            image[2 * digit + 2 : 2 * digit + 5] += 150
        for file in folder.glob(f"{part}-*"):  # perhaps a link to somebody's data
            file.unlink()
        for kind, values in (("images-idx3", images), ("labels-idx1", digits)):
            sizes = b"".join(n.to_bytes(4, "big") for n in values.shape)
            text = b"\0\0\x08" + bytes([values.ndim]) + sizes + values.tobytes()
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(text))


def shakespeare(folder: Path) -> None:
    """A sentence, again and again."""
    text = "to be or not to be, that is the question.\n" * 120
    (folder / "input.txt.gz").write_bytes(gzip.compress(text.encode()))


def multi30k(folder: Path) -> None:
    """Two nouns and what they do, word by word."""
    source = random.Random(0)
    words = {
        "a": "ein", "big": "großer", "small": "kleiner", "red": "roter", "old": "alter",
        "dog": "Hund", "man": "Mann", "runs": "läuft", "sleeps": "schläft", "here": "hier",
    }  # fmt: skip
    nouns, verbs, kinds = ["dog", "man"], ["runs", "sleeps"], ["big", "small", "red", "old"]
    for part, count in (("train", 120), ("val", 12), ("test_2016_flickr", 12)):
        lines = []
        for _ in range(count):
            some = source.sample(kinds, source.randint(0, 3))
            lines.append(["a", *some, source.choice(nouns), source.choice(verbs), "here"])
        german = [[words[word] for word in line] for line in lines]
        for language, rows in (("en", lines), ("de", german)):
            text = "".join(" ".join(row).capitalize() + ".\n" for row in rows)
            (folder / f"{part}.{language}.gz").write_bytes(gzip.compress(text.encode()))


def blood_cells(folder: Path) -> None:
    """A Pascal VOC tree: on each image a large dark spot and two small light ones."""
    source = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "bccd.zip", "w") as archive:
        for part, count in (("train", 8), ("val", 4), ("test", 4)):
            names = [f"{part}_{i}" for i in range(count)]
            archive.writestr(f"BCCD/ImageSets/Main/{part}.txt", "\n".join(names) + "\n")
            for name in names:
                spots = [("WBC", 20, 90), ("RBC", 10, 200), ("RBC", 10, 200)]
                image, boxes = Image.new("RGB", (128, 96), (250, 230, 220)), ""
                for kind, half, color in spots:
                    x, y = (int(source.integers(half, n - half)) for n in image.size)
                    box = (x - half, y - half, x + half, y + half)
                    ImageDraw.Draw(image).ellipse(box, fill=(color, 60, 120))
                    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
                    inside = "".join(f"<{k}>{v}</{k}>" for k, v in sides)
                    boxes += f"<object><name>{kind}</name><bndbox>{inside}</bndbox></object>"
                out = io.BytesIO()
                image.save(out, "JPEG")
                archive.writestr(f"BCCD/JPEGImages/{name}.jpg", out.getvalue())
                archive.writestr(
                    f"BCCD/Annotations/{name}.xml", f"<annotation>{boxes}</annotation>"
                )


def driving(folder: Path) -> None:
    """A white line that lies where the wheel should be turned to; at first the car stands."""
    source = np.random.default_rng(0)
    lines = ["image,camera,steering,throttle,speed"]
    with zipfile.ZipFile(folder / "driving.zip", "w") as archive:
        for moment in range(84):
            steering, speed = round(float(source.uniform(-0.7, 0.7)), 3), 20 * (moment >= 4)
            for camera, turned in (("left", 0.2), ("center", 0.0), ("right", -0.2)):
                pixels = source.integers(0, 60, (66, 200, 3), dtype=np.uint8)
                middle = int(100 + 90 * (steering + turned))
                pixels[:, middle - 5 : middle + 5] = 220
                out, name = io.BytesIO(), f"images/{camera}_{moment:03}.jpg"
                Image.fromarray(pixels).save(out, "JPEG")
                archive.writestr(name, out.getvalue())
                lines.append(f"{name},{camera},{steering},0.5,{speed}")
        archive.writestr("log.csv", "\n".join(lines) + "\n")


NEEDS = {"detection": "pycocotools", "translation": "sacrebleu"}
"""What an example needs beyond the packages that every test needs."""


def each_of(names: Iterable[str], *, core: Iterable[str] | None = None) -> list[Any]:
    """Examples or rows of the gallery for a test, those without their package skipped.

    Args:
        names: of them.
        core: those that `make test` runs; `make test-zoo` runs the others.
    """
    made = []
    for name in names:
        package = NEEDS.get(ROWS.get(name, name), "torch")
        marks = [pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is missing")]
        marks += [] if core is None or name in core else [pytest.mark.zoo]
        made.append(pytest.param(name, marks=marks))
    return made


MAKERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "cifar10": ("cifar10", cifar10),
    "movie_reviews": ("movie-reviews", movie_reviews),
    "spoken_digits": ("speech-digits", speech_digits),
    "shakespeare": ("shakespeare", shakespeare),
    "translation": ("multi30k", multi30k),
    "two_senses": ("mnist", mnist),  # and speech-digits
    "detection": ("blood-cells", blood_cells),
    "driving": ("driving", driving),
    "spoken_sequences": ("speech-digits", speech_digits),
    "edge": ("speech-digits", speech_digits),  # and cifar10
}


def make_all(data: Path) -> Path:
    """Every set below a folder that stands for ``PRUNUS_DATA``."""
    for name, maker in MAKERS.values():
        (data / name).mkdir(parents=True, exist_ok=True)
        maker(data / name)
    return data
