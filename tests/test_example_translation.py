"""The example translation: it decodes as it was trained, is cut, and goes on after a kill."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from example_runs import whole_and_resumed
from fresh import Pythons
from prunus.errors import InputError
from prunus.methods.catalog import module_at
from prunus.recipe.specs import Spec
from prunus.tasks.base import Task
from prunus.tasks.find import find_task
from stand_ins import EXAMPLES, multi30k

pytest.importorskip("sacrebleu")

FOLDER = EXAMPLES / "translation"
text, networks, decoding, bleu = (
    module_at(FOLDER / f"{name}.py") for name in ("text", "networks", "decoding", "bleu")
)
SMALL = {"vocabulary": 400, "width": 32, "batch": 16}
LINES = {"train": 160, "val": 16, "test_2016_flickr": 16}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first lines of the real data, or made-up ones of the same form."""
    folder = tmp_path / "data/multi30k"
    folder.mkdir(parents=True)
    given = Path(os.environ.get("PRUNUS_DATA", "nowhere"), "multi30k")
    if given.is_dir():
        for part, count in LINES.items():
            for language in ("en", "de"):
                with gzip.open(given / f"{part}.{language}.gz") as file:
                    lines = [next(file) for _ in range(count)]
                (folder / f"{part}.{language}").write_bytes(b"".join(lines))
    else:
        multi30k(folder)
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return folder


def make(**changes: Any) -> Task:
    return find_task(Spec(name="translation", **{**SMALL, **changes}))


@pytest.mark.usefixtures("no_pictures", "place")
@pytest.mark.parametrize(
    "row", ["translation", pytest.param("translation_gru", marks=pytest.mark.zoo)]
)
def test_a_run_is_cut_served_and_goes_on_after_a_kill(
    row: str, tmp_path: Path, python: Pythons
) -> None:
    words = ["dense.length=4it", "retrain=3it", "rounds=1", "guard=null", "deploy=eager",
             *(f"task.{key}={value}" for key, value in SMALL.items())]  # fmt: skip
    result = whole_and_resumed(row, words, tmp_path, python)
    assert result["cost_after"]["macs"] <= 0.55 * result["cost_before"]["macs"]
    assert result["compaction"]["error"] < 1e-10
    assert result["compaction"]["route"] in ("attributes", "sliced")  # its class, so its cache
    assert result["deployment"]["runtime"] == "eager"
    assert result["metric_name"] == "BLEU"
    low, high = result["tested"]["interval"]
    assert 0 <= low <= result["tested"]["metric"] <= high <= 100


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("network", ["transformer", "gru"])
def test_a_step_with_a_cache_says_what_a_whole_pass_says(network: str) -> None:
    task = make(network=network)
    model = task.model().eval()
    recipe = {"structure": {"name": "channel", "hidden": True}, "target": {"max_macs": 0.6},
              "criterion": "magnitude", "allocation": "uniform", "compact": "end"}  # fmt: skip
    pruned = prunus.prune(model, recipe, example=task.example).model.eval()
    batch = next(iter(task.validation))
    for net in (task.model().eval(), pruned):
        whole = net(batch["source"], batch["target"])
        cache = net.start(batch["source"])
        for place in range(batch["target"].shape[1]):
            scores, cache = net.step(batch["target"][:, place], place, cache)
            assert torch.allclose(scores, whole[:, place], atol=1e-4)
    if network == "transformer":  # the shape of the state follows the cut
        assert pruned.start(batch["source"]).fixed[0].shape[1] < 8


class Known:
    """A network that knows the likeliest answers by heart: of each prefix, the next scores."""

    def __init__(self, likely: dict[tuple[int, ...], dict[int, float]]) -> None:
        self.likely = likely

    def start(self, source: torch.Tensor) -> Any:
        return networks.Cache(source, (), (torch.zeros(len(source), 0, dtype=torch.long),))

    def step(self, tokens: torch.Tensor, place: int, cache: Any) -> tuple[torch.Tensor, Any]:
        said = torch.cat([cache.grown[0], tokens[:, None]], 1)
        scores = torch.full((len(said), 6), 1e-9)
        for row, prefix in zip(scores, said.tolist(), strict=True):
            for token, chance in self.likely.get(tuple(prefix[1:]), {2: 1.0}).items():
                row[token] = chance
        return scores.log(), networks.Cache(cache.present, (), (said,))


def test_beams_find_the_likelier_sentence_that_greed_passes_by() -> None:
    model = Known({(): {3: 0.6, 4: 0.4}, (3,): {3: 0.3, 5: 0.3, 2: 0.1}, (4,): {5: 1.0}})
    source = torch.tensor([[3, 2]])
    assert decoding.greedy(model, source)[0, :1].tolist() == [3]
    assert decoding.beam(model, source)[0, :3].tolist() == [4, 5, 2]
    assert decoding.beam(model, source, width=1)[0, 0] == 3


def test_counts_of_sentences_make_the_bleu_of_the_whole() -> None:
    from sacrebleu.metrics import BLEU

    said = ["Ein Mann läuft hier.", "Zwei Hunde spielen im Schnee.", "Eine Frau"]
    people = ["Ein Mann läuft.", "Zwei Hunde rennen im Schnee.", "Eine Frau liest ein Buch."]
    found = bleu.scores(said, people)
    assert found.mean == pytest.approx(BLEU().corpus_score(said, [people]).score, abs=1e-9)
    assert "tok:13a" in bleu.signature(said, people)


def test_a_line_ends_with_a_line_feed_and_nothing_else(place: Path) -> None:
    for name, sentence in (("train.de", "Ein\u2028Hund\x85 läuft.\r\n"), ("train.en", "A dog.\n")):
        (place / f"{name}.gz").unlink(missing_ok=True)
        (place / name).write_bytes((sentence * 3).encode())
    assert text.read(place, "train")[1] == ["Ein\u2028Hund\x85 läuft."] * 3


@pytest.mark.usefixtures("place")
def test_padding_changes_nothing_that_a_transformer_says() -> None:
    task = make()
    model = task.model().eval()
    batch = next(iter(task.validation))
    source = batch["source"][:, :12]
    more = torch.cat([source, torch.zeros(len(source), 3, dtype=torch.long)], 1)
    longer = model(more, batch["target"])
    assert torch.allclose(longer, model(source, batch["target"]), atol=1e-5)


def test_bad_text_ends_before_training_in_one_line(place: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match) as error:
            make()
        assert "\n" not in str(error.value)

    for path in place.glob("*.gz"):  # the made-up ones
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    german = place / "val.de"
    good = german.read_bytes()
    german.write_bytes(good + b"noch eine\n")
    refused(r"val\.en' has \d+ lines and 'val\.de' \d+")
    german.write_bytes(good[:-2] + b"\xff\xfe\n")
    refused(r"val\.de' cannot be read: .*utf-8")
    german.write_bytes(b"\n" + good.partition(b"\n")[2])
    refused(r"line 1 of '.*val\.de' is empty")
    for path in place.iterdir():
        path.write_text("")
    refused("holds no sentence")
    for path in place.iterdir():
        path.unlink()
    refused("there is no")
