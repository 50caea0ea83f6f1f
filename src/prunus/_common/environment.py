"""The machine on which figures were made."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from prunus._common.torch_internals import torch_version

INSTRUCTIONS = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx_vnni", "avx512_vnni"},
    "AMX": {"amx_int8"},
    "dot products": {"asimddp"},
}
"""Of vectors and of int8, by their marks in /proc/cpuinfo."""


def describe() -> dict[str, str]:
    """Python, torch, processor, cores and threads; no names of people or hosts."""
    return {
        "python": platform.python_version(),
        "torch": torch_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return processor_of(text, other=platform.processor() or platform.machine() or "unknown")


def processor_of(text: str, *, other: str) -> str:
    """The name of the first processor that /proc/cpuinfo lists, and what decides its speed.

    Two of one name can differ by their vectors, and int8 gains far more with instructions of its
    own (VNNI, AMX, dot products) than without.

    Args:
        text: of /proc/cpuinfo, empty where there is none.
        other: the name where the text has none, as on ARM.

    >>> text = "model name: AMD EPYC\\nflags: fpu avx2 avx512f avx512_vnni\\n"
    >>> processor_of(text, other="x86_64")
    'AMD EPYC (AVX-512, VNNI)'
    >>> processor_of("Features: fp asimd asimddp\\n", other="aarch64")
    'aarch64 (dot products)'
    """
    about: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        about.setdefault(name.strip(), value.strip())
    flags = set(about.get("flags", about.get("Features", "")).split())
    has = [word for word, marks in INSTRUCTIONS.items() if flags & marks]
    if "AVX-512" in has:
        has = [word for word in has if word != "AVX2"]
    name = about.get("model name") or other
    return f"{name} ({', '.join(has)})" if has else name
