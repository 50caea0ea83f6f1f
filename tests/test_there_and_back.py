"""Smaller models of transformers and of Lightning, written and opened again."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import helpers
import prunus
from prunus.compaction.reopening import settle
from prunus.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*trainer. reference is not registered.*"),
]

IDS = torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(0))
EXAMPLE = {"input_ids": IDS}
UNIFORM = {"target": 0.5, "allocation": "uniform", "compact": "end"}


def bert(config: Any = None) -> Any:
    helpers.transformers()
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    made = config or BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=8,
    )  # fmt: skip
    return BertForSequenceClassification(made).eval()


def llama(**changes: Any) -> Any:
    helpers.transformers()
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    values = {
        "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 8, **changes,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**values)).eval()


@functools.cache
def smaller_llama() -> tuple[prunus.Result, Any, Any]:
    """Without half of its heads; the configuration that was given, and what that said."""
    model = llama()
    shared, said = model.config, copy.deepcopy(model.config.to_dict())
    model.generation_config.max_new_tokens = 3
    return prunus.prune(model, {**UNIFORM, "structure": "head"}, example=EXAMPLE), shared, said


def answer(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(IDS)[0]
    return found


def note_of(result: Any) -> str:
    return next(note for note in result.notes if note.startswith("from_pretrained"))


def test_what_a_configuration_can_say_is_opened_by_from_pretrained(tmp_path: Path) -> None:
    result, shared, said = smaller_llama()
    assert "opens it again" in note_of(result)
    assert shared.to_dict() == said
    small: Any = result.model
    small.save_pretrained(tmp_path / "small")
    again = type(small).from_pretrained(tmp_path / "small")
    assert again.config.num_attention_heads == 2
    assert torch.equal(answer(again), answer(small))


def test_a_folder_of_ours_opens_what_a_configuration_cannot_say(tmp_path: Path) -> None:
    model = bert()
    config = copy.deepcopy(model.config)
    result = prunus.prune(model, {**UNIFORM, "structure": "head"}, example=EXAMPLE)
    assert "use prunus.hf.save" in note_of(result)
    small: Any = result.model
    small.save_pretrained(tmp_path / "theirs")
    with pytest.raises((RuntimeError, ValueError)):
        type(small).from_pretrained(tmp_path / "theirs")
    folder = prunus.hf.save(small, tmp_path / "ours")
    assert {p.suffix for p in folder.iterdir()} == {".json", ".safetensors"}
    for opened in (
        prunus.hf.load(folder), prunus.load(folder), prunus.load(folder, model=bert(config)),
    ):  # fmt: skip
        assert type(opened) is type(small)
        assert torch.equal(answer(opened), answer(small))
    assert config.num_attention_heads == 2


def test_masks_that_differ_by_layer_are_said_and_opened(tmp_path: Path) -> None:
    model = bert()
    keep = torch.ones(24, dtype=torch.bool)
    keep[:5] = False
    first = "bert.encoder.layer.0."
    masks = {
        f"{first}intermediate.dense.weight": keep[:, None],
        f"{first}intermediate.dense.bias": keep,
        f"{first}output.dense.weight": keep[None],
    }
    small = prunus.compact(model, masks, EXAMPLE)
    assert "layers differ" in note_of(small)
    opened = prunus.hf.load(prunus.hf.save(small.model.to(torch.float64), tmp_path / "small"))
    assert opened.dtype == torch.float64
    assert torch.equal(answer(opened), answer(small.model))


def test_numbers_that_make_a_configuration_fit_are_found() -> None:
    model = llama(intermediate_size=24)
    narrow = llama(intermediate_size=20)
    model.model.layers[0].mlp = narrow.model.layers[0].mlp  # the configuration still says 24
    shared = model.config
    assert settle(model, EXAMPLE) is None
    assert model.config.intermediate_size == 20
    assert shared.intermediate_size == 24


def test_rotary_frequencies_that_were_cut_are_not_what_a_fresh_model_has() -> None:
    model = llama(head_dim=8)
    inverse = model.model.rotary_emb.inv_freq
    inverse.mul_(0.5)
    assert "inv_freq" in str(settle(model, EXAMPLE))


def test_tokenizers_and_generation_settings_lie_beside(tmp_path: Path) -> None:
    class Tokenizer:
        def save_pretrained(self, folder: str) -> None:
            Path(folder, "tokenizer.json").write_text("{}", encoding="utf-8")

    small: Any = smaller_llama()[0].model
    folder = prunus.hf.save(small, tmp_path / "small", tokenizer=Tokenizer())
    assert (folder / "tokenizer.json").is_file()
    opened: Any = prunus.hf.load(folder)
    assert opened.generation_config.max_new_tokens == 3
    assert torch.equal(opened.generate(IDS, do_sample=False), small.generate(IDS, do_sample=False))


def test_a_folder_from_anyone_names_only_classes_of_transformers(tmp_path: Path) -> None:
    small = smaller_llama()[0].model
    folder = prunus.hf.save(small, tmp_path / "small")
    text = (folder / "config.json").read_text(encoding="utf-8")
    for name in ("os", "AutoConfig", "no.such"):
        (folder / "config.json").write_text(
            text.replace("LlamaForCausalLM", name), encoding="utf-8"
        )
        with pytest.raises(InputError, match="no model of transformers"):
            prunus.hf.load(folder)
    with pytest.raises(InputError, match="no folder of prunus"):
        prunus.hf.load(tmp_path)
    with pytest.raises(InputError, match="no configuration"):
        prunus.hf.save(nn.Linear(2, 2), tmp_path / "linear")


INPUTS = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
CLASSES = (INPUTS.sum(1) > 0).long()
CHANNELS: dict[str, Any] = {"structure": "channel", "target": 0.5}


def lit(width: int = 8) -> Any:
    """A LightningModule without forward."""
    from lightning.pytorch import LightningModule

    class Lit(LightningModule):
        def __init__(self, width: int = 8) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.a, self.b = nn.Linear(8, width), nn.Linear(width, 2)

        def training_step(self, batch: Any, index: int) -> Any:
            x, y = batch
            loss = nn.functional.cross_entropy(self.b(self.a(x).relu()), y)
            self.log("loss", loss)
            return {"loss": loss}

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    return Lit(width)


def loader() -> Any:
    data = torch.utils.data.TensorDataset(INPUTS, CLASSES)
    return torch.utils.data.DataLoader(data, batch_size=8)


BATCH = [INPUTS[:8], CLASSES[:8]]


def test_a_module_without_forward_is_pruned_through_its_training_step() -> None:
    module = lit()
    with pytest.raises(InputError):
        prunus.units(nn.Module(), BATCH)
    assert len(prunus.units(module, BATCH).coupled) == 1
    masks = prunus.prune(copy.deepcopy(module), CHANNELS, example=BATCH).masks
    small: Any = prunus.compact(module, masks, BATCH).model
    result = prunus.prune(module, {**CHANNELS, "compact": "end"}, example=BATCH)
    for made in (small, result.model):
        assert made.a.out_features == 4
        assert "forward" not in vars(made)
    assert any("prunus.lightning.load" in note for note in result.notes)


def fitted(folder: Path, epochs: int = 4, **options: Any) -> tuple[Any, Any]:
    """A module that shrank while Lightning trained it, and its Trainer."""
    from lightning.pytorch import Trainer

    from prunus.integrations.lightning import PruneCallback

    recipe = {
        **CHANNELS, "schedule": "linear", "rounds": 2, "retrain": "2it", "compact": "every_round",
    }  # fmt: skip
    module, callback = lit(), PruneCallback(recipe, example=BATCH)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[callback],
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, loader(), **options)
    assert any("prunus.lightning.load" in note for note in callback.notes)
    return module, trainer


def test_a_shrunk_checkpoint_is_opened_and_a_dense_one_too(tmp_path: Path) -> None:
    module, trainer = fitted(tmp_path)
    assert module.a.out_features == 4
    assert "forward" not in vars(module)
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    kind = type(module)
    with pytest.raises(RuntimeError, match="size mismatch"):
        kind.load_from_checkpoint(tmp_path / "small.ckpt")
    opened = prunus.lightning.load(kind, tmp_path / "small.ckpt")
    assert opened.a.out_features == 4
    for own, other in zip(module.parameters(), opened.parameters(), strict=True):
        assert torch.equal(own, other)
    tree = torch.load(tmp_path / "small.ckpt", weights_only=True)
    del tree["prunus"]
    torch.save(tree, tmp_path / "plain.ckpt")
    with pytest.raises(InputError, match="does not say how it shrank"):
        prunus.lightning.load(kind, tmp_path / "plain.ckpt")
    tree["state_dict"] = lit().state_dict()
    torch.save(tree, tmp_path / "dense.ckpt")
    assert prunus.lightning.load(kind, tmp_path / "dense.ckpt").a.out_features == 8


def test_a_checkpoint_without_the_pruners_state_is_no_place_to_resume(tmp_path: Path) -> None:
    _, trainer = fitted(tmp_path)
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    tree = torch.load(tmp_path / "other.ckpt", weights_only=True)
    tree["callbacks"], tree["state_dict"] = {}, lit().state_dict()
    tree["epoch"] = 1
    torch.save(tree, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"no state of the pruner"):
        fitted(tmp_path, 6, ckpt_path=tmp_path / "other.ckpt", weights_only=True)
