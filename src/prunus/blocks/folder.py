"""A folder of transformers as a model whose blocks come into memory one at a time."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus._common.files import placed, write_json
from prunus._common.memory import lasting
from prunus._common.modules import canonical_names
from prunus._common.rng import preserve_rng
from prunus.blocks.arrangement import readings, written
from prunus.blocks.hidden import Narrow
from prunus.blocks.judge import SLICE
from prunus.blocks.shards import INDEX, Shards, write_shard
from prunus.blocks.source import Part, Source
from prunus.blocks.uneven import Changes, narrowed, write_uneven
from prunus.blocks.walk import stacks_of
from prunus.compaction.files.pretrained import CONFIG, class_of, is_folder
from prunus.compaction.reopening import WeightsOnMeta, built
from prunus.errors import InputError, first_line

SCRATCH = ".prunus"
"""The folder of a walk that is not through, within the one that it writes."""
REPORT = "pruned.json"
"""In the folder that is written: what was done."""
_OURS = ("*.safetensors", INDEX, "pruned.*")
_WEIGHTS = (".bin", ".pt", ".pth", ".gguf")


class Folder:
    """Blocks are read from shards when they are asked for; the rest is mapped.

    Args:
        folder: in transformers' format.
        out: what is written.
        blocks: the name of the list of blocks, if it is not the largest.

    Attributes:
        model: computes with what is held, in float32.
        scratch: for activations.
        smaller: the model that is written: another one where blocks lose units.
        names: what its blocks are called, where that changes; others go.
        shallow: the model with all that its blocks have, without those that go.
        changes: what the modules of a block remember, and the configuration of a model all of whose
            blocks are like it; where blocks may lose different numbers of units.
        narrow: what goes of the stream, if channels do.

    Raises:
        InputError: for a folder that cannot be read in blocks.
    """

    def __init__(self, folder: Path, out: Path, blocks: str | None = None) -> None:
        self.folder, self.out = folder, out
        self.scratch: Path | None = out / SCRATCH
        self.shards = Shards(folder)
        self.model: Any = skeleton(folder)
        self.smaller: Any = self.model
        self.shallow: Any = self.model
        self.names: dict[str, str] = {}
        self.changes: Callable[[str], tuple[str, Changes]] | None = None
        self.narrow: Narrow | None = None
        self.whole: Source = self
        self.readings = readings(self.model, self.shards, ours=is_folder(folder))
        self.blocks = [name for stack in stacks_of(self.model, blocks) for name in stack]
        self._map_rest()

    @contextmanager
    def hold(self, name: str) -> Iterator[nn.Module]:
        """A block with its weights in memory."""
        block = self.model.get_submodule(name)
        for inner in block.state_dict():
            value = self.readings[f"{name}.{inner}"].read()
            place(block, inner, lasting(value.shape, _computing(value.dtype)).copy_(value))
        try:
            yield block
        finally:
            for inner, tensor in list(block.state_dict().items()):
                place(block, inner, tensor.to("meta"))

    def note(self, name: str) -> None:
        """The folder has it as it was given."""

    def reset(self, name: str) -> None:
        """The folder has it as it was given."""

    def keep(self, name: str, part: Part) -> None:
        """Write the block that is held, or so much of it."""
        state = {}
        for inner, tensor in self.model.get_submodule(name).state_dict().items():
            dtype = self.readings[f"{name}.{inner}"].dtype
            state[f"{self.names.get(name, name)}.{inner}"] = part(inner, tensor).to(dtype)
        if self.changes is None:
            write_shard(self.out / f"model-{name}.safetensors", written(self.smaller, state))
            return
        place = self.out / SCRATCH  # how they are written is known when all are there
        write_shard(place / f"model-{name}.safetensors", state)
        write_json(place / f"model-{name}.json", self.changes(name))

    def finish(self, said: dict[str, Any]) -> None:
        """Write what is in no block, the index, and what stands beside; the walk is through."""
        inside = tuple(f"{name}." for name in self.blocks)
        rest = {n: self._part(n, r.read()) for n, r in self.readings.items()
                if not n.startswith(inside)}  # fmt: skip
        self._copy()
        if self.changes is None or self._even():
            self._index(rest)
        else:
            self._uneven(rest)
        write_json(self.out / REPORT, said)
        shutil.rmtree(self.out / SCRATCH, ignore_errors=True)

    def _part(self, name: str, tensor: Tensor) -> Tensor:
        """What is left of a tensor in no block; of a large one in a file, not in memory."""
        if self.narrow is None or name not in self.narrow.places:
            return tensor
        scales = {n: self.readings[n].read() for n in self.narrow.norms if n in self.readings}
        if tensor.dim() < 2 or self.narrow.places[name] != (1,):
            return self.narrow.of(name, self.narrow.turned(name, tensor, scales))
        shape = (len(tensor), len(self.narrow.kept), *tensor.shape[2:])
        path = self.out / SCRATCH / f"rest-{name}.bin"
        path.unlink(missing_ok=True)
        path.write_bytes(b"")
        made = torch.from_file(
            str(path), shared=True, size=math.prod(shape), dtype=tensor.dtype
        ).view(shape)  # fmt: skip
        for start in range(0, len(tensor), SLICE):
            rows = slice(start, start + SLICE)
            made[rows] = self.narrow.of(name, self.narrow.turned(name, tensor[rows], scales))
        return made

    def _copy(self) -> None:
        """What stands beside the weights."""
        with placed(self.out, self.out / SCRATCH) as place:
            for path in sorted(self.folder.iterdir()):
                ours = any(path.match(pattern) for pattern in _OURS)
                if path.is_file() and not ours and path.suffix not in _WEIGHTS:
                    shutil.copyfile(path, place / path.name)

    def _index(self, rest: dict[str, Tensor]) -> None:
        """The files of a model that its configuration describes."""
        write_shard(self.out / "model-rest.safetensors", written(self.smaller, rest))
        places: dict[str, str] = {}
        size = 0
        for path in sorted(self.out.glob("model-*.safetensors")):
            shard = Shards.of(path)
            places |= dict.fromkeys(shard.tensors, path.name)
            size += sum(stored.size for stored in shard.tensors.values())
        if self.smaller is not self.model:
            with placed(self.out, self.out / SCRATCH) as place:
                self.smaller.config.save_pretrained(str(place))
        write_json(self.out / INDEX, {"metadata": {"total_size": size}, "weight_map": places})

    def _even(self) -> bool:
        """Whether one configuration says the sizes of all blocks; they are written then."""
        files = {n: self.out / SCRATCH / f"model-{n}.json" for n in self._staying()}
        said = {json.loads(path.read_text(encoding="utf-8"))[0] for path in files.values()}
        if len(said) > 1:
            return False
        config = type(self.model.config).from_dict(json.loads(said.pop()))
        self.smaller = built(self.model, config)
        for name, path in files.items():
            shard = Shards.of(path.with_suffix(".safetensors"))
            state = {n: shard[n] for n in shard.tensors}
            write_shard(self.out / f"model-{name}.safetensors", written(self.smaller, state))
        return True

    def _uneven(self, rest: dict[str, Tensor]) -> None:
        """The file of a model whose blocks differ."""
        attributes: Changes = []
        first = canonical_names(self.shallow)
        tensors = {first.get(name, name): tensor for name, tensor in rest.items()}
        for name in self._staying():
            path = self.out / SCRATCH / f"model-{name}.json"
            attributes += json.loads(path.read_text(encoding="utf-8"))[1]
            shard = Shards.of(path.with_suffix(".safetensors"))
            tensors |= {n: shard[n] for n in shard.tensors}
        config = json.loads((self.folder / CONFIG).read_text(encoding="utf-8"))
        if self.shallow is not self.model:
            config = json.loads(self.shallow.config.to_json_string(use_diff=False))
        write_uneven(self.out, self.shallow, tensors, attributes, config=config)

    def _staying(self) -> list[str]:
        return [name for name in self.blocks if name in (self.names or self.blocks)]

    def _map_rest(self) -> None:
        """Weights outside of the blocks, as the files have them; tied ones are one tensor."""
        inside = tuple(f"{name}." for name in self.blocks)
        missing = []
        for name, tensor in self.model.state_dict().items():
            shape = self.readings[name].shape if name in self.readings else None
            if name not in self.readings:
                missing.append(name)
            elif shape is not None and shape != tuple(tensor.shape):
                raise _misfit(name, shape, tuple(tensor.shape))
        for name, reading in self.readings.items():
            if not name.startswith(inside):
                value = reading.read()
                large = value.dim() > 1 and value.numel() > 2**16
                place(self.model, name, value if large else value.to(_computing(value.dtype)))
        with contextlib.suppress(AttributeError):
            self.model.tie_weights()
        tensors = self.model.state_dict()
        held = {n for n, t in tensors.items() if not t.is_meta}
        missing = [n for n in missing if n.startswith(inside) or n not in held]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(f"the shards of '{self.folder}' lack {missing[0]!r:.120}{more}")
        for module in self.model.modules():
            if isinstance(module, nn.Embedding) and not module.weight.is_meta:
                module.register_forward_hook(lambda _, args, out: out.to(_computing(out.dtype)))


def _computing(dtype: torch.dtype) -> torch.dtype:
    """What numbers of a file are computed in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def place(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor where a parameter or buffer is."""
    path, _, key = name.rpartition(".")
    module = model.get_submodule(path)
    old = module._parameters.get(key)
    if key in module._buffers:
        module._buffers[key] = value
        return
    if old is None or old.shape != value.shape:
        raise _misfit(name, tuple(value.shape), () if old is None else tuple(old.shape))
    module._parameters[key] = nn.Parameter(value, requires_grad=False)


def _misfit(name: str, stored: tuple[int, ...], made: tuple[int, ...]) -> InputError:
    return InputError(f"'{name}' is {list(stored)} in the shards, and {list(made)} by {CONFIG}")


def skeleton(folder: Path) -> nn.Module:
    """The model that the configuration describes, without memory for its weights.

    Raises:
        InputError: if there is none, or transformers knows no such model.
    """
    try:
        library: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise InputError(f"'{folder}' is read by transformers: pip install transformers") from error
    try:
        plain = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"'{folder}' has no {CONFIG} that can be read: {error}") from error
    kind = class_of(library, plain, ": open it yourself and give it to prunus.prune_blocks")
    try:
        config = library.AutoConfig.from_pretrained(str(folder), local_files_only=True)
        with preserve_rng(), WeightsOnMeta(), contextlib.redirect_stdout(None):
            made: nn.Module = kind(config)
    except Exception as error:  # of transformers, on a configuration from anyone
        raise InputError(f"'{folder / CONFIG}' makes no model: {first_line(error)}") from error
    return (narrowed(made, folder) if is_folder(folder) else made).eval()
