"""What each tensor of a narrower model is multiplied by, found by trying in float64."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.modules import evaluating, joined
from prunus._common.rng import preserve_rng
from prunus._common.torch_internals import AnyConv
from prunus.blocks.ends import powers_before, powers_behind
from prunus.blocks.gate import Grouped
from prunus.blocks.hidden import Narrow, Power, configured, difference, last, shift_of
from prunus.blocks.recipe import HIDDEN, BlockRecipe
from prunus.blocks.source import Source
from prunus.blocks.units import taken
from prunus.blocks.walk import Call, Passage, passage_of, stacks_of
from prunus.compaction.reopening import is_pretrained
from prunus.compaction.slicing.norms import width_of
from prunus.compaction.verifying.verify import FLOAT64, TOLERANCE, outputs, wide
from prunus.errors import InputError, RunError

NORM, READS, WRITES = "norm", "reads", "writes"


def narrow_of(source: Source, how: BlockRecipe, calibration: Sequence[Any]) -> Narrow:
    """The narrower model, before there is one; its channels are not chosen yet.

    Args:
        source: of the dense model.
        how: the recipe.
        calibration: batches, of which the first one is used.

    Raises:
        InputError: if no configuration says it, or no powers of s make it equal.
    """
    model: Any = source.model
    if not is_pretrained(model):
        raise InputError(
            "structure: hidden: it is for models that a configuration of transformers describes: "
            "prunus.prune with structure: hidden is for others"
        )
    found: Narrow = configured(model, how.parts[HIDDEN], how.multiple_of)
    with preserve_rng(), evaluating(model), torch.no_grad():
        passages: list[Passage] = []
        for stack in stacks_of(model, how.blocks):
            passage = passage_of(model, stack, calibration[:1], before=passages, hold=source.hold)
            passage.last = passage.first
            passages.append(passage)
        found.names = {name: name for passage in passages for name in passage.blocks}
        _refuse_layer_norms(model, found)
        _powers_of_blocks(source, found, passages)
        powers_before(model, found, passages, calibration[0])
        powers_behind(model, found, passages, calibration[0])
    return found


def _refuse_layer_norms(model: nn.Module, found: Narrow) -> None:
    for path, module in model.named_modules():
        own = any(
            joined(path, n) in found.places for n, _ in module.named_parameters(recurse=False)
        )
        if own and isinstance(module, nn.LayerNorm):
            raise InputError(
                f"structure: hidden: '{path}' is a LayerNorm, whose mean and variance count all "
                f"{found.width} channels, and no config.json says that: open the model and give it "
                "to prunus.prune_blocks, and its norms go on counting them"
            )


def _powers_of_blocks(source: Source, found: Narrow, passages: Sequence[Passage]) -> None:
    """The powers of each block's tensors; blocks that are alike have the same."""
    known: dict[Any, dict[str, Power]] = {}
    for passage in passages:
        x = passage.first[0] * found.mask().to(passage.first[0])
        for i, name in enumerate(passage.blocks):
            block = source.model.get_submodule(name)
            shapes = tuple((n, tuple(t.shape)) for n, t in block.state_dict().items())
            key = type(block), shapes, id(passage)
            if key not in known:
                with source.hold(name) as held:
                    known[key] = _tried(held, found, name, x, passage.calls[i][0])
            found.powers |= {f"{name}.{n}": power for n, power in known[key].items()}


def _tried(block: nn.Module, found: Narrow, name: str, x: Tensor, call: Call) -> dict[str, Power]:
    """Powers with which a block answers as the masked one does."""
    roles = roles_of(block, found, name)
    norms = [n for n, role in roles.items() if role == NORM]
    shifts = {n: shift_of(block, n) for n in norms}
    best = math.inf
    for reads, *own in itertools.product((0, -1), *((-1, 0) for _ in norms)):
        powers = {n: Power(1 if role == WRITES else reads) for n, role in roles.items()}
        powers |= {n: Power(p, shifts[n]) for n, p in zip(norms, own, strict=True)}
        trial = Narrow(found.width, found.config, found.fresh, found.places, found.kept,
                       {f"{name}.{n}": p for n, p in powers.items()})  # fmt: skip
        error = apart(trial, name, block, (x, call), masked=False)
        if error <= TOLERANCE:
            return powers
        best = min(best, error)
    raise InputError(
        f"structure: hidden: '{name}' does not answer as the masked one whatever its tensors are "
        f"multiplied by (it differs by {best:.1g}): its stream is no sum that RMS norms read"
    )


