"""Modules in whose place a graph runs: what they hold stays; what they did is the graph's."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from prunus.errors import InputError, MissingError

PLAIN = (int, float, bool, str, type(None))
"""Attributes that a graph keeps of a module."""


class StandIn(nn.Module):
    """A module that a graph runs for. What its code read cannot be set any more: it has no effect.

    Attributes:
        stands_for: the class that it was of, for messages.
        methods: other methods of that class, which a graph does not have.
        fixed: attributes that the code of the model reads: a graph holds what they were.
    """

    stands_for: str = ""
    methods: tuple[str, ...] = ()
    fixed: frozenset[str] = frozenset()

    def __getattr__(self, name: str) -> Any:
        if name in self.methods:
            raise MissingError(
                f"{self.stands_for}.{name} is not there: the compact model is a graph of its "
                "forward alone. Call it on the dense model, or prune with a scope that leaves "
                "out what made a graph necessary (prunus.units shows the units)"
            )
        try:
            return super().__getattr__(name)
        except AttributeError:
            kind = self.stands_for or "model"
            raise AttributeError(f"the graph of this {kind} has no attribute {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        held = name in self._parameters or name in self._buffers
        same = name in vars(self) and same_plain(vars(self)[name], value)
        if name in self.fixed and not held and not same:
            raise _cannot_be_set(self, name)
        module = vars(self)["_modules"].get(name)
        if isinstance(module, FormerModule) and module is not value:
            raise _cannot_be_set(self, name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.fixed and name in vars(self):
            raise _cannot_be_set(self, name)
        super().__delattr__(name)


class FormerModule(StandIn):
    """A module inside of a model that became a graph. It does not run: the graph does.

    Its tensors are those that the graph computes with, and a graph follows its mode.

    Attributes:
        followed: whether the graph knows which of its operators are this module's.
    """

    followed: bool = False

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        """Refused."""
        raise MissingError(
            f"{_named(self)} cannot be called: the compact model is a graph, of which this was a "
            "part. Call the whole model, or this part of the dense one"
        )

    def __getitem__(self, key: Any) -> Any:
        own = self._modules
        return own[key] if isinstance(key, str) else list(own.values())[key]

    def _get_name(self) -> str:
        return f"FormerModule[{self.stands_for}]"

    def _refuse_hook(self, *_: Any, **__: Any) -> NoReturn:
        raise InputError(
            f"a hook on {_named(self)} would never run: the compact model is a graph, of which "
            "this was a part. Register it on the whole model, or on the dense one"
        )

    register_forward_hook = _refuse_hook
    register_forward_pre_hook = _refuse_hook
    register_full_backward_hook = _refuse_hook
    register_full_backward_pre_hook = _refuse_hook
    register_backward_hook = _refuse_hook


def put_part(root: nn.Module, path: str) -> FormerModule:
    """The part of a graph at a path; a bare module that stands there becomes one.

    >>> root = nn.Module()
    >>> put_part(root, "a.b") is root.a.b, type(root.a) is FormerModule
    (True, True)
    """
    for key in path.split("."):
        bare = root._modules.get(key)
        if not isinstance(bare, FormerModule):
            root.add_module(key, _as_part(bare))
        root = root.get_submodule(key)
    assert isinstance(root, FormerModule)
    return root


def _as_part(bare: nn.Module | None) -> FormerModule:
    """A part with what a bare module holds."""
    made = FormerModule()
    for table in _TABLES if bare is not None else ():
        vars(made)[table] = vars(bare)[table]
    return made


_TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


def parts_of(root: nn.Module) -> dict[str, FormerModule]:
    """The parts of a graph by their paths."""
    return {n: m for n, m in root.named_modules() if isinstance(m, FormerModule)}


def told(module: nn.Module) -> dict[str, Any]:
    """What a graph or a part of one was told of what it stands for, and its mode."""
    own = vars(nn.Module()).keys() - {"training"}
    return {key: value for key, value in vars(module).items() if key not in own}


def _named(part: FormerModule) -> str:
    return f"this {part.stands_for or 'module'}"


def _cannot_be_set(module: StandIn, name: str) -> InputError:
    return InputError(
        f"{module.stands_for}.{name} cannot be set: the compact model is a graph, which has "
        "what it was. Set it in the dense model, and make that smaller again"
    )


def same_plain(one: Any, other: Any) -> bool:
    """Whether two plain attributes are the same.

    >>> same_plain(1, 1), same_plain(1, True), same_plain([], [])
    (True, False, False)
    """
    return type(one) is type(other) and type(one) in PLAIN and bool(one == other)
