"""A model of repeated blocks made sparse or smaller, one block at a time, and made good."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.autocast import without_autocast
from prunus._common.given import given_batches, given_hooks, given_model
from prunus._common.modules import evaluating
from prunus._common.rng import preserve_rng, seed
from prunus.blocks.counted import counted, counts, outer
from prunus.blocks.depth import Shallow, shallower
from prunus.blocks.hidden import Narrow
from prunus.blocks.job import Job
from prunus.blocks.judge import Judge
from prunus.blocks.narrowed import narrow_for, narrowed
from prunus.blocks.prune_folder import prune_folder
from prunus.blocks.recipe import BLOCK, HIDDEN, BlockRecipe, BlockResult, block_recipe
from prunus.blocks.sizes import Sizes, structure_of
from prunus.blocks.smaller import narrower, smaller
from prunus.blocks.source import InMemory, Source
from prunus.blocks.width import none_within, too_much, tries
from prunus.compaction.compact import compact
from prunus.compaction.reopening import is_pretrained
from prunus.errors import InputError, RunError

DIFFER = "guard and rates may leave blocks of different sizes"


@without_autocast()  # where products are of casts, not of the weights
def prune_blocks(
    model: nn.Module | str | Path,
    recipe: Mapping[str, Any] | BlockRecipe,
    calibration: Iterable[Any] | str | Path,
    *,
    held: Iterable[Any] | str | Path | None = None,
    out: str | Path | None = None,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    on_block: Callable[[str, float], None] | None = None,
) -> BlockResult:
    """Set weights of a model of repeated blocks to zero, or take units out, one block at a time.

    What the calibration data are when they come to a block decides which of its weights go and what
    the others become; what the pruned block gives is what the next one reads. The model is changed
    in place. Where ``structure`` takes whole units out, it keeps its shapes, with zeros in place of
    neurons and heads (experts and blocks that go are left as they are), and ``result.model`` is a
    new, smaller one: each of its blocks is shown to answer as the cut one in float64.

    Args:
        model: with a list of blocks of one class that a pass meets one after the other, each
            handing its first output to the next: a transformer. Or a folder that transformers'
            ``save_pretrained`` wrote, of which one block at a time is in memory: ``out`` becomes
            a folder of the same kind. A killed call is made again, and goes on at the block.
        recipe: ``{target, structure, multiple_of, rotate, depth, solver, rates, repair, recover,
            guard, blocks, exclude, seed, text}``; see :class:`BlockRecipe`.
        calibration: batches as the model is called with them, without labels. For a folder also
            a text: ``.txt``, ``.jsonl``, a folder of them or one of ``datasets``.
        held: others, which judge: nothing is chosen by them. A guard needs them. By default the
            last tenth of a text, of which nothing is chosen then.
        out: the folder to write, of a folder.
        loss: ``(model, batch) -> scalar`` for ``held``; by default that of the next token.
        on_block: told the name and the error of each block; of a recovery, steps and losses.

    Raises:
        InputError: for what cannot be used, before a weight is changed.
        RunError: if what a layer reads is not finite. The weights are then as they were given.

    >>> _ = torch.manual_seed(0)
    >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    >>> found = prune_blocks(net, {"target": 0.5, "solver": "wanda"}, [torch.randn(4, 5, 8)])
    >>> round(found.sparsity, 2), list(found.errors)
    (0.5, ['layers.0', 'layers.1'])
    """
    if isinstance(model, (str, Path)):
        if out is None:
            raise InputError("prune_blocks writes what it makes of a folder: give out")
        given_hooks(on_block=on_block, loss=loss)
        how = block_recipe(recipe)
        if how.uneven:
            warnings.warn(f"{DIFFER}: then prunus.load opens the result alone", stacklevel=2)
        return prune_folder(
            Path(model), Path(out), how, calibration,
            held=held, loss=loss, on_block=on_block,
        )  # fmt: skip
    if out is not None or isinstance(calibration, (str, Path)) or isinstance(held, (str, Path)):
        raise InputError(
            "out and text are for folders: a model at hand is pruned in place, with batches as it "
            "is called with them"
        )
    given_model(model, "prune_blocks", values=True, code=True)
    given_hooks(on_block=on_block, loss=loss)
    how = block_recipe(recipe)
    batches = given_batches(calibration, "calibration")
    if batches is None:
        raise InputError("prune_blocks passes batches through the blocks: give calibration")
    judged = list(given_batches(held, "held") or ())
    if how.guard is not None and not judged:
        raise InputError("guard: it judges by data that nothing is chosen by: give held")
    if how.recover is not None:
        raise InputError(
            "recover: it is for folders, whose dense model is still there: a model at hand learns "
            "in a loop of its own, by prunus.distill(model, teacher, batch) and prunus.enforce"
        )
    source, began, why = InMemory(model), time.process_time(), ""
    told, dropped = on_block or (lambda *_: None), []
    if BLOCK in how.parts:
        dropped = shallower(source, how, list(batches), held=judged, judge=Judge(loss))

    def sizes_of(how: BlockRecipe) -> Sizes | Narrow | None:
        return _sizes(source, how, list(batches), dropped) if how.parts else None

    for number, (tried, sizes) in enumerate(tries(how, sizes_of)):
        if number == 0:
            _warn(model, how, sizes)
        walked: Source = Shallow(source, dropped) if dropped else source
        if isinstance(sizes, Narrow):
            walked = narrowed(source, tried, sizes, list(batches))
        with preserve_rng(), evaluating(model), torch.no_grad():
            seed(how.seed)
            job = Job(walked, tried, list(batches), judged, Judge(loss), told, sizes)
            try:
                job.run()
                why = too_much(how, result := job.result(time.process_time() - began))
                if not why:
                    small = None if sizes is None else _small(model, job, sizes, batches[0])
                    return replace(result, model=small)
            except BaseException:  # whatever ends it, a stop too: the weights are as they were
                source.undo()
                raise
            source.undo()
    raise RunError(none_within(why, sizes))


def _warn(model: nn.Module, how: BlockRecipe, sizes: Sizes | Narrow | None) -> None:
    """Say before the work who will be able to open the smaller model."""
    why = ""
    if isinstance(sizes, Sizes):
        why = sizes.whole.why or (DIFFER if how.uneven else "")
    elif sizes is not None and sizes.fresh is None and is_pretrained(model):
        why = "its norms go on counting the width that there was"
    if why:
        warnings.warn(
            f"the smaller model opens by prunus.hf.save and prunus.hf.load alone: no configuration "
            f"says its sizes ({why})", stacklevel=3,
        )  # fmt: skip


def _sizes(
    source: InMemory, how: BlockRecipe, batches: list[Any], dropped: list[str]
) -> Sizes | Narrow:
    """What goes as a whole."""
    if HIDDEN not in how.parts:
        return structure_of(source, how, batches, dropped)
    if not how.rotate and counts(source.model):
        return counted(source, how, batches)
    return narrow_for(source, how, batches)


def _small(model: nn.Module, job: Job, sizes: Sizes | Narrow, example: Any) -> nn.Module:
    """The smaller model; the given one gets its last zeros."""
    if isinstance(sizes, Sizes):
        return smaller(model, job.solving, example)
    if sizes.fresh is None:
        own = {n: sizes.mask_of(n, p) for n, p in outer(model, sizes).items()}
        found = compact(model, {**job.solving.masks, **own}, example)
        for name, parameter in outer(model, sizes).items():
            parameter.data.masked_fill_(~own[name].to(parameter.device), 0)
        job.solving.masks |= own
        job.solving.gate = found.error
        return found.model
    scales = {n: p.detach().clone() for n, p in model.named_parameters() if n in sizes.norms}
    outside = [n for n in sizes.places if n not in job.solving.masks]
    state = dict(model.state_dict())
    state |= {n: sizes.turned(n, state[n], scales) for n in outside}
    made = narrower(model, sizes, state)
    for name, parameter in model.named_parameters():
        if name in sizes.places and name not in job.solving.masks:
            mask = job.solving.masks[name] = sizes.mask_of(name, parameter)
            parameter.data.copy_(state[name])
            parameter.data.masked_fill_(~mask.to(parameter.device), 0)
    return made
