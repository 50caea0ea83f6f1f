"""A smaller model of a folder learns from the dense one, and its files are written anew."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from prunus._common.files import freeze, thaw, write_atomically, write_json
from prunus._common.rng import preserve_rng, seed
from prunus.blocks.arrangement import written
from prunus.blocks.folder import REPORT, skeleton
from prunus.blocks.lessons import Lesson
from prunus.blocks.opening import free_memory, opened
from prunus.blocks.recipe import BlockRecipe, BlockRecovery
from prunus.blocks.shards import Shards, write_shard
from prunus.blocks.walk import stacks_of
from prunus.compaction.files.pretrained import FILE, is_folder
from prunus.errors import InputError, RunError
from prunus.pruning.low_rank import grow, linear_layers, merge, stays

PLACE = ".prunus-recovery"
"""The folder of a recovery that is not through, within the model's."""
STATE, READY, NEW = "state.safetensors", "ready.json", "new"
CLIP = 1.0
"""The largest norm of a step's gradients."""
WARMING = 0.05
"""Of the steps; the rate rises to its own meanwhile, and falls to zero behind."""


def room_for_learning(folder: Path, how: BlockRecipe) -> None:
    """See that teacher, learner and what it learns with fit into memory.

    Raises:
        InputError: if they do not.
    """
    assert how.recover is not None
    model = skeleton(folder)
    inside = [n for stack in stacks_of(model, how.blocks) for n in stack]
    every = sum(p.numel() for p in model.parameters())
    learns = sum(p.numel() for n in inside for p in model.get_submodule(n).parameters())
    rank = how.recover.lora
    if rank is not None:
        layers = [m for n in inside for m in model.get_submodule(n).modules()
                  if type(m) is nn.Linear]  # fmt: skip
        if not layers:
            raise InputError(
                "recover: lora: the blocks have no linear layers (nn.Linear): leave lora out, and "
                "all of their weights learn"
            )
        learns = sum(rank * (m.in_features + m.out_features) for m in layers)
    needed, free = 4 * (2 * every + 3 * learns), free_memory()
    if free is not None and needed > free:
        hint = "" if rank is not None else ", or let few numbers learn: lora: 16"
        raise InputError(
            f"recover: the dense and the smaller model, and what learns, need {needed / 1e9:.1f} "
            f"GB of memory, and {free / 1e9:.1f} GB are free: leave it out{hint}"
        )


