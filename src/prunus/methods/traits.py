"""What a method's file declares about it, so that no other code has to know its name."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from prunus.methods.catalog import constant, defaults, is_own, names, parameters

TRAITS: dict[str, dict[str, Any]] = {
    "structures": {
        "UNITS": "weights",  # or whole "neurons", "modules" (which can be taken out), "experts"
        "SPARES_OUTPUT": False,  # whether the output layer stays unless the scope includes it
        "N_OF_M": None,  # (n, m): exactly n of every m stay, which is the sparsity
        "HEADS": None,  # at attention: "whole" heads, the same "dims" of all, or they "stay"
        "ROTATES": False,  # whether streams are turned to principal directions before a cut
        "HIDDEN": False,  # whether the widths that norms count can go
        "SHORT": None,  # a pattern of what may be written instead; its groups are settings
    },
    "allocations": {
        "N_OF_M": False,  # whether it can take the same number from every m weights
        "WITHIN_NEURONS": False,  # whether it shares out the weights of a neuron
        "MEASURES": False,  # whether it reads what removing part of one group alone costs
        "COUPLED": True,  # whether it can share out units that fall together
    },
    "repairs": {
        "NEEDS_REFERENCE": False,  # whether it compares with the model before the cut
        "NEEDS_LOSS": False,  # whether it reads gradients
    },
    "regularizers": {
        "OF": "weights",  # what it pulls: "weights", or the scales of "norms"
        "GOING": False,  # whether it asks which weights will go
    },
    "restore": {
        "CHANGES": True,  # whether weights are others after it
        "RELEASES": None,  # removed weights train: "before" the end of a retraining, or "after" it
        "RECALLS": None,  # the earlier state that it reads: "start" or "cut"
        "REWINDS_TO": None,  # the step of round 0 whose state it reads, a length
        "NEEDS_ROUNDS": False,  # whether it acts after a whole retraining
    },
    "rates": {
        "CONSTANT": False,  # whether it leaves the optimizer's rate as it is
        "NEEDS_DENSE": False,  # whether it repeats what was done in round 0
    },
    "block_rates": {
        "FLAT": False,  # whether every block loses the target
    },
    "signals": {
        "RUNNING": False,  # whether it is collected while training
        "BEFORE": None,  # weights before a step that it reads: of the "first", or of "every" one
        "CALIBRATION": False,  # whether it reads the calibration batches
        "READS_INPUTS": False,  # whether it knows linear layers and convolutions that run alone
        "BY_UNIT": False,  # whether it has a number for each unit, not for each weight
        "READS_EXAMPLE": False,  # whether it passes the example through the model
        "BY_BATCH": False,  # whether it depends, by definition, on what is in one batch
        "SAMPLES": False,  # whether it draws random numbers for the places of weights
        "LATENT": False,  # whether removed weights go on behind their zeros, step by step
        "CAPTURED": False,  # whether it is kept of a step before masks zero gradients
        "ITERATES": False,  # whether rounds change it even if nothing trains between them
    },
    "runtimes": {
        "NEEDS_MODEL": False,  # whether its artifact is tensors alone, without the model's code
    },
}
"""Of each axis, the constants that a file may assign, and what holds where it does not."""
_SETTING = re.compile(r"\{(\w+)\}")


def trait(axis: str, name: str, key: str, settings: Mapping[str, Any] | None = None) -> Any:
    """What a method declares, read from its file without running it, a user's own as well.

    ``"{when}"`` stands for the value of the setting ``when``. Of criteria and regrowths: whether
    one of the signals that they read declares it.

    Args:
        axis: the folder.
        name: of the method, or ``path/to/file.py:function``.
        key: of ``TRAITS``.
        settings: that differ from the defaults.

    >>> trait("restore", "revive", "RELEASES"), trait("restore", "keep", "RELEASES")
    ('before', None)
    >>> trait("restore", "revive", "RELEASES", {"when": "after"})
    'after'
    >>> trait("criteria", "fisher", "CALIBRATION")
    True
    """
    if axis in ("criteria", "regrowths"):
        known = set(names("signals")).intersection(_read(parameters, axis, name) or ())
        return any(trait("signals", signal, key) for signal in known)
    value = _read(constant, axis, name, key)
    if value is None:
        return TRAITS[axis][key]
    every = {**(_read(defaults, axis, name) or {}), **(settings or {})}

    def meant(part: Any) -> Any:
        setting = _SETTING.fullmatch(part) if isinstance(part, str) else None
        return part if setting is None else every.get(setting[1])

    return tuple(map(meant, value)) if isinstance(value, tuple) else meant(value)


def takes(axis: str, name: str, parameter: str) -> bool:
    """Whether a method has a parameter: of its own place, or a setting with a default.

    >>> takes("structures", "channel", "analysis"), takes("structures", "weight", "analysis")
    (True, False)
    """
    return parameter in {*(_read(parameters, axis, name) or ()),
                         *(_read(defaults, axis, name) or ())}  # fmt: skip


def _read(read: Any, axis: str, name: str, *of: str) -> Any:
    """What a file says, as the file of a user's own does now."""
    return (_said if is_own(name) else _shipped)(read, axis, name, *of)


def _said(read: Any, *of: str) -> Any:
    """Nothing where the file does not say it, or where finding it will fail anyway."""
    try:
        return read(*of)
    except (KeyError, ValueError, SyntaxError, OSError):
        return None


_shipped = functools.cache(_said)
"""Of prunus's own methods, which every step of a run asks for."""
