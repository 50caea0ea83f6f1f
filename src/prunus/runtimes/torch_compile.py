"""Machine code for this processor, compiled ahead of time by torch's own compiler (AOTInductor).

The file is a program: opening it runs code that it holds. Open files of your own alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from prunus._common.torch_internals import aot_compile, aot_load, cxx_compiler_problem
from prunus.errors import InputError
from prunus.graph.trace import analysis_mode
from prunus.runtimes import Answers, BuildRequest, Compute, Facts, Session
from prunus.runtimes._exported import exported
from prunus.runtimes._recurrent import has_recurrent

FACTS = Facts(needs=("torch",), devices=("cpu", "cuda"), slow=True)
"""Slow: a C++ compiler runs, twenty seconds and more."""

SETTINGS = {"compile_threads": 1}
"""Of the compiler: no processes of its own, which would outlive the build."""


def refuses(order: BuildRequest) -> str | None:
    """Machines without a C++ compiler."""
    problem = cxx_compiler_problem()
    return problem and (
        f"it needs a C++ compiler, and finds none ({problem}): install g++ or clang++ "
        "(Debian, Ubuntu: apt install g++; macOS: xcode-select --install), or name it in the "
        "variable CXX"
    )


def build(order: BuildRequest) -> Session:
    """Export, compile for ``order.threads``, write and open.

    Raises:
        InputError: if torch.export cannot trace the model, or for recurrent layers of open
            lengths.
    """
    made = exported(order)
    if made.sizes.open:
        if has_recurrent(made.program):
            raise InputError(
                "torch's compiler takes recurrent layers apart for one length, and lengths are open"
            )
        made = exported(replace(order, made={}))  # it may settle the sizes that are open
    path = order.folder / "model.pt2"
    with analysis_mode(order.model), torch.no_grad():
        aot_compile(made.program, path, SETTINGS)
    here = f"machine code for processors like this one and {order.threads} thread(s)"
    return open_(path, threads=order.threads).as_made(made, here)


def open_(path: Path, *, threads: int) -> Session:
    """Open a package, which runs code from it; the threads are those it was compiled for."""
    return Session(_computing(aot_load(path)), path)


def _computing(run: Callable[[list[Tensor]], Iterable[Tensor]]) -> Compute:
    """Flat tensors in and out, as the package takes them."""

    def compute(inputs: Sequence[Tensor]) -> Answers:
        with torch.inference_mode():
            return list(run([t.contiguous() for t in inputs]))

    return compute