def recover(
    folder: Path,
    out: Path,
    how: BlockRecipe,
    rows: Sequence[Mapping[str, Tensor]],
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Let the smaller model of a folder learn; killed, the same call goes on to the same bits.

    The weights of its blocks learn, or few numbers beside them; zeros stay zeros.

    Args:
        folder: the dense model's.
        out: the smaller one's; what was done is noted in its ``pruned.json``.
        how: the recipe.
        rows: a batch for each step.
        on_step: told the number of steps and the loss, whenever the state is kept.

    Raises:
        InputError: if it has recovered otherwise before.
        RunError: if the loss is not finite, or the disk refuses.
    """
    asked = how.recover
    assert asked is not None
    said = json.loads((out / REPORT).read_text(encoding="utf-8"))
    before = said.get("recovered")
    if before is not None:
        if before["recipe"] != asked.model_dump(mode="json"):
            raise InputError(
                f"'{out}' has recovered by {before['recipe']} before: name another folder"
            )
        return
    place = out / PLACE
    place.mkdir(exist_ok=True)
    ready = place / READY
    if not ready.is_file():
        with preserve_rng():
            seed(how.seed)
            losses = _learn(folder, out, how, rows, on_step)
        write_json(ready, {"recipe": asked.model_dump(mode="json"), "losses": losses})
    for path in sorted((place / NEW).iterdir()):  # those that are gone are in their place
        os.replace(path, out / path.name)
    done = json.loads(ready.read_text(encoding="utf-8"))
    write_json(out / REPORT, {**said, "recovered": done})
    shutil.rmtree(place, ignore_errors=True)


def _learn(
    folder: Path,
    out: Path,
    how: BlockRecipe,
    rows: Sequence[Mapping[str, Tensor]],
    on_step: Callable[[int, float], None],
) -> list[float]:
    """Steps, from where the state is; the losses."""
    asked, place = how.recover, out / PLACE
    assert asked is not None
    teacher, learner = opened(folder), opened(out)
    stacks = [stacks_of(model, how.blocks) for model in (teacher, learner)]
    blocks = [name for stack in stacks[1] for name in stack]
    names, masks = _learners(learner, blocks, asked, how.seed)
    own = dict(learner.named_parameters())
    optimizer = torch.optim.AdamW([own[n] for n in names], lr=asked.rate, weight_decay=0.0)
    lesson = Lesson(teacher, learner, (stacks[0][-1][-1], stacks[1][-1][-1]), asked.top)
    losses: list[float] = []
    if (place / STATE).is_file():
        state = thaw((place / STATE).read_bytes())
        losses = list(state["losses"])
        with torch.no_grad():
            for name, value in state["values"].items():
                own[name].copy_(value)
        optimizer.load_state_dict(state["optimizer"])
    for step in range(len(losses), asked.steps):
        optimizer.param_groups[0]["lr"] = asked.rate * _rate(step, asked.steps)
        losses.append(_step(lesson, optimizer, rows[step], masks))
        last = step == asked.steps - 1
        if last or (step + 1) % asked.every == 0:
            values = {name: own[name].detach() for name in names}
            tree = {"losses": losses, "values": values, "optimizer": optimizer.state_dict()}
            write_atomically(place / STATE, freeze(tree))
            on_step(step + 1, losses[-1])
    merge(learner)
    _write(out, learner, blocks)
    return losses


def _learners(
    learner: nn.Module, blocks: Sequence[str], asked: BlockRecovery, number: int
) -> tuple[list[str], list[tuple[nn.Parameter, Tensor]]]:
    """The parameters that learn, and those with zeros that stay."""
    inside = tuple(f"{name}." for name in blocks)
    if asked.lora is not None:
        layers = [n for n in linear_layers(learner) if f"{n}.".startswith(inside)]
        return grow(learner, layers, asked.lora, number), []
    names: list[str] = []
    masks: list[tuple[nn.Parameter, Tensor]] = []
    for name, parameter in learner.named_parameters():
        learns = name.startswith(inside) and parameter.is_floating_point()
        parameter.requires_grad_(learns)
        if learns:
            names.append(name)
            mask = stays(parameter) if parameter.dim() > 1 else None
            if mask is not None:
                masks.append((parameter, mask))
    return names, masks


def _rate(step: int, steps: int) -> float:
    """The part of its rate at which a step learns.

    >>> [round(_rate(s, 4), 2) for s in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    warm = WARMING * steps
    return min((step + 1) / warm if warm > 1 else 1.0, (steps - step) / steps)


def _step(
    lesson: Lesson,
    optimizer: torch.optim.Optimizer,
    batch: Mapping[str, Tensor],
    masks: Sequence[tuple[nn.Parameter, Tensor]],
) -> float:
    optimizer.zero_grad()
    loss = lesson(batch)
    if not bool(loss.isfinite()):
        raise RunError("recover: the loss is not finite: take a lower rate")
    loss.backward()
    for parameter, mask in masks:
        if parameter.grad is not None:
            parameter.grad.mul_(mask)
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], CLIP)
    optimizer.step()
    with torch.no_grad():
        for parameter, mask in masks:
            parameter.mul_(mask)
    return float(loss.detach())


def _write(out: Path, learner: nn.Module, blocks: Sequence[str]) -> None:
    """The files whose tensors have changed, beside those that are there."""
    new = out / PLACE / NEW
    new.mkdir(exist_ok=True)
    state = {n: t.detach() for n, t in learner.state_dict().items()}
    if is_folder(out):
        shards = Shards(out)
        values = {n: state[n].to(shards.tensors[n].dtype) if n in state else shards[n]
                  for n in shards.tensors}  # fmt: skip
        write_shard(new / FILE, values, shards.metadata(out / FILE))
        return
    inside = tuple(f"{name}." for name in blocks)
    made = dict(written(learner, {n: t for n, t in state.items() if n.startswith(inside)}))
    for path in sorted(out.glob("model-*.safetensors")):
        shard = Shards.of(path)
        if set(shard.tensors) <= set(made):
            values = {n: made[n].to(stored.dtype) for n, stored in shard.tensors.items()}
            write_shard(new / path.name, values)
