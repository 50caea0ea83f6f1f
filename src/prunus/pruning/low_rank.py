"""Few numbers that learn in place of many: W + BA, and zeros of W stay zeros."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

from prunus._common.given import given_model, refuse_inference
from prunus._common.kinds import given_number, kind_of
from prunus._common.modules import joined
from prunus._common.names import each_meant, plain_names
from prunus.errors import InputError
from prunus.pruning.masks import match_names
from prunus.types import Masks


class LowRank(nn.Module):
    """W + (B·A)·α/r, with B at first zero; where W has many zeros, on what is not zero alone.

    Args:
        weight: W, ``[out, in]``.
        rank: r.
        generator: of A.
        kept: where W may change, ``[out, in]``; by default where it is not zero, if many are.

    Source: Hu et al. 2022, arXiv:2106.09685; on survivors, Zhang et al. 2023, arXiv:2305.18403.

    >>> part = LowRank(torch.eye(2), 1, torch.Generator().manual_seed(0))
    >>> _ = part.b.data.fill_(1.0)
    >>> part(torch.eye(2)).count_nonzero().item()  # off the diagonal there are zeros
    2
    """

    def __init__(
        self, weight: Tensor, rank: int, generator: torch.Generator, kept: Tensor | None = None
    ) -> None:
        super().__init__()
        out, inputs = weight.shape
        drawn = torch.randn(rank, inputs, generator=generator) / math.sqrt(inputs)
        self.a = nn.Parameter(drawn.to(weight))
        self.b = nn.Parameter(weight.new_zeros(out, rank))
        self.register_buffer("stays", stays(weight) if kept is None else kept, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """W as it is now."""
        change = 2.0 * self.b @ self.a
        mask = self.get_buffer("stays") if self.stays is not None else None
        return weight + (change if mask is None else change * mask)


FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Types of weights that can be added to."""
MANY = 0.05
"""Zeros, as a part of a matrix, from which on they are no chance."""


def stays(weight: Tensor) -> Tensor | None:
    """What of a matrix with many zeros is not zero; ``None`` of one that is dense."""
    mask: Tensor = weight.detach() != 0
    return mask if 1 - mask.float().mean() > MANY else None


@contextmanager
def low_rank(
    model: nn.Module,
    rank: int = 8,
    *,
    include: str | Sequence[str] | None = None,
    masks: Masks | None = None,
    seed: int = 0,
) -> Iterator[list[nn.Parameter]]:
    """Let the linear layers of a pruned model learn by few numbers, in any loop.

    Inside, every ``nn.Linear`` computes with W + 2·B·A: A ``[rank, in]`` and B ``[out, rank]``
    learn, B from zero on, and all else stays as it is. Behind it their product is part of W, and
    the model is as it was built: no layer more, zeros where there were zeros. What raises inside
    leaves the weights as they were.

    Args:
        model: to be wrapped (DistributedDataParallel, torch.compile) inside, not before.
        rank: of B·A.
        include: patterns of layers or weights; by default all linear layers. Layers whose weight
            is used elsewhere too (a tied head) do not learn.
        masks: by parameter name, ``True`` where a weight may change; by default where it is not
            zero, in matrices of which more than 5 % are.
        seed: of A.

    Yields:
        The parameters that learn, for an optimizer.

    Raises:
        InputError: for a model that is wrapped, a pattern that names nothing, a mask that does not
            fit, or a model without such a layer.

    Source: Hu et al. 2022, arXiv:2106.09685; on survivors, Zhang et al. 2023, arXiv:2305.18403.

    >>> model = nn.Linear(3, 2)
    >>> with torch.no_grad():
    ...     model.weight[0], model.weight[1] = 0.0, 1.0
    >>> with low_rank(model, 1) as numbers:
    ...     optimizer = torch.optim.SGD(numbers, 0.1)
    ...     model(torch.ones(1, 3)).sum().backward()
    ...     optimizer.step()
    >>> (model.weight == 0).tolist(), (model.weight[1] == 1).tolist()
    ([[True, True, True], [False, False, False]], [False, False, False])
    """
    layers = _learners(model, include, rank=rank, seed=seed)
    kept = {} if masks is None else match_names(model, masks)
    learned = {id(p): (p, p.requires_grad) for p in model.parameters()}
    try:
        names = grow(model, layers, rank, seed, kept)
        own = dict(model.named_parameters())
        yield [own[name] for name in names]
    except BaseException:  # of the caller's loop, a stop too: the weights are as they were
        merge(model, layers, keep=False)
        raise
    else:
        merge(model, layers)
    finally:
        for parameter, wanted in learned.values():
            parameter.requires_grad_(wanted)


