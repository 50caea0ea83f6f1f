"""Names of parameters and modules: the model's own, and the same without what wraps it."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from prunus.errors import InputError, did_you_mean

_INSIDE = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "DeepSpeedEngine": "module",
    "OptimizedModule": "_orig_mod",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "ActivationWrapper": "_checkpoint_wrapped_module",
    "_FabricModule": "_forward_module",
}
"""Classes that pass calls on, and what each calls the model inside."""
_PARTS = frozenset(_INSIDE.values())


def plain_name(name: str) -> str:
    """A name without the prefixes that wrappers put before it, as far as the text tells.

    A real submodule may be called so: where the model is at hand, :func:`plain_names` knows.

    >>> plain_name("module._orig_mod.fc.weight")
    'fc.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _PARTS)


def inner_key(module: nn.Module) -> str | None:
    """What a wrapper calls the model inside; ``None`` for what is no wrapper.

    >>> inner_key(nn.DataParallel(nn.Linear(1, 1))), inner_key(nn.ModuleDict({"module": nn.ReLU()}))
    ('module', None)
    """
    own = module._modules
    if isinstance(module, torch.jit.ScriptModule):  # whose parts are no dictionary
        return None
    for cls in type(module).__mro__:
        if (key := _INSIDE.get(cls.__name__)) is not None and own.get(key) is not None:
            return key
    hidden = [key for key in own if key in _PARTS and key.startswith("_")]
    alone = len(own) == 1 and not module._parameters and not module._buffers
    return hidden[0] if hidden and alone else None


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, torch.compile and their like.

    >>> inner = nn.Linear(1, 1)
    >>> unwrapped(nn.DataParallel(inner)) is inner, unwrapped(inner) is inner
    (True, True)
    """
    while (key := inner_key(model)) is not None:
        model = model.get_submodule(key)
    return model


def module_names(model: nn.Module) -> dict[str, str]:
    """The path of every module to the one without wrappers; of wrapped ones to the same.

    >>> model = nn.Sequential(nn.DataParallel(nn.Linear(1, 1)))
    >>> module_names(model)
    {'': '', '0': '0', '0.module': '0'}
    """
    found: dict[str, str] = {}
    skipped: set[str] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        outer, _, key = path.rpartition(".")
        before = found.get(outer, "")
        if path:
            found[path] = before if path in skipped else f"{before}.{key}".lstrip(".")
        else:
            found[path] = ""
        if (own := inner_key(module)) is not None:
            skipped.add(f"{path}.{own}".lstrip("."))
    return found


def module_paths(model: nn.Module) -> dict[str, str]:
    """The path of every module without wrappers to its own, which is that of the outermost one.

    >>> module_paths(nn.Sequential(nn.DataParallel(nn.Sequential(nn.Linear(1, 1)))))
    {'': '', '0': '0', '0.0': '0.module.0'}
    """
    found: dict[str, str] = {}
    for path, plain in module_names(model).items():
        found.setdefault(plain, path)
    return found


def plain_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer to the one that it has without wrappers.

    >>> plain_names(nn.DataParallel(nn.Linear(1, 1)))
    {'module.weight': 'weight', 'module.bias': 'bias'}
    """
    modules = module_names(model)
    parameters = model.named_parameters(remove_duplicate=False)
    buffers = model.named_buffers(remove_duplicate=False)
    found = {}
    for name, _ in (*parameters, *buffers):
        path, _, key = name.rpartition(".")
        found[name] = f"{modules[path]}.{key}".lstrip(".")
    return found


def matched(given: Iterable[str], own: Mapping[str, str]) -> dict[str, str | None]:
    """Which of one's own names each given one means; ``None`` where there is none.

    The very name comes first, then the same without wrappers (``module.``, ``_orig_mod.``) around
    the model, then around either of the two.

    Args:
        given: as someone else spells them.
        own: names, and the same without wrappers (:func:`plain_names`).

    Raises:
        InputError: where a name could mean two, or two mean the same.

    >>> own = {"head.weight": "head.weight", "head.module.weight": "head.module.weight"}
    >>> matched(["module.head.weight", "head.module.weight"], own)
    {'module.head.weight': 'head.weight', 'head.module.weight': 'head.module.weight'}
    """
    plain: dict[str, list[str]] = {}
    text: dict[str, list[str]] = {}
    for name, bare in own.items():
        plain.setdefault(bare, []).append(name)
        text.setdefault(plain_name(name), []).append(name)
    found: dict[str, str | None] = {}
    taken: dict[str, str] = {}
    for name in given:
        meant = _meant(name, own, plain, text)
        if meant is not None and taken.setdefault(meant, name) != name:
            raise InputError(f"'{taken[meant]}' and '{name}' both name '{meant}': give one of them")
        found[name] = meant
    return found


def _meant(
    name: str,
    own: Mapping[str, str],
    plain: Mapping[str, list[str]],
    text: Mapping[str, list[str]],
) -> str | None:
    rest = name
    while True:
        if rest in own:
            return rest
        if len(plain.get(rest, ())) == 1:
            return plain[rest][0]
        first, _, after = rest.partition(".")
        if first not in _PARTS or not after:
            break
        rest = after
    names = text.get(plain_name(name), [])
    if len(names) > 1:
        raise InputError(
            f"'{name}' could mean '{names[0]}' or '{names[1]}', which differ by what wrappers are "
            "called: give the full name"
        )
    return names[0] if names else None


