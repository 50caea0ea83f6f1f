"""Whatever wraps a model, its masks, patterns and files fit the plain one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import prunus
from prunus._common.names import matched, plain_names
from prunus.blocks.recipe import BlockRecipe
from prunus.blocks.solving import excluded
from prunus.blocks.walk import stacks_of
from prunus.errors import InputError
from prunus.methods.repairs.reconstruct import blocks_of as repaired_blocks
from prunus.methods.structures.layer import layer
from prunus.methods.structures.subset import subset
from prunus.methods.structures.weight import weight
from prunus.progressive.hidden import hidden_modules, hidden_states
from prunus.pruning.caps import find_caps
from prunus.pruning.scope import find_layers


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
        self.head = nn.Linear(16, 2)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x)) * self.scale
        return out


class Sharded(nn.Module):
    """As FSDP calls what it wraps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._fsdp_wrapped_module(*args, **kwargs)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def part_compiled(model: Net) -> Net:
    model.encoder = torch.compile(model.encoder, backend="eager")  # type: ignore[assignment]
    return model


def part_checkpointed(model: Net) -> Net:
    model.encoder[0] = checkpoint_wrapper(model.encoder[0])
    return model


WRAPS: dict[str, Callable[[Any], nn.Module]] = {
    "plain": lambda m: m,
    "compiled": lambda m: torch.compile(m, backend="eager"),  # type: ignore[return-value]
    "data parallel": nn.DataParallel,
    "both": lambda m: nn.DataParallel(torch.compile(m, backend="eager")),  # type: ignore[arg-type]
    "an average": AveragedModel,
    "sharded": Sharded,
    "a part compiled": part_compiled,
    "a part checkpointed": part_checkpointed,
}
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def as_sparse_as(model: nn.Module) -> list[int]:
    return [int((p == 0).sum()) for p in model.parameters() if p.dim() > 1]


@pytest.mark.parametrize("load_into", WRAPS)
@pytest.mark.parametrize("wrap", WRAPS)
def test_any_wrapped_model_opens_the_file_of_any_other(
    wrap: str, load_into: str, tmp_path: Path
) -> None:
    given = net()
    wrapped = WRAPS[wrap](given)
    prunus.prune(wrapped, {"target": 0.5})
    file = prunus.save(wrapped, tmp_path / "model.safetensors", sparse=True)
    fresh = WRAPS[load_into](Net())
    assert prunus.load(file, model=fresh) is fresh
    assert torch.equal(fresh(X), wrapped.eval()(X))
    assert as_sparse_as(fresh) == as_sparse_as(wrapped)


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_file_has_the_names_of_the_plain_model(wrap: str, tmp_path: Path) -> None:
    file = prunus.save(WRAPS[wrap](net()), tmp_path / "model.safetensors")
    names = set(safetensors.torch.load_file(file))
    assert names - {"n_averaged"} == set(Net().state_dict())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_files_that_were_written_with_prefixes_open(prefix: str, tmp_path: Path) -> None:
    model = net()
    file = prunus.save(model, tmp_path / "new.safetensors")
    with safetensors.safe_open(file, "pt") as opened:
        kept = opened.metadata()
    tensors = {prefix + k: v for k, v in safetensors.torch.load_file(file).items()}
    old = tmp_path / "old.safetensors"
    safetensors.torch.save_file(tensors, old, kept)
    for wrap in WRAPS.values():
        assert torch.equal(prunus.load(old, model=wrap(Net()))(X), model.eval()(X))


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_smaller_model_is_saved_without_its_wrapper(wrap: str, tmp_path: Path) -> None:
    wrapped = WRAPS[wrap](net())
    masks = prunus.prune(wrapped, {"target": 0.5, "structure": "channel"}, example=X).masks
    plain = net()
    small = prunus.compact(plain, masks, X).model
    file = prunus.save(small, tmp_path / "small.safetensors")
    opened = WRAPS[wrap](Net())
    prunus.load(file, model=opened)
    assert torch.allclose(opened(X), small.eval()(X))
    assert sum(p.numel() for p in opened.parameters()) < sum(p.numel() for p in Net().parameters())


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("encoder", ["encoder.0.weight", "encoder.2.weight"]),
        ("encoder.*", ["encoder.0.weight", "encoder.2.weight"]),
        ("encoder.0", ["encoder.0.weight"]),
        ("encoder.0.weight", ["encoder.0.weight"]),
        ("module.encoder.0", ["encoder.0.weight"]),
        ("_orig_mod.encoder", ["encoder.0.weight", "encoder.2.weight"]),
        ("*.0", ["encoder.0.weight"]),
        ("?ead", ["head.weight"]),
        ("*", ["encoder.0.weight", "encoder.2.weight", "head.weight"]),
    ],
)
def test_a_pattern_means_the_same_however_a_model_is_wrapped(
    wrap: str, pattern: str, found: list[str]
) -> None:
    model = WRAPS[wrap](net())
    names = plain_names(model)
    assert [names[la.name] for la in find_layers(model, include=[pattern])] == found
    if len(found) < 3:
        left = {names[la.name] for la in find_layers(model, exclude=[pattern])}
        assert left == {"encoder.0.weight", "encoder.2.weight", "head.weight"} - set(found)


