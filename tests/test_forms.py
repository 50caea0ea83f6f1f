"""Arguments and answers of any form, whether a model stays what it is or becomes a graph."""

from __future__ import annotations

import dataclasses
import enum
import types
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from helpers import pruned_both
from prunus import InputError, RunError
from prunus._common.nested import in_form, leaves_of, map_tensors, plain, tensors_of
from prunus._common.torch_internals import pytree

Pair = namedtuple("Pair", "first second")


class Kind(enum.Enum):
    GOOD = 1


@dataclasses.dataclass
class Answer:
    scores: Tensor
    extra: Any = None


class Holder:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Net(nn.Module):
    """Sizes in its code make a graph of it where ``hard`` is set."""

    def __init__(self, enter: Callable[..., Tensor], leave: Callable[[Tensor], Any], hard: bool):
        super().__init__()
        self.enter, self.leave, self.hard = enter, leave, hard
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 16)
        self.last = nn.Linear(16, 3)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        y = torch.relu(self.first(self.enter(*args, **kwargs)))
        if self.hard:
            y = y.reshape(*y.shape[:-1], 4, 4).reshape(*y.shape[:-1], 16)
        return self.leave(self.last(torch.relu(self.second(y))))


def itself(value: Any) -> Any:
    return value


def rows() -> Tensor:
    return torch.randn(4, 6)


# What goes in and how it is read, and what becomes of the scores.
FORMS: dict[str, tuple[Callable[[], Any], Callable[..., Tensor], Callable[[Tensor], Any]]] = {
    "a dataclass": (rows, itself, lambda y: Answer(y, {"a": [y * 2, None]})),
    "nested": (rows, itself, lambda y: {"p": [(y, None, 3), {"q": y.sum()}]}),
    "a named tuple": (rows, itself, lambda y: Pair(y, "text")),
    "an object": (rows, itself, Holder),
    "a namespace with constants": (
        rows, itself, lambda y: types.SimpleNamespace(y=y, kind=Kind.GOOD, labels={1, 2})),
    "a distribution": (rows, itself, lambda y: torch.distributions.Normal(y, 1.0)),
    "whole numbers": (rows, itself, lambda y: y.argmax(-1)),
    "complex numbers": (rows, itself, lambda y: torch.complex(y, y + 1)),
    "a sparse tensor": (rows, itself, lambda y: y.relu().to_sparse()),
    "half precision": (
        lambda: rows().half(), lambda x: x.float(), lambda y: y.half()),
    "other dicts": (rows, itself, lambda y: defaultdict(list, a=[OrderedDict(b=y)])),
    "no batch": (lambda: torch.randn(6), itself, lambda y: y.sum()),
    "a dataclass goes in": (lambda: Answer(rows(), "text"), lambda d: d.scores * 2, itself),
    "an object goes in": (lambda: Holder(rows()), lambda d: d.tensor * 2, lambda y: Answer(y)),
    "a nested dict goes in": (
        lambda: ({"x": {"deep": [rows()]}, "y": rows()},),
        lambda d: d["x"]["deep"][0] + d["y"],
        itself,
    ),
    "complex numbers go in": (
        lambda: torch.randn(4, 6, dtype=torch.complex64), lambda z: z.abs(), itself),
}  # fmt: skip


def dense(value: Any) -> list[Tensor]:
    return [t.to_dense() if t.is_sparse else t for t in tensors_of(value)]


@pytest.mark.parametrize(
    ("name", "hard"),
    [*((name, True) for name in FORMS), *((name, False) for name in [*FORMS][::3])],
)
def test_any_form_goes_in_and_comes_out(name: str, hard: bool) -> None:
    make, enter, leave = FORMS[name]
    recipe = {"structure": "channel", "allocation": "uniform", "target": 0.5}
    masked, result = pruned_both(Net(enter, leave, hard).eval(), recipe, make())
    assert result.compaction.route == ("graph" if hard else "sliced")
    given = make()
    given = given if isinstance(given, tuple) else (given,)
    wanted, found = masked(*given), result.model(*given)
    assert type(found) is type(wanted)
    torch.testing.assert_close(dense(found), dense(wanted))
    constants = [[v for _, v in leaves_of(a) if not isinstance(v, Tensor)] for a in (wanted, found)]
    assert constants[0] == constants[1]


