"""Numbers that a module remembers about its weights: out_features, groups, num_heads, …"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from prunus._common.torch_internals import (
    AnyBatchNorm,
    AnyConv,
    AnyTransposedConv,
    module_paths,
    pytree,
)
from prunus.compaction.cut import IndexCut
from prunus.compaction.rewriting.rewrite import Patch
from prunus.graph.call import base_name, module_path
from prunus.graph.labels import Value

MOST_TRIALS = 24


@dataclass(frozen=True)
class Attribute:
    """A change of a module's attribute.

    Attributes:
        module: the module's name.
        name: of the attribute, or of an attribute of it: ``config.num_heads``.
        before: the value in the dense model.
        after: the value in the compact one.
    """

    module: str
    name: str
    before: Any
    after: Any

    def set(self, model: nn.Module, *, back: bool = False) -> None:
        """Make the change, or take it back; the module remembers what it was first of all."""
        module: Any = model.get_submodule(self.module)
        path, _, last = self.name.rpartition(".")
        if path and not back:
            _own(model, module, path)
        owner = attrgetter(path)(module) if path else module
        value = self.before if back else self.after
        setattr(owner, last, value)
        first = vars(module).setdefault(_FIRST, {})
        if first.setdefault(self.name, self.after if back else self.before) == value:
            del first[self.name]
        if back and path and not any(name.startswith(f"{path}.") for name in first):
            vars(module).update({path: vars(module).pop(_SHARED + path, owner)})
        if not first:
            del vars(module)[_FIRST]


_FIRST = "_before_pruning"
"""Where a module keeps what its changed attributes were in the dense model."""

_SHARED = "_shared_"
"""Where a module keeps a configuration that it shared with others, before it had its own."""


def _own(model: nn.Module, module: nn.Module, key: str) -> None:
    """A copy of what a module shares with one that comes before it, whose numbers stay."""
    shared = vars(module).get(key)
    first = next(
        (m for m in model.modules() if shared is not None and vars(m).get(key) is shared), module
    )
    if first is not module:
        vars(module).update({_SHARED + key: shared, key: copy.copy(shared)})


def changed(model: nn.Module) -> list[Attribute]:
    """What differs from the dense model, however often it was made smaller since.

    >>> layer = nn.Linear(4, 3)
    >>> Attribute("", "in_features", 4, 2).set(layer)
    >>> Attribute("", "in_features", 2, 1).set(layer)
    >>> changed(layer)
    [Attribute(module='', name='in_features', before=4, after=1)]
    """
    found = []
    for path, module in model.named_modules():
        for name, before in vars(module).get(_FIRST, {}).items():
            found.append(Attribute(path, name, before, attrgetter(name)(module)))
    return found


def standard(model: nn.Module, patches: Sequence[Patch]) -> list[Attribute]:
    """What torch's own modules (and GPT-2's Conv1D) remember, read off their sliced weights.

    Args:
        model: with its weights already sliced.
        patches: where numbers of groups changed.
    """
    groups = {module_path(p.node): p.after for p in patches}
    changes = []
    for name, module in model.named_modules():
        for key, value in _facts(module, _group_count(module, groups.get(name))).items():
            before = getattr(module, key, None)
            if before is not None and before != value:
                changes.append(Attribute(name, key, before, value))
    return changes


def _group_count(module: nn.Module, patched: tuple[Any, ...] | None) -> int | None:
    """The new number of groups of a convolution or group norm, from its patched call."""
    if not patched:  # or it counts on what is gone
        return None
    if isinstance(module, nn.GroupNorm):
        return int(patched[1])
    convolution = isinstance(module, AnyConv)
    return int(patched[6]) if convolution and len(patched) > 6 else None


def current(module: nn.Module, key: str) -> Tensor | None:
    """A weight, or a parameter of its shape: old hooks (weight_norm) compute it late.

    >>> layer = nn.Linear(2, 3)
    >>> current(layer, "weight") is layer.weight, current(layer, "other")
    (True, None)
    """
    own = module._parameters
    for spelt in (key, f"{key}_v", f"{key}_orig"):
        if own.get(spelt) is not None:
            return own[spelt]
    value = getattr(module, key, None)
    return value if isinstance(value, Tensor) else None


def _facts(module: nn.Module, groups: int | None) -> dict[str, Any]:
    if isinstance(module, nn.RNNBase):
        hidden, inputs = (current(module, f"weight_{side}_l0") for side in ("hh", "ih"))
        assert hidden is not None
        assert inputs is not None
        sizes = {"hidden_size": hidden.shape[1], "input_size": inputs.shape[1]}
        narrow = current(module, "weight_hr_l0")  # an LSTM whose outputs are narrower than it
        if narrow is not None:
            sizes |= {"proj_size": narrow.shape[0], "hidden_size": narrow.shape[1]}
        return sizes
    weight = current(module, "weight")
    if isinstance(module, AnyConv) and weight is not None:
        number = module.groups if groups is None else groups
        turned = isinstance(module, AnyTransposedConv)
        inner, outer = (weight.shape[0], weight.shape[1] * number)
        if not turned:
            inner, outer = weight.shape[1] * number, weight.shape[0]
        return {"groups": number, "in_channels": inner, "out_channels": outer}
    if isinstance(module, nn.RNNCellBase):
        return {"hidden_size": module.weight_hh.shape[1], "input_size": module.weight_ih.shape[1]}
    if weight is None:
        return {}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": weight.shape[0], "num_groups": groups or module.num_groups}
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return {"nx": weight.shape[0], "nf": weight.shape[1]}
    keys = next((keys for kind, keys in _SHAPES.items() if isinstance(module, kind)), ())
    return dict(zip(keys, weight.shape, strict=False))


_SHAPES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("out_features", "in_features"),
    nn.Bilinear: ("out_features", "in1_features", "in2_features"),
    nn.PReLU: ("num_parameters",),
    AnyBatchNorm: ("num_features",),
    nn.Embedding: ("num_embeddings", "embedding_dim"),
}
"""Modules that remember the sizes of their weights, by dimension."""


def guesses(model: nn.Module, cut: IndexCut, patches: Sequence[Patch]) -> list[list[Attribute]]:
    """Whole numbers of the user's own modules that may have to change, best guess first.

    A number is suspect when an operator that the module calls had a literal, or a size, of that
    value, and a smaller one now. Which suspects are guilty is found by trying.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    literal = _by_value(_literals(patches))
    sized = _by_value(_sizes(cut))
    suspects: dict[tuple[str, str], Attribute] = {}
    strong: set[str] = set()
    for evidence, sure in ((literal, True), (sized, False)):
        for path, changes in evidence.items():
            module = modules.get(path)
            if module is None or _known(module):
                continue
            for key, value in (*vars(module).items(), *_configured(model, module)):
                after = changes.get(value) if type(value) is int and value > 1 else None
                if after is not None and len(after) == 1 and (path, key) not in suspects:
                    suspects[path, key] = Attribute(path, key, value, next(iter(after)))
                    if sure:
                        strong.add(key)
    return [
        [a for a in suspects.values() if a.name in names]
        for names in _subsets(strong, {a.name for a in suspects.values()})
    ]


