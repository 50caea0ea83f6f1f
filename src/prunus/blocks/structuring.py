"""What goes out of each block as a whole, known before the walk, and shown behind every block."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.inputs import tensors_of
from prunus._common.modules import evaluating, joined
from prunus._common.rng import preserve_rng
from prunus.blocks.fewer import PassedOver, renamed, shallow_config
from prunus.blocks.gate import checked
from prunus.blocks.matrices import Matrix, listening
from prunus.blocks.recipe import BLOCK, EXPERT, HEAD, NEURON, BlockRecipe
from prunus.blocks.routed import Routed, listening_to
from prunus.blocks.solving import Heard, Solving, excluded
from prunus.blocks.source import Source
from prunus.blocks.surgeon import costs, damped, refit
from prunus.blocks.units import Cut, Kind, cut_of, kept_of, kinds_of, taken
from prunus.blocks.walk import Call, Passage, passed_stacks, stacks_of
from prunus.compaction.reopening import Settings, built, config_of, is_pretrained
from prunus.errors import InputError, RunError, first_line
from prunus.types import Kept

Counted = list[tuple[Kind, int]]
"""Kinds of units of a block, and how many of each go."""


@dataclass
class Sizes:
    """What goes out of each block, and the smaller model that this makes.

    Attributes:
        gone: by block.
        names: of the blocks that stay, what they are called in the smaller model.
        dropped: blocks that go as a whole.
        config: that says the sizes which are left; ``None``: there is none.
        why: there is none.
        fresh: a model of that configuration, its weights on the meta device.
    """

    gone: dict[str, Counted] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    dropped: Collection[str] = ()
    config: Any = None
    why: str = ""
    fresh: nn.Module | None = None


def structure_of(
    source: Source, how: BlockRecipe, calibration: Sequence[Any], dropped: Collection[str] = ()
) -> Sizes:
    """What a structure takes out of a model; nothing is changed, nor written.

    Args:
        source: has the model.
        how: the recipe.
        calibration: batches.
        dropped: blocks that go as a whole.

    Raises:
        InputError: as :func:`sizes_of`; if the calibration data do not pass the blocks.
    """
    with preserve_rng(), evaluating(source.model), torch.no_grad():
        stacks = stacks_of(source.model, how.blocks)
        passages = passed_stacks(source.model, stacks, calibration[:1], source.hold)[0]
        return sizes_of(source, how, passages, dropped)


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
    model, found, known = source.model, Sizes(dropped=dropped), {}
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
            kinds = [k for k in known[key] if k.part in how.parts]
            for kind in kinds:
                seen[kind.part] = max(seen[kind.part], kind.units)
            found.gone[name] = [(k, n) for k in kinds if (n := _count(k, how))]
    for part, most in seen.items():
        goes = any(k.part == part for gone in found.gone.values() for k, _ in gone)
        if not goes:
            raise InputError(
                f"structure: {part}: none of at most {most} in a block goes at "
                f"{how.parts[part]:g}" if most else
                f"structure: {part}: the blocks of {type(model).__name__} have none that can go "
                "(prunus units shows what pins each dimension)"
            )  # fmt: skip
    if EXPERT in how.parts and not is_pretrained(model):
        raise InputError("structure: expert: it is for models that a configuration describes")
    if is_pretrained(model):
        shallow: Any = model
        if dropped:
            config = shallow_config(model.config, passages[0].blocks, dropped)
            shallow = built(model, config)
        heads, others = numbers_of(shallow.config, found.gone.values())
        shapes = _shapes(shallow, found)
        for told in ({**others, **heads}, heads):
            found.config, found.why = config_of(shallow, shapes, told)
            if found.config is not None:
                break
        found.fresh = None if found.config is None else built(model, found.config)
        if found.fresh is None or not _tried(source, found, passages):
            found.why += "".join(f": {n[-1]} divides the width" for n in list(heads)[:1])
            found.config = found.fresh = None
    return found


def _tried(source: Source, found: Sizes, passages: Sequence[Passage]) -> bool:
    """Whether a block of each kind answers as it should, whichever units it loses."""
    assert found.fresh is not None
    seen: set[Any] = set()
    for passage in passages:
        for i, name in enumerate(passage.blocks):
            gone = [(kind, torch.arange(n)) for kind, n in found.gone.get(name, ())]
            key = tuple(id(kind) for kind, _ in gone)
            if not gone or key in seen:
                continue
            seen.add(key)
            with source.hold(name) as block:
                cut = cut_of(gone, dict(block.named_parameters()))
                try:
                    fresh = found.fresh.get_submodule(found.names[name])
                    checked(name, block, fresh, cut, passage.first[0], passage.calls[i][0])
                except Exception as error:  # of the block's code, on sizes that are not its own
                    found.why = first_line(error)
                    return False
    return True


def _kinds(block: nn.Module, x: Tensor, call: Call, spared: Collection[str]) -> list[Kind]:
    matrices: dict[Matrix, None] = {}
    with listening(block, lambda matrix, read: matrices.setdefault(matrix)):
        block(x, *call[0], **call[1])
    kinds = kinds_of(block, x, call, matrices, spared)
    if any(kind.router for kind in kinds):
        with listening_to(block, kinds):  # which refuses what it does not understand
            block(x, *call[0], **call[1])
    return kinds


def _alike(block: nn.Module, call: Call, spared: Collection[str]) -> Any:
    """What blocks share whose indices fall together in the same way."""
    shapes = tuple((n, tuple(t.shape)) for n, t in block.state_dict().items())
    called = tuple(tuple(t.shape) for t in tensors_of(call))
    return type(block), shapes, called, frozenset(spared)


def _count(kind: Kind, how: BlockRecipe) -> int:
    """How many units go; at least one stays."""
    multiple = how.multiple_of if kind.part == NEURON else 1
    stays = round(kind.units * (1 - how.parts[kind.part]) / multiple) * multiple
    return kind.units - min(kind.units, max(stays, multiple, kind.least))


def _shared(model: nn.Module) -> set[str]:
    """Parameters that have several names: what goes of one would go of all."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for own in names.values() if len(own) > 1 for name in own}


