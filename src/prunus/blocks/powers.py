"""What each tensor of a narrower model is multiplied by, found by trying in float64."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from prunus._common.activations import FarEnough
from prunus._common.inputs import map_tensors
from prunus._common.modules import evaluating, joined
from prunus._common.rng import preserve_rng
from prunus.blocks.gate import Grouped
from prunus.blocks.hidden import Narrow, Power, configured, last
from prunus.blocks.judge import SLICE
from prunus.blocks.recipe import HIDDEN, BlockRecipe
from prunus.blocks.source import Source
from prunus.blocks.units import taken
from prunus.blocks.walk import Call, Passage, called, passage_of, relayed, stacks_of, through
from prunus.compaction.reopening import is_pretrained
from prunus.compaction.slicing.norms import width_of
from prunus.compaction.verifying.verify import FLOAT64, TOLERANCE, Double, outputs, wide
from prunus.errors import InputError, RunError

NORM, READS, WRITES = "norm", "reads", "writes"
CONSTANTS = 1e-6
"""What comes to the first block may differ by so much: a factor that code keeps in float32."""


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
        _powers_before(model, found, passages, calibration[0])
        _powers_behind(model, found, passages, calibration[0])
    return found


def _refuse_layer_norms(model: nn.Module, found: Narrow) -> None:
    for path, module in model.named_modules():
        own = any(
            joined(path, n) in found.places for n, _ in module.named_parameters(recurse=False)
        )
        if own and isinstance(module, nn.LayerNorm):
            raise InputError(
                f"structure: hidden: '{path}' is a LayerNorm, whose mean and variance count all "
                f"{found.width} channels, and no config.json says that: prunus.prune with "
                "structure: hidden keeps such a model in a file of its own"
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
    shifts = {n: _shift(block, n) for n in norms}
    best = math.inf
    for reads, *own in itertools.product((0, -1), *((-1, 0) for _ in norms)):
        powers = {n: Power(1 if role == WRITES else reads) for n, role in roles.items()}
        powers |= {n: Power(p, shifts[n]) for n, p in zip(norms, own, strict=True)}
        trial = Narrow(found.width, found.config, found.fresh, found.places, found.kept,
                       {f"{name}.{n}": p for n, p in powers.items()})  # fmt: skip
        error = apart(trial, name, block, x, call)
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


def _shift(block: nn.Module, name: str) -> float:
    """What a norm adds to its scale: it is multiplied by nothing where the scale is nothing."""
    path, _, key = name.rpartition(".")
    module: Any = block.get_submodule(path)
    twin = copy.deepcopy(module).to("cpu")
    setattr(twin, key, nn.Parameter(torch.zeros(getattr(module, key).shape), requires_grad=False))
    return float(bool(twin(torch.ones(1, getattr(module, key).numel())).abs().max() > 0))


def apart(found: Narrow, name: str, block: nn.Module, x: Tensor, call: Call) -> float:
    """How far a narrower block's answer is from the masked one's in float64, relative to it.

    Args:
        found: the narrower model.
        name: of the block.
        block: with its weights, of which those of channels that go count as zeros.
        x: what the masked block reads.
        call: its other arguments.
    """
    fresh = found.fresh.get_submodule(name)
    stored = fresh.state_dict()
    state = {n: wide(t.detach()) for n, t in (*block.named_parameters(), *block.named_buffers())}
    own = {n: b for n, b in fresh.named_buffers() if n not in stored}
    small = {n: wide(found.of(f"{name}.{n}", t)) for n, t in state.items()} | own
    masked = {n: found.masked(f"{name}.{n}", t) for n, t in state.items()}
    with Grouped():
        before = outputs(block, masked, ((wide(x), *call[0]), call[1]), FLOAT64)[0]
        args, kwargs = _cut(found, block, call)
        narrow = found.s * taken(wide(x), last(x, found.kept))
        after = outputs(fresh, small, ((narrow, *args), kwargs), FLOAT64)[0]
    return _difference(taken(before, last(before, found.kept)), after / found.s)


def checked(found: Narrow, name: str, block: nn.Module, x: Tensor, call: Call) -> float:
    """The same.

    Raises:
        RunError: if they differ.
    """
    error = apart(found, name, block, x, call)
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
        coded = isinstance(value, Tensor) and ("encoder" in key or "hidden" in key)
        stream = coded and value.dim() == 3 and value.shape[-1] == found.width
        return taken(value, last(value, found.kept)) if stream else value

    made = tuple(narrow(k, v) for k, v in zip(names, args, strict=False))
    return made, {k: narrow(k, v) for k, v in kwargs.items()}


def _difference(before: Tensor, after: Tensor) -> float:
    far = float((before - after).abs().max())
    return far / max(float(before.abs().max()), 1e-300) if math.isfinite(far) else math.inf


# --- outside of the blocks


def _powers_before(model: Any, found: Narrow, passages: Sequence[Passage], batch: Any) -> None:
    """The powers of the embeddings: what comes to the first block must be s times as large."""
    tables = [n for n in _outside(model, found) if _of_embedding(model, n)]
    masked, narrow = _both(found, passages)
    before = [_arriving(model, model, masked[:i], p, batch, found) for i, p in enumerate(masked)]
    for power in (1, 0):
        found.powers |= dict.fromkeys(tables, Power(power))
        after = [
            _arriving(model, found.fresh, narrow[:i], p, batch, found)
            for i, p in enumerate(narrow)
        ]  # fmt: skip
        if all(
            a is not None and b is not None
            and _difference(taken(a, last(a, found.kept)), b / found.s) <= CONSTANTS
            for a, b in zip(before, after, strict=True)
        ):  # fmt: skip
            return
    raise InputError(
        "structure: hidden: what comes to the first block is no sum of embeddings: something "
        "between them counts the width"
    )


def _powers_behind(model: Any, found: Narrow, passages: Sequence[Passage], batch: Any) -> None:
    """The powers of norms behind the blocks: the answer must be the masked model's."""
    norms = [n for n in _outside(model, found) if _named(model)[n].dim() == 1]
    owners = {n: model.get_submodule(n.rpartition(".")[0]) for n in norms}
    if any(width_of(owner) != found.width for owner in owners.values()):
        raise InputError("structure: hidden: a vector outside of the blocks is no norm's scale")
    shifts = {n: _shift(owners[n], n.rpartition(".")[2]) for n in norms}
    masked, narrow = _both(found, passages)
    right = _answering(model, model, masked, batch, found)
    for own in itertools.product((-1, -2, 0), repeat=len(norms)):
        found.powers |= {n: Power(p, shifts[n]) for n, p in zip(norms, own, strict=True)}
        after = _answering(model, found.fresh, narrow, batch, found)
        if right is not None and after is not None and _difference(right, after) <= TOLERANCE:
            return
    raise InputError(
        "structure: hidden: behind the blocks the narrower model does not answer as the masked one"
    )