def _configured(model: nn.Module, module: nn.Module) -> list[tuple[str, Any]]:
    """Sizes in a configuration that a module shares with the model: it may need its own."""
    config = vars(module).get("config")
    if module is model or not hasattr(config, "__dict__"):
        return []
    return [(f"config.{key}", value) for key, value in vars(config).items() if key in SIZES]


SIZES = frozenset(
    {"num_attention_heads", "num_key_value_heads", "intermediate_size", "num_heads", "n_head",
     "n_heads", "n_inner", "ffn_dim", "d_ff", "hidden_dim", "encoder_attention_heads",
     "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size",
     "state_size", "time_step_rank", "attention_hidden_size"}
)  # fmt: skip
"""Names of widths that pruning changes. Others may have the same value, and mean something else."""


def _known(module: nn.Module) -> bool:
    """Modules whose attributes :func:`standard` sees to."""
    settled = type(module).__module__.startswith(("torch.nn.modules", "prunus.compaction"))
    checks = isinstance(module, nn.Transformer)  # its inputs, against a width that it remembers
    return (settled and not checks) or bool(_facts(module, None))


def _subsets(strong: set[str], every: set[str]) -> list[set[str]]:
    """Which names change together: none, the likely ones, all, then small sets and large ones."""
    names = sorted(every, key=lambda n: (n not in strong, n))
    tried: list[set[str]] = [set(), set(strong), set(every)]
    for size in range(1, min(len(names), 4) + 1):
        tried += [set(c) for c in itertools.combinations(names, size)]
    tried += [every - {n} for n in names]
    unique: list[set[str]] = []
    for names_tried in tried:
        if names_tried not in unique:
            unique.append(names_tried)
    return unique[:MOST_TRIALS]


Evidence = Iterator[tuple[str, int, int]]


def _by_value(evidence: Evidence) -> Mapping[str, dict[int, set[int]]]:
    found: dict[str, dict[int, set[int]]] = {}
    for path, before, after in evidence:
        found.setdefault(path, {}).setdefault(before, set()).add(after)
    return found


def _literals(patches: Sequence[Patch]) -> Evidence:
    for patch in patches:
        before, after = _numbers(patch.before), _numbers(patch.after)
        if base_name(patch.node) == "split":  # one size for every part
            before = _numbers(patch.before[1]) * len(after)
            after = _numbers(patch.after[1])
        pairs = list(zip(before, after, strict=False))
        for path in module_paths(patch.node):
            for b, a in pairs:
                if b != a:
                    yield path, b, a


def _sizes(cut: IndexCut) -> Evidence:
    for node, value in cut.analysis.known.items():
        if node.op != "call_function" or not isinstance(value, Value):
            continue
        for path in module_paths(node):
            for before, after in zip(value.shape, cut.shape(value), strict=True):
                if before != after:
                    yield path, before, after


def _numbers(arguments: Any) -> list[int]:
    return [i for i in pytree.tree_leaves(arguments) if type(i) is int]
