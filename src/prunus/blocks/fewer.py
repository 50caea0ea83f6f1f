"""What a model, its configuration and its names are with fewer blocks."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

_BY_LAYER = "layer"
"""In names of lists of a configuration that have an entry for each block."""


class PassedOver(nn.Module):
    """Stands where a block was, and gives what it reads.

    Args:
        block: which answers while this is not ``gone``.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.gone = block, True

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return x if self.gone else self.block(x, *args, **kwargs)


def shallow_config(config: Any, blocks: Sequence[str], gone: Collection[str]) -> Any:
    """A configuration of fewer blocks: their number, and lists with an entry for each.

    Args:
        config: of transformers.
        blocks: names of all.
        gone: of those that go.
    """
    made = copy.deepcopy(config)
    text = made.get_text_config()
    stay = [i for i, name in enumerate(blocks) if name not in gone]
    lists = {
        key: type(value)(value[i] for i in stay)
        for key, value in vars(text).items()
        if isinstance(value, (list, tuple)) and len(value) == len(blocks) and _BY_LAYER in key
    }
    text.num_hidden_layers = len(stay)
    for key, value in lists.items():
        setattr(text, key, value)
    return type(made).from_dict(made.to_dict())


def renamed(blocks: Sequence[str], gone: Collection[str]) -> dict[str, str]:
    """What blocks that stay are called then.

    >>> renamed(["h.0", "h.1", "h.2"], ["h.1"])
    {'h.0': 'h.0', 'h.2': 'h.1'}
    """
    return dict(zip([name for name in blocks if name not in gone], blocks, strict=False))
