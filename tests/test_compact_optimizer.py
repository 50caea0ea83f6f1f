"""A model that shrinks in the middle of its training goes on as it would have under masks."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from helpers import needs
from prunus.compaction.slicing.parameters import Indices, refuse_optimizer, shrink
from prunus.errors import InputError, RunError
from prunus.pruning.enforce import enforce

OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.01}),
    "sgd momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.01}),
    "adam amsgrad": (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01}),
    "adamw amsgrad": (torch.optim.AdamW, {"lr": 0.01, "amsgrad": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.05, "initial_accumulator_value": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.005}),
    "rmsprop centered": (torch.optim.RMSprop, {"lr": 0.005, "centered": True, "momentum": 0.9}),
    "nadam": (torch.optim.NAdam, {"lr": 0.01}),
    "radam": (torch.optim.RAdam, {"lr": 0.01}),
    "adamax": (torch.optim.Adamax, {"lr": 0.01}),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0}),
    "asgd": (torch.optim.ASGD, {"lr": 0.1}),
    "rprop": (torch.optim.Rprop, {"lr": 0.001}),
}
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
WAYS = {
    "plain": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
CASES = [
    (name, way)
    for name, (kind, _) in OPTIMIZERS.items()
    for way in WAYS
    if way != "fused" or issubclass(kind, FUSED)
]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}

FIRST = torch.tensor([0, 2, 3, 6, 7])  # channels of the first convolution that stay, of 8
SECOND = torch.tensor([1, 2, 5])  # of the second, of 6
KEPT: dict[str, Indices] = {
    "first.weight": (FIRST, None, None, None),
    "norm.weight": (FIRST,),
    "norm.bias": (FIRST,),
    "norm.running_mean": (FIRST,),
    "norm.running_var": (FIRST,),
    "second.weight": (SECOND, FIRST, None, None),
    "second.bias": (SECOND,),
    "last.weight": (None, SECOND),
}


class Small(nn.Module):
    """Two convolutions and a classifier; no size is written down in ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 6, 3)
        self.last = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:  # [batch, 3, height, width] -> [batch, 4]
        hidden = F.relu(self.norm(self.first(images)))
        logits: Tensor = self.last(F.relu(self.second(hidden)).mean((2, 3)))
        return logits


def small(dtype: torch.dtype = torch.float32) -> Small:
    torch.manual_seed(0)
    return Small().to(dtype)


def build(model: nn.Module, name: str, way: str = "plain") -> Optimizer:
    kind, settings = OPTIMIZERS[name]
    return kind(model.parameters(), **settings, **WAYS[way])  # type: ignore[arg-type]