def shared_prefix(names: Iterable[str]) -> str:
    """What wrappers are called, as far as all names begin with it.

    >>> shared_prefix(["module._orig_mod.weight", "module._orig_mod.bias"]), shared_prefix(["a"])
    ('module._orig_mod', '')
    """
    parts = [name.split(".") for name in names]
    found: list[str] = []
    for same in zip(*parts, strict=False):
        end = any(len(p) == len(found) + 1 for p in parts)
        if len(set(same)) > 1 or same[0] not in _PARTS or end:
            break
        found.append(same[0])
    return ".".join(found)


def bare(names: Iterable[str]) -> dict[str, str]:
    """Names alone, without their model, to what is left of them without wrappers.

    What all have in front, and torch's own private parts anywhere; where two would become one
    name, both stay as they are.

    >>> bare(["module.a._orig_mod.weight", "module.module.weight"])
    {'module.a._orig_mod.weight': 'a.weight', 'module.module.weight': 'module.weight'}
    """
    names = list(names)
    prefix = shared_prefix(names)
    start = len(prefix) + 1 if prefix else 0
    found = {
        name: ".".join(p for p in name[start:].split(".") if p not in _PARTS or p[0] != "_")
        for name in names
    }
    count = Counter(found.values())
    return {name: short if count[short] == 1 else name for name, short in found.items()}


def meant(pattern: str, names: Mapping[str, str], *, around: bool = True) -> list[str]:
    """The parameters that a pattern names: one, all that a module holds, or what it matches.

    The names without wrappers come first, then the full ones, then both without anything that a
    wrapper may be called: two parameters that differ by ``module.`` alone are two.

    Args:
        pattern: with ``*`` and ``?``.
        names: full names to those without wrappers (:func:`plain_names` or :func:`bare`).
        around: whether the name of a module around them names them as well; not for modules,
            of which one is meant by its own name.

    Raises:
        InputError: for a name that could mean two, which differ by what wrappers are called.

    >>> names = bare(["encoder.0.weight", "encoder.module.weight", "encoder.weight"])
    >>> meant("encoder.weight", names), len(meant("encoder", names))
    (['encoder.weight'], 3)
    >>> meant("module.encoder.0", names)
    ['encoder.0.weight']
    """
    ways: list[tuple[str, Callable[[str], str]]] = [
        (pattern, lambda name: names[name]),
        (pattern, lambda name: name),
        (plain_name(pattern), plain_name),
    ]
    for text, spell in ways:
        spelt = {n: spell(n) for n in names}
        found = [
            n
            for n, s in spelt.items()
            if any(fnmatch.fnmatchcase(head, text) for head in (_heads(s) if around else (s,)))
        ]
        if found:
            _refuse_ambiguous(pattern, {n: spelt[n] for n in found})
            return found
    return []


def _refuse_ambiguous(pattern: str, found: Mapping[str, str]) -> None:
    """Unless it is a pattern, which may mean several."""
    first: dict[str, str] = {}
    for name, spelt in found.items():
        if first.setdefault(spelt, name) != name and not any(sign in pattern for sign in "*?["):
            raise InputError(
                f"'{pattern}' could mean '{first[spelt]}' or '{name}', which differ by what "
                "wrappers are called: give the full name"
            )


def each_meant(
    patterns: Iterable[str],
    names: Mapping[str, str],
    said: str,
    *,
    around: bool = True,
    within: Iterable[str] | None = None,
) -> dict[str, list[str]]:
    """What each pattern names, as :func:`meant` says it: everything that takes names asks here.

    Args:
        patterns: that somebody wrote.
        names: see there.
        said: how a message about a pattern begins, ``"{where}: … matches no {what}"`` with ``…``
            for the pattern.
        around: see there.
        within: those of the names of which it must be one; by default all.

    Raises:
        InputError: for a pattern that names nothing, with what is near.

    >>> each_meant(["fc"], {"fc.weight": "fc.weight"}, "scope: … matches nothing")
    {'fc': ['fc.weight']}
    >>> each_meant(["f"], {"fc.weight": "fc.weight"}, "scope: … matches nothing")
    Traceback (most recent call last):
        ...
    prunus.errors.InputError: scope: 'f' matches nothing; did you mean 'fc'?
    """
    allowed = dict(names) if within is None else {n: names[n] for n in within}
    found = {}
    for pattern in patterns:
        found[pattern] = meant(pattern, names, around=around)
        if allowed.keys().isdisjoint(found[pattern]):
            known = known_patterns(allowed) if around else [n for n in allowed.values() if n]
            hint = f"; {did_you_mean(pattern, known)}" if known else ""
            raise InputError(said.replace("…", repr(pattern)) + hint)
    return found


def _heads(name: str) -> list[str]:
    """A parameter's name and those of all modules around it; of a computed one, as it was."""
    owner, computed, rest = name.partition(".parametrizations.")
    spelt = [name, *([f"{owner}.{rest.partition('.')[0]}"] if computed else [])]
    parts = name.split(".")
    return [*spelt, *(".".join(parts[:i]) for i in range(1, len(parts)))]


def known_patterns(names: Mapping[str, str]) -> list[str]:
    """What could have been meant: parameters and modules without wrappers."""
    return list(dict.fromkeys(head for name in names.values() for head in _heads(name)))
