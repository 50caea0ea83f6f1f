"""Encoders, encoder–decoders and other models whose norms count: narrower at hand, and fitted."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import helpers
import prunus
from prunus.blocks.fitting import RIDGE
from prunus.cli.main import cli
from prunus.errors import InputError
from test_block_structure import batches, model_of
from test_llm_folders import words

pytestmark = pytest.mark.usefixtures("no_costs")

WIDTH, LEFT = 32, 24
NARROW = {"structure": {"hidden": 0.25}}
FITTED = {**NARROW, "repair": {"steps": 0, "fit": True}}
Given = tuple[Any, list[dict[str, Tensor]], list[dict[str, Tensor]]]


def shaken(model: nn.Module) -> Any:
    """Biases and norms drawn at random."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def whisper() -> Given:
    library = helpers.transformers()
    torch.manual_seed(0)
    config = library.WhisperConfig(
        vocab_size=64, d_model=WIDTH, encoder_layers=2, decoder_layers=2, num_mel_bins=8,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_source_positions=10, max_target_positions=32, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    made = shaken(library.WhisperForConditionalGeneration(config))
    generator = torch.Generator().manual_seed(0)
    given = [{"input_features": torch.randn(2, 8, 20, generator=generator),
              "decoder_input_ids": torch.randint(3, 64, (2, 9), generator=generator)}
             for _ in range(3)]  # fmt: skip
    return made, given[:2], given[2:]


class Speech(nn.Module):
    """Of a speech model the logits alone: what its encoder gives is nobody's then."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, input_features: Tensor, decoder_input_ids: Tensor) -> Tensor:
        found = self.whole(input_features=input_features, decoder_input_ids=decoder_input_ids)
        return found.logits  # type: ignore[no-any-return]


def speech() -> Given:
    made, data, held = whisper()
    return Speech(made), data, held


class Sentences(nn.Module):
    """A sentence encoder: the mean over what a layer makes of BERT's words."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert, self.out = bert, nn.Linear(WIDTH, WIDTH)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.bert(input_ids=input_ids, attention_mask=attention_mask)
        rows = self.out(found.last_hidden_state) * attention_mask[..., None]
        return rows.sum(1) / attention_mask.sum(1, keepdim=True)


def bert(*, pooled: bool = False) -> Any:
    library = helpers.transformers()
    torch.manual_seed(0)
    config = library.BertConfig(vocab_size=64, hidden_size=WIDTH, intermediate_size=48,
                                num_hidden_layers=2, num_attention_heads=4)  # fmt: skip
    return shaken(library.BertModel(config, add_pooling_layer=pooled))


def sentences() -> Given:
    given = [{**b, "attention_mask": torch.ones_like(b["input_ids"])} for b in batches(3, 0)]
    given[0]["attention_mask"][:, 9:] = 0
    return shaken(Sentences(bert())), given[:2], given[2:]


def of(name: str) -> Given:
    made = {"Whisper": whisper, "speech": speech, "sentences": sentences}
    return made[name]() if name in made else (model_of(name), batches(2, 0), batches(1, 1))


def answer(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found = model(**batch)
    return found if isinstance(found, Tensor) else found.logits  # type: ignore[no-any-return]


def pruned(model: Any, recipe: Any, data: Any, **more: Any) -> Any:
    """Without the word of warning that only prunus opens the result."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the smaller model opens by")
        return prunus.prune_blocks(model, recipe, data, **more)


@pytest.mark.parametrize(("name", "recipe"), [
    ("Whisper", {"structure": {"neuron": 0.25, "head": 0.5}}), ("Whisper", NARROW),
    ("speech", NARROW), ("speech", FITTED),
    ("sentences", {"structure": {"neuron": 0.25, "head": 0.5}}),
    ("sentences", NARROW), ("sentences", FITTED), ("GPT2", NARROW), ("OPT", FITTED),
])  # fmt: skip
def test_what_is_left_computes_as_the_masked_model_and_is_opened_by_prunus(
    name: str, recipe: dict[str, Any], tmp_path: Path
) -> None:
    model, data, held = of(name)
    dense = copy.deepcopy(model)
    found = pruned(model, recipe, data, held=held)
    small: Any = found.model
    assert type(small) is type(model)
    assert found.gate is not None
    assert found.gate < 1e-10
    assert len(found.errors) == (4 if name in ("Whisper", "speech") else 2)
    assert torch.allclose(answer(small, held[0]), answer(model, held[0]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(answer(dense, held[0]), answer(model, held[0]), atol=1e-3)
    for inner, parameter in model.named_parameters():
        if inner in found.masks:
            assert bool((parameter[~found.masks[inner].expand_as(parameter)] == 0).all()), inner
    if found.loss is not None:  # what the whole masked model says, by its own code
        ids = held[0].get("decoder_input_ids", held[0].get("input_ids"))
        logs = answer(model, held[0]).double().log_softmax(-1)
        wanted = -logs[:, :-1].gather(-1, ids[:, 1:, None]).mean()
        assert found.loss[1] == pytest.approx(float(wanted), rel=1e-5)
    if "hidden" in recipe["structure"]:
        tables = [m for m in small.modules() if isinstance(m, nn.Embedding)]
        whole = {WIDTH} if name == "Whisper" else set()  # it returns what its encoder gives
        assert {m.weight.shape[1] for m in tables} == {LEFT} | whole
    if name not in ("sentences", "speech"):
        prunus.hf.save(small, tmp_path / "small")
        opened = prunus.load(tmp_path / "small")
        assert torch.equal(answer(opened, held[0]), answer(small, held[0]))


def test_zeros_of_both_stacks_of_a_speech_model() -> None:
    model, data, held = whisper()
    found = prunus.prune_blocks(model, {"solver": "wanda"}, data, held=held)
    assert found.sparsity == pytest.approx(0.5, abs=0.01)
    assert [n.split(".")[1] for n in found.errors] == ["encoder"] * 2 + ["decoder"] * 2
    assert not found.stayed


def test_a_speech_model_goes_from_folder_to_folder_where_its_configuration_says_it(
    tmp_path: Path,
) -> None:
    model, data, held = whisper()
    model.save_pretrained(tmp_path / "dense")
    inside: Any = prunus.prune_blocks(model, {"structure": {"neuron": 0.25}}, data).model
    found = prunus.prune_blocks(tmp_path / "dense", {"structure": {"neuron": 0.25}}, data,
                                held=held, out=tmp_path / "small")  # fmt: skip
    assert found.comparison is not None
    opened = type(model).from_pretrained(tmp_path / "small")
    assert (opened.config.encoder_ffn_dim, opened.config.decoder_ffn_dim) == (36, 36)
    assert torch.equal(answer(opened, held[0]), answer(inside, held[0]))
    for part in ("head", "hidden", "block"):
        with pytest.raises(InputError):
            prunus.prune_blocks(tmp_path / "dense", {"structure": {part: 0.5}}, data,
                                out=tmp_path / part)  # fmt: skip
        assert not (tmp_path / part).exists()


def test_a_width_that_the_model_returns_stays_and_a_turned_one_is_refused() -> None:
    model = bert()
    given = {**batches(1, 0)[0]}
    with pytest.raises(InputError, match="let a layer stand behind it"):
        prunus.prune_blocks(model, NARROW, [given])
    model, data, _ = sentences()
    with pytest.raises(InputError, match="describes"):
        prunus.prune_blocks(model, {**NARROW, "rotate": True}, data)


def test_that_prunus_alone_opens_the_result_is_said_before() -> None:
    model, data, _ = of("GPT2")
    with pytest.warns(UserWarning, match="norms go on counting the width"):
        prunus.prune_blocks(model, NARROW, data)


def test_if_it_ends_badly_the_model_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, _ = sentences()
    before = copy.deepcopy(model.state_dict())

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pruned(model, FITTED, data, on_block=stop)
    monkeypatch.setattr("prunus.blocks.prune_blocks.compact", stop)
    with pytest.raises(KeyboardInterrupt):
        pruned(model, FITTED, data)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def heard(model: nn.Module, data: list[dict[str, Tensor]], names: list[str]) -> dict[str, Tensor]:
    """What linear layers multiply, all batches in a row."""
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: rows[name].append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for name in names
    ]
    for batch in data:
        with torch.no_grad():
            model(**batch)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(own).double() for name, own in rows.items()}


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "sentences"])
def test_each_matrix_is_the_least_squares_solution_on_what_both_models_multiply(name: str) -> None:
    model, data, _ = of(name)
    dense = copy.deepcopy(model)
    pruned(model, FITTED, data)
    layers = [n for n, m in dense.named_modules() if isinstance(m, nn.Linear) and ".layer" in n]
    read, wanted = heard(model, data, layers), heard(dense, data, layers)
    assert len(layers) >= 12
    for layer in layers:
        now, then = model.get_submodule(layer), dense.get_submodule(layer)
        u, x = (torch.cat([t, torch.ones(len(t), 1)], 1) for t in (read[layer], wanted[layer]))
        if then.bias is None:
            u, x = u[:, :-1], x[:, :-1]
        sides = [m.weight if m.bias is None else torch.cat([m.weight, m.bias[:, None]], 1)
                 for m in (now, then)]  # fmt: skip
        found, before = (side.detach().double() for side in sides)
        columns, rows = found.any(0), found.any(1)
        u = u[:, columns]
        ridge = (RIDGE * u.square().mean(0).mean()).sqrt()
        left = torch.cat([u / len(u) ** 0.5, ridge * torch.eye(u.shape[1], dtype=torch.float64)])
        right = torch.cat([x @ before[rows].T / len(u) ** 0.5, ridge * before[rows][:, columns].T])
        best = torch.linalg.lstsq(left, right).solution.T
        assert torch.allclose(found[rows][:, columns], best, rtol=1e-2, atol=3e-4), layer
        assert rows.sum() in (len(rows), LEFT)


@pytest.mark.parametrize("name", ["Llama", "Gemma3", "Mixtral", "sentences"])
def test_a_fitted_narrower_model_is_nearer_to_the_dense_one(name: str) -> None:
    far = []
    for recipe in (NARROW, FITTED):
        model, data, held = of(name)
        data = data if name == "sentences" else batches(8, 0)
        dense = answer(model, held[0])
        found = pruned(model, recipe, data)
        far.append(float((answer(found.model, held[0]) - dense).square().mean()))
        assert torch.allclose(answer(found.model, held[0]), answer(model, held[0]), atol=1e-4)
    assert far[1] < 0.9 * far[0]


@pytest.mark.parametrize("turned", [False, True])
def test_a_fitted_folder_has_the_bits_of_the_model_at_hand(turned: bool, tmp_path: Path) -> None:
    model = model_of("Qwen2")
    model.save_pretrained(tmp_path / "dense")
    recipe, data = {**FITTED, "rotate": turned}, batches(3, 0)
    inside: Any = prunus.prune_blocks(model, recipe, data).model
    found = prunus.prune_blocks(tmp_path / "dense", recipe, data, out=tmp_path / "small")
    assert found.gate is not None
    assert found.gate < 1e-9
    opened = type(model).from_pretrained(tmp_path / "small")
    for name, tensor in opened.state_dict().items():
        assert torch.equal(tensor, inside.state_dict()[name]), name


def test_a_fit_is_for_a_narrower_stream() -> None:
    with pytest.raises(InputError, match="fit: it is for structure: hidden"):
        prunus.prune_blocks(model_of("Llama"), {"repair": {"fit": True}}, batches(1, 0))


def test_an_encoder_goes_from_folder_and_text_to_a_folder(tmp_path: Path) -> None:
    dense = words(tmp_path)
    for name in ("model.safetensors", "config.json"):
        (dense / name).unlink()
    bert(pooled=True).save_pretrained(dense)
    call = ["llm", str(dense), "--text", str(tmp_path / "text.txt"), "--out",
            str(tmp_path / "small"), "structure={neuron: 0.25}", "text.windows=4",
            "text.length=16", "text.held=2"]  # fmt: skip
    ran = CliRunner().invoke(cli, call)
    assert ran.exit_code == 0, ran.output
    said = json.loads((tmp_path / "small" / "pruned.json").read_text(encoding="utf-8"))
    assert len(said["errors"]) == 2
    opened = helpers.transformers().BertModel.from_pretrained(tmp_path / "small")
    assert opened.config.intermediate_size == 36