def by_scope(model: nn.Module, pattern: str) -> list[str]:
    return [la.name for la in find_layers(model, include=[pattern])]


def by_exclusion(model: nn.Module, pattern: str) -> list[str]:
    left = {la.name for la in find_layers(model, ["*"], [pattern])}
    return [name for name in by_scope(model, "*") if name not in left]


def by_target(model: nn.Module, pattern: str) -> list[str]:
    recipe = prunus.Recipe.load({"target": {"layers": {pattern: 0.5}}})
    return _capped(model, recipe, lambda cap: cap.least == 0.5)


def by_limit(model: nn.Module, pattern: str) -> list[str]:
    recipe = prunus.Recipe.load({"target": 0.1, "limits": {pattern: {"most": 0.5}}})
    return _capped(model, recipe, lambda cap: cap.most == 0.5)


def _capped(model: nn.Module, recipe: prunus.Recipe, asked: Callable[[Any], bool]) -> list[str]:
    layers = find_layers(model, ["*"])
    groups = weight(layers, {la.name: la.shape for la in layers})
    caps = find_caps(recipe, layers, groups, model)
    return [g.name for g in groups if g in caps.of and asked(caps.of[g])]


def by_subset(model: nn.Module, pattern: str) -> list[str]:
    found = subset(find_layers(model, ["*"]), {}, neurons={pattern: [0]})
    return [g.name for g in found]


def by_block_exclusion(model: nn.Module, pattern: str) -> list[str]:
    spared = excluded(model, BlockRecipe(target=0.5, exclude=[pattern]))
    return [n for n in by_scope(model, "*") if n in spared]


def by_layer(model: nn.Module, pattern: str) -> list[str]:
    layers = find_layers(model, ["*"])
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    (group,) = layer(layers, shapes, modules=[pattern])
    return [m.name for m in group.members if m.scored]


def by_repaired(model: nn.Module, pattern: str) -> list[str]:
    return by_scope(model, repaired_blocks(model, [pattern])[0])


def by_hidden(model: nn.Module, pattern: str) -> list[str]:
    names = hidden_modules(model, [pattern])
    if not any(type(m).__name__ == "OptimizedModule" for m in model.modules()):
        with hidden_states(model, names) as states:
            model(X)
        assert list(states) == names
    return by_scope(model, names[0])


def by_blocks(model: nn.Module, pattern: str) -> list[str]:
    return [n for blocks in stacks_of(model, pattern) for b in blocks for n in by_scope(model, b)]


ENCODER = ["encoder.0.weight", "encoder.2.weight"]
PARAMETERS = [by_scope, by_exclusion, by_target, by_limit, by_subset, by_block_exclusion]
MODULES = [by_layer, by_repaired, by_hidden]


@pytest.mark.parametrize("wrap", ["plain", "compiled", "data parallel", "both", "a part compiled"])
@pytest.mark.parametrize("place", [*PARAMETERS, *MODULES])
def test_every_place_that_takes_names_takes_the_same(place: Any, wrap: str) -> None:
    model = WRAPS[wrap](net())
    names = plain_names(model)
    for pattern in ("encoder", "module.encoder", "_orig_mod.encoder", "enc*r"):
        assert [names[n] for n in place(model, pattern)] == ENCODER, pattern
    with pytest.raises(InputError, match=r"'encodr'.* did you mean 'encoder'"):
        place(model, "encodr")


@pytest.mark.parametrize("place", PARAMETERS)
def test_every_place_that_takes_names_tells_two_that_differ_by_a_prefix(place: Any) -> None:
    model = Named()
    every = ["weight", "module.weight", "_orig_mod.weight"]
    for pattern in every:
        assert place(model, pattern) == [pattern]
    with pytest.raises(InputError, match=r"'module\.module\.weight' could mean '.*' or '"):
        place(model, "module.module.weight")


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in "ab")
        self.more = nn.ModuleList(nn.Linear(8, 8) for _ in "abc")


@pytest.mark.parametrize("pattern", ["layers", "module.layers", "l*s"])
def test_the_list_of_blocks_is_named_as_anything_else_is(pattern: str) -> None:
    for model in (Blocks(), nn.DataParallel(Blocks())):
        names = plain_names(model)
        found = [names[n] for n in by_blocks(model, pattern)]
        assert found == ["layers.0.weight", "layers.1.weight"]
    with pytest.raises(InputError, match="'layer'; did you mean 'layers'"):
        stacks_of(Blocks(), "layer")


