"""A smaller model learns from the dense one: what learns, what stays zero, killed or not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional

import helpers
import prunus
from prunus.blocks import judge, lessons, recovery
from prunus.blocks.lessons import Lesson
from prunus.cli.main import cli
from prunus.errors import InputError
from prunus.pruning.low_rank import grow, linear_layers, merge
from test_block_structure import batches, model_of

pytestmark = pytest.mark.usefixtures("no_costs")

STEPS = {"steps": 12, "rate": 3e-3, "every": 4}


def walked(
    place: Path, out: str, recipe: dict[str, Any], family: str = "Llama", **more: Any
) -> Any:
    dense = place / "dense"
    if not dense.exists():
        model_of(family).save_pretrained(dense)
    return prunus.prune_blocks(dense, recipe, batches(16, 0), held=batches(2, 1), out=place / out,
                               **more)  # fmt: skip


def report(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "pruned.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("lora", [None, 4])
@pytest.mark.parametrize(("recipe", "family"), [
    ({"structure": {"neuron": 0.5}}, "Llama"), ({"structure": {"hidden": 0.25}}, "Gemma3"),
    ({"structure": "2:4", "solver": "wanda"}, "Qwen2"),
    ({"structure": {"expert": 0.5}}, "Mixtral"),
])  # fmt: skip
def test_a_smaller_model_comes_nearer_to_the_dense_one_and_keeps_its_form(
    recipe: dict[str, Any], family: str, lora: int | None, tmp_path: Path
) -> None:
    plain = walked(tmp_path, "plain", recipe, family)
    asked = {**STEPS, "steps": 40, "rate": 2e-3, "lora": lora}
    found = walked(tmp_path, "small", {**recipe, "recover": asked}, family)
    assert found.comparison.divergence.mean < plain.comparison.divergence.mean
    said = report(tmp_path / "small")
    assert said["unrecovered"]["divergence"]["mean"] == plain.comparison.divergence.mean
    losses = said["recovered"]["losses"]
    assert len(losses) == 40
    assert sum(losses[-5:]) < sum(losses[:5])
    kind = type(model_of(family))
    before, info = kind.from_pretrained(tmp_path / "plain", output_loading_info=True)
    after = kind.from_pretrained(tmp_path / "small")
    assert not any(info.values())
    inside = [n for n in before.state_dict() if ".layers." in n]
    for name, tensor in after.state_dict().items():
        old = before.state_dict()[name]
        assert tensor.shape == old.shape
        if name not in inside:
            assert torch.equal(tensor, old), name
        elif "structure" in recipe and recipe["structure"] == "2:4" and tensor.dim() > 1:
            assert bool((tensor[old == 0] == 0).all()), name
    moved = [n for n in inside if not torch.equal(after.state_dict()[n], before.state_dict()[n])]
    assert moved
    assert not list((tmp_path / "small").glob(".prunus*"))


@pytest.mark.parametrize("place", ["step", "write", "replace"])
def test_killed_anywhere_it_learns_to_the_same_bits(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"structure": {"neuron": 0.5}, "recover": {**STEPS, "lora": 4}}
    walked(tmp_path, "whole", recipe)
    calls = [0]

    def stop(*given: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == (7 if place == "step" else 2):
            raise KeyboardInterrupt
        return real(*given, **more)

    holder, name = {"step": (recovery, "_step"), "write": (recovery, "write_shard"),
                    "replace": (recovery.os, "replace")}[place]  # fmt: skip
    real = getattr(holder, name)
    if place == "replace":
        walked(tmp_path, "killed", {k: v for k, v in recipe.items() if k != "recover"})
        calls[0] = -100  # files of the state are put in their place by it too

        def stop_late(*given: Any, **more: Any) -> Any:
            if Path(given[0]).parent.name == "new":
                calls[0] = max(calls[0], 0) + 1
                if calls[0] == 2:
                    raise KeyboardInterrupt
            return real(*given, **more)

        monkeypatch.setattr(holder, name, stop_late)
    else:
        monkeypatch.setattr(holder, name, stop)
    with pytest.raises(KeyboardInterrupt):
        walked(tmp_path, "killed", recipe)
    monkeypatch.undo()
    walked(tmp_path, "killed", recipe)
    for path in sorted((tmp_path / "whole").glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes(), path.name
    one, other = report(tmp_path / "whole"), report(tmp_path / "killed")
    assert one["recovered"] == other["recovered"]
    assert one["comparison"] == other["comparison"]


def test_a_walk_that_is_through_can_learn_later_and_not_twice(tmp_path: Path) -> None:
    recipe = {"structure": {"neuron": 0.5}}
    walked(tmp_path, "small", recipe)
    walked(tmp_path, "whole", {**recipe, "recover": STEPS})
    told: list[str] = []
    learning = {**recipe, "recover": STEPS}
    walked(tmp_path, "small", learning, on_block=lambda name, error: told.append(name))
    assert told == ["recovery, step 4", "recovery, step 8", "recovery, step 12"]
    for path in sorted((tmp_path / "whole").glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "small" / path.name).read_bytes(), path.name
    walked(
        tmp_path, "small", {**recipe, "recover": STEPS}, on_block=lambda *_: pytest.fail("again")
    )
    with pytest.raises(InputError, match="has recovered by"):
        walked(tmp_path, "small", {**recipe, "recover": {**STEPS, "lora": 2}})


def test_blocks_of_different_sizes_learn_too(tmp_path: Path) -> None:
    recipe = {"structure": {"neuron": 0.5}, "rates": {"name": "progression", "slope": 0.8}}
    with pytest.warns(UserWarning, match="different sizes"):
        found = walked(tmp_path, "small", {**recipe, "recover": {**STEPS, "steps": 40}})
    opened: Any = prunus.load(tmp_path / "small")
    widths = [layer.mlp.down_proj.weight.shape[1] for layer in opened.model.layers]
    assert len(set(widths)) == 2
    losses = report(tmp_path / "small")["recovered"]["losses"]
    assert sum(losses[-5:]) < sum(losses[:5])
    held = batches(2, 1)
    with torch.no_grad():
        own = sum(float(opened(**batch, labels=batch["input_ids"]).loss) for batch in held) / 2
    assert found.comparison.small.mean == pytest.approx(own, rel=1e-4)


def test_the_lesson_is_divergence_and_distance_of_the_stream() -> None:
    teacher, learner, batch = model_of("Llama"), model_of("Llama"), batches(1, 0)[0]
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    last = "model.layers.1"
    same = Lesson(teacher, copy.deepcopy(teacher), (last, last), 8)(batch)
    assert float(same.detach()) < 1e-6
    found = Lesson(teacher, learner, (last, last), 8)(batch).detach()
    states: list[Any] = []
    for model in (teacher, learner):
        model.model.layers[1].register_forward_hook(lambda m, a, out: states.append(out))
    with torch.no_grad():
        p, q = (m(**batch).logits.log_softmax(-1) for m in (teacher, learner))
    t, h = (s[0] if isinstance(s, tuple) else s for s in states)
    kl = (p.exp() * (p - q)).sum(-1).mean()
    far = ((h - t).square().sum(-1) / t.square().sum(-1)).mean()
    assert float(found) == pytest.approx(float(kl + far), rel=1e-4)


def test_of_many_words_those_of_the_teacher_and_the_batch_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher, learner, batch = model_of("Qwen2"), model_of("Qwen2"), batches(1, 0)[0]
    with torch.no_grad():
        learner.lm_head.weight.add_(torch.randn_like(learner.lm_head.weight) * 0.05)
        top = teacher(**batch).logits.topk(5, dim=-1).indices
        own = torch.unique(batch["input_ids"])
        words = torch.cat([top, own.expand(*top.shape[:2], -1)], -1)
        wanted, found = (m(**batch).logits.gather(-1, words).log_softmax(-1)
                         for m in (teacher, learner))  # fmt: skip
        kl = (wanted.exp() * (wanted - found)).sum(-1).mean()
    monkeypatch.setattr(judge, "SLICE", 20)
    monkeypatch.setattr(lessons, "SLICE", 1000)
    last = "model.layers.1"
    loss = Lesson(teacher, learner, (last, last), 5)(batch)
    assert float(loss.detach()) == pytest.approx(float(kl), rel=1e-4)
    loss.backward()
    assert learner.model.layers[0].mlp.up_proj.weight.grad is not None


def test_a_low_rank_begins_as_nothing_and_becomes_part_of_the_weights() -> None:
    model, batch = model_of("Llama"), batches(1, 0)[0]
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:, ::2] = 0
        before = model(**batch).logits
    first = [n for n in linear_layers(model) if n.startswith("model.layers.0.")]
    names = grow(model, first, 2, 0)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == sorted(
        names, key=names.index
    )
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, before)
        for name, parameter in model.named_parameters():
            if name.endswith(".b"):
                parameter.add_(0.1)
        changed = model(**batch).logits
        assert not torch.allclose(changed, before)
        merge(model)
        assert torch.allclose(model(**batch).logits, changed, atol=1e-6)
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    assert bool((model.model.layers[0].mlp.up_proj.weight[:, ::2] == 0).all())
    assert bool(functional.relu(model.model.layers[0].mlp.up_proj.weight[:, 1::2].abs()).all())


def test_what_cannot_learn_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"structure": {"neuron": 0.5}, "recover": STEPS}
    with pytest.raises(InputError, match="recover: it is for folders"):
        prunus.prune_blocks(model_of("Llama"), recipe, batches(1, 0))
    with pytest.raises(InputError, match="no linear layers"):
        walked(tmp_path, "small", {**recipe, "recover": {**STEPS, "lora": 4}}, "GPT2")
    monkeypatch.setattr(recovery, "free_memory", lambda: 1000)
    with pytest.raises(InputError, match="let few numbers learn"):
        walked(tmp_path, "small", recipe)
    assert not (tmp_path / "small").exists()


def test_the_command_recovers_on_windows_of_the_text(tmp_path: Path) -> None:
    helpers.language_model(tmp_path, "dense")
    numbers = torch.randint(2, 64, (900,), generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "text.txt").write_text(" ".join(f"w{n}" for n in numbers), encoding="utf-8")
    call = ["llm", str(tmp_path / "dense"), "--text", str(tmp_path / "text.txt"), "--out",
            str(tmp_path / "small"), "structure=neuron", "text.windows=4", "text.length=16",
            "text.held=2", "recover={steps: 3, batch: 2, lora: 2, every: 1}"]  # fmt: skip
    ran = CliRunner().invoke(cli, call)
    assert ran.exit_code == 0, ran.output
    assert "recovery, step 3" in ran.output
    assert "by 3 steps" in ran.output