def roles_of(block: nn.Module, found: Narrow, name: str) -> dict[str, str]:
    """Whether a tensor is a norm's scale, reads the stream or writes into it."""
    roles = {}
    for path, module in block.named_modules():
        for key, tensor in module.named_parameters(recurse=False):
            inner = joined(path, key)
            dims = found.places.get(joined(name, inner))
            if dims is None:
                continue
            if tensor.dim() == 1:
                roles[inner] = NORM if width_of(module) == found.width else WRITES
            else:
                roles[inner] = WRITES if _writes(module, tensor, dims) else READS
    return roles


def _writes(module: nn.Module, tensor: Tensor, dims: Sequence[int]) -> bool:
    """Whether a matrix gives the stream: ``[out, in]``, in stacks too; of Conv1D turned."""
    last = tensor.dim() - 1
    turned = type(module).__name__ == "Conv1D"
    return (last if turned else last - 1) in dims


def apart(
    found: Narrow, name: str, block: nn.Module, given: tuple[Tensor, Call], *, masked: bool
) -> float:
    """How far a narrower block's answer is from the masked one's in float64, relative to it.

    Args:
        found: the narrower model.
        name: of the block.
        block: with its weights; they come into float64 one operator at a time.
        given: what the masked block reads, and its other arguments.
        masked: whether weights of channels that go are zeros already; else they count as such.
    """
    x, call = given
    fresh = found.fresh.get_submodule(name)
    stored = fresh.state_dict()
    state = {n: t.detach() for n, t in (*block.named_parameters(), *block.named_buffers())}
    for path, module in block.named_modules():
        if isinstance(module, AnyConv):  # which compares types before a mode sees them
            names = [joined(path, n) for n, _ in module.named_parameters()]
            state |= {n: state[n].double() for n in names}
    own = {n: b for n, b in fresh.named_buffers() if n not in stored}
    small = {n: found.exactly(f"{name}.{n}", t) for n, t in state.items()} | own
    if not masked:
        state = {n: found.masked(f"{name}.{n}", t) for n, t in state.items()}
    with Grouped():
        before = outputs(block, state, ((wide(x), *call[0]), call[1]), FLOAT64)[0]
        args, kwargs = _cut(found, block, call)
        narrow = found.s * taken(wide(x), last(x, found.kept))
        after = outputs(fresh, small, ((narrow, *args), kwargs), FLOAT64)[0]
    return difference(taken(before, last(before, found.kept)), after / found.s)


def checked(found: Narrow, name: str, block: nn.Module, x: Tensor, call: Call) -> float:
    """The same of a block that is masked.

    Raises:
        RunError: if they differ.
    """
    error = apart(found, name, block, (x, call), masked=True)
    if not error <= TOLERANCE:
        raise RunError(
            f"'{name}': the narrower block does not answer as the masked one (they differ by "
            f"{error:.2g}), so none was written"
        )
    return error


def _cut(found: Narrow, block: nn.Module, call: Call) -> Call:
    """Other arguments: what an encoder gives has the width too."""
    args, kwargs = call
    names = list(inspect.signature(block.forward).parameters)[1:]

    def narrow(key: str, value: Any) -> Any:
        coded = isinstance(value, Tensor) and ("encoder" in key or "hidden_" in key)
        stream = coded and value.dim() == 3 and value.shape[-1] == found.width
        return taken(value, last(value, found.kept)) if stream else value

    made = tuple(narrow(k, v) for k, v in zip(names, args, strict=False))
    return made, {k: narrow(k, v) for k, v in kwargs.items()}
