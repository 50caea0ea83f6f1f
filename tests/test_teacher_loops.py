"""A language model that was cut learns from the dense one in loops of other people."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import helpers
import prunus
from prunus.errors import InputError
from test_block_structure import batches, model_of

TOP = 8


def divergence(model: Any, dense: Any) -> float:
    """Of all words, on text that nothing learned from."""
    batch = batches(1, 9)[0]
    with torch.no_grad():
        p, q = (m(**batch).logits.log_softmax(-1) for m in (dense.eval(), model.eval()))
    return float((p.exp() * (p - q)).sum(-1).mean())


def cut(recipe: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A model without its zeros or units, its masks, and the dense one."""
    dense = model_of("Llama")
    model = copy.deepcopy(dense)
    found = prunus.prune_blocks(model, recipe, batches(2, 0))
    return found.model or model, found.masks if found.model is None else None, dense


def trainer(model: Any, callback: Any, steps: int = 40) -> Any:
    transformers = helpers.transformers()
    pytest.importorskip("accelerate")
    rows = [{"input_ids": ids, "labels": ids} for b in batches(16, 3) for ids in b["input_ids"]]
    args = transformers.TrainingArguments(
        output_dir="out", max_steps=steps, per_device_train_batch_size=8, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=4,
        dataloader_pin_memory=False, learning_rate=3e-3, weight_decay=0.0,
    )  # fmt: skip
    made = transformers.Trainer(model=model, train_dataset=rows, callbacks=[callback], args=args)
    made.train()
    return made


SETTINGS = {"weight": 1.0, "top": TOP, "hidden": ["model.layers.*"], "temperature": 1.0}


def test_few_numbers_learn_in_a_trainer_and_zeros_stay() -> None:
    from prunus.hf import TeacherCallback

    model, masks, dense = cut({"structure": "2:4"})
    before, names = divergence(model, dense), list(model.state_dict())
    with prunus.low_rank(model, 4, include=["model.layers.*"], masks=masks):
        trainer(model, TeacherCallback(dense, SETTINGS))
    assert divergence(model, dense) < 0.9 * before
    assert list(model.state_dict()) == names
    for name, mask in masks.items():
        assert bool((model.get_parameter(name)[~mask] == 0).all()), name


@pytest.mark.parametrize("recipe", [{"structure": "2:4"}, {"structure": {"head": 0.5}}])
def test_what_a_walk_leaves_learns_in_a_trainer_and_its_zeros_stay(recipe: dict[str, Any]) -> None:
    from prunus.hf import TeacherCallback

    model, masks, dense = cut(recipe)
    before, taught = divergence(model, dense), copy.deepcopy(dense.state_dict())
    callback = TeacherCallback(dense, SETTINGS, masks=masks)
    made = trainer(model, callback)
    assert divergence(model, dense) < 0.75 * before
    for name, mask in (masks or {}).items():
        assert bool((model.get_parameter(name)[~mask] == 0).all()), name
    assert all(torch.equal(taught[n], t) for n, t in dense.state_dict().items())
    losses = [row["loss"] for row in made.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_trainers_loss_is_that_of_distill() -> None:
    from prunus.hf import TeacherCallback

    model, _, dense = cut({"structure": {"neuron": 0.5}})
    batch = {**batches(1, 4)[0]}
    batch["labels"] = batch["input_ids"]
    callback = TeacherCallback(dense, {**SETTINGS, "weight": 0.4})

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        return model(**batch).loss  # type: ignore[no-any-return]

    transformers = helpers.transformers()
    args = transformers.TrainingArguments(output_dir="out", use_cpu=True, report_to="none")
    callback.on_train_begin(args, None, None, model=model, optimizer=None)
    found = loss(model.train(), batch).item()
    callback.on_train_end(args, None, None)
    wanted = prunus.distill(model, dense, batch, loss=loss, **{**SETTINGS, "weight": 0.4})
    assert found == pytest.approx(wanted.item(), rel=1e-5)
    assert found != pytest.approx(loss(model, batch).item(), rel=1e-3)


@pytest.mark.parametrize(("settings", "says"), [
    ({"tops": 3}, "top"), ({"mix": True}, "leave mix"), ({"model": "a.safetensors"}, "leave mix"),
    ({"top": 4, "objective": "mse"}, "objective kl"), ({"weight": 2}, "weight"),
])  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(settings: Any, says: str) -> None:
    helpers.transformers()
    pytest.importorskip("accelerate")
    from prunus.hf import TeacherCallback

    with pytest.raises(InputError, match=says):
        TeacherCallback(model_of("Llama"), settings)


def test_a_pruner_of_a_decoder_learns_the_likeliest_words_of_the_dense_model() -> None:
    dense = model_of("Llama")
    ends = {}
    for teacher in (None, {"weight": 1.0, "top": TOP, "hidden": ["model.layers.*"]}):
        model = copy.deepcopy(dense)
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        recipe = {"target": 0.5, "rounds": 1, "retrain": "20it",
                  **({} if teacher is None else {"teacher": teacher})}  # fmt: skip
        pruner = prunus.Pruner(model, recipe, optimizer)

        def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
            logits = model(**batch).logits[:, :-1]
            return functional.cross_entropy(
                logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten()
            )

        for batch in batches(20, 5):
            optimizer.zero_grad()
            taught = teacher is not None
            found = (
                prunus.distill(model, pruner, batch, loss=loss) if taught else loss(model, batch)
            )
            found.backward()
            optimizer.step()
        assert pruner.sparsity == pytest.approx(0.5, abs=0.01)
        ends[teacher is not None] = divergence(model, dense)
    assert ends[True] < 0.7 * ends[False]
