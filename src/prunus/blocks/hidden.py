"""A narrower stream: which tensors have its width, and what makes up for what norms count.

With d of D channels left, a norm that divides by √(Σx²/d + ε) gives what it gave of the masked
stream, y = x / √(Σx²/D + ε)·g, if what is written into the stream is multiplied by s = √(d/D), and
g by 1/s. The configuration's ε, which other norms use too, stays as it is. Where code multiplies by
a power of the width itself (Gemma's embedding, T5's head), or a norm stands behind a layer, another
power of s is right: it is found by trying, in float64, before anything is changed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunus.blocks.units import taken
from prunus.compaction.reopening import built
from prunus.compaction.slicing.configs import HIDDEN as WORDS
from prunus.compaction.verifying.verify import wide
from prunus.errors import InputError, first_line


@dataclass(frozen=True)
class Power:
    """What a tensor is multiplied by: s to a power.

    Attributes:
        power: of s = √(d/D).
        shift: what the code adds to the tensor first: 1 where a norm multiplies by 1 + w.
    """

    power: int = 0
    shift: float = 0.0

    def of(self, tensor: Tensor, s: float) -> Tensor:
        """The tensor for the narrower stream.

        >>> Power(1, 1.0).of(torch.tensor([1.0]), 0.5)
        tensor([0.])
        """
        if not self.power:
            return tensor
        exact = (wide(tensor) + self.shift) * s**self.power - self.shift
        made: Tensor = exact.to(tensor.dtype)
        return made


@dataclass
class Narrow:
    """A model whose stream has lost channels.

    Attributes:
        width: D.
        config: that says d.
        fresh: a model of it, its weights on the meta device.
        places: the dimension of each tensor that the stream runs along.
        powers: of each tensor.
        kept: channels that stay, ``[d]``.
        names: of the blocks, which stay what they are.
        turn: an orthogonal matrix Q, ``[D, D]``, by which the stream is turned first, x → x·Q.
        folded: of tensors that read the stream, the norm whose scale goes into them before.
        norms: those norms' scales; what they become is one.
    """

    width: int
    config: Any
    fresh: Any
    places: dict[str, tuple[int, ...]]
    kept: Tensor
    powers: dict[str, Power] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    turn: Tensor | None = None
    folded: dict[str, str] = field(default_factory=dict)
    norms: dict[str, Power] = field(default_factory=dict)

    @property
    def s(self) -> float:
        """√(d/D)."""
        return math.sqrt(len(self.kept) / self.width)

    def indices(self, name: str) -> tuple[Tensor | None, ...]:
        """What stays of a tensor."""
        dims = self.places.get(name, ())
        return tuple(self.kept if d in dims else None for d in range(max(dims, default=-1) + 1))

    def of(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the narrower model."""
        power = self.powers.get(name, Power())
        return power.of(taken(tensor, self.indices(name)), self.s)

    def exactly(self, name: str, tensor: Tensor) -> Tensor:
        """The same without rounding: in float64 where it is multiplied by something."""
        power = self.powers.get(name, Power())
        cut = taken(tensor, self.indices(name))
        return power.of(wide(cut), self.s) if power.power else cut

    def turned(self, name: str, tensor: Tensor, scales: Mapping[str, Tensor]) -> Tensor:
        """A tensor of the model whose stream is turned.

        Args:
            name: of the tensor.
            tensor: of the model before.
            scales: of norms, before.
        """
        if self.turn is None or name not in self.places:
            return tensor
        if name in self.norms:
            return torch.full_like(tensor, 1 - self.norms[name].shift)
        exact: Tensor = wide(tensor)
        for d in self.places[name]:
            rows = exact.movedim(d, -1)
            if name in self.folded:
                norm = self.folded[name]
                rows = rows * (wide(scales[norm]) + self.norms[norm].shift).to(rows.device)
            exact = (rows @ self.turn.to(rows)).movedim(-1, d)
        return exact.to(tensor.dtype)

    def masked(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor with zeros in place of channels that go."""
        if name not in self.places:
            return tensor
        return tensor * self.mask_of(name, tensor).to(tensor)

    def mask_of(self, name: str, tensor: Tensor) -> Tensor:
        """Which numbers of a tensor stay, broadcastable to it."""
        made = torch.ones([1] * tensor.dim(), dtype=torch.bool)
        for d in self.places[name]:
            shape = [-1 if i == d else 1 for i in range(tensor.dim())]
            made = made & self.mask().view(shape)
        return made

    def mask(self) -> Tensor:
        """Which channels stay, bool ``[D]``."""
        found = torch.zeros(self.width, dtype=torch.bool)
        found[self.kept] = True
        return found


def configured(model: Any, part: float, multiple: int) -> Narrow:
    """A configuration of fewer channels, and the dimensions that it makes narrower."""
    text = model.config.get_text_config()
    width = int(model.get_input_embeddings().weight.shape[-1])
    words = [n for n in (*WORDS, "word_embed_proj_dim") if getattr(text, n, None) == width]
    if not words:
        raise InputError(f"structure: hidden: no number in the configuration says {width}")
    heads = getattr(text, "num_attention_heads", None) or 1
    why = ""
    for left in _widths(width, part, multiple, heads):
        outer = () if text is model.config else _path_to(model.config, text)
        settings = {(*outer, word): left for word in words}
        if hasattr(text, "num_attention_heads") and getattr(text, "head_dim", None) is None:
            settings[(*outer, "head_dim")] = width // heads
        config, why = _with(model, settings)
        if config is None:
            continue
        fresh = built(model, config)
        places, why = _places(model, fresh, width, left)
        if not why:
            return Narrow(width, config, fresh, places, torch.arange(left))
    raise InputError(f"structure: hidden: no config.json says so many channels ({why})")


def _widths(width: int, part: float, multiple: int, heads: int) -> Iterator[int]:
    """How many channels may stay: as asked, or the nearest number that heads divide."""
    for step in dict.fromkeys((multiple, math.lcm(multiple, heads))):
        left = round(width * (1 - part) / step) * step
        if 0 < left < width:
            yield left


def _path_to(config: Any, text: Any) -> tuple[str, ...]:
    return tuple(n for n, v in vars(config).items() if v is text)[:1]


def _with(model: Any, settings: Mapping[tuple[str, ...], int]) -> tuple[Any, str]:
    made = copy.deepcopy(model.config)
    try:
        for (*path, last), value in settings.items():
            holder = made
            for key in path:
                holder = getattr(holder, key)
            setattr(holder, last, value)
        made = type(made).from_dict(made.to_dict())
        built(model, made)
    except Exception as error:  # of the library's checks of a configuration
        return None, first_line(error)
    return made, ""


def _places(
    model: nn.Module, fresh: nn.Module, width: int, left: int
) -> tuple[dict[str, tuple[int, ...]], str]:
    """The dimensions that became narrower; or why others became so too."""
    dense, small = model.state_dict(), fresh.state_dict()
    if dense.keys() != small.keys():
        return {}, "it makes other tensors"
    places = {}
    for name, tensor in dense.items():
        pairs = list(zip(tensor.shape, small[name].shape, strict=True))
        dims = tuple(d for d, (before, after) in enumerate(pairs) if before != after)
        if any(pairs[d] != (width, left) for d in dims):
            return {}, f"'{name}' would be {list(small[name].shape)}, which is tied to the width"
        if dims:
            places[name] = dims
    buffers = dict(fresh.named_buffers())
    for name, buffer in model.named_buffers():
        if buffer.shape != buffers[name].shape and name not in places:
            return {}, f"'{name}' is tied to the width"
    return places, ""


def last(tensor: Tensor, kept: Tensor) -> tuple[Tensor | None, ...]:
    """Indices of a tensor's last dimension alone."""
    return (*(None,) * (tensor.dim() - 1), kept)


def shift_of(block: nn.Module, name: str) -> float:
    """What a norm adds to its scale, by what it gives where the scale is nothing."""
    path, _, key = name.rpartition(".")
    module: Any = block.get_submodule(path)
    twin = copy.deepcopy(module).to("cpu")
    setattr(twin, key, nn.Parameter(torch.zeros(getattr(module, key).shape), requires_grad=False))
    return float(bool(twin(torch.ones(1, getattr(module, key).numel())).abs().max() > 0))


def difference(before: Tensor, after: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    far = float((before - after).abs().max())
    return far / max(float(before.abs().max()), 1e-300) if math.isfinite(far) else math.inf
