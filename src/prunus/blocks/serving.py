"""A language model at work: a text that it reads at once, then one token after the other."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.inputs import arguments
from prunus._common.modules import evaluating
from prunus._common.nested import map_tensors, tensors_of

CACHES = ("cache", "past_key_values", "cache_params")
"""What versions of transformers call the keys and values of what was read."""


@dataclass(frozen=True)
class Work:
    """What a model is asked: an example for it, or for a module that asks it.

    Attributes:
        model: that is called.
        example: its keyword arguments.
        tokens: that one call reads; 0: it reads something else.
    """

    model: nn.Module
    example: dict[str, Any]
    tokens: int


class OneToken(nn.Module):
    """A model that reads one token more, with what it keeps of those before.

    The cache is copied first, so that each call reads the same.

    Args:
        model: of transformers.
        cache: the name of its argument for what it keeps.
        ids: the name of its argument for the token.
    """

    def __init__(self, model: nn.Module, cache: str, ids: str) -> None:
        super().__init__()
        self.model, self.cache, self.ids = model, cache, ids

    def forward(self, token: Tensor, kept: Any, encoded: Tensor | None = None) -> list[Tensor]:
        """The logits ``[1, 1, words]``, and the cache with the token's own keys and values."""
        fresh = map_tensors(Tensor.clone, kept)
        more = {} if encoded is None else {"encoder_outputs": (encoded,)}
        answer = self.model(**{self.ids: token, self.cache: fresh}, use_cache=True, **more)
        return [answer.logits, *tensors_of(fresh)]


def reading(model: nn.Module, batch: Any, *, last: bool = True) -> Work:
    """A text read at once.

    Args:
        model: of transformers.
        batch: of which the first item is taken.
        last: whether it is to be continued: with a cache, and the logits of the last token alone.
    """
    example = first_of(batch)
    takes = inspect.signature(model.forward).parameters
    if last and "logits_to_keep" in takes:
        example["logits_to_keep"] = 1
    if "use_cache" in takes:
        example["use_cache"] = last
    ids = next(t for t in tensors_of(example))
    return Work(model, example, 0 if ids.is_floating_point() else ids.shape[-1])


def writing(model: nn.Module, batch: Any) -> Work | None:
    """One token after a text; ``None`` for models that keep nothing of what they have read.

    Args:
        model: of transformers; it reads the text once, on whatever device it is.
        batch: of which the first item is the text.
    """
    takes = inspect.signature(model.forward).parameters
    name = next((n for n in CACHES if n in takes), None)
    if name is None or "use_cache" not in takes:
        return None
    example = first_of(batch)
    with torch.no_grad(), evaluating(model):
        answer = model(**example, use_cache=True)
    kept = next((v for v in answer.values() if "Cache" in type(v).__name__), None)
    if kept is None or not tensors_of(kept):
        return None
    coded = getattr(model.config, "is_encoder_decoder", False)
    ids = "decoder_input_ids" if coded else "input_ids"
    given: dict[str, Any] = {"token": example[ids][:, -1:], "kept": kept}
    if coded:
        given["encoded"] = answer.encoder_last_hidden_state
    return Work(OneToken(model, name, ids), given, 1)


def first_of(batch: Any) -> dict[str, Any]:
    """The first item of a batch that is given by keyword, or is token ids.

    >>> first_of({"input_ids": torch.tensor([[1, 2], [3, 4]])})
    {'input_ids': tensor([[1, 2]])}
    """
    args, kwargs = arguments(batch)
    named = {**dict(zip(("input_ids",), args, strict=False)), **kwargs}
    made: dict[str, Any] = map_tensors(lambda t: t[:1], named)
    return {n: v for n, v in made.items() if n != "labels"}
