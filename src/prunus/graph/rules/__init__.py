"""How each family of operators relates the indices of its operands: one file a family.

A rule is a function of a :class:`~prunus.graph.call.Call` and gives the labels of the result;
``RULES`` of each file maps operator names (ATen's, without overload and trailing underscore) to
rules. A new operator is one line in the file of its family; a new family one new file here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from prunus.graph.call import Call, Found

Rule = Callable[[Call], Found]


def all_rules() -> dict[str, Rule]:
    """Every rule by operator name.

    >>> sorted(all_rules())[:3]
    ['__and__', '__ior__', '__or__']
    """
    rules: dict[str, Rule] = {}
    for found in pkgutil.iter_modules(__path__):
        module: Any = importlib.import_module(f"{__name__}.{found.name}")
        twice = set(rules) & set(module.RULES)
        assert not twice, f"two rules for {twice}"
        rules.update(module.RULES)
    return rules