def _both(found: Narrow, passages: Sequence[Passage]) -> tuple[list[Passage], list[Passage]]:
    """What stacks give that give what they read: of the masked and of the narrower model."""
    mask = found.mask()
    masked = [replace(p, last=[wide(p.first[0][:1]) * mask.to(p.first[0])]) for p in passages]
    narrow = [
        replace(p, last=[found.s * taken(p.last[0], last(p.last[0], found.kept))],
                first=[taken(p.first[0][:1], last(p.first[0], found.kept))])
        for p in masked
    ]  # fmt: skip
    return masked, narrow


def _outside(model: nn.Module, found: Narrow) -> list[str]:
    inside = tuple(f"{name}." for name in found.names)
    return [n for n in _named(model) if n in found.places and not n.startswith(inside)]


def _named(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False))


def _of_embedding(model: nn.Module, name: str) -> bool:
    """Whether a tensor is looked up, or shares its memory with one that is."""
    named = _named(model)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return id(named[name]) in tables


class _Standing(TorchFunctionMode):
    """Lookups and the head of a model without weights, by those of the dense one.

    Args:
        model: the dense one.
        fresh: the narrower one, or the dense one itself.
        found: what stays; ``None`` of the dense one.
    """

    def __init__(self, model: nn.Module, fresh: nn.Module, found: Narrow | None) -> None:
        super().__init__()
        dense = _named(model)
        self.found = found
        self.names = {id(p): n for n, p in _named(fresh).items() if n in dense}
        self.dense = {n: dense[n] for n in self.names.values()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
        name = self.names.get(id(weight))
        if name is None or func not in (functional.embedding, functional.linear):
            return func(*args, **kwargs)
        table = self.dense[name].detach()
        if func is functional.embedding:
            rows = wide(functional.embedding(args[0], table))
            if self.found is None:
                return rows
            narrow = taken(rows, last(rows, self.found.kept))
            return self.found.powers.get(name, Power()).of(narrow, self.found.s)
        own = self._of(name, table[:SLICE])
        bias = kwargs.get("bias", args[2] if len(args) > 2 else None)
        bias = None if bias is None else self.dense[f"{name[:-6]}bias"].detach()[:SLICE]
        return functional.linear(args[0], own, bias)

    def _of(self, name: str, rows: Tensor) -> Tensor:
        return wide(rows) if self.found is None else self.found.of(name, wide(rows))


def _arriving(
    model: Any,
    fresh: Any,
    before: Sequence[Passage],
    passage: Passage,
    batch: Any,
    found: Narrow,
) -> Tensor | None:
    """What comes to the first block of a stack, in float64."""
    seen: list[Tensor] = []

    def here(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(x)
        raise FarEnough

    _standing(model, fresh, {**through(before, 0), passage.blocks[0]: here}, batch, found)
    return wide(seen[0]) if seen else None


def _answering(
    model: Any, fresh: Any, passages: Sequence[Passage], batch: Any, found: Narrow
) -> Tensor | None:
    """A model's answer if its stacks gave these, in float64; of many words the first ones."""
    answer = _standing(model, fresh, through(passages, 0), batch, found)
    found_ = getattr(answer, "logits", None)
    if found_ is None:
        found_ = getattr(answer, "last_hidden_state", None)
    return found_ if isinstance(found_, Tensor) else None


def _standing(
    model: Any,
    fresh: Any,
    forwards: Mapping[str, Callable[..., Any]],
    batch: Any,
    found: Narrow,
) -> Any:
    answer = None
    own = None if fresh is model else found
    twin = fresh if own is None else _with_norms(model, fresh, found)
    first = map_tensors(lambda t: t[:1], batch)
    with relayed(twin, forwards), suppress(FarEnough), _Standing(model, twin, own), Double():
        answer = called(twin, first)
    return answer


def _with_norms(model: Any, fresh: Any, found: Narrow) -> Any:
    """The narrower model with its vectors outside of the blocks."""
    named = _named(model)
    for name in _outside(model, found):
        if named[name].dim() == 1:
            path, _, key = name.rpartition(".")
            value = found.of(name, wide(named[name].detach()))
            fresh.get_submodule(path)._parameters[key] = nn.Parameter(value, requires_grad=False)
    return fresh
