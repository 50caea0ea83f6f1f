"""A whole model of a folder in memory, and how much memory there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.blocks.folder import skeleton
from prunus.compaction.files.pretrained import is_folder, load


def free_memory() -> int | None:
    """Bytes of memory that are free, where the system says it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable")]
    return 1024 * int(found[0]) if found else None


def opened(folder: Path) -> nn.Module:
    """The model of a folder, whoever wrote it, in float32 and eval mode."""
    if is_folder(folder):
        return load(folder).float()
    kind: Any = type(skeleton(folder))
    made = kind.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    return made.eval()  # type: ignore[no-any-return]