def train(model: nn.Module, optimizer: Optimizer, steps: range, scheduler: Any = None) -> Tensor:
    """Train on data that depend on the number of the step alone; the last loss, still alive."""
    dtype = next(model.parameters()).dtype
    for number in steps:
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(8, 3, 8, 8, generator=generator).to(dtype)
        labels = torch.randint(4, (8,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return loss


def kept_part(name: str, tensor: Tensor) -> Tensor:
    for dim, index in enumerate(KEPT.get(name, ())):
        if index is not None:
            tensor = tensor.index_select(dim, index)
    return tensor


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    masks = {}
    for name, parameter in model.named_parameters():
        if name in KEPT:
            mask = torch.ones((1,) * parameter.dim(), dtype=torch.bool)
            for dim, index in enumerate(KEPT[name]):
                if index is not None:
                    shape = [-1 if d == dim else 1 for d in range(parameter.dim())]
                    stays = torch.isin(torch.arange(parameter.shape[dim]), index)
                    mask = mask & stays.view(shape)
            masks[name] = mask
    return masks


def everything(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """What a failure must leave alone: values, identities, gradients, state."""
    return {
        "tensors": {k: (id(v), v.detach().clone()) for k, v in model.named_parameters()},
        "buffers": {k: (id(v), v.clone()) for k, v in model.named_buffers()},
        "grads": {k: copied(v.grad) for k, v in model.named_parameters()},
        "state": copied(optimizer.state),
    }


def copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return {k: copied(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("name", "way"), CASES)
def test_training_goes_on_as_under_masks(name: str, way: str, dtype: torch.dtype) -> None:
    masked = small(dtype)
    optimizer = build(masked, name, way)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    train(masked, optimizer, range(5), scheduler)  # removed weights gather momentum
    stop = enforce(masked, masks_of(masked), optimizer)
    train(masked, optimizer, range(5, 10), scheduler)
    stop()
    shrunk, twin, schedule = copy.deepcopy((masked, optimizer, scheduler))

    shrink(shrunk, twin, KEPT)
    train(shrunk, twin, range(10, 30), schedule)
    enforce(masked, masks_of(masked), optimizer)
    train(masked, optimizer, range(10, 30), scheduler)

    assert schedule.get_last_lr() == scheduler.get_last_lr()
    expected = {k: kept_part(k, v) for k, v in masked.state_dict().items()}
    for key, value in shrunk.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=TOLERANCE[dtype])
    old = {k: kept_part(k, v) for k, v in small(dtype).state_dict().items()}
    assert all(not torch.equal(old[k], v) for k, v in shrunk.state_dict().items())


def test_a_weight_and_its_state_are_cut_along_two_dimensions() -> None:
    model = nn.Linear(3, 3, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
    model.weight.data = torch.arange(9.0).reshape(3, 3)
    optimizer.state[model.weight]["momentum_buffer"] = torch.arange(9.0).reshape(3, 3) * 10
    shrink(model, optimizer, {"weight": (torch.tensor([0, 2]), torch.tensor([1, 2]))})
    assert model.weight.tolist() == [[1, 2], [7, 8]]
    assert optimizer.state[model.weight]["momentum_buffer"].tolist() == [[10, 20], [70, 80]]
    model.weight.grad = torch.ones(2, 2)
    optimizer.step()  # w - (m / 2 + 1)
    assert model.weight.tolist() == [[-5, -9], [-29, -33]]


def test_parameters_stay_the_same_objects_and_gradients_of_cut_ones_are_dropped() -> None:
    model = small()
    optimizer = build(model, "adam")
    train(model, optimizer, range(2))
    parameters, grad = list(model.parameters()), model.last.bias.grad
    steps = [optimizer.state[p]["step"] for p in parameters]
    shrink(model, optimizer, KEPT)
    assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
    assert all(p is q for p, q in zip(parameters, optimizer.param_groups[0]["params"], strict=True))
    assert all(optimizer.state[p]["step"] is s for p, s in zip(parameters, steps, strict=True))
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["last.bias"]
    assert model.last.bias.grad is grad


def test_state_of_parameters_that_are_not_cut_is_not_touched() -> None:
    model = small()
    optimizer = build(model, "adam")
    train(model, optimizer, range(2))
    before = dict(optimizer.state[model.last.bias])
    bias, address = model.last.bias, model.last.bias.data_ptr()
    shrink(model, optimizer, {**KEPT, "last.bias": (None,)})
    assert optimizer.state[bias].keys() == before.keys()
    assert all(optimizer.state[bias][key] is value for key, value in before.items())
    assert model.last.bias.data_ptr() == address


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_hooks_still_fire_while_a_loss_of_an_earlier_step_is_alive(dtype: torch.dtype) -> None:
    model = small(dtype)
    optimizer = build(model, "adam")
    seen: list[tuple[str, tuple[int, ...]]] = []

    def on_gradient(grad: Tensor) -> None:
        seen.append(("gradient", tuple(grad.shape)))

    def on_accumulated(parameter: Tensor) -> None:
        assert parameter.grad is not None
        seen.append(("accumulated", tuple(parameter.grad.shape)))

    model.second.weight.register_hook(on_gradient)
    model.second.weight.register_post_accumulate_grad_hook(on_accumulated)
    alive = train(model, optimizer, range(1))
    shrink(model, optimizer, KEPT)
    train(model, optimizer, range(1, 2))
    assert alive.grad_fn is not None
    assert seen[2:] == [("gradient", (3, 5, 3, 3)), ("accumulated", (3, 5, 3, 3))]


def test_old_values_are_freed() -> None:
    model = small()
    optimizer = build(model, "adam")
    train(model, optimizer, range(2))
    old = weakref.ref(optimizer.state[model.second.weight]["exp_avg"])
    shrink(model, optimizer, KEPT)
    assert old() is None
    for tensor in (model.second.weight, *optimizer.state[model.second.weight].values()):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("way", WAYS)
def test_an_optimizer_that_took_no_step_yet_goes_on(way: str) -> None:
    model = small()
    optimizer = build(model, "adam", way)
    shrink(model, optimizer, KEPT)
    train(model, optimizer, range(2))
    state = optimizer.state[model.second.weight]
    assert state["exp_avg"].shape == model.second.weight.shape == (3, 5, 3, 3)


def test_without_an_optimizer_the_model_alone_is_cut() -> None:
    model = small()
    before = model.state_dict()
    shrink(model, None, KEPT)
    for key, value in model.state_dict().items():
        assert torch.equal(value, kept_part(key, before[key]))


def test_an_optimizer_may_hold_parameters_of_other_models() -> None:
    model, other = small(), nn.Linear(2, 2)
    optimizer = torch.optim.Adam([{"params": other.parameters()}, {"params": model.parameters()}])
    other(torch.ones(1, 2)).sum().backward()
    train(model, optimizer, range(2))
    before = copy.deepcopy([optimizer.state[p] for p in other.parameters()])
    shrink(model, optimizer, KEPT)
    assert same([optimizer.state[p] for p in other.parameters()], before)
    train(model, optimizer, range(2, 4))
    assert optimizer.state[model.last.weight]["exp_avg"].shape == (4, 3)


def test_frozen_parameters_are_cut_too() -> None:
    model = small()
    model.first.requires_grad_(False)
    optimizer = build(model, "sgd momentum")
    train(model, optimizer, range(2))
    expected = model.first.weight[FIRST]
    shrink(model, optimizer, KEPT)
    assert torch.equal(model.first.weight, expected)
    assert not model.first.weight.requires_grad
    train(model, optimizer, range(2, 4))
    assert torch.equal(model.first.weight, expected)


@pytest.mark.parametrize("names", [["0.weight"], ["1.weight"], ["0.weight", "1.weight"]])
def test_a_tied_parameter_is_cut_once(names: list[str]) -> None:
    model: Any = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.arange(5)).sum().backward()
    optimizer.step()
    index = torch.tensor([1, 3])
    expected = model[0].weight[:, index]
    shrink(model, optimizer, {name: (None, index.clone()) for name in names})
    assert model[0].weight is model[1].weight
    assert torch.equal(model[0].weight, expected)
    assert optimizer.state[model[0].weight]["exp_avg"].shape == (5, 2)


def test_a_tied_parameter_with_different_indices_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    index = torch.tensor([1, 3])
    with pytest.raises(InputError, match=r"'0\.weight' and '1\.weight' are one tensor"):
        shrink(model, None, {"0.weight": (None, index), "1.weight": (index, None)})
    assert model[0].weight.shape == (5, 4)


def test_a_shared_buffer_is_replaced_wherever_it_stands() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[1].running_mean = model[0].running_mean
    shrink(model, None, {"0.running_mean": (torch.tensor([0, 2]),)})
    assert model[0].running_mean is model[1].running_mean
    assert model[0].running_mean.shape == (2,)
    assert model[1].running_var.shape == (3,)


def test_the_memory_format_is_preserved() -> None:
    model: Any = small()
    model.to(memory_format=torch.channels_last)
    optimizer = build(model, "adam")
    train(model, optimizer, range(2))
    expected = kept_part("second.weight", model.second.weight)
    shrink(model, optimizer, KEPT)
    assert torch.equal(model.second.weight, expected)
    for tensor in (model.second.weight, optimizer.state[model.second.weight]["exp_avg"]):
        assert tensor.stride() == (45, 1, 15, 5)
    turned = nn.Linear(4, 3, bias=False)
    turned.weight.data = turned.weight.data.t().contiguous().t()  # stored column by column
    shrink(turned, None, {"weight": (None, torch.tensor([0, 1]))})
    assert turned.weight.stride() == (1, 3)


class Outer:
    """A wrapper as training libraries have them."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer


class Delegating(Optimizer):
    """A wrapper that is an optimizer itself and shows the state of the one inside."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.state = optimizer.state
        self.param_groups = optimizer.param_groups


class SlowWeights(Delegating):
    """A wrapper with state of its own."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        parameters = optimizer.param_groups[0]["params"]
        self.state = {p: {"slow": p.detach().clone()} for p in parameters}  # type: ignore[assignment]


@pytest.mark.parametrize("wrapper", [Outer, Delegating, SlowWeights, lambda o: Outer(Outer(o))])
def test_wrappers_are_looked_through(wrapper: Callable[[Optimizer], Any]) -> None:
    model = small()
    inner = build(model, "adam")
    train(model, inner, range(2))
    wrapped = wrapper(inner)
    shrink(model, wrapped, KEPT)
    assert inner.state[model.second.weight]["exp_avg"].shape == (3, 5, 3, 3)
    if isinstance(wrapped, SlowWeights):
        assert wrapped.state[model.second.weight]["slow"].shape == (3, 5, 3, 3)
    train(model, inner, range(2, 4))


class Preconditioned(torch.optim.SGD):
    """An optimizer with a matrix per dimension of a parameter, under a name nobody knows."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["sides"] = [torch.eye(size) for size in p.shape]


def muon(parameters: Any) -> Optimizer:
    needs("Muon")
    return torch.optim.Muon(parameters)


class Renamed(torch.optim.Adafactor):
    """A subclass under another name is refused as well."""


@pytest.mark.parametrize("step", [False, True])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("Adafactor", torch.optim.Adafactor),
        ("Renamed", Renamed),
        ("Muon", muon),
        ("LBFGS", torch.optim.LBFGS),
        ("Preconditioned", Preconditioned),
        ("Adafactor", lambda p: Outer(torch.optim.Adafactor(p))),
        ("Adafactor", lambda p: Delegating(torch.optim.Adafactor(p))),
    ],
)
def test_optimizers_whose_state_cannot_be_sliced_are_refused_by_name(
    name: str, make: Callable[..., Any], step: bool
) -> None:
    model = nn.Linear(3, 2, bias=False)
    optimizer = make(model.parameters())

    def closure() -> Tensor:
        loss: Tensor = model(torch.ones(1, 3)).sum()
        loss.backward()
        return loss

    if step:
        closure()
        getattr(optimizer, "optimizer", optimizer).step(closure)
    with pytest.raises(InputError, match=rf"^{name} can.*use SGD"):
        refuse_optimizer(optimizer)
    with pytest.raises(InputError, match=rf"^{name} can.*use SGD"):
        shrink(model, optimizer, {"weight": (None, torch.tensor([0]))})
    assert model.weight.shape == (2, 3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_that_treat_each_weight_by_itself_are_not_refused(name: str) -> None:
    model = small()
    optimizer = build(model, name)
    refuse_optimizer(optimizer)
    train(model, optimizer, range(1))
    refuse_optimizer(optimizer)


@pytest.mark.parametrize("place", ["second.weight", "a key that is no parameter"])
@pytest.mark.parametrize("state", [torch.ones(2), [torch.ones(3)], {"deep": (torch.ones(3), 1)}])
def test_state_of_another_shape_is_named(place: str, state: object) -> None:
    model = small()
    optimizer = build(model, "sgd momentum")
    train(model, optimizer, range(1))
    owner: Any = model.second.weight if place == "second.weight" else place
    optimizer.state[owner]["odd"] = state
    before = everything(model, optimizer) if owner is not place else None
    where = rf"'odd' of '{place}'" if owner is not place else "'odd'"
    with pytest.raises(InputError, match=rf"^SGD .*{where} in its state has the shape \([23],\)"):
        shrink(model, optimizer, KEPT)
    assert model.first.weight.shape == (8, 3, 3, 3)
    assert before is None or same(everything(model, optimizer), before)


def test_scalars_and_what_is_no_tensor_stay_in_the_state() -> None:
    model = small()
    optimizer = build(model, "sgd momentum")
    extra = {"step": 3, "count": torch.tensor(4), "one": torch.ones(1), "no": None, "k": ["a"]}
    optimizer.state[model.second.weight].update(extra)
    shrink(model, optimizer, KEPT)
    state = optimizer.state[model.second.weight]
    assert all(state[key] is value for key, value in extra.items())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"secnd.weight": (SECOND,)}, r"no parameter or buffer 'secnd\.weight'.*second\.weight"),
    ({"second.bias": (SECOND, None)}, r"'second\.bias' has 1 dim.* are for 2.*one entry per dim"),
    ({"second.bias": (torch.tensor([0, 6]),)}, r"dimension 0 of 'second\.bias' run.* 0 to 5"),
    ({"last.weight": (None, torch.tensor([-1, 2]))}, r"dimension 1 of 'last\.weight' run from -1"),
    ({"second.bias": (torch.tensor([2, 1]),)}, r"second\.bias' must be ascending"),
    ({"second.bias": (torch.tensor([1, 1]),)}, r"second\.bias' must be ascending, each index once"),
    ({"second.bias": (SECOND[:0],)}, r"second\.bias' are empty: at least one"),
    ({"second.bias": (torch.ones(6, dtype=torch.bool),)}, r"second\.bias' must be an int64 vector"),
    ({"second.bias": (SECOND[None],)}, r"must be an int64 vector, not .* of shape \(1, 3\)"),
    ({"norm.running_var": (torch.tensor([8]),)}, r"'norm\.running_var' run from 8 to 8"),
]