def _shapes(model: nn.Module, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's tensors without so many units, whichever these are."""
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for old, kinds in sizes.gone.items():
        block = sizes.names[old]
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
    kinds = {(kind.part, len(kind.members[-1][2]) if kind.router else kind.units, n, kind.units)
             for own in gone for kind, n in own}  # fmt: skip
    heads: Settings = {}
    others: Settings = {}
    for part, whole, count, units in kinds:
        for name, value in numbers.items():
            if part != HEAD:
                named = any(w in name for w in WORDS[part]) and not any(w in name for w in OTHERS)
                if named and value == whole:
                    others[(*outer, name)] = whole // units * (units - count)
            elif HEAD in name and "dim" not in name and "size" not in name and not value % units:
                heads[(*outer, name)] = value // units * (units - count)
    if sum(kind[0] == HEAD for kind in kinds) > 1:
        heads = {}
    if heads and getattr(text, "head_dim", None) is None:
        heads[(*outer, "head_dim")] = text.hidden_size // text.num_attention_heads
    return heads, others


class Structuring(Solving):
    """Takes whole units out of one block after the other.

    While the walk goes on they are zeros, and the matrices that read them are fitted anew; what is
    kept of a block is what is left without them.

    Attributes:
        sizes: what goes.
        kept: by block, the indices that stay of its tensors.
    """

    def __init__(self, model: nn.Module, how: BlockRecipe, sizes: Sizes, *, masks: bool) -> None:
        super().__init__(model, how, masks=masks)
        self.statistic = "hessian"
        self.sizes, self._model = sizes, model
        self.kept: dict[str, Kept] = {}
        self._cut = Cut({}, {}, [])
        self._routed: dict[int, Routed] = {}

    @contextmanager
    def hearing(self, block: nn.Module, statistic: str | None = None) -> Iterator[Heard]:
        """What the matrices that read units multiply."""
        heard = Heard(self.statistic if statistic is None else statistic)
        name = next((n for n in self.sizes.gone if self._model.get_submodule(n) is block), "")
        own = dict(block.named_parameters())
        readers: dict[Matrix, bool] = {}

        def hear(matrix: Matrix, read: Tensor) -> None:
            if matrix not in readers:
                readers[matrix] = any(
                    kind.columns(matrix, own) is not None
                    for kind, _ in self.sizes.gone.get(name, ())
                )
            if readers[matrix]:
                heard(matrix, read)

        if isinstance(block, PassedOver):
            block.gone = False  # until it goes, as what others lose is still there
        kinds = [kind for kind, _ in self.sizes.gone.get(name, ())]
        with listening(block, hear), listening_to(block, kinds) as self._routed:
            yield heard

    def solve(
        self, name: str, block: nn.Module, heard: Heard, rate: float | None
    ) -> dict[str, Tensor]:
        """Set units of a block to zero, and make it good in what reads them."""
        own = dict(block.named_parameters())
        if isinstance(block, PassedOver):
            block.gone = True
            self.weights[name] = self.zeros[name] = sum(p.numel() for p in own.values())
            self.kept[name] = {}
            return {}
        rows = dict(heard.rows)
        moments: dict[Matrix, Tensor] = {}
        for matrix in rows:
            try:
                moments[matrix] = damped(heard.of(matrix))
            except RunError as error:
                raise RunError(f"'{joined(name, matrix.name)}' {error}") from None
        gone = [
            (
                kind,
                self._routed[id(kind)].scores(kind.units).argsort(stable=True)[:count]
                if kind.part == EXPERT
                else _cheapest(kind, count, own, moments, rows),
            )
            for kind, count in self.sizes.gone.get(name, ())
        ]
        for matrix, hessian in moments.items():
            stays = torch.ones(matrix.shape[1], dtype=torch.bool)
            for kind, units in gone:
                columns = kind.columns(matrix, own)
                if columns is not None:
                    stays &= ~torch.isin(columns, units)
            place = matrix.of(own[matrix.name].detach())
            place.copy_(refit(place, hessian, stays.to(place.device)))
        self._cut = cut_of(gone, own)
        masks, kept = dict(self._cut.masks), self._cut.kept
        for inner, mask in masks.items():
            own[inner].data.masked_fill_(~mask.to(own[inner].device), 0)
        self.kept[name] = kept
        self.weights[name] = sum(p.numel() for p in own.values())
        self.zeros[name] = self.weights[name] - sum(
            taken(p.detach(), kept.get(n, ())).numel() for n, p in own.items()
        )
        if self._keep:
            self.masks.update({joined(name, inner): mask for inner, mask in masks.items()})
        return masks

    def small(self, name: str, block: nn.Module) -> nn.Module:
        """What computes as the smaller block does: where experts are gone, that one itself."""
        if not any(kind.router for kind, _ in self._cut.gone) or isinstance(block, PassedOver):
            return block
        assert self.sizes.fresh is not None
        made = copy.deepcopy(self.sizes.fresh.get_submodule(self.sizes.names[name]))
        kept = self.kept[name]
        state = {n: taken(t, kept.get(n, ())) for n, t in block.state_dict().items()}
        made.load_state_dict(state, assign=True)
        return made.train(block.training)

    def settled(self, name: str, block: nn.Module, x: Tensor, call: Call) -> Kept:
        """What stays of a block, after its smaller one has answered as it does, in float64.

        Raises:
            RunError: if it answers otherwise.
        """
        if self.sizes.fresh is not None and name in self.sizes.names:
            fresh = self.sizes.fresh.get_submodule(self.sizes.names[name])
            masked = replace(self._cut, masks={})  # which it is already
            self.gate = max(self.gate, checked(name, block, fresh, masked, x, call))
        return self.kept[name]


def _cheapest(
    kind: Kind,
    count: int,
    own: Mapping[str, Tensor],
    moments: Mapping[Matrix, Tensor],
    rows: Mapping[Matrix, int],
) -> Tensor:
    """The units that cost least, of all that reads them."""
    total = torch.zeros(kind.units, dtype=torch.float64)
    for matrix, hessian in moments.items():
        columns = kind.columns(matrix, own)
        if columns is not None:
            weight = matrix.of(own[matrix.name].detach())
            total += rows[matrix] * costs(weight, hessian, columns, kind.units).cpu()
    return total.argsort(stable=True)[:count]