@pytest.mark.parametrize("leave", [
    lambda y: types.SimpleNamespace(y=y, shape=y.shape),
    lambda y: torch.distributions.Normal(y, 1.0),
    lambda y: {"y": y, "count": len(y)},
    lambda y: Answer(y, {"a": [y.mean(), y.shape[0]]}),
])  # fmt: skip
def test_constants_that_follow_a_size_are_never_those_of_another(leave: Any) -> None:
    recipe = {"structure": "channel", "allocation": "uniform", "target": 0.5}
    masked, result = pruned_both(Net(itself, leave, True).eval(), recipe, rows())
    for items in (4, 2, 1, 7):
        x = torch.randn(items, 6)
        wanted = [v for _, v in leaves_of(masked(x)) if not isinstance(v, Tensor)]
        if items != 4:
            with pytest.raises(InputError, match="this is another"):
                result.model(x)
        else:
            assert [v for _, v in leaves_of(result.model(x)) if not isinstance(v, Tensor)] == wanted


def test_a_module_inside_a_model_answers_in_its_form() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Linear(6, 6)
            self.net = Net(lambda d: d.scores, Answer, hard=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(Answer(self.before(x))).scores * 2

    model = Outer().eval()
    recipe = {
        "structure": "channel",
        "allocation": "uniform",
        "target": 0.5,
        "scope": {"exclude": ["before"]},
    }
    masked, result = pruned_both(model, recipe, rows())
    assert result.compaction.route == "modules"
    x = torch.randn(7, 6)
    torch.testing.assert_close(result.model(x), masked(x))


def test_a_graph_from_a_file_answers_with_a_dict_in_place_of_a_class(tmp_path: Path) -> None:
    model = Net(itself, Answer, hard=True).eval()
    result = prunus.prune(
        model,
        {"structure": "channel", "allocation": "uniform", "target": 0.5, "compact": "end"},
        example=rows(),
    )
    file = prunus.save(result.model, tmp_path / "net.safetensors")
    x = rows()
    torch.testing.assert_close(prunus.load(file)(x)["scores"], result.model(x).scores)


def test_an_object_that_the_code_changes_makes_no_graph() -> None:
    """The cache that a decoder fills: a graph would leave the caller's as it was."""

    class Remembers(Net):
        def forward(self, x: Tensor, cache: Holder) -> Tensor:
            cache.tensor = cache.tensor + x
            return super().forward(cache.tensor)

    for hard in (False, True):
        model = Remembers(itself, itself, hard).eval()
        example = (rows(), Holder(rows()))
        recipe = {"structure": "channel", "allocation": "uniform", "target": 0.5, "compact": "end"}
        if hard:
            before = {k: v.clone() for k, v in model.state_dict().items()}
            with pytest.raises(RunError, match=r"changes cache.tensor .* example without"):
                prunus.prune(model, recipe, example=example)
            assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        else:
            result = prunus.prune(model, recipe, example=example)
            assert result.compaction is not None
            assert result.compaction.route == "sliced"


def test_an_example_of_a_class_is_another_when_its_constants_are() -> None:
    model = Net(lambda d: d.scores * (2 if d.extra is Kind.GOOD else 3), itself, hard=True).eval()
    example = Answer(rows(), Kind.GOOD)
    result = prunus.prune(
        model,
        {"structure": "channel", "allocation": "uniform", "target": 0.5, "compact": "end"},
        example=example,
    )
    result.model(Answer(rows(), Kind.GOOD))
    with pytest.raises(prunus.InputError, match="args_0"):
        result.model(Answer(rows(), None))


leaves = st.one_of(st.none(), st.integers(), st.just("t"), st.builds(lambda: torch.ones(2)))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        st.builds(Answer, inner, inner),
        st.builds(Holder, inner),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=8,
)


@settings(max_examples=60)
@given(values)
def test_a_plain_value_goes_back_into_its_form(value: Any) -> None:
    made = plain(value)
    flat = pytree.tree_leaves(made)
    form = map_tensors(lambda _: None, value)
    back = in_form(form, flat)
    before, after = list(leaves_of(value)), list(leaves_of(back))
    assert [path for path, _ in before] == [path for path, _ in after]
    assert all(a is b or a == b for (_, a), (_, b) in zip(before, after, strict=True))


def test_sizes_of_a_model_that_is_traced_are_leaves() -> None:
    """Their attributes lead through all that the tracing knows."""
    seen: list[list[tuple[str, Any]]] = []

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            size: Any = x.shape[0]
            held = types.SimpleNamespace(size=size, more=size > 3, half={"a": (size / 2,)})
            seen.append(list(leaves_of(held)))
            assert map_tensors(torch.neg, held) is held
            assert plain(held)["half"] == {"a": (size / 2,)}
            return x * 1

    shapes = ({0: torch.export.Dim.AUTO},)
    torch.export.export(Net(), (torch.ones(4, 2),), dynamic_shapes=shapes, strict=False)
    kinds = [(path, type(value)) for path, value in seen[0]]
    assert kinds == [
        (".size", torch.SymInt), (".more", torch.SymBool), (".half['a'][0]", torch.SymFloat),
    ]  # fmt: skip
