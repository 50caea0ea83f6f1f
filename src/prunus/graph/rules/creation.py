"""Tensors made from nothing: every index is free until something relates it.

One made in the shape of another shrinks with that.
"""

from __future__ import annotations

from prunus.graph.call import Call, Found

ZERO = ("zeros", "zeros_like", "new_zeros")
FULL = ("ones", "full", "empty", "ones_like", "full_like", "empty_like", "new_ones", "new_full",
        "new_empty", "scalar_tensor")  # fmt: skip
NUMBERED = ("arange", "linspace", "eye", "rand", "randn", "rand_like", "randn_like", "randint",
            "tril_indices", "triu_indices", "randperm")  # fmt: skip


def filled(call: Call) -> Found:
    """One value everywhere: labels that nothing relates yet, or those of what it is shaped like."""
    model = call.value("self") if call.name.endswith("_like") else None
    dims = call.labels.made(call.out.shape) if model is None else model.dims
    zero = call.name in ZERO or call["fill_value"] == 0
    return call.result(dims, [zero] * len(dims))


def numbered(call: Call) -> Found:
    """Positions and random numbers: each index has a meaning of its own."""
    return call.fixed(f"{call.where}: positions or random numbers")


CHANCE = ("normal", "normal_functional", "uniform", "exponential", "poisson", "multinomial",
          "cauchy", "geometric", "log_normal", "random")  # fmt: skip


def chance(call: Call) -> Found:
    """Numbers drawn one after the other: a smaller tensor would draw others."""
    why = f"{call.where}: random numbers"
    for value in call.operands():
        for dim in value.dims:
            call.labels.pin(dim, why)
    return call.fixed(why)


RULES = (
    dict.fromkeys((*ZERO, *FULL), filled)
    | dict.fromkeys(NUMBERED, numbered)
    | dict.fromkeys(CHANCE, chance)
)
