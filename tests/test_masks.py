"""Removed weights stay zero, whatever trains; what cannot be masked is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune
from torch.optim.swa_utils import AveragedModel

import prunus
from prunus._common import kernels as native
from prunus.errors import InputError, RunError
from prunus.progressive.engine import PruningEngine
from prunus.pruning.masks import check
from prunus.pruning.scope import find_layers

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "sgd foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
}


def model_of_two() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def half(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(p.shape, generator=generator) > 0.5
        for name, p in model.named_parameters()
        if p.dim() > 1
    }


def step(model: nn.Module, optimizer: torch.optim.Optimizer, times: int = 1) -> None:
    dtype = next(model.parameters()).dtype
    for i in range(times):
        optimizer.zero_grad()
        torch.manual_seed(i)
        model(torch.randn(3, 6, dtype=dtype)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_removed_weights_stay_zero_after_momentum_was_gathered(
    name: str, dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr("prunus.pruning.zeroing.keeper", lambda weight, mask: None)
    model = model_of_two().to(dtype)
    optimizer = OPTIMIZERS[name](model.parameters())
    step(model, optimizer, 3)
    masks = half(model)
    prunus.enforce(model, masks, optimizer)
    for _ in range(5):
        step(model, optimizer)
        for key, mask in masks.items():
            assert bool((model.get_parameter(key)[~mask] == 0).all())
            assert bool((model.get_parameter(key)[mask] != 0).any())


@pytest.mark.skipif(not native.available(), reason="no compiled kernel for this processor")
@pytest.mark.parametrize(
    "shape", [(1,), (7,), (16,), (33,), (5, 7), (3, 1), (8, 4, 3, 3), (1000, 17)]
)
@pytest.mark.parametrize("last", [False, True])
def test_the_compiled_kernel_zeroes_the_same_as_torch(shape: tuple[int, ...], last: bool) -> None:
    values = torch.randn(shape)
    if last and len(shape) == 4:
        values = values.to(memory_format=torch.channels_last)
    mask = torch.rand(shape) > 0.5
    values[~mask] = torch.nan
    expected = values.masked_fill(~mask, 0)
    other = values.t().clone().t() if values.dim() == 2 else values.clone()
    zero = native.keeper(values, mask)
    assert zero is not None
    zero(values)
    zero(other)  # laid out in another way, perhaps
    assert torch.equal(values, expected)
    assert torch.equal(other, expected)
    assert not bool(torch.signbit(values[~mask]).any())


def test_clipping_sees_the_gradients_of_the_survivors_alone() -> None:
    model = model_of_two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks = half(model)
    prunus.enforce(model, masks, optimizer)
    twin = copy.deepcopy(model)
    inputs = torch.randn(3, 6)
    for one in (model, twin):
        one.zero_grad()
        one(inputs).square().sum().backward()
    expected = torch.stack([
        (p.grad * masks[n] if n in masks else p.grad).norm()  # type: ignore[operator, union-attr]
        for n, p in twin.named_parameters()
    ]).norm()  # fmt: skip
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    assert torch.allclose(norm, expected)
    assert norm < torch.nn.utils.clip_grad_norm_(twin.parameters(), 1e9)


def test_gradient_accumulation_masks_every_part() -> None:
    model = model_of_two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks = half(model)
    prunus.enforce(model, masks, optimizer)
    for _ in range(3):
        model(torch.randn(3, 6)).square().sum().backward()
        for key, mask in masks.items():
            assert bool((model.get_parameter(key).grad[~mask] == 0).all())  # type: ignore[index]


def test_nan_in_a_removed_weight_becomes_zero_without_a_sign() -> None:
    model = model_of_two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks = half(model)
    prunus.enforce(model, masks, optimizer)
    with torch.no_grad():
        model[0].weight[~masks["0.weight"]] = torch.nan  # type: ignore[union-attr, operator, index]
    optimizer.step()
    gone = model[0].weight[~masks["0.weight"]]  # type: ignore[index]
    assert bool((gone == 0).all())
    assert not bool(torch.signbit(gone).any())


def test_lbfgs_is_refused_by_name() -> None:
    model = model_of_two()
    with pytest.raises(InputError, match="LBFGS"):
        prunus.enforce(model, half(model), torch.optim.LBFGS(model.parameters()))


def test_an_optimizer_of_another_model_is_refused() -> None:
    model = model_of_two()
    other = torch.optim.SGD(model_of_two().parameters(), lr=0.1)
    with pytest.raises(InputError, match=r"0\.weight"):
        prunus.enforce(model, half(model), other)


def test_an_optimizer_inside_a_wrapper_is_found() -> None:
    class Wrapper:
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            self.optimizer = inner

    model = model_of_two()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    prunus.enforce(model, half(model), Wrapper(Wrapper(inner)))  # type: ignore[arg-type]
    step(model, inner)
    assert float((model[0].weight == 0).float().mean()) > 0.2  # type: ignore[union-attr, operator]


def test_an_average_of_the_weights_is_masked_with_them() -> None:
    model = model_of_two()
    average = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks = half(model)
    prunus.enforce(model, masks, optimizer, copies=[average])
    for _ in range(3):
        step(model, optimizer)
        average.update_parameters(model)
    optimizer.step()
    assert bool((average.module[0].weight[~masks["0.weight"]] == 0).all())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_with_the_prefixes_of_wrappers_are_understood(prefix: str) -> None:
    model = model_of_two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks = {prefix + name: mask for name, mask in half(model).items()}
    prunus.enforce(model, masks, optimizer)
    step(model, optimizer)
    assert bool((model[0].weight[~half(model)["0.weight"]] == 0).all())  # type: ignore[index]


def test_scope_patterns_match_names_without_prefixes() -> None:
    model = nn.DataParallel(model_of_two())
    layers = find_layers(model, include=["0"])
    assert [la.name for la in layers] == ["module.0.weight"]


def test_a_mask_that_fits_nothing_is_refused() -> None:
    model = model_of_two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="nothing"):
        prunus.enforce(model, {"nothing": torch.ones(2, dtype=torch.bool)}, optimizer)
    with pytest.raises(InputError, match="4, 4"):
        prunus.enforce(model, {"0.weight": torch.ones(4, 4, dtype=torch.bool)}, optimizer)


def test_hooks_are_public_and_leave_no_trace() -> None:
    model = model_of_two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keys, before = list(model.state_dict()), dict(vars(model[0]))
    methods = (model.forward, optimizer.step, optimizer.zero_grad)
    stop = prunus.enforce(model, half(model), optimizer)
    assert list(model.state_dict()) == keys
    assert vars(model[0]).keys() == before.keys()
    assert (model.forward, optimizer.step, optimizer.zero_grad) == methods
    stop()
    assert not optimizer._optimizer_step_post_hooks
    step(model, optimizer)
    assert bool((model[2].weight[~half(model)["2.weight"]] != 0).any())  # type: ignore[index]


def test_a_write_outside_the_optimizer_is_noticed() -> None:
    model = model_of_two()
    masks = half(model)
    with pytest.raises(RunError, match=r"0\.weight"):
        check(model, masks)


def test_masks_of_torch_prune_are_taken_as_they_are() -> None:
    model = model_of_two()
    torch_prune.l1_unstructured(model[0], "weight", amount=0.5)  # type: ignore[arg-type]
    gone = ~model[0].weight_mask.bool()  # type: ignore[union-attr, operator]
    result = prunus.prune(model, {"target": 0.6})
    assert bool((~result.masks["0.weight_orig"][gone]).all())
    assert result.sparsity == round(0.6 * 40) / 40
    assert float((model[0].weight == 0).float().mean()) >= 0.5  # type: ignore[union-attr, operator]


def test_zeros_that_are_there_count_as_removed() -> None:
    model = model_of_two()
    with torch.no_grad():
        model[0].weight[:2] = 0  # type: ignore[union-attr, operator, index]
    pruner = PruningEngine(model, {"target": 0.5, "criterion": "random"})
    assert pruner.sparsity == 12 / 40
    pruner.cut(1.0)
    assert pruner.sparsity == 0.5
    assert bool((~pruner.masks["0.weight"][:2]).all())


def test_a_tensor_of_zeros_alone_is_fresh_and_not_pruned() -> None:
    model = model_of_two()
    nn.init.zeros_(model[2].weight)  # type: ignore[arg-type, union-attr]
    assert prunus.Pruner(model, {"target": 0.5}).sparsity == 0


def with_lora() -> nn.Module:
    model = model_of_two()
    model[0].lora_A = nn.Linear(6, 1, bias=False)  # type: ignore[union-attr]
    return model


class Params4bit(nn.Parameter):
    """As bitsandbytes names its own."""


def with_four_bits() -> nn.Module:
    model = model_of_two()
    model[0].weight = Params4bit(model[0].weight.detach())  # type: ignore[union-attr]
    return model


def with_old_weight_norm() -> nn.Module:
    model = model_of_two()
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(model[0])  # type: ignore[arg-type]
    return model


def with_integers() -> nn.Module:
    model = model_of_two()
    model[0].weight = nn.Parameter(torch.ones(5, 6, dtype=torch.int8), requires_grad=False)  # type: ignore[union-attr]
    return model


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: parametrized(parametrizations.weight_norm), "remove_parametrizations"),
        (lambda: parametrized(parametrizations.spectral_norm), "remove_parametrizations"),
        (with_old_weight_norm, "remove_weight_norm"),
        (with_lora, "merge_and_unload"),
        (with_four_bits, "Params4bit"),
        (with_integers, "int8"),
    ],
)
def test_weights_that_cannot_be_masked_are_refused_with_what_to_do(
    make: Callable[[], nn.Module], says: str
) -> None:
    model = make()
    with pytest.raises(InputError, match=says) as error:
        prunus.prune(model, {"target": 0.5})
    assert "'0" in str(error.value)
    assert "scope.exclude" in str(error.value)


def parametrized(method: Callable[[nn.Module], nn.Module]) -> nn.Module:
    model = model_of_two()
    method(model[0])  # type: ignore[arg-type]
    return model


def test_a_parametrized_layer_can_be_left_out() -> None:
    model = parametrized(parametrizations.weight_norm)
    result = prunus.prune(model, {"target": 0.5, "scope": {"exclude": ["0.*"]}})
    assert list(result.masks) == ["2.weight"]
    assert parametrize.is_parametrized(model[0])  # type: ignore[arg-type]