@pytest.mark.parametrize(("wrong", "match"), WRONG)
def test_indices_that_do_not_fit_change_nothing(wrong: dict[str, Any], match: str) -> None:
    model = small()
    optimizer = build(model, "adam")
    train(model, optimizer, range(2))
    before = everything(model, optimizer)
    with pytest.raises(InputError, match=match):
        shrink(model, optimizer, {**KEPT, **wrong})
    assert same(everything(model, optimizer), before)


class Whole(Tensor):
    """A tensor that cannot be sliced, as quantized state may be."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.index_select:
            raise NotImplementedError("no slices of this")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_failure_while_slicing_the_last_state_changes_nothing() -> None:
    model = small()
    optimizer = build(model, "adam")
    train(model, optimizer, range(2))
    state = optimizer.state[model.last.weight]
    state["exp_avg_sq"] = state["exp_avg_sq"].as_subclass(Whole)
    before = everything(model, optimizer)
    with pytest.raises(RunError, match=r"'exp_avg_sq' of 'last\.weight' cannot be sliced.*no slic"):
        shrink(model, optimizer, KEPT)
    assert same(everything(model, optimizer), before)


def test_a_model_without_shapes_yet_is_refused() -> None:
    with pytest.raises(InputError, match="'weight' has no shape yet: run the model once"):
        shrink(nn.LazyLinear(2), None, {"weight": (SECOND, None)})


@pytest.fixture
def process_group() -> Iterator[None]:
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_wrapped_for_data_parallelism_a_model_is_refused() -> None:
    model = nn.parallel.DistributedDataParallel(nn.Linear(3, 2))
    with pytest.raises(InputError, match="shrink its module, then wrap it again"):
        shrink(model, None, {"module.weight": (None, torch.tensor([0]))})
    shrink(model.module, None, {"weight": (None, torch.tensor([0]))})
    again = nn.parallel.DistributedDataParallel(model.module)
    again(torch.ones(1, 1)).sum().backward()
    assert model.module.weight.grad.shape == (2, 1)


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:DTensor random operators may not:UserWarning")  # torch 2.6
def test_sharded_parameters_are_refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    model = nn.Linear(3, 2)
    mesh = init_device_mesh("cpu", (1,))
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh))
    with pytest.raises(InputError, match="'weight' is sparse or sharded: pass the full"):
        shrink(model, None, {"weight": (None, torch.tensor([0]))})
