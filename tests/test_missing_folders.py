"""What cannot be written says why, and names a run only where there is one."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import prunus
from prunus._common import files


@pytest.mark.parametrize("write", [prunus.save, lambda m, p: files.write_json(p, {}),
                                   lambda m, p: files.append_line(p, "")])  # fmt: skip
def test_a_missing_folder_is_named_and_no_run(write: Any, tmp_path: Path) -> None:
    with pytest.raises(prunus.RunError, match=r"there is no folder '.*missing': make it") as error:
        write(nn.Linear(1, 1), tmp_path / "missing" / "model.safetensors")
    assert "resume" not in str(error.value)


@pytest.mark.parametrize(
    ("place", "run"), [("a/run", "a/run"), ("a/run/snapshots", "a/run"), ("a/other", None)]
)
def test_a_full_disk_names_the_run_that_lies_there(
    place: str, run: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / place).mkdir(parents=True)
    if run is not None:
        (tmp_path / run / "recipe.yaml").write_text("")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(prunus.RunError, match="the disk is full") as error:
        files.write_json(tmp_path / place / "x.json", {})
    assert str(error.value).endswith("full" if run is None else f"prunus resume {tmp_path / run}")
