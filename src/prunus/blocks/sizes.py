"""What goes out of each block as a whole, and the configurations that say what is left."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.modules import evaluating, joined
from prunus._common.nested import tensors_of
from prunus._common.rng import preserve_rng
from prunus.blocks.fewer import renamed, shallow_config
from prunus.blocks.gate import checked
from prunus.blocks.matrices import Matrix, listening
from prunus.blocks.recipe import BLOCK, EXPERT, HEAD, NEURON, BlockRecipe
from prunus.blocks.routed import listening_to
from prunus.blocks.solving import excluded
from prunus.blocks.source import Source
from prunus.blocks.units import Kind, cut_of, kept_of, kinds_of
from prunus.blocks.walk import Call, Passage, given_by, passed_stacks, stacks_of
from prunus.compaction.reopening import Settings, built, config_of, is_pretrained
from prunus.errors import InputError, first_line

Counted = list[tuple[Kind, int]]
"""Kinds of units of a block, and how many of each go."""


@dataclass(frozen=True)
class Made:
    """A smaller model of the same class, of which each block has lost as much.

    Attributes:
        config: that says the sizes which are left; ``None``: there is none.
        fresh: a model of that configuration, its weights on the meta device.
        why: there is none.
    """

    config: Any = None
    fresh: nn.Module | None = None
    why: str = ""

    @property
    def said(self) -> str:
        """The configuration in words, to tell one from another."""
        return "" if self.config is None else json.dumps(self.config.to_dict(), default=str)


@dataclass
class Sizes:
    """What can go out of each block, and the smaller models that this makes.

    Attributes:
        how: the recipe.
        model: without the blocks that go as a whole.
        kinds: of units, by block.
        names: of the blocks that stay, what they are called in the smaller model.
        dropped: blocks that go as a whole.
        made: smaller models, by what goes of every block.
        broken: why the smaller model does not answer as the masked one, if it does not.
    """

    how: BlockRecipe
    model: nn.Module
    kinds: dict[str, list[Kind]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    dropped: Collection[str] = ()
    made: dict[tuple[int, ...], Made] = field(default_factory=dict)
    broken: str = ""

    def gone(self, name: str, rate: float | None) -> Counted:
        """What goes of a block at a rate; ``None``: it stays whole."""
        kinds = self.kinds.get(name, ())
        return [(k, n) for k in kinds if rate is not None and (n := _count(k, self.how, rate))]

    def at(self, rate: float | None) -> Made:
        """The smaller model of which every block has lost so much."""
        if self.broken:
            return Made(why=self.broken)
        gone = {name: self.gone(name, rate) for name in self.kinds}
        key = tuple(
            0 if rate is None else _count(kind, self.how, rate)
            for kinds in self.kinds.values() for kind in kinds
        )  # fmt: skip
        if key not in self.made:
            self.made[key] = _made(self, gone)
        return self.made[key]

    @property
    def whole(self) -> Made:
        """The smaller model if every block loses what the recipe asks."""
        return self.at(self.how.asked)


def structure_of(
    source: Source,
    how: BlockRecipe,
    calibration: Sequence[Any],
    dropped: Collection[str] = (),
    *,
    prove: bool = True,
) -> Sizes:
    """What a structure takes out of a model; nothing is changed, nor written.

    Args:
        source: has the model.
        how: the recipe.
        calibration: batches.
        dropped: blocks that go as a whole.
        prove: whether a smaller block of each kind is compared in float64.

    Raises:
        InputError: as :func:`sizes_of`; if the calibration data do not pass the blocks.
    """
    with preserve_rng(), evaluating(source.model), torch.no_grad():
        stacks = stacks_of(source.model, how.blocks)
        passages = passed_stacks(source.model, stacks, calibration[:1], source.hold)[0]
        found = sizes_of(source, how, passages, dropped)
        fresh = found.whole.fresh if prove else None
        if fresh is not None and (why := _untrue(source, found, fresh, passages)):
            gone = {name: found.gone(name, how.asked) for name in found.kinds}
            found.broken = why + _divides(found.model, gone)
    return found


def sizes_of(
    source: Source, how: BlockRecipe, passages: Sequence[Passage], dropped: Collection[str] = ()
) -> Sizes:
    """What a structure takes out of a model's blocks; as many of each in every block.

    Args:
        source: has the model; each block is held once.
        how: the recipe.
        passages: of one batch, through every stack.
        dropped: blocks that go as a whole; what is chosen of the others is not in them.

    Raises:
        InputError: if a part of the structure is in no block, or so little that none goes.
    """
    model, known = source.model, {}
    found = Sizes(how, model, dropped=dropped)
    spared = excluded(model, how) | _shared(model)
    seen: dict[str, int] = {part: 0 for part in how.parts if part != BLOCK}
    for passage in passages:
        found.names |= renamed(passage.blocks, dropped)
        for i, name in enumerate(passage.blocks if seen else ()):
            if name in dropped:
                continue
            own = {n.removeprefix(f"{name}.") for n in spared if n.startswith(f"{name}.")}
            with source.hold(name) as block:
                key = _alike(block, passage.calls[i][0], own)
                if key not in known:
                    known[key] = _kinds(block, passage.first[0], passage.calls[i][0], own)
            found.kinds[name] = [k for k in known[key] if k.part in how.parts]
            for kind in found.kinds[name]:
                seen[kind.part] = max(seen[kind.part], kind.units)
    for part, most in seen.items():
        goes = any(k.part == part for n in found.kinds for k, _ in found.gone(n, how.asked))
        if not goes:
            raise InputError(
                f"structure: {part}: none of at most {most} in a block goes at "
                f"{how.parts[part]:g}" if most else
                f"structure: {part}: the blocks of {type(model).__name__} have none that can go "
                "(prunus units shows what pins each dimension)"
            )  # fmt: skip
    if EXPERT in how.parts and not is_pretrained(model):
        raise InputError("structure: expert: it is for models that a configuration describes")
    if dropped:
        config = shallow_config(model.config, passages[0].blocks, dropped)
        found.model = built(model, config)
    return found


def _divides(model: Any, gone: Mapping[str, Counted]) -> str:
    """What is likely where heads cannot be fewer."""
    heads = list(numbers_of(model.config, gone.values())[0])
    return "".join(f": {n[-1]} divides the width" for n in heads[:1])


def _made(sizes: Sizes, gone: dict[str, Counted]) -> Made:
    """A configuration that says what is left when so much goes, if there is one."""
    model: Any = sizes.model
    if not is_pretrained(model):
        return Made()
    heads, others = numbers_of(model.config, gone.values())
    shapes = _shapes(model, sizes.names, gone)
    config, why = None, ""
    for told in ({**others, **heads}, heads):
        config, why = config_of(model, shapes, told)
        if config is not None:
            return Made(config, built(model, config))
    return Made(why=why + _divides(model, gone))


def _untrue(source: Source, found: Sizes, fresh: nn.Module, passages: Sequence[Passage]) -> str:
    """Why a block of some kind does not answer as it should, whichever units it loses."""
    seen: set[Any] = set()
    for passage in passages:
        for i, name in enumerate(passage.blocks):
            gone = [(k, torch.arange(n)) for k, n in found.gone(name, found.how.asked)]
            key = tuple(id(kind) for kind, _ in gone)
            if not gone or key in seen:
                continue
            seen.add(key)
            with source.hold(name) as block:
                cut = cut_of(gone, dict(block.named_parameters()))
                try:
                    own = fresh.get_submodule(found.names[name])
                    checked(name, block, own, cut, passage.first[0], passage.calls[i][0])
                except Exception as error:  # of the block's code, on sizes that are not its own
                    return first_line(error)
    return ""


def _kinds(block: nn.Module, x: Tensor, call: Call, spared: Collection[str]) -> list[Kind]:
    matrices: dict[Matrix, None] = {}
    with listening(block, lambda matrix, read: matrices.setdefault(matrix)):
        given_by(block, x, call)
    kinds = kinds_of(block, x, call, matrices, spared)
    if any(kind.router for kind in kinds):
        with listening_to(block, kinds):  # which refuses what it does not understand
            given_by(block, x, call)
    return kinds


def _alike(block: nn.Module, call: Call, spared: Collection[str]) -> Any:
    """What blocks share whose indices fall together in the same way."""
    shapes = tuple((n, tuple(t.shape)) for n, t in block.state_dict().items())
    called = tuple(tuple(t.shape) for t in tensors_of(call))
    return type(block), shapes, called, frozenset(spared)


def _count(kind: Kind, how: BlockRecipe, rate: float) -> int:
    """How many units go at a rate; at least one stays."""
    multiple = how.multiple_of if kind.part == NEURON else 1
    part = min(how.parts[kind.part] * rate / how.asked, 1.0)
    stays = round(kind.units * (1 - part) / multiple) * multiple
    return kind.units - min(kind.units, max(stays, multiple, kind.least))


def _shared(model: nn.Module) -> set[str]:
    """Parameters that have several names: what goes of one would go of all."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for own in names.values() if len(own) > 1 for name in own}


