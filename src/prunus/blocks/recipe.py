"""What a walk over blocks is asked for, and what it did."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from torch import nn

from prunus._common.kinds import kind_of
from prunus._common.tables import Table
from prunus.compaction.files.pretrained import is_folder
from prunus.errors import InputError
from prunus.methods.solvers import Pattern
from prunus.methods.traits import trait
from prunus.recipe.load import explain
from prunus.recipe.parts import Frozen
from prunus.recipe.specs import Spec
from prunus.types import Masks

if TYPE_CHECKING:
    from prunus.blocks.evaluate import Comparison

PARTS = NEURON, HEAD, EXPERT, BLOCK, HIDDEN = ("neuron", "head", "expert", "block", "hidden")
"""What a structure takes out of a model; the order in which it does."""
DEPTHS = SINGLE, SPAN, BEST = ("single", "span", "best")
"""Blocks that go: one after the other, next to each other, or what has the lower loss of both."""


def _short(value: Any) -> Any:
    if isinstance(value, tuple):
        return value
    if value in PARTS if isinstance(value, str) else isinstance(value, Mapping):
        return _parts({value: None} if isinstance(value, str) else value)
    found = re.fullmatch(r"None|weight|(\d+):(\d+)", str(value))
    if found and found.lastindex is None:
        return None
    if not found or not 0 < int(found[1]) < int(found[2]):
        raise ValueError(
            "it is weight, n:m with 0 < n < m such as 2:4, one of "
            f"{', '.join(PARTS)}, or a rate for each of these: {{neuron: 0.25, head: 0.25}}"
        )
    return int(found[1]), int(found[2])


def _parts(given: Mapping[Any, Any]) -> dict[str, float | None]:
    if not given or set(given) - set(PARTS):
        raise ValueError(f"rates are for {', '.join(PARTS)}, not for {', '.join(map(str, given))}")
    for part, rate in given.items():
        real = isinstance(rate, (int, float)) and not isinstance(rate, bool)
        if rate is not None and not (real and 0 < rate < 1):
            raise ValueError(f"{part}: {rate!r:.40} is no part between 0 and 1")
    return {str(part): None if rate is None else float(rate) for part, rate in given.items()}


class BlockGuard(Frozen):
    """What a walk may cost; what costs more is put back, and tried again at half the rate.

    Attributes:
        max_error: the most that ‖f(x) − g(x)‖² ÷ ‖f(x)‖² of a block may be, on held-out data.
        max_loss: by how much the loss on held-out data may grow in all (nats for a token). A part
            of the walk may use what its share of the removed weights is of this; blocks that go
            as a whole come first. Channels (``hidden``) are judged by the walk as a whole, which is
            made again with half of them.
        every: blocks between two looks at the loss.
    """

    max_error: Annotated[float, Field(gt=0)] | None = None
    max_loss: Annotated[float, Field(gt=0)] | None = None
    every: Annotated[int, Field(ge=1)] = 4


class BlockRecipe(Frozen):
    """What :func:`prune_blocks` is asked for.

    Attributes:
        target: the part of the weights of the blocks' matrices that goes; n:m sets it itself.
        structure: ``weight``, or ``2:4`` and its like: n of every m inputs stay. Or what is taken
            out as a whole, and how much of it in every block: ``{neuron: 0.25, head: 0.25}``, or
            a name alone, of which the target goes: the model becomes smaller.
        multiple_of: neurons that stay in a block, or channels, are a multiple of this.
        rotate: whether ``hidden`` turns the stream to its principal directions first, and takes out
            the last ones; for models with RMS norms before their layers, and a head of its own.
        depth: which blocks go as a whole: ``single``, one after the other, each by the loss without
            it; ``span``, those next to each other that are missed least; or ``best`` of both.
        solver: how: ``magnitude``, ``wanda``, ``ria``, ``sparsegpt`` or ``alps``, with settings.
        rates: how much of each block: ``uniform``, ``progression``, ``owl`` or ``measured``.
        repair: steps of gradient descent behind each block, toward what the dense model has there:
            ``{steps: 100}``; by default none. ``apart: true`` brings attention and
            MLP nearer each by itself; ``fit: true`` fits what reads and writes a narrower stream by
            least squares before.
        recover: of folders, steps of learning from the dense model when the walk is through:
            ``{steps: 200, rate: 0.0001, lora: 16}``.
        guard: what it may cost; needs held-out data.
        blocks: the name of the list of blocks; by default the one with most parameters, and
            others that have a tenth of those.
        exclude: patterns of matrices that stay whole; so does a block that has one of them.
        seed: of noise in the model, and of the windows of text.
        text: how text becomes batches: ``{windows: 128, length: 512, held: 16, clean: []}``.
    """

    target: Annotated[float, Field(gt=0, lt=1)] = 0.5
    structure: Annotated[
        tuple[int, int] | dict[str, float | None] | None, BeforeValidator(_short)
    ] = None
    multiple_of: Annotated[int, Field(ge=1)] = 1
    rotate: bool = False
    depth: Literal["single", "span", "best"] = "single"
    solver: Spec = Spec(name="sparsegpt")
    rates: Spec = Spec(name="uniform")
    repair: BlockRepair | None = None
    recover: BlockRecovery | None = None
    guard: BlockGuard | None = None
    blocks: str | None = None
    exclude: list[str] = Field(default_factory=list)
    seed: int = 0
    text: BlockText = Field(default_factory=lambda: BlockText())

    def pattern(self, rate: float) -> Pattern:
        """How much of a matrix stays in a block of this rate."""
        return Pattern(rate, self.n_of_m)

    @property
    def asked(self) -> float:
        """The part that goes; of several kinds of units the largest one, others in proportion."""
        inside = [rate for part, rate in self.parts.items() if part != BLOCK]
        if inside:
            return max(inside)
        return self.target if self.n_of_m is None else 1 - self.n_of_m[0] / self.n_of_m[1]

    @property
    def uneven(self) -> bool:
        """Whether blocks may lose more or fewer units than others."""
        flat = trait("block_rates", self.rates.name, "FLAT")
        inside = set(self.parts) - {BLOCK, HIDDEN}
        return bool(inside) and (self.guard is not None or not flat)

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """Inputs that stay of every m, if that is the structure."""
        return self.structure if isinstance(self.structure, tuple) else None

    @property
    def parts(self) -> dict[str, float]:
        """How much of what is taken out as a whole; empty: weights become zero."""
        given = self.structure if isinstance(self.structure, dict) else {}
        return {p: self.target if given[p] is None else float(given[p] or 0)
                for p in PARTS if p in given}  # fmt: skip


class BlockRepair(Frozen):
    """Gradient steps behind each block, which leave it no farther from the dense one.

    Of four calibration batches or more one in eight, at least one, is not learned from: it says
    after which steps the block was nearest, and none are taken back if that was before the first.

    Attributes:
        steps: of Adam, one calibration batch each.
        rate: at its highest; it rises in the first eighth of the steps and falls linearly to zero.
            By default, of each tensor, 0.005 of the root mean square of what stays of it.
        apart: whether, in place of the block as a whole, each of its own submodules that lost
            weights (attention, MLP) learns what the dense one gives, one after the other, in that
            many steps each (Wagner et al. 2025, arXiv:2510.14444).
        fit: of ``hidden``, whether matrices are first fitted by least squares to what the dense
            block's give of the dense stream.
    """

    steps: Annotated[int, Field(ge=0)] = 100
    rate: Annotated[float, Field(gt=0)] | None = None
    apart: bool = False
    fit: bool = False


class BlockRecovery(Frozen):
    """What a smaller model learns from the dense one.

    Attributes:
        steps: of AdamW.
        rate: of learning, at its highest; it falls linearly to zero.
        batch: windows of text a step.
        lora: the rank of what learns beside each linear layer; by default all weights of the blocks
            learn.
        top: words at each place that are compared, where there are many.
        every: steps after which the state is kept.
    """

    steps: Annotated[int, Field(ge=1)] = 200
    rate: Annotated[float, Field(gt=0)] = 1e-4
    batch: Annotated[int, Field(ge=1)] = 4
    lora: Annotated[int, Field(ge=1)] | None = None
    top: Annotated[int, Field(ge=1)] = 64
    every: Annotated[int, Field(ge=1)] = 20


class BlockText(Frozen):
    """How text becomes batches.

    Attributes:
        source: the file or folder that chooses, where the command names none; in a recipe's file
            it is relative to that.
        windows: of the calibration text, at random places.
        length: of a window, in tokens, with the beginning of a sequence in front.
        held: windows that judge, one after the other: of the text that is given for it, or else of
            the last tenth of the calibration text, of which nothing is chosen then.
        clean: what is taken out of texts first.
    """

    source: str | None = None
    windows: Annotated[int, Field(ge=1)] = 128
    length: Annotated[int, Field(ge=2)] = 512
    held: Annotated[int, Field(ge=0)] = 16
    clean: list[str] = Field(default_factory=list)


BlockRecipe.model_rebuild()


def block_recipe(given: Mapping[str, Any] | BlockRecipe) -> BlockRecipe:
    """A recipe of plain values, checked.

    Raises:
        InputError: for what cannot be, every key at once.
    """
    if isinstance(given, BlockRecipe):
        return given
    if not isinstance(given, Mapping):
        raise InputError(
            f"the recipe is {kind_of(given)}: give a mapping, such as {{'target': 0.5}}"
        )
    try:
        made = BlockRecipe.model_validate(given)
    except ValidationError as error:
        raise InputError("recipe:\n" + "\n".join(explain(error, BlockRecipe))) from None
    if made.n_of_m is not None and not trait("block_rates", made.rates.name, "FLAT"):
        n, m = made.n_of_m
        raise InputError(f"rates: {made.rates.name} needs structure: weight; {n}:{m} is every "
                         "block's rate")  # fmt: skip
    if made.parts and "solver" in made.model_fields_set:
        raise InputError(
            f"solver: it is for zeros; structure {', '.join(made.parts)} goes by what least "
            "squares cannot make good"
        )
    if HIDDEN in made.parts and len(made.parts) > 1:
        raise InputError(
            "structure: hidden: channels go through the whole model, and others inside of its "
            "blocks: take them out in a walk of their own, of the folder or model that one gives"
        )
    if HIDDEN in made.parts and not trait("block_rates", made.rates.name, "FLAT"):
        raise InputError(
            f"rates: it changes how much of each block goes, and structure: {HIDDEN} has one "
            "number for all"
        )
    if EXPERT in made.parts and made.repair is not None:
        raise InputError("repair: not with structure: expert, whose router chooses others then")
    if made.repair is not None and made.repair.fit and HIDDEN not in made.parts:
        raise InputError(
            "repair: fit: it is for structure: hidden; what reads neurons and heads is fitted as "
            "they go"
        )
    if made.repair is not None and not (made.repair.steps or made.repair.fit):
        raise InputError("repair: steps: 0 repairs nothing: give 1 or more, or leave repair out")
    if made.repair is not None and made.repair.apart and not made.repair.steps:
        raise InputError("repair: apart: it is for gradient steps: give steps: 1 or more")
    if set(made.parts) == {BLOCK} and not trait("block_rates", made.rates.name, "FLAT"):
        raise InputError(
            f"rates: {made.rates.name} is how much of each block goes, and structure: block takes "
            "them whole: leave it out, or take neurons or heads out as well"
        )
    if made.rotate and HIDDEN not in made.parts:
        raise InputError("rotate: it is for structure: hidden")
    if "depth" in made.model_fields_set and BLOCK not in made.parts:
        raise InputError("depth: it is for structure: block")
    if "multiple_of" in made.model_fields_set and not {NEURON, HIDDEN} & set(made.parts):
        raise InputError("multiple_of: it is for structure: neuron and hidden")
    return made


@dataclass(frozen=True)
class BlockResult:
    """What :func:`prune_blocks` did.

    Attributes:
        masks: by parameter name, True = kept: :func:`prunus.enforce` holds them in training. Of a
            folder, which is not in memory, there are none: what is zero in it went.
        errors: of each block by name, ‖f(x) − g(x)‖² ÷ ‖f(x)‖² for what it gave and gives now, on
            what the blocks before it leave of the held-out data, or of the calibration data where
            there are none.
        rates: the part of each block's weights that went.
        sparsity: zeros ÷ weights of the matrices that were pruned.
        loss: next-token loss on the held-out data, before and after, where the model gives one.
        seconds: of processor time.
        stayed: matrices that stay whole, and why.
        folder: what was written.
        comparison: of a folder, with the dense model, on the held-out text.
        costs: of a folder, what ``dense`` and ``small`` cost: parameters, bytes, macs.
        model: the smaller one, where units were taken out of one at hand; the one that was given
            keeps its shapes, with zeros in their place.
        gate: the largest difference between a smaller block and the masked one, in float64,
            relative to the largest output; ``None`` for zeros.
    """

    masks: Masks
    errors: Mapping[str, float]
    rates: Mapping[str, float]
    sparsity: float
    seconds: float
    loss: tuple[float, float] | None = None
    stayed: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    comparison: Comparison | None = None
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    model: nn.Module | None = field(default=None, repr=False)
    gate: float | None = None

    def table(self) -> Table:
        """A row for each block."""
        rows = [(n, f"{self.rates[n]:.3f}", f"{e:.4g}") for n, e in self.errors.items()]
        return Table(("block", "went", "error"), rows)

    def __repr__(self) -> str:
        end = f"<BlockResult: sparsity {self.sparsity:.4f} in {self.seconds:.1f} s"
        if self.loss is not None:
            end += f", loss {self.loss[0]:.4f} -> {self.loss[1]:.4f}"
        after = "prunus.enforce(model, result.masks, optimizer)"
        if self.model is not None:
            after = "result.model"
        if self.folder is not None:
            after = f"AutoModelForCausalLM.from_pretrained('{self.folder}')"
            if is_folder(self.folder):
                after = f"prunus.load('{self.folder}')"
        return f"{end}\n{self.table()}\nnext: {after}>"
