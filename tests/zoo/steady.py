"""Models that can be compared: no chance, and no value that hides an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.errors import InputError


def lively(model: nn.Module) -> nn.Module:
    """Values as training leaves them: biases, scales and statistics are not zero or one, weights
    are large enough for attention to look at something, and nothing is dropped by chance."""
    chance = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                _widen(parameter)
            else:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=chance))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.2 * torch.randn(buffer.shape, generator=chance))
            if name.endswith("running_var"):
                buffer.mul_(0.5 + torch.rand(buffer.shape, generator=chance))
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if _chance(name) and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, (nn.modules.dropout._DropoutNd, nn.RReLU)):
            module.p = 0.0
        for name, value in list(vars(getattr(module, "config", None) or object).items()):
            if _chance(name) and isinstance(value, float):
                setattr(module.config, name, 0.0)
    return model


def _widen(parameter: Tensor) -> None:
    """The small start of transformers (0.02), to that of a layer of this width."""
    spread, fan = float(parameter.std()), max(parameter[0].numel(), 1)
    if 0 < spread < 0.5 * fan**-0.5:
        parameter.mul_(0.8 * fan**-0.5 / spread)


def _chance(name: str) -> bool:
    words = ("dropout", "drop_path", "drop_prob", "layerdrop", "drop_rate", "mask_time_prob")
    return any(word in name for word in words)


class Steady(TorchDispatchMode):
    """Noise is a constant, so that a smaller model meets the same."""

    def __init__(self, *, on: bool) -> None:
        super().__init__()
        self.on = on

    def __enter__(self) -> Any:
        return super().__enter__() if self.on else self

    def __exit__(self, *error: Any) -> None:
        if self.on:
            super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.name().split("::")[-1].split(".")[0]
        if name in _NOISE and isinstance(found, Tensor):
            found.fill_(0.25 if found.is_floating_point() else 1)
        return found


_NOISE = {"rand", "randn", "rand_like", "randn_like", "bernoulli", "bernoulli_", "normal_",
          "normal", "uniform_", "uniform", "exponential_", "randint"}  # fmt: skip


def outcome_of(
    expected: list[Tensor], call: Callable[[], list[Tensor]], tolerance: float
) -> tuple[str, str]:
    """The kind of an outcome, and what to know about it."""
    try:
        found = call()
    except InputError as error:
        return "refused", str(error)
    except Exception as error:  # whatever a smaller model dies of is what is looked for
        cause: BaseException | None = error
        while cause is not None:  # an exporter says it in its own words
            if isinstance(cause, InputError):
                return "refused", str(cause)
            cause = cause.__cause__
        return "crash", f"{type(error).__name__}: {error}"[:300]
    if len(found) < len(expected):
        return "wrong", f"{len(found)} tensors instead of {len(expected)}"
    for want, got in zip(expected, found, strict=False):
        if want.shape != got.shape:
            return "wrong", f"shape {tuple(got.shape)} instead of {tuple(want.shape)}"
        gap = _gap(want, got)
        if not gap <= tolerance:
            return "wrong", f"off by {gap:.2g} of the largest value"
    return "equal", ""


def _gap(want: Tensor, got: Tensor) -> float:
    """The largest difference, relative to the largest value; where both are no number: none."""
    if want.numel() == 0:
        return 0.0
    if want.is_complex():
        want, got = torch.view_as_real(want), torch.view_as_real(got)
    want, got = want.double(), got.double()
    same = (want == got) | (want.isnan() & got.isnan())
    finite = want[want.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 1.0
    gap = float(torch.where(same, torch.zeros_like(want), (want - got).abs()).max())
    return gap / max(scale, 1e-30)