def _learners(
    model: nn.Module, include: str | Sequence[str] | None, *, rank: int, seed: int
) -> list[str]:
    """Names of the linear layers that are to learn."""
    given_model(model, "low_rank", values=True, code=True)
    refuse_inference(model, "low_rank")
    given_number(rank, "rank", least=1, whole=True)
    given_number(seed, "seed", least=0, whole=True)
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise InputError(
            "low_rank: the model is wrapped for several processes already: give the model itself, "
            "and wrap it inside the with block"
        )
    meant = None
    if include is not None:
        patterns = [include] if isinstance(include, str) else include
        if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
            raise InputError(f"include is {kind_of(include)}: give one or more patterns of names")
        found = each_meant(patterns, plain_names(model), "include: … matches no parameter")
        meant = {name for names in found.values() for name in names}
    used = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    linear = linear_layers(model)
    layers = [n for n in linear if used[id(model.get_submodule(n).weight)] == 1
              and (meant is None or joined(n, "weight") in meant)]  # fmt: skip
    if not layers:
        raise InputError(
            f"low_rank: {type(model).__name__} has no linear layer (nn.Linear) that can learn by a "
            "low rank: " + ("those that are meant are used elsewhere too, or are none" if linear
                            else "train all of its weights, under prunus.enforce")
        )  # fmt: skip
    return layers


def linear_layers(model: nn.Module) -> list[str]:
    """The names of layers that can learn by a low rank.

    >>> linear_layers(nn.Sequential(nn.Linear(1, 1), nn.ReLU()))
    ['0']
    """
    return [
        name for name, module in model.named_modules()
        if type(module) is nn.Linear and not parametrize.is_parametrized(module)
        and module.weight.dtype in FLOATS
    ]  # fmt: skip


def grow(
    model: nn.Module, layers: Collection[str], rank: int, seed: int, kept: Masks | None = None
) -> list[str]:
    """Let linear layers learn by a low rank; all else stays as it is.

    Args:
        model: its parameters want no gradients afterwards, those that learn apart.
        layers: names.
        rank: of what is added.
        seed: of A.
        kept: where weights may change, by parameter name.

    Returns:
        The parameters that learn, by name.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found = []
    for name in layers:
        module = model.get_submodule(name)
        mask = (kept or {}).get(joined(name, "weight"))
        weight = module.get_parameter("weight").detach()
        own = None if mask is None else mask.to(weight.device).expand(weight.shape)
        part = LowRank(weight, rank, generator, own)
        parametrize.register_parametrization(module, "weight", part)
        found += [joined(name, f"parametrizations.weight.0.{n}") for n in ("a", "b")]
    return found


def merge(model: nn.Module, layers: Collection[str] | None = None, *, keep: bool = True) -> None:
    """What was learned becomes part of the weights.

    Args:
        model: with layers that :func:`grow` let learn.
        layers: names of some; by default all.
        keep: otherwise the weights are again as they were.
    """
    for name, module in list(model.named_modules()):
        if not parametrize.is_parametrized(module, "weight") or name not in (layers or [name]):
            continue
        if isinstance(module.get_submodule("parametrizations.weight.0"), LowRank):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=keep)
            for key, parameter in sorted(module.named_parameters(recurse=False), reverse=True):
                delattr(module, key)  # the weight is the first again
                module.register_parameter(key, parameter)
