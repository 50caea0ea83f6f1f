"""Uses of the models of transformers: their masks, caches and other arguments, and generate."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zoo.inputs import Call, calling, reflected

Named = tuple[str, Call, bool]
"""A name, what is asked of the model, and whether in train mode."""


def arguments_of(model: nn.Module, example: Any) -> Iterator[Named]:
    """What can be given beside the example, by the model's signature."""
    takes = inspect.signature(model.forward).parameters
    ids = example.get("input_ids") if isinstance(example, dict) else None
    if not isinstance(ids, Tensor):
        return
    base = {k: v for k, v in reflected(example).items() if k != "attention_mask"}
    if "attention_mask" in takes:
        for side in ("left", "right", "no"):
            mask = torch.ones_like(ids)
            if side != "no":
                mask[0, slice(0, 3) if side == "left" else slice(-3, None)] = 0
            padded = {**base, "attention_mask": mask}
            yield f"{side} padding", calling(padded), False
            yield f"{side} padding, train mode", calling(padded), True
    if "return_dict" in takes or "kwargs" in takes:
        yield "return_dict=False", calling({**base, "return_dict": False}), False
    if "labels" in takes:
        yield "labels", _labelled(base), True
    if "inputs_embeds" in takes:
        yield "embeddings for ids", _embedded(base), False
    if "use_cache" in takes:
        yield "use_cache=True", calling({**base, "use_cache": True}), False
        yield "use_cache=False", calling({**base, "use_cache": False}), False
    if "position_ids" in takes:
        places = torch.arange(ids.shape[1]).expand_as(ids) + 2
        yield "position_ids", calling({**base, "position_ids": places}), False
    if "past_key_values" in takes and "decoder_input_ids" not in takes:
        yield "a cache, token by token", _step_by_step(base["input_ids"]), False
    if hasattr(model, "generate") and getattr(model, "can_generate", bool)():
        for cache in (True, False):
            for padded in (True, False):
                how = ("with" if cache else "without") + " a cache" + ", padded" * padded
                yield f"generate {how}", _generated(base, cache=cache, padded=padded), False


def _labelled(base: dict[str, Any]) -> Call:
    def call(model: Any, typed: Any) -> Any:
        labels = base["input_ids" if "decoder_input_ids" not in base else "decoder_input_ids"]
        return model(**typed(base), labels=labels.clone())

    return call


def _embedded(base: dict[str, Any]) -> Call:
    def call(model: Any, typed: Any) -> Any:
        rest = {k: v for k, v in base.items() if k != "input_ids"}
        return model(inputs_embeds=model.get_input_embeddings()(base["input_ids"]), **typed(rest))

    return call


def _step_by_step(ids: Tensor) -> Call:
    def call(model: Any, typed: Any) -> Any:
        first = model(input_ids=ids[:, :-2], use_cache=True)
        second = model(input_ids=ids[:, -2:], past_key_values=first.past_key_values, use_cache=True)
        return [first[0], second[0]]

    return call


def _generated(base: dict[str, Any], *, cache: bool, padded: bool) -> Call:
    def call(model: Any, typed: Any) -> Any:
        given = {k: v for k, v in typed(base).items() if not k.startswith("decoder_")}
        if padded:
            given["attention_mask"] = torch.ones_like(given["input_ids"])
            given["attention_mask"][0, :3] = 0
        found = model.generate(
            **given,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            num_beams=1,
            use_cache=cache,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return [found.sequences, *found.logits]

    return call
