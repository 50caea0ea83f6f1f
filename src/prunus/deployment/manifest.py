"""What an artifact's folder says of it: ``artefact.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from prunus._common.files import refuse_links, write_json
from prunus._common.inputs import by_name, positional_names
from prunus._common.nested import leaves_of, tensors_of
from prunus.errors import InputError
from prunus.graph.guard import expression
from prunus.runtimes import BuildRequest, Session
from prunus.runtimes._arguments import named

MANIFEST = "artefact.json"
FORMAT = "prunus artefact 1"


@dataclass(frozen=True)
class Manifest:
    """What is to be known of an artifact, beside the artifact.

    Attributes:
        runtime: that opens it.
        file: name of the file or folder, inside the card's folder.
        dynamic: whether it takes any batch size; else ``batch`` alone.
        batch: of the example that it was built with.
        inputs: shape and dtype of every input tensor.
        arguments: names of the arguments that hold these tensors, in their order.
        positions: names of the arguments that may be given by position.
        fixed: the example's other arguments, which are built in, as text.
        sizes: of every input tensor, where some beside the batch's may change: numbers, or
            expressions in the names of open ones.
        conditions: comparisons of these that must hold.
    """

    runtime: str
    file: str
    dynamic: bool
    batch: int
    inputs: tuple[tuple[tuple[int, ...], str], ...]
    arguments: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()
    fixed: Mapping[str, str] = field(default_factory=dict)
    sizes: tuple[tuple[int | str, ...], ...] = ()
    conditions: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Into a folder, last: one without it is not finished."""
        write_json(folder / MANIFEST, {"format": FORMAT, **vars(self)})

    def tensors(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of a call in the order of ``inputs``, whatever the order of its keywords.

        Raises:
            InputError: if an argument is missing, or one is given that is not built in.
        """
        given = by_name(self.positions, (tuple(args), kwargs))
        lacking = [n for n in self.arguments if not tensors_of(given.get(n))]
        if lacking:
            raise InputError(f"{self.runtime}: '{lacking[0]}' is missing; it takes {self._known()}")
        for name, value in given.items():
            if name in self.arguments or value is None or self.fixed.get(name) == text_of(value):
                continue
            built = f"with {self.fixed[name]}" if name in self.fixed else "without it"
            raise InputError(
                f"{self.runtime}: {name}={text_of(value)} is not possible: the artifact was built "
                f"{built}; it takes {self._known()}"
            )
        return tensors_of([given[n] for n in self.arguments])

    def _known(self) -> str:
        return ", ".join(self.arguments) or "no tensor"


def text_of(value: Any) -> str:
    """A plain value as Python writes it, another as the name of its type.

    >>> text_of((1, "a")), text_of(object())
    ("(1, 'a')", '<object>')
    """
    plain = (bool, int, float, str, type(None))
    if all(isinstance(leaf, plain) for _, leaf in leaves_of(value)):
        return repr(value)
    return f"<{type(value).__name__}>"


def manifest_of(session: Session, order: BuildRequest, runtime: str) -> Manifest:
    """What is to be written of an artifact."""
    given = named(order)
    inputs = order.tensors
    return Manifest(
        runtime=runtime,
        file="" if session.path is None else session.path.name,
        dynamic=session.dynamic,
        batch=next((len(t) for t in inputs if t.dim()), 1),
        inputs=tuple((tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in inputs),
        arguments=tuple(name for name, value in given.items() if tensors_of(value)),
        positions=tuple(positional_names(order.model)),
        fixed={n: text_of(v) for n, v in given.items() if not tensors_of(v)},
        sizes=session.sizes.of,
        conditions=session.sizes.conditions,
    )


def read_manifest(folder: Path) -> Manifest:
    """What a folder's card says.

    Raises:
        InputError: if it holds none, or a damaged one, or a link.
    """
    path = folder / MANIFEST
    refuse_links(folder)
    try:
        found = json.loads(path.read_bytes())
        if found["format"] != FORMAT:
            raise InputError(f"'{path}' has the format '{found['format']}'; this reads '{FORMAT}'")
        card = Manifest(
            runtime=str(found["runtime"]),
            file=str(found["file"]),
            dynamic=bool(found["dynamic"]),
            batch=int(found["batch"]),
            inputs=tuple((tuple(map(int, shape)), str(kind)) for shape, kind in found["inputs"]),
            arguments=tuple(map(str, found["arguments"])),
            positions=tuple(map(str, found["positions"])),
            fixed={str(name): str(value) for name, value in found["fixed"].items()},
            sizes=tuple(tuple(map(_size, row)) for row in found.get("sizes", ())),
            conditions=tuple(map(str, found.get("conditions", ()))),
        )
        _refuse_sizes(card)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"'{folder}' contains no readable artifact: {error}") from None
    if Path(card.file).name != card.file or card.batch < 1:
        raise InputError(f"'{path}' is damaged: file '{card.file}', batch {card.batch}")
    return card


def _size(value: Any) -> int | str:
    return value if isinstance(value, str) else int(value)


def _refuse_sizes(card: Manifest) -> None:
    """Open sizes of other inputs than there are, or that are no arithmetic."""
    if card.sizes and [len(row) for row in card.sizes] != [len(shape) for shape, _ in card.inputs]:
        raise ValueError("its open sizes are not those of its inputs")
    for text in (*card.conditions, *(s for row in card.sizes for s in row if isinstance(s, str))):
        expression(text)
