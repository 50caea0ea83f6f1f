"""Nested values: what is found in them, and what is put back."""

from __future__ import annotations

from collections import Counter, OrderedDict, UserDict, deque, namedtuple
from collections.abc import MutableMapping
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus._common.inputs import arguments, by_name, every_example
from prunus._common.modules import canonical_names, detached_copy, named_tensors, shared_copy
from prunus._common.nested import (
    in_form,
    leaves_of,
    map_tensors,
    own_containers,
    plain,
    tensors_of,
    with_tensors,
)
from prunus._common.random_inputs import random_inputs
from prunus.errors import InputError

Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Answer:
    """Not registered anywhere."""

    logits: Any
    state: Any = None


@dataclass(frozen=True)
class Frozen:
    logits: Any


class Own:
    def __init__(self, value: Any) -> None:
        self.value = value


class Rows(list):  # type: ignore[type-arg]
    pass


ONE = st.builds(lambda n: torch.full((1,), float(n)), st.integers(0, 9))
NESTED = st.recursive(
    st.one_of(ONE, st.none(), st.integers(), st.booleans(), st.text(max_size=2)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(Rows),
        st.lists(inner, max_size=3).map(deque),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
        st.dictionaries(st.text(max_size=2), inner, max_size=3).map(OrderedDict),
        st.dictionaries(st.text(max_size=2), inner, max_size=3).map(UserDict),
        st.dictionaries(st.text(max_size=2), inner, max_size=3).map(MappingProxyType),
        st.builds(Pair, inner, inner),
        st.builds(Answer, inner, inner),
        st.builds(Frozen, inner),
        st.builds(Own, inner),
        st.builds(lambda value: SimpleNamespace(x=value), inner),
    ),
    max_leaves=8,
)  # fmt: skip


def count(value: Any) -> int:
    """Tensors, counted on another way: by the text of the value."""
    if isinstance(value, Tensor):
        return 1
    if isinstance(value, (str, int, type(None))):
        return 0
    if hasattr(value, "values"):
        return sum(map(count, value.values()))
    if isinstance(value, (list, tuple, deque)):
        return sum(map(count, value))
    return sum(map(count, vars(value).values()))


@given(NESTED)
def test_every_tensor_is_found_once_however_deep_it_lies(value: Any) -> None:
    assert len(tensors_of(value)) == count(value)
    paths = [path for path, _ in leaves_of(value)]
    assert len(set(paths)) == len(paths)


@given(NESTED)
def test_tensors_go_back_where_they_were_and_the_value_is_left_alone(value: Any) -> None:
    before = tensors_of(value)
    changed = with_tensors(value, [t + 10 for t in before])
    assert type(changed) is type(value) or isinstance(value, MappingProxyType)
    assert [float(t) for t in tensors_of(changed)] == [float(t) + 10 for t in before]
    assert [id(t) for t in tensors_of(value)] == [id(t) for t in before]
    again = with_tensors(changed, before)
    assert [p for p, _ in leaves_of(again)] == [p for p, _ in leaves_of(value)]


@given(NESTED)
def test_containers_of_ones_own_hold_the_very_same_things(value: Any) -> None:
    made = own_containers(value)
    assert [path for path, _ in leaves_of(made)] == [path for path, _ in leaves_of(value)]
    pairs = zip(leaves_of(made), leaves_of(value), strict=True)
    assert all(a is b or not count(a) for (_, a), (_, b) in pairs)
    if isinstance(value, (list, dict, deque, UserDict)):
        assert made is not value
        made.clear()
        assert len(value) == len(own_containers(value))


class OwnMapping(MutableMapping):  # type: ignore[type-arg]
    """Its entries lie in a dictionary of its own, which copy.copy shares."""

    def __init__(self, entries: dict[str, Any]) -> None:
        self.entries = entries

    def __getitem__(self, key: str) -> Any:
        return self.entries[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.entries[key] = value

    def __delitem__(self, key: str) -> None:
        del self.entries[key]

    def __iter__(self) -> Any:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def test_mappings_of_other_classes_are_left_alone_and_hold_what_they_held() -> None:
    mapping = OwnMapping({"x": torch.ones(1), "y": 1})
    assert float(map_tensors(lambda t: t + 1, mapping)["x"]) == 2.0
    del own_containers(mapping)["y"]
    assert (float(mapping["x"]), mapping["y"]) == (1.0, 1)
    assert own_containers(Counter(a=2)) == Counter(a=2)  # whose update adds


def test_other_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="1 tensors for a value that holds 2"):
        with_tensors([torch.ones(1), torch.ones(1)], [torch.ones(1)])


