"""Fresh processes that need not import torch first: forks of one that has done so.

Run as a script it is that process. It has imported torch, with what optimizers and exports load
late (``HEAVY``), and nothing of prunus; for each line that it reads it forks a child, which goes
on as ``python -c`` would.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from types import TracebackType
from typing import Any

HEAVY = (
    "torch._dynamo", "torch.export", "torch.distributed.fsdp", "scipy.sparse.csgraph",
    "pydantic", "safetensors.torch", "ruamel.yaml",
)  # fmt: skip
"""What every installation has, and what takes seconds to import."""


class Child:
    """A process that was started: its number, and how it ends."""

    def __init__(self, number: int, server: subprocess.Popen[str], told: tuple[Path, Path]) -> None:
        self.pid, self._server, self._told = number, server, told

    def wait(self) -> CompletedProcess[str]:
        """Its exit status, and what it wrote."""
        assert self._server.stdout is not None
        code = int(self._server.stdout.readline())
        out, problems = (path.read_text() for path in self._told)
        return CompletedProcess([], code, out, problems)


class Pythons:
    """Starts code in a process of its own, one at a time.

    Args:
        place: a folder for what they write.
    """

    def __init__(self, place: Path) -> None:
        self._told = place / "stdout", place / "stderr"
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def __enter__(self) -> Pythons:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._server.communicate()  # the end of its input is its own

    def start(
        self, code: str, *words: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Child:
        """``python -c code words``.

        Args:
            code: to run.
            words: the arguments behind it.
            env: variables beside the ones of the test.
            cwd: a folder other than the test's.
        """
        values = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        asked = [code, words, values, str(cwd or Path.cwd()), [str(p) for p in self._told]]
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(asked), file=self._server.stdin, flush=True)
        return Child(int(self._server.stdout.readline()), self._server, self._told)

    def __call__(self, code: str, *words: str, **changes: Any) -> CompletedProcess[str]:
        """Run it to its end."""
        return self.start(code, *words, **changes).wait()

    def script(self, path: str, *words: str) -> CompletedProcess[str]:
        """``python path words``, to its end."""
        code = f"import runpy; runpy.run_path({path!r}, run_name='__main__')"
        return self(f"import sys; sys.path[0] = {str(Path(path).parent)!r}; {code}", *words)


def serve() -> str:
    """Forks for each line; in a child the code that it is to run, all else being as it asks."""
    for name in HEAVY:
        importlib.import_module(name)
    gc.freeze()  # or each child copies the memory in which it looks for garbage
    for line in sys.stdin:
        child = os.fork()
        if child:
            print(child, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        code, words, values, folder, told = json.loads(line)
        for number, path in ((0, os.devnull), *enumerate(told, 1)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        os.environ.clear()
        os.environ.update(values)
        os.chdir(folder)
        sys.argv = ["-c", *words]
        paths = [p for p in values.get("PYTHONPATH", "").split(os.pathsep) if p]
        sys.path[:] = ["", *paths, *sys.path[1:]]
        return str(code)
    sys.exit()


if __name__ == "__main__":
    exec(serve(), {"__name__": "__main__"})
