"""An artifact as a module: the same call as the model it was built from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from prunus._common.nested import leaves_of, map_tensors, with_tensors
from prunus.deployment.manifest import MANIFEST, Manifest, read_manifest
from prunus.deployment.parts import in_parts
from prunus.errors import InputError, first_line
from prunus.runtimes import Answers, Session, find
from prunus.runtimes._sizes import Sizes


@dataclass(frozen=True)
class Structure:
    """How answers lie in what a model returns: tensors, and ``None`` where it returns that.

    Attributes:
        whole: a model's answers, with tensors that hold no values.
        count: of the tensors.
    """

    whole: Any
    count: int

    @classmethod
    def of(cls, answers: Any) -> Structure | None:
        """Nothing where a number or a text is among them, which may depend on the inputs."""
        leaves = [leaf for _, leaf in leaves_of(answers)]
        if not all(leaf is None or isinstance(leaf, Tensor) for leaf in leaves):
            return None
        empty = torch.empty(0)
        count = sum(leaf is not None for leaf in leaves)
        return cls(map_tensors(lambda _: empty, answers), count)

    def put(self, found: Answers) -> Any:
        """Tensors in their places."""
        return with_tensors(self.whole, found)


class DeployedModule(nn.Module):
    """Runs an artifact in its runtime; called like the model that it was built from.

    Inputs come from the CPU or from where the runtime wants them; answers have the structure of
    the model's where the artifact was built in this process and the model returns tensors and
    ``None`` alone; otherwise, and opened from disk, they are a tensor or a tuple of tensors.

    Args:
        session: the opened artifact.
        card: what is known of it.
        answers: structure of the model's answers.
    """

    def __init__(self, session: Session, card: Manifest, answers: Structure | None = None):
        super().__init__()
        self.session, self.card, self.answers = session, card, answers
        self.eval()

    def __copy__(self) -> DeployedModule:
        return DeployedModule(self.session, self.card, self.answers)

    def __deepcopy__(self, memo: dict[int, Any]) -> DeployedModule:
        """One that asks the same session, which has no state."""
        return copy.copy(self)

    def __reduce__(self) -> NoReturn:
        raise InputError(
            f"what runs in {self.card.runtime} is not pickled: pass on the path of its folder "
            "(deploy(…, folder=…) keeps one), and open it with prunus.load"
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's answers to the same arguments.

        Raises:
            InputError: if the artifact was built for others, or its engine refuses them.
        """
        inputs = self.card.tensors(args, kwargs)
        try:
            found = self.compute(inputs)
        except InputError:
            raise
        except Exception as error:  # the engine's own words, of sizes that do not go together
            shapes = [tuple(t.shape) for t in inputs]
            raise InputError(
                f"{self.card.runtime} fails on inputs of shapes {shapes}: "
                f"{first_line(error, kind=False)}"
            ) from error
        if self.answers is not None and self.answers.count == len(found):
            return self.answers.put(found)
        return found[0] if len(found) == 1 else tuple(found)

    def compute(self, inputs: Sequence[Tensor]) -> Answers:
        """Flattened inputs to flattened answers, for any batch size.

        Raises:
            InputError: if the inputs are not those that the artifact was built for.
        """
        card = self.card
        count = next((len(t) for t in inputs if t.dim()), card.batch)
        self._refuse(inputs, count)
        if self.session.dynamic or count == card.batch:
            return self.session.compute(inputs)
        return in_parts(self.session, inputs, count=count, size=card.batch)

    def _refuse(self, inputs: Sequence[Tensor], count: int) -> None:
        """Other kinds and sizes: not every engine looks, and some answer with what lies there."""
        name, wanted = self.card.runtime, self.card.inputs
        if len(inputs) != len(wanted):
            raise InputError(
                f"{name} got {len(inputs)} input tensors but was built for {len(wanted)}"
            )
        for number, (given, (shape, dtype)) in enumerate(zip(inputs, wanted, strict=True)):
            kind = str(given.dtype).removeprefix("torch.")
            if given.dim() != len(shape) or kind != dtype:
                raise InputError(self._says(number, given))
        if self.session.any_shape:
            return
        shapes, built = [tuple(t.shape) for t in inputs], [shape for shape, _ in wanted]
        sizes = self.session.sizes
        problem = sizes.problem(shapes, built, batch=self.card.batch, count=count)
        if isinstance(problem, int):
            raise InputError(self._says(problem, inputs[problem]))
        if problem is not None:
            raise InputError(
                f"{name} got inputs of shapes {shapes}; it was built for {sizes.in_words(problem)}"
            )

    def _says(self, number: int, given: Tensor) -> str:
        shape, dtype = self.card.inputs[number]
        items = "any" if shape and shape[0] == self.card.batch else str(*shape[:1])
        rest = self.session.sizes.shown(number, shape)
        sizes = f"{items}, {rest}" if rest else items
        return (
            f"{self.card.runtime}: input {number} is {given.dtype} {tuple(given.shape)}; it was "
            f"built for {dtype} ({sizes}), one batch size for all"
        )


def open_artifact(folder: str | Path, *, threads: int = 1) -> DeployedModule:
    """Open what :func:`prunus.deploy` wrote.

    Args:
        folder: of the artifact, with its ``artefact.json``.
        threads: of the processor that it may use.

    Raises:
        InputError: if it is none, is damaged, or its runtime is not installed.
    """
    folder = Path(folder)
    card = read_manifest(folder)
    path = folder / card.file
    if not card.file or not path.exists():
        raise InputError(f"'{folder}' lacks the file '{card.file}' that {MANIFEST} names")
    runtime = find(card.runtime)
    try:
        session = runtime.open_(path, threads=threads)
    except InputError:
        raise
    except Exception as error:  # an engine's own, of a file that is damaged or not for it
        raise InputError(f"{card.runtime} cannot open '{path}': {error}") from error
    sizes = Sizes(card.sizes, card.conditions)
    opened = Session(session.compute, path, card.dynamic, session.notes, sizes=sizes)
    return DeployedModule(opened, card)