def test_two_spellings_of_one_layer_do_not_have_two_targets() -> None:
    layers = {"encoder.0": 0.5, "module.encoder.0": 0.2}
    with pytest.raises(InputError, match=r"both match encoder\.0\.weight"):
        prunus.prune(net(), {"target": {"sparsity": 0.5, "layers": layers}})


@pytest.mark.parametrize("wrap", WRAPS)
def test_masks_of_one_fit_the_other(wrap: str) -> None:
    plain, wrapped = net(), WRAPS[wrap](net())
    recipe = {"target": 0.5, "criterion": "random"}
    masks = prunus.prune(wrapped, recipe).masks
    prunus.enforce(plain, masks, torch.optim.SGD(plain.parameters(), lr=0.1))
    assert as_sparse_as(plain) == as_sparse_as(wrapped)
    own = prunus.prune(net(), recipe).masks
    again = WRAPS[wrap](net())
    prunus.enforce(again, own, torch.optim.SGD(again.parameters(), lr=0.1))
    assert as_sparse_as(again) == as_sparse_as(wrapped)


class Named(nn.Module):
    """Whose real submodules are called as wrappers call theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.module = nn.Linear(8, 8, bias=False)
        self._orig_mod = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x @ self.weight) + self._orig_mod(x)
        return out


@pytest.mark.parametrize("wrap", ["plain", "compiled", "data parallel", "both", "sharded"])
def test_names_that_differ_by_a_prefix_inside_are_two(wrap: str, tmp_path: Path) -> None:
    model = WRAPS[wrap](Named())
    names = {short: full for full, short in plain_names(model).items()}
    assert list(names) == ["weight", "module.weight", "_orig_mod.weight"]
    for pattern in names:
        assert [la.name for la in find_layers(model, include=[pattern])] == [names[pattern]]
    masks = {full: torch.rand(8, 8) > 0.5 for full in names.values()}
    prunus.enforce(model, masks, torch.optim.SGD(model.parameters(), lr=0.1))
    assert all(not model.get_parameter(n)[~m].any() for n, m in masks.items())
    file = prunus.save(model, tmp_path / "named.safetensors")
    assert set(safetensors.torch.load_file(file)) == set(names)
    assert torch.equal(prunus.load(file, model=Named())(X), model(X))


def test_a_name_that_could_mean_two_is_refused() -> None:
    own = {n: n for n in ("a.module.weight", "a._orig_mod.weight")}
    with pytest.raises(InputError, match=r"could mean 'a\.module\.weight' or"):
        matched(["a.weight"], own)
    with pytest.raises(InputError, match="both name 'weight'"):
        matched(["weight", "module.weight"], {"weight": "weight"})
    masks = {n: torch.ones(8, 8, dtype=torch.bool) for n in ("weight", "module.module.weight")}
    with pytest.raises(InputError, match=r"both name|could mean"):
        prunus.enforce(
            Named(), {**masks, "module.weight": masks["weight"]}, torch.optim.SGD([X], lr=0.1)
        )


def test_two_tensors_that_a_file_would_call_the_same_are_refused(tmp_path: Path) -> None:
    inner = net()
    inner.register_buffer("n_averaged", torch.zeros(1))
    with pytest.raises(InputError, match=r"'module\.n_averaged' would both be 'n_averaged'"):
        prunus.save(AveragedModel(inner), tmp_path / "both.safetensors")


@pytest.mark.parametrize("recipe", [
    {"target": 0.5, "schedule": "cubic", "criterion": "fisher_running"},
    {"target": 0.6, "rounds": 3, "schedule": "linear", "guard": {"max_drop": 0.5}},
])  # fmt: skip
@pytest.mark.parametrize(("first", "then"), [
    ("data parallel", "plain"), ("plain", "data parallel"), ("an average", "sharded"),
    ("a part checkpointed", "plain"),
])  # fmt: skip
def test_the_state_of_a_pruner_goes_on_in_any_wrapper(
    first: str, then: str, recipe: dict[str, Any]
) -> None:
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))

    def start(wrap: str) -> tuple[nn.Module, torch.optim.Optimizer, prunus.Pruner]:
        torch.manual_seed(0)
        model = WRAPS[wrap](net())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        evaluate = (lambda m: 0.5) if "rounds" in recipe else None
        pruner = prunus.Pruner(model, recipe, evaluate=evaluate)
        return model, optimizer, pruner

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    whole, optimizer, pruner = start(first)
    pruner.join(optimizer, steps=12)
    train(whole, optimizer, 7)
    saved = pruner.state_dict()
    again, other, later = start(then)
    values = [p.detach().clone() for p in whole.parameters()]
    with torch.no_grad():
        for mine, theirs in zip(again.parameters(), values, strict=True):
            mine.copy_(theirs)
    later.join(other, steps=12, saved=saved)
    train(whole, optimizer, 5)
    train(again, other, 5)
    for one, two in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    for each in (pruner, later):
        each.finish()
    assert [m.tolist() for m in pruner.masks.values()] == [m.tolist() for m in later.masks.values()]
