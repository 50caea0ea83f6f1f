"""Machine code for this processor, compiled ahead of time by torch's own compiler (AOTInductor).

The file is a program: opening it runs code that it holds. Open files of your own alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.graph.trace import analysis_mode
from prunus.runtimes import Answers, BuildRequest, Compute, Session
from prunus.runtimes._exported import exported

NEEDS = ("torch",)
DEVICES = ("cpu", "cuda")
EXACT = True
TOLERANCE = 1e-4
SKIPS_ZEROS = False
SLOW = True  # a C++ compiler runs, twenty seconds and more
SAFE = False
MULTIPLE_OF = 8

SETTINGS = {"compile_threads": 1}
"""Of the compiler: no processes of its own, which would outlive the build."""


def refuses(order: BuildRequest) -> str | None:
    """Machines without a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # its type is private
        return (
            f"it needs a C++ compiler, and finds none ({type(error).__name__}): install g++ or "
            "clang++ (Debian, Ubuntu: apt install g++; macOS: xcode-select --install), or name it "
            "in the variable CXX"
        )
    return None


def build(order: BuildRequest) -> Session:
    """Export, compile for ``order.threads``, write and open.

    Raises:
        InputError: if torch.export cannot trace the model.
    """
    made = exported(order)
    path = order.folder / "model.pt2"
    with analysis_mode(order.model), torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            made.program, package_path=str(path), inductor_configs=dict(SETTINGS)
        )
    here = f"machine code for processors like this one and {order.threads} thread(s)"
    opened = open_(path, threads=order.threads)
    return replace(opened, dynamic=made.dynamic, notes=(*made.notes, here))


def open_(path: Path, *, threads: int) -> Session:
    """Open a package, which runs code from it; the threads are those it was compiled for."""
    return Session(_computing(torch._inductor.aoti_load_package(str(path))), path)


def _computing(package: Any) -> Compute:
    """Flat tensors in and out, as the package takes them."""
    run = package.loader.boxed_run

    def compute(inputs: Sequence[Tensor]) -> Answers:
        with torch.inference_mode():
            return list(run([t.contiguous() for t in inputs]))

    return compute