def test_modules_and_circles_are_leaves() -> None:
    circle: list[Any] = [torch.ones(1)]
    circle.append(circle)
    assert len(tensors_of([nn.Linear(1, 1), circle])) == 1
    assert map_tensors(lambda t: t, circle) is circle


@pytest.mark.parametrize("walk", [
    tensors_of, own_containers, plain, lambda value: map_tensors(Tensor.clone, value),
    lambda value: in_form(value, [1] * 10_000),
])  # fmt: skip
def test_what_refers_to_each_other_in_many_ways_is_refused_in_bounded_time(
    walk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunus._common.nested.MOST", 1000)
    web = [SimpleNamespace(own=torch.ones(1)) for _ in range(12)]  # 12! ways from each to each
    for one in web:
        one.others = [other for other in web if other is not one]
    with pytest.raises(InputError, match="more than 1,000 lists, mappings and objects"):
        walk(web[0])
    walk([torch.ones(1)] * 2000)  # many in one are not many ways


def test_what_other_packages_return_is_looked_into() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    made = outputs.CausalLMOutput(logits=torch.ones(1), hidden_states=(torch.zeros(1),))
    assert len(tensors_of(made)) == 2
    changed = with_tensors(made, [torch.zeros(2), torch.ones(2)])
    assert type(changed) is type(made)
    assert changed.logits.tolist() == [0, 0]
    assert changed["hidden_states"][0].tolist() == [1, 1]
    largest = torch.max(torch.ones(2, 2), 0)
    assert len(tensors_of(largest)) == 2
    assert type(with_tensors(largest, largest)) is type(largest)


@given(st.lists(st.integers(), max_size=4), st.dictionaries(st.sampled_from("abc"), st.integers()))
def test_arguments_keep_their_order_and_number_under_names(args: Any, kwargs: Any) -> None:
    named = by_name(["x", "y"], (tuple(args), kwargs))
    assert list(named.values()) == [*args, *kwargs.values()]
    assert list(named)[: min(2, len(args))] == ["x", "y"][: len(args)]
    assert arguments(dict(named)) == ((), named)
    assert arguments(tuple(args)) == (tuple(args), {})
    assert arguments((args,)) == ((args,), {})
    if args:  # a list is one of examples
        assert every_example(args) == [((a,), {}) for a in args]
        assert arguments(args) == ((args[0],), {})


@given(NESTED, st.integers(1, 3))
def test_random_inputs_have_the_shapes_and_types_of_the_example(value: Any, batch: int) -> None:
    example = ([torch.ones(2, 3), torch.tensor([True, False])], {"more": value})
    args, kwargs = random_inputs(example, batch=batch)
    assert kwargs == {}
    assert [t.shape for t in args[0]] == [(batch, 3), (batch,)]
    assert args[0][1].dtype is torch.bool


SHARED = nn.Linear(2, 2)
TREES = st.recursive(
    st.sampled_from([SHARED, nn.Linear(2, 2), nn.BatchNorm1d(2)]),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda ms: nn.Sequential(*ms)),
    max_leaves=6,
)


@given(TREES)
def test_names_and_copies_tell_which_tensors_are_the_same(model: nn.Module) -> None:
    tensors = {name: tensor for name, tensor, _ in named_tensors(model)}
    first = canonical_names(model)
    assert first.keys() == tensors.keys()
    for name, other in first.items():
        assert tensors[other] is tensors[name]
    assert len(set(first.values())) == len({id(t) for t in tensors.values()})
    shared = {name: tensor for name, tensor, _ in named_tensors(shared_copy(model))}
    assert all(shared[name] is tensor for name, tensor in tensors.items())
    apart = {name: tensor for name, tensor, _ in named_tensors(detached_copy(model))}
    assert not any(apart[name] is tensor for name, tensor in tensors.items())
    assert len({id(t) for t in apart.values()}) == len({id(t) for t in tensors.values()})