def _shapes(
    model: nn.Module, names: Mapping[str, str], gone: Mapping[str, Counted]
) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's tensors without so many units, whichever these are."""
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for old, kinds in gone.items():
        block = names[old]
        cut = kept_of([(kind, torch.arange(n)) for kind, n in kinds])
        for name, indices in cut.items():
            full = joined(block, name)
            left = [n if d >= len(indices) or indices[d] is None else len(indices[d])  # type: ignore[arg-type]
                    for d, n in enumerate(shapes.get(full, ()))]  # fmt: skip
            if full in shapes:
                shapes[full] = tuple(left)
    return shapes


WORDS = {NEURON: ("intermediate", "ffn", "inner", "ff"), EXPERT: ("experts",)}
"""In names of numbers in a configuration that may say what is left."""
OTHERS = ("per_tok", "shared", "top")
"""In names of other numbers of experts."""


def numbers_of(config: Any, gone: Iterable[Counted]) -> tuple[Settings, Settings]:
    """What a configuration says when so many units go: of heads, and what is likely of others.

    Shapes alone leave open whether heads are fewer or smaller: each number of heads becomes less by
    the same part, their size stays.

    Args:
        config: of transformers.
        gone: of each block.
    """
    text = config.get_text_config()
    outer = () if text is config else tuple(n for n, v in vars(config).items() if v is text)[:1]
    numbers = {n: v for n, v in vars(text).items() if type(v) is int and v > 1}
    found = {(kind.part, len(kind.members[-1][2]) if kind.router else kind.units, n, kind.units)
             for own in gone for kind, n in own}  # fmt: skip
    heads: Settings = {}
    others: Settings = {}
    for part, whole, count, units in found:
        for name, value in numbers.items():
            if part != HEAD:
                named = any(w in name for w in WORDS[part]) and not any(w in name for w in OTHERS)
                if named and value == whole:
                    others[(*outer, name)] = whole // units * (units - count)
            elif HEAD in name and "dim" not in name and "size" not in name and not value % units:
                heads[(*outer, name)] = value // units * (units - count)
    if sum(one[0] == HEAD for one in found) > 1:
        heads = {}
    if heads and getattr(text, "head_dim", None) is None:
        heads[(*outer, "head_dim")] = text.hidden_size // text.num_attention_heads
    return heads, others
