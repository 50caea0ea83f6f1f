"""Open what prunus wrote: a model's file, a run's folder, or an artifact in its runtime."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from prunus._common.given import given_model
from prunus._common.kinds import given_path
from prunus.compaction.files import pretrained
from prunus.compaction.files.artifact import load as load_model
from prunus.deployment.manifest import MANIFEST, read_manifest
from prunus.deployment.module import open_artifact
from prunus.errors import InputError
from prunus.methods.traits import trait
from prunus.runtimes import find


def load(
    path: str | Path, model: nn.Module | None = None, *, threads: int = 1, trusted: bool = False
) -> nn.Module:
    """Open a model that prunus wrote, or an artifact that :func:`prunus.deploy` kept.

    Files of tensors, of ONNX Runtime and of OpenVINO may come from anyone: nothing in them is
    executed. A ``.pt2`` can hold code that runs when it is opened (that of ``torch_compile`` is
    nothing but code), so it is opened only when you say that you trust it.

    Args:
        path: of a file that :func:`prunus.save` or a run wrote, or of the run's folder; of a
            folder that ``prunus.hf.save`` wrote, which needs no ``model``; of an artifact's folder,
            or of the file in it that its ``artefact.json`` names.
        model: the dense model's class, freshly made; it becomes the opened one, in place. Needed
            for a file of tensors unless the whole model became a graph; not for artifacts.
        threads: of the processor, for an artifact.
        trusted: whether the file comes from somebody whose code you would run.

    Returns:
        The model in eval mode; of an artifact, a module that is called like the model.

    Raises:
        InputError: if the file is none of ours, is damaged, does not fit the model, needs trust, or
            its runtime is not installed.

    >>> import tempfile
    >>> from prunus import deploy
    >>> made = nn.Linear(4, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = deploy(made, example=made.weight[:1], runtime="torch_export", seconds=0.01,
    ...                   folder=folder)
    ...     opened = load(done.path, trusted=True)
    >>> bool(((opened(made.weight) - made(made.weight)).abs() < 1e-6).all())
    True
    """
    path = given_path(path, "path")
    if model is not None:
        given_model(model, "load")
    if path.is_dir() and pretrained.is_folder(path):
        return pretrained.load(path, model)
    folder, name = (path, None) if path.is_dir() else (path.parent, path.name)
    if not (folder / MANIFEST).is_file():
        inside = sorted(p.parent.name for p in path.glob(f"*/{MANIFEST}")) if name is None else []
        if inside and not (path / "model.safetensors").is_file():
            known = " or ".join(f"'{path / own}'" for own in inside)
            raise InputError(f"'{path}' contains several artifacts: name one, {known}")
        return load_model(path, model)
    card = read_manifest(folder)
    if trait("runtimes", card.runtime, "NEEDS_MODEL") or name not in (None, card.file):
        return load_model(folder / (name or card.file), model)
    if model is not None:
        raise InputError(
            f"'{path}' runs in {card.runtime} and does not need the model's code: leave model out"
        )
    if not trusted and not find(card.runtime).FACTS.safe:
        raise InputError(
            f"'{path}' is opened by {card.runtime}, and such a file can contain code that then "
            "runs: if you or someone you trust made it, call prunus.load(…, trusted=True)"
        )
    return open_artifact(folder, threads=threads)
