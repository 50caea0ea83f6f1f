"""Uniform random numbers that depend on the seed and the parameter's name alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from prunus._common.names import plain_name
from prunus.methods.signals import SignalContext

SAMPLES = True


def noise(context: SignalContext) -> Mapping[str, Tensor]:
    """Uniform in [0, 1); the same on every rank and however often it is asked for."""
    return _Noise(context)


class _Noise(Mapping[str, Tensor]):
    def __init__(self, context: SignalContext) -> None:
        self._context = context

    def __getitem__(self, name: str) -> Tensor:
        digest = hashlib.sha256(f"{self._context.seed} {plain_name(name)}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        like = self._context.parameters[name]
        return torch.rand(like.shape, generator=generator).to(like.device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._context.parameters)

    def __len__(self) -> int:
        return len(self._context.parameters)
