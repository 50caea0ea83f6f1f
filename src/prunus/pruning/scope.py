"""Which parameters may be pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from prunus._common.former_module import FormerModule
from prunus._common.layers import Layer, layers_of
from prunus._common.memory import lasting
from prunus._common.modules import held
from prunus._common.names import each_meant, meant, plain_name, plain_names
from prunus._common.parts import computable, count_nonzero, parts
from prunus.errors import InputError
from prunus.graph.raw_weights import Uses, is_weight, raw_weight
from prunus.types import Masks


def find_layers(
    model: nn.Module,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    coupled: bool = False,
    uses: Uses = MappingProxyType({}),
) -> list[Layer]:
    """The weights in scope, in the order of definition.

    Without ``include``: weights of two or more dimensions of linear, convolution, recurrent and
    attention layers, and of a user's own modules what multiplies values as these do (a fused
    tensor of experts, an entry of a ``ParameterList``). Patterns are matched (``*`` and ``?``)
    against names of parameters and of the modules around them, without the prefixes of wrappers
    (``module.``, ``_orig_mod.``); of a tied weight against each of its names.

    Args:
        model: the model.
        include: patterns of what may be pruned.
        exclude: patterns of what may not.
        coupled: whether whole units are pruned, with all that falls together with them. Weights
            computed from others (weight_norm, parametrizations) are taken then, and ``exclude``
            may name any parameter or buffer: what touches it stays.
        uses: how a pass uses the parameters of the user's own modules; without one those are in
            scope whose shape says that they are weights (:func:`is_weight`).

    Raises:
        InputError: if a pattern matches nothing, if nothing is left, or for weights that cannot
            be masked (parametrized, LoRA, 4-bit), by name.

    >>> [la.name for la in find_layers(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))]
    ['0.weight', '2.weight']
    """
    known, aliases = _known(model, uses), tied_names(model)
    plain = plain_names(model)
    weights = {n: plain[n] for la in known for n in aliases[la.name]}
    included = _named(include, weights)
    excluded = _named(exclude, plain if coupled else weights)
    chosen = [
        la
        for la in known
        if excluded.isdisjoint(aliases[la.name])
        and (not included.isdisjoint(aliases[la.name]) if include else _taken(la, model, uses))
    ]
    if not chosen:
        raise InputError(
            f"{type(model).__name__} has no prunable weights in scope: linear, convolution, "
            "recurrent and attention layers are pruned; others can be named in scope.include"
        )
    for layer in chosen:
        _refuse(model, layer, coupled)
    return chosen


def tied_names(model: nn.Module) -> dict[str, list[str]]:
    """The first name of each parameter to all of its names.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    >>> model[1].weight = model[0].weight
    >>> tied_names(model)
    {'0.weight': ['0.weight', '1.weight']}
    """
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return {names[0]: names for names in found.values()}


def _named(patterns: Sequence[str], names: Mapping[str, str]) -> set[str]:
    found = each_meant(patterns, names, "scope: … matches no prunable parameter")
    return {name for own in found.values() for name in own}


def _known(model: nn.Module, uses: Uses) -> list[Layer]:
    """Every parameter of two or more dimensions, each once, with what the table knows of it."""
    seen: set[int] = set()
    known = []
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for module_name, module in model.named_modules():
        found = {la.name: la for la in layers_of(module_name, module)}
        for key, weight in module.named_parameters(recurse=False):
            name = f"{module_name}.{key}" if module_name else key
            if id(parameters[name]) in seen or weight.dim() < 2 or not weight.numel():
                continue
            seen.add(id(weight))
            known.append(found.get(name) or raw_weight(name, module_name, weight, model, uses))
    return known


def _taken(layer: Layer, model: nn.Module, uses: Uses) -> bool:
    """Whether a weight is in scope where nothing was asked for by name."""
    if layer.kind == "other":
        name = f".{layer.name}"  # taken in, so that they are refused by name, not passed over
        computed = ".parametrizations." in name and name.rpartition(".")[2].startswith("original")
        if computed or name.endswith(".weight_v"):
            return True
        if not is_weight(layer, model.get_parameter(layer.name), model, uses):
            return False
    return not _is_embedding(model, layer)


def _is_embedding(model: nn.Module, layer: Layer) -> bool:
    """Whether an embedding uses the same tensor (an output layer tied to its input)."""
    weight = model.get_parameter(layer.name)
    embeddings = (m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)))
    return any(m.weight is weight for m in embeddings)


def _refuse(model: nn.Module, layer: Layer, coupled: bool) -> None:
    module = model.get_submodule(layer.module)
    weight = model.get_parameter(layer.name)
    where = f"'{plain_name(layer.name)}'"
    owner = plain_name(layer.module) or plain_name(layer.name)  # a layer alone has no name
    out = f"or leave it out with scope.exclude: ['{owner}']"
    if "parametrizations" in layer.name.split(".") and not coupled:
        owner = layer.name.split(".parametrizations.")[0]
        raise InputError(
            f"'{owner}' is parametrized: its weight is computed from other tensors, and masking "
            f"those does not mask it; call torch.nn.utils.parametrize.remove_parametrizations "
            f"first, or leave it out with scope.exclude: ['{owner}.*']"
        )
    if hasattr(module, "weight_g") and hasattr(module, "weight_v") and not coupled:
        raise InputError(f"{where} has weight_norm: call remove_weight_norm first, {out}")
    if any(hasattr(m, "lora_A") for m in _owners(model, layer.module)):
        raise InputError(
            f"{where} belongs to a LoRA layer, whose adapter would fill the zeros again: call "
            f"merge_and_unload() first, {out}"
        )
    if type(weight).__name__ in ("Params4bit", "Int8Params") or hasattr(weight, "quant_state"):
        raise InputError(
            f"{where} is quantized ({type(weight).__name__}): prune before quantizing, {out}"
        )
    if not weight.is_floating_point() or weight.element_size() == 1:  # float8: no arithmetic
        raise InputError(
            f"{where} is {weight.dtype}: only floating-point weights of 16 bits or more are "
            f"pruned; {out}"
        )
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise InputError(f"{where} has no shape yet: run one batch through the model first")


def _owners(model: nn.Module, name: str) -> list[nn.Module]:
    parts = name.split(".") if name else []
    return [model.get_submodule(".".join(parts[:i])) for i in range(len(parts) + 1)]


def initial_masks(model: nn.Module, layers: Sequence[Layer]) -> Masks:
    """What is removed already: ``torch.nn.utils.prune`` masks, and zeros among other weights.

    A weight tensor that is zero throughout counts as freshly initialized, not as pruned.
    """
    masks: Masks = {}
    for layer in layers:
        weight = model.get_parameter(layer.name).detach()
        module = model.get_submodule(layer.module)
        # spectral_norm has a weight_orig, too
        given = held(module._buffers, "weight_mask") if layer.name.endswith("weight_orig") else None
        left = count_nonzero(weight)
        if left == weight.numel() and given is None:
            continue
        mask = _not_zero(weight) if left else torch.ones_like(weight, dtype=torch.bool)
        if given is not None:
            mask = mask & given.bool()
        if not bool(mask.all()):
            masks[layer.name] = mask
    return masks


def _not_zero(weight: Tensor) -> Tensor:
    """In memory of its own, since it outlives what the choice needs; of float8 too."""
    if weight.device.type != "cpu":
        return weight != 0
    made = lasting(weight.shape, torch.bool)
    for part, mask in parts(weight, made):
        torch.ne(computable(part), 0, out=mask)
    return made


def execution_order(model: nn.Module, layers: Sequence[Layer], run: object = None) -> list[Layer]:
    """The layers in the order in which a forward pass first uses them.

    Args:
        model: the model.
        layers: weights in scope.
        run: a function without arguments that runs the model once; without it the order of
            definition is taken.
    """
    if not callable(run):
        return list(layers)
    position: dict[str, int] = {}
    hooks = []
    without_hooks = (torch.jit.ScriptModule, FormerModule)
    for name in {la.module for la in layers}:
        if isinstance(model.get_submodule(name), without_hooks):
            continue

        def note(*_: object, name: str = name) -> None:
            position.setdefault(name, len(position))

        hooks.append(model.get_submodule(name).register_forward_pre_hook(note))
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    last = len(position)
    return sorted(layers, key=lambda la: position.get(la.module, last))


def outside(
    model: nn.Module, layers: Sequence[Layer], exclude: Sequence[str] = ()
) -> tuple[float, list[str]]:
    """The part of a model's parameters that could be in scope and is not, and their names.

    Args:
        model: the model.
        layers: in scope.
        exclude: patterns of what the user left out.

    >>> model = nn.Sequential(nn.Embedding(6, 2), nn.Linear(2, 2, bias=False))
    >>> outside(model, find_layers(model))
    (0.75, ['0.weight'])
    """
    within, plain = {la.name for la in layers}, plain_names(model)
    without = {n for pattern in exclude for n in meant(pattern, plain)}
    left = {
        names[0]: model.get_parameter(names[0])
        for names in tied_names(model).values()
        if names[0] not in within and without.isdisjoint(names)
    }
    left = {n: p for n, p in left.items() if p.dim() > 1 and p.is_floating_point()}
    whole = sum(p.numel() for p in model.parameters())
    largest = sorted(left, key=lambda n: -left[n].numel())
    return sum(p.numel() for p in left.values()) / max(1, whole), largest


def drop_output_layer(layers: Sequence[Layer]) -> list[Layer]:
    """Without the last layer, whose neurons are the model's outputs."""
    if len(layers) < 2:
        return list(layers)
    return [la for la in layers if la.neuron != layers[-1].neuron]
