"""One example computed by hand for every idea whose docstring holds none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from helpers import weights
from prunus._common.layers import Layer
from prunus._common.units import numbers
from prunus.errors import InputError
from prunus.methods.allocations.erk import erk
from prunus.methods.allocations.global_ import global_
from prunus.methods.allocations.per_neuron import per_neuron
from prunus.methods.allocations.threshold import threshold
from prunus.methods.allocations.uniform import uniform
from prunus.methods.restores._memory import Memory
from prunus.methods.restores.keep import keep
from prunus.methods.restores.reinitialize import reinitialize
from prunus.methods.restores.revive import revive
from prunus.methods.restores.rewind import rewind
from prunus.methods.structures.block import block
from prunus.methods.structures.layer import layer
from prunus.methods.structures.n_m import n_m
from prunus.methods.structures.neuron import neuron
from prunus.methods.structures.subset import subset
from prunus.methods.structures.weight import weight
from prunus.pruning.decide import Cost, limits_of
from prunus.types import Counts, State

SCORES = ([5.0, 1.0, 4.0, 2.0], [3.0, 9.0, 8.0, 7.0, 6.0, 0.5])


def allocate(allocation: object, target: float, **settings: object) -> list[object]:
    groups = weights(4, 6, run=2)
    units = {g: torch.tensor(s) for g, s in zip(groups, SCORES, strict=True)}
    limits = limits_of(groups, dict.fromkeys(groups))
    counts: Counts = allocation(units, Cost(groups), target, limits, **settings)  # type: ignore[operator]
    return [
        counts[g].tolist() if isinstance(counts[g], torch.Tensor) else counts[g] for g in groups
    ]


# --- allocations: of ten weights with the scores above


def test_uniform_keeps_half_of_four_and_half_of_six() -> None:
    assert allocate(uniform, 0.5) == [2, 3]


def test_uniform_gives_the_odd_weight_to_the_largest_remainder() -> None:
    # Seven stay: 4·0.7 = 2.8 and 6·0.7 = 4.2; the missing one goes to 2.8.
    assert allocate(uniform, 0.3) == [3, 4]


def test_global_keeps_the_five_highest_wherever_they_are() -> None:
    # 9 8 7 6 5 stay: one of the first group, four of the second.
    assert allocate(global_, 0.5) == [1, 4]


def test_global_leaves_one_unit_in_every_group() -> None:
    # The two highest, 9 and 8, lie in the second group; the first keeps its best all the same.
    assert allocate(global_, 0.8) == [1, 1]


def test_erk_keeps_small_layers_denser() -> None:
    # Shapes (2, 2) and (3, 2): shares Σd/Πd·n = 4 and 5; five of ten stay: 5·4/9 = 2.2, 2.8.
    assert allocate(erk, 0.5) == [2, 3]


def test_per_neuron_keeps_one_of_every_two() -> None:
    assert allocate(per_neuron, 0.5) == [[1, 1], [1, 1, 1]]


def test_threshold_of_the_mean_keeps_what_is_above_it_layer_by_layer() -> None:
    # Means 12/4 = 3 and 33.5/6 = 5.58: 5, 4 stay and 9, 8, 7, 6.
    assert allocate(threshold, 0.9, theta=1.0, form="mean") == [2, 4]


def test_threshold_of_the_mean_over_the_network_has_one_cut() -> None:
    # Mean 45.5/10 = 4.55: 5 stays and 9, 8, 7, 6.
    assert allocate(threshold, 0.9, theta=1.0, form="mean", over="network") == [1, 4]


def test_threshold_stops_at_the_target() -> None:
    # The rule would remove four; the target allows two: 2.8 and 4.2 of each in proportion 2 : 4,
    # never fewer than the rule keeps.
    kept = allocate(threshold, 0.2, theta=1.0, form="mean")
    assert sum(kept) == 8  # type: ignore[arg-type]


def test_threshold_in_its_literal_form_is_a_share_of_the_sum() -> None:
    # Sums 12 and 33.5; θ = 0.2 cuts at 2.4 and 6.7.
    assert allocate(threshold, 0.9, theta=0.2) == [2, 3]


# --- the 10-20-10 network with θ


def network_10_20_10() -> nn.Module:
    """Weights 1, 2, …, n in each layer: Σ = n(n + 1)/2 = 20100, mean 100.5, for n = 200."""
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 10))
    for i in (0, 2):
        model[i].weight.data = torch.arange(1.0, 201.0).view_as(model[i].weight)
    return model


def removed(model: nn.Module, **settings: object) -> list[int]:
    allocation = {"name": "threshold", **settings}
    recipe = {"allocation": allocation, "schedule": "one_shot", "target": 0.99}
    prunus.prune(model, recipe)
    return [int((model[i].weight == 0).sum()) for i in (0, 2)]  # type: ignore[index]


def test_10_20_10_with_theta_of_the_sum_removes_what_the_formula_says() -> None:
    # θ = 0.005 cuts at 100.5: 1 … 100 of each 200 go. 1/n = 0.005 removes half, as foretold.
    assert removed(network_10_20_10(), theta=0.005) == [100, 100]


def test_10_20_10_over_the_network_has_twice_the_sum() -> None:
    # Σ over both is 40200; θ = 0.0025 cuts at 100.5 again.
    assert removed(network_10_20_10(), theta=0.0025, over="network") == [100, 100]


def test_10_20_10_with_theta_of_the_mean() -> None:
    # θ = 0.5 cuts at 50.25: fifty of each.
    assert removed(network_10_20_10(), theta=0.5, form="mean") == [50, 50]


def test_10_20_10_with_the_texts_theta_would_be_emptied_and_is_refused() -> None:
    # 0.1·20100 = 2010, above every weight.
    model = network_10_20_10()
    before = model[0].weight.detach().clone()  # type: ignore[index, union-attr]
    with pytest.raises(InputError, match="200 of 200") as error:
        removed(model, theta=0.1)
    assert "may_empty" in str(error.value)
    assert torch.equal(model[0].weight, before)  # type: ignore[index]


def test_10_20_10_is_emptied_if_told_to() -> None:
    assert removed(network_10_20_10(), theta=0.1, may_empty=True)[0] >= 198


# --- structures


def one(shape: tuple[int, ...], **values: object) -> Layer:
    return Layer("a.weight", "a", "linear", shape, neuron="a.weight", **values)  # type: ignore[arg-type]


def unit_numbers(groups: list[object], member: int = 0) -> list[object]:
    found = numbers(groups[0].members[member])  # type: ignore[attr-defined]
    assert found is not None
    return found.tolist()  # type: ignore[no-any-return]


def test_weight_has_a_unit_for_each_of_six_weights_and_runs_of_three_inputs() -> None:
    (group,) = weight([one((2, 3))], {})
    assert (group.units, group.run, group.weights) == (6, 3, 6)


def test_n_m_runs_along_the_inputs_at_a_fixed_kernel_position() -> None:
    groups = n_m([one((1, 4, 2))], {}, n=2, m=4)
    # Kernel position 0 holds units 0 to 3, position 1 units 4 to 7.
    assert unit_numbers(groups) == [[[0, 4], [1, 5], [2, 6], [3, 7]]]


def test_block_of_two_rows_and_two_columns() -> None:
    groups = block([one((2, 4))], {}, rows=2, columns=2)
    assert unit_numbers(groups) == [[0, 0, 1, 1], [0, 0, 1, 1]]


def test_block_at_the_edge_is_smaller() -> None:
    (group,) = block([one((3, 1))], {}, rows=2, columns=1)
    assert group.sizes is not None
    assert group.sizes.tolist() == [2, 1]


def test_neuron_is_a_row_with_its_bias() -> None:
    (group,) = neuron([one((2, 3), bias=("a.bias",))], {"a.weight": (2, 3), "a.bias": (2,)})
    assert unit_numbers([group]) == [[0], [1]]
    assert unit_numbers([group], 1) == [0, 1]
    assert group.weights == 6


def test_neuron_of_an_lstm_is_four_rows() -> None:
    (group,) = neuron([one((8, 1), gates=4)], {"a.weight": (8, 1)})
    assert unit_numbers([group]) == [[0], [1], [0], [1], [0], [1], [0], [1]]


def test_subset_has_units_in_the_named_neurons_only() -> None:
    groups = subset([one((3, 2))], {}, neurons={"a": [2, 0]})
    assert unit_numbers(groups) == [[0, 1], [-1, -1], [2, 3]]


def test_layer_is_a_unit_with_all_its_parameters() -> None:
    shapes = {"a.weight": (2, 3), "a.bias": (2,), "b.weight": (9, 9)}
    (group,) = layer([one((2, 3))], shapes, modules=["a"])
    assert [m.name for m in group.members] == ["a.weight", "a.bias"]
    assert (group.units, group.weights, group.may_empty) == (1, 6, True)


# --- restore: weights 1 2 at the start, 3 4 at step k, 5 6 before the cut, now 5 0


def restored(restore: object, **settings: object) -> list[float]:
    def state(*values: float) -> State:
        return State({"w": torch.tensor(values)}, {})

    memory = Memory(
        start=lambda: state(1, 2), rewind=lambda: state(3, 4), cut=lambda: state(5, 6),
        fresh=lambda: state(7, 8),
    )  # fmt: skip
    mask = {"w": torch.tensor([True, False])}
    made: State = restore(state(5, 0), mask, memory, **settings)  # type: ignore[operator]
    return made.tensors["w"].tolist()


def test_keep_leaves_the_survivor_and_the_zero() -> None:
    assert restored(keep) == [5, 0]


def test_rewind_returns_to_step_k() -> None:
    assert restored(rewind, k=10) == [3, 4]


def test_reinitialize_is_fresh() -> None:
    assert restored(reinitialize) == [7, 8]


def test_revive_brings_the_removed_weight_back() -> None:
    assert restored(revive, values="zero") == [5, 0]
    assert restored(revive, values="start") == [5, 2]
    assert restored(revive, values="cut", when="after") == [5, 6]
